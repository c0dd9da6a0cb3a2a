//! A connection at a server, with its number.
//!
//! Owns [`Accepted`] and [`SlotGuard`]. They must never give a number back before the connection is over, nor twice. Look next
//! at [`super::listener`].

use std::fmt;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::net::TcpStream;

/// Where a number goes when its connection is over.
pub(super) type Free = Arc<dyn Fn(u32) + Send + Sync>;

/// A connection with a slot, which is free again when this is dropped, after the connection is closed.
#[derive(Debug)]
#[must_use = "dropping it closes the connection"]
pub struct Accepted {
    // In this order: a slot is free only after its connection.
    stream: TcpStream,
    guard: SlotGuard,
    peer: SocketAddr,
}

impl Accepted {
    pub(super) fn new(stream: TcpStream, guard: SlotGuard, peer: SocketAddr) -> Self {
        Self { stream, guard, peer }
    }

    /// Its number.
    pub fn slot(&self) -> u32 {
        self.guard.slot
    }

    /// The address of the client.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The connection and what holds its slot, for those who take the connection apart. Drop the guard when it is over.
    pub fn into_parts(self) -> (TcpStream, SlotGuard) {
        (self.stream, self.guard)
    }
}

impl Deref for Accepted {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl DerefMut for Accepted {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

/// Holds a slot, and gives it back, once, when it is dropped.
#[must_use = "dropping it gives the slot back"]
pub struct SlotGuard {
    slot: u32,
    free: Free,
}

impl SlotGuard {
    pub(super) fn new(slot: u32, free: Free) -> Self {
        Self { slot, free }
    }

    /// The number.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        (self.free)(self.slot);
    }
}

impl fmt::Debug for SlotGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotGuard").field("slot", &self.slot).finish_non_exhaustive()
    }
}
