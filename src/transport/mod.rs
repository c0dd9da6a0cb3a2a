//! Bytes in the real world: sockets, the in-process pipe, and the one task per connection that drives the protocol.
//!
//! Owns I/O and wakers. It must never decide what a frame means (that is [`crate::proto`]) nor what a call does (that
//! is `server` and `client`). Look next at [`link`] for the handle of a connection and [`driver`] for its task.

pub(crate) mod driver;
pub(crate) mod link;
pub(crate) mod memory;
pub(crate) mod tcp;

use std::io;
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

/// A byte stream to a peer, in two halves.
pub(crate) struct Io {
    pub(crate) read: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) write: Box<dyn WriteHalf>,
}
