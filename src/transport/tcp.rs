//! TCP: connecting, the options every socket gets, and its two halves.
//!
//! Owns what is particular to TCP. It must never know the protocol. Look next at [`super::driver`].

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{Io, ReadHalf, WriteHalf};

/// How long the kernel keeps unacknowledged bytes before it gives a connection up. The protocol's own keepalive notices a
/// silent peer within 6 seconds of a call; this is the net below it, for bytes that are stuck in the kernel.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to `addr`.
pub(crate) async fn connect(addr: SocketAddr) -> io::Result<Io> {
    Ok(split(TcpStream::connect(addr).await?))
}

/// Sets the options of a connected socket and takes it apart.
pub(crate) fn split(stream: TcpStream) -> Io {
    // Neither option decides whether the connection works, so a kernel that refuses one is no reason to fail.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT)) {
        tracing::debug!(%error, "TCP_USER_TIMEOUT was refused");
    }
    let (read, write) = stream.into_split();
    Io { read: Box::new(Reader { half: read, away: None }), write: Box::new(write) }
}

struct Reader {
    half: OwnedReadHalf,
    /// Seldom there, and a connection shall be small.
    away: Option<Box<Away>>,
}

/// Most sockets of a process that are open twice at a time: each is a file of its own, and many a process may have no more than 1,024.
const MOST_AWAY: usize = 256;
/// How many are.
static AWAY: AtomicUsize = AtomicUsize::new(0);

/// How many sockets are open twice.
#[cfg(test)]
pub(crate) fn away() -> usize {
    AWAY.load(Ordering::Relaxed)
}

/// All places that are left.
#[cfg(test)]
pub(crate) fn take_places() -> Vec<impl Sized> {
    std::iter::from_fn(Place::take).collect()
}

/// A socket once more, where another runtime waits for it.
struct Away {
    socket: TcpStream,
    _place: Place,
}

/// Counted among [`AWAY`] as long as it lives.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let place = Self;
        (AWAY.fetch_add(1, Ordering::Relaxed) < MOST_AWAY).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        AWAY.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Away {
    fn new(half: &OwnedReadHalf) -> io::Result<Self> {
        let place = Place::take().ok_or_else(|| io::Error::other("as many sockets as may be are open twice"))?;
        let socket = socket2::SockRef::from(half.as_ref()).try_clone()?;
        // As the first one is, which not every system takes over.
        socket.set_nonblocking(true)?;
        Ok(Self { socket: TcpStream::from_std(socket.into())?, _place: place })
    }
}

impl AsyncRead for Reader {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.away {
            None => Pin::new(&mut self.half).poll_read(cx, buf),
            Some(away) => Pin::new(&mut away.socket).poll_read(cx, buf),
        }
    }
}

impl ReadHalf for Reader {
    fn leave_home(&mut self) -> bool {
        self.away = Away::new(&self.half)
            .map(Box::new)
            .inspect_err(|error| tracing::debug!(%error, "a connection stays where it is, so refusals on it are slow"))
            .ok();
        self.away.is_some()
    }

    fn come_home(&mut self) {
        self.away = None;
    }
}

impl WriteHalf for OwnedWriteHalf {
    fn try_write(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            [one] => Self::try_write(self, one),
            many => self.try_write_vectored(many),
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.as_ref().poll_write_ready(cx)
    }

    fn shutdown(&self) {
        // It fails only when the connection is gone already.
        let _ = socket2::SockRef::from(self.as_ref()).shutdown(std::net::Shutdown::Write);
    }
}
