//! A byte stream within one process: two bounded pipes.
//!
//! Owns the pipe. It behaves like a socket, down to partial writes and the end of the stream, so that tests on it mean
//! something; it must never shortcut the protocol. Look next at [`super::driver`].

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::{Io, WriteHalf};

/// Bytes that one direction holds before writers have to wait, about what a loopback socket holds.
const CAPACITY: usize = 256 << 10;

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
