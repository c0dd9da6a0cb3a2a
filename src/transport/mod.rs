//! Bytes in the real world: sockets, the in-process pipe, and the one task per connection that drives the protocol.
//!
//! Owns I/O and wakers. It must never decide what a frame means (that is [`crate::proto`]) nor what a call does (that
//! is `server` and `client`). Look next at [`link`] for the handle of a connection and [`driver`] for its task.

pub(crate) mod buffers;
pub(crate) mod driver;
pub(crate) mod link;
pub(crate) mod memory;
#[cfg(test)]
pub(crate) mod simulated;
mod state;
pub(crate) mod tcp;

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use tokio::io::AsyncRead;

/// The sending side of a byte stream, shared by everyone who may write to the connection.
pub(crate) trait WriteHalf: Send + Sync + 'static {
    /// Writes what fits now, without waiting.
    fn try_write(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize>;
    /// Waits, as one task at a time, until more may fit.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Tells the peer that nothing more will come.
    fn shutdown(&self);
}

/// The receiving side of a byte stream.
pub(crate) trait ReadHalf: AsyncRead + Send + Unpin {
    /// From now on the runtime of whoever calls this says when there is something to read, instead of the one it was made in; unless that
    /// cannot be.
    fn leave_home(&mut self) -> bool {
        false
    }
    /// The runtime that it was made in says so again.
    fn come_home(&mut self) {}
}

/// A byte stream to a peer, in two halves.
pub(crate) struct Io {
    pub(crate) read: Box<dyn ReadHalf>,
    pub(crate) write: Box<dyn WriteHalf>,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

/// Connects to `addr`, by TCP or within this process.
pub(crate) async fn connect(addr: SocketAddr) -> io::Result<Io> {
    #[cfg(test)]
    if let Some(connecting) = simulated::connect(addr) {
        return connecting.await;
    }
    if memory::is_memory(addr) { memory::connect(addr) } else { tcp::connect(addr).await }
}

/// Accepts connections, by TCP or from within this process.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(tokio::net::TcpListener),
    Memory(memory::Listener),
}

impl Listener {
    /// Where it listens.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Memory(listener) => Ok(listener.addr()),
        }
    }

    /// The next connection, and where it comes from: `None` within this process. Cancel safe.
    pub(crate) async fn accept(&mut self) -> io::Result<(Io, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| (tcp::split(stream), Some(peer))),
            Self::Memory(listener) => listener.accept().await.map(|io| (io, None)),
        }
    }
}
