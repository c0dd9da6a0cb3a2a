//! A connection of a pool while one user has it.
//!
//! Owns [`Lease`]. It must never go back twice, nor be forgotten. Look next at [`super::pool`].

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::net::TcpStream;

use super::ledger::Id;
use super::pool::Shared;

/// A connection that nobody else uses meanwhile. Dropping it gives it back to its pool.
///
/// The pool does not know what is said on it. One that broke, or on which an exchange was cut short, as when its future was
/// cancelled, must be [discarded](Self::discard): the next user would read what was left.
pub struct Lease {
    pool: Arc<Shared>,
    id: Id,
    slot: u32,
    server: Arc<str>,
    /// None when it is not to go back, which is so only in `discard` and `drop`, after which there is no lease that could be used.
    stream: Option<TcpStream>,
}

impl Lease {
    pub(super) fn new(pool: Arc<Shared>, id: Id, slot: u32, server: Arc<str>, stream: TcpStream) -> Self {
        Self { pool, id, slot, server, stream: Some(stream) }
    }

    /// The number of the connection.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The name of its server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Closes the connection. It is counted out of its pool.
    pub fn discard(mut self) {
        self.stream = None;
        self.pool.discard(self.id);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.pool.put_back(self.id, stream);
        }
    }
}

impl Deref for Lease {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        match &self.stream {
            Some(stream) => stream,
            // See the field.
            None => unreachable!("a lease without a connection is gone"),
        }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut TcpStream {
        match &mut self.stream {
            Some(stream) => stream,
            // See the field.
            None => unreachable!("a lease without a connection is gone"),
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slot, server, .. } = self;
        f.debug_struct("Lease").field("slot", slot).field("server", server).finish_non_exhaustive()
    }
}
