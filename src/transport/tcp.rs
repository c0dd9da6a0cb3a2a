//! TCP: connecting, the options every socket gets, and its two halves.
//!
//! Owns what is particular to TCP. It must never know the protocol. Look next at [`super::driver`].

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use super::{Io, WriteHalf};

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
    Io { read: Box::new(read), write: Box::new(write) }
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
