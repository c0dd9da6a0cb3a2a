//! Byte streams within one process: two bounded pipes, and addresses to find them by.
//!
//! Owns the pipe and the table of listeners. A pipe behaves like a socket, down to partial writes and the end of the stream,
//! so that tests on it mean something; it must never shortcut the protocol. Look next at [`super::driver`].

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use super::{Io, ReadHalf, WriteHalf};

/// Bytes that one direction holds before writers have to wait, about what a loopback socket holds.
const CAPACITY: usize = 256 << 10;

/// Connections that wait to be accepted, as many as a socket's backlog usually is.
const BACKLOG: usize = 128;

/// The address of every in-process listener; the port tells them apart. It lies in the prefix that discards what is sent to
/// it (RFC 6666), so it never belongs to another machine.
pub(super) const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

type Listeners = Mutex<HashMap<u16, mpsc::Sender<Io>>>;

fn listeners() -> MutexGuard<'static, HashMap<u16, mpsc::Sender<Io>>> {
    static LISTENERS: OnceLock<Listeners> = OnceLock::new();
    LISTENERS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `addr` is within this process.
pub(crate) fn is_memory(addr: SocketAddr) -> bool {
    addr.ip() == IpAddr::V6(ADDRESS)
}

/// Accepts connections from within this process.
#[derive(Debug)]
pub(crate) struct Listener {
    port: u16,
    incoming: mpsc::Receiver<Io>,
}

impl Listener {
    /// Listens on `port`, or with 0 on any that is free.
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let mut listeners = listeners();
        let port = match port {
            0 => (1..=u16::MAX).find(|port| !listeners.contains_key(port)),
            port => Some(port).filter(|port| !listeners.contains_key(port)),
        };
        let port = port.ok_or(io::ErrorKind::AddrInUse)?;
        let (sender, incoming) = mpsc::channel(BACKLOG);
        listeners.insert(port, sender);
        Ok(Self { port, incoming })
    }

    /// Where to connect to.
    pub(crate) fn addr(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(ADDRESS), self.port)
    }

    /// The next connection. Cancel safe.
    pub(crate) async fn accept(&mut self) -> io::Result<Io> {
        // The table holds a sender as long as this lives.
        self.incoming.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        listeners().remove(&self.port);
    }
}

/// Connects to a listener of this process.
pub(crate) fn connect(addr: SocketAddr) -> io::Result<Io> {
    let listener = listeners().get(&addr.port()).cloned().ok_or(io::ErrorKind::ConnectionRefused)?;
    let (ours, theirs) = pair();
    listener.try_send(theirs).map_err(|_| io::ErrorKind::ConnectionRefused)?;
    Ok(ours)
}

/// Two connected byte streams.
pub(crate) fn pair() -> (Io, Io) {
    let (left_read, right_write) = pipe();
    let (right_read, left_write) = pipe();
    let io = |read: Reader, write: Writer| Io { read: Box::new(read), write: Box::new(write) };
    (io(left_read, left_write), io(right_read, right_write))
}

fn pipe() -> (Reader, Writer) {
    let shared = Arc::new(Mutex::new(Pipe::default()));
    (Reader(Arc::clone(&shared)), Writer(shared))
}

#[derive(Default)]
struct Pipe {
    bytes: BytesMut,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

fn lock(pipe: &Mutex<Pipe>) -> MutexGuard<'_, Pipe> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner)
}

fn close(pipe: &Mutex<Pipe>) {
    let mut pipe = lock(pipe);
    pipe.closed = true;
    let wakers = [pipe.reader.take(), pipe.writer.take()];
    drop(pipe);
    wakers.into_iter().flatten().for_each(Waker::wake);
}

struct Reader(Arc<Mutex<Pipe>>);

impl ReadHalf for Reader {}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.0);
        if pipe.bytes.is_empty() {
            if pipe.closed {
                return Poll::Ready(Ok(()));
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = pipe.bytes.len().min(buf.remaining());
        buf.put_slice(&pipe.bytes[..n]);
        pipe.bytes.advance(n);
        let writer = pipe.writer.take();
        drop(pipe);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        close(&self.0);
    }
}

struct Writer(Arc<Mutex<Pipe>>);

impl WriteHalf for Writer {
    fn try_write(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = lock(&self.0);
        if pipe.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut written = 0;
        for slice in slices {
            let n = slice.len().min(CAPACITY.saturating_sub(pipe.bytes.len()));
            pipe.bytes.extend_from_slice(&slice[..n]);
            written += n;
        }
        if written == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let reader = pipe.reader.take();
        drop(pipe);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(written)
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.0);
        if pipe.closed || pipe.bytes.len() < CAPACITY {
            return Poll::Ready(Ok(()));
        }
        pipe.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn shutdown(&self) {
        close(&self.0);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        close(&self.0);
    }
}
