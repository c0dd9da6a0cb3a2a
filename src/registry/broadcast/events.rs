//! What a broadcast registry tells of: who came and went, and what was refused.
//!
//! Owns the public events, the reasons of refusals, and their counters. It must never decide anything. Look next at
//! `table.rs` for who decides.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::registry::Endpoint;

/// What a [`Broadcast`](super::Broadcast) registry heard of others; its own instances are not among it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An instance was heard for the first time.
    Added {
        /// Its service.
        service: String,
        /// The instance.
        endpoint: Arc<Endpoint>,
    },
    /// An instance says something else of itself than before, for example another state.
    Changed {
        /// Its service.
        service: String,
        /// The instance as it is now.
        endpoint: Arc<Endpoint>,
    },
    /// An instance is gone.
    Removed {
        /// Its service.
        service: String,
        /// The instance as it was last; of one that left, its status says why, if it told.
        endpoint: Arc<Endpoint>,
        /// Why.
        reason: Gone,
    },
    /// Two instances that are alive at the same time use one id. Told at most once a minute per id.
    DuplicateId {
        /// Their service.
        service: String,
        /// Their id.
        id: String,
        /// The one that stays known here: this registry's own, else the one heard first.
        kept: SocketAddr,
        /// The one that is refused.
        other: SocketAddr,
    },
    /// A datagram was refused. Told at most once a second; [`Broadcast::refused`](super::Broadcast::refused) counts all.
    Refused {
        /// Where it came from, or claims to.
        from: SocketAddr,
        /// Why.
        why: Refusal,
    },
    /// The reader was too slow, and this many events were dropped.
    Skipped(u64),
}

/// Why an instance is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gone {
    /// It said so.
    Left,
    /// It was not heard any more.
    Missed,
    /// Another process with its id answers at its address: it was restarted.
    Replaced,
}

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// It is longer than 1,200 bytes.
    TooLong,
    /// It is no datagram of a picom registry, or not a sensible one.
    Malformed,
    /// It has another version of the format.
    OtherVersion,
    /// It is not sealed, and there is a key here.
    Unsealed,
    /// It is sealed, and there is no key here.
    Sealed,
    /// It was not sealed with the key that is used here, or it was changed on its way.
    WrongKey,
    /// It was heard before, or is older than what was heard of its sender.
    Replayed,
    /// It comes from another machine, and only loopback is listened to.
    Foreign,
    /// There is no room for another instance: 4,096 are known.
    Full,
    /// There is no room for another instance from this address: 1,024 are known.
    FullOfSource,
    /// Another living instance has its id.
    DuplicateId,
}

impl Refusal {
    const ALL: [Self; 11] = [
        Self::TooLong,
        Self::Malformed,
        Self::OtherVersion,
        Self::Unsealed,
        Self::Sealed,
        Self::WrongKey,
        Self::Replayed,
        Self::Foreign,
        Self::Full,
        Self::FullOfSource,
        Self::DuplicateId,
    ];
}

/// How many datagrams were refused, by reason.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused([u64; Refusal::ALL.len()]);

impl Refused {
    /// How many were refused for this reason.
    pub const fn of(&self, why: Refusal) -> u64 {
        self.0[why as usize]
    }

    /// How many were refused in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(Refusal::ALL.iter().map(|why| (why, self.of(*why))).filter(|(_, n)| *n > 0)).finish()
    }
}

#[derive(Default)]
pub(super) struct Counters([AtomicU64; Refusal::ALL.len()]);

impl Counters {
    pub(super) fn count(&self, why: Refusal) {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Refused {
        Refused(std::array::from_fn(|at| self.0[at].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let counters = Counters::default();
        for (n, why) in (1..).zip(Refusal::ALL) {
            (0..n).for_each(|_| counters.count(why));
        }
        let read = counters.read();
        for (n, why) in (1..).zip(Refusal::ALL) {
            assert_eq!(read.of(why), n, "{why:?}");
        }
        assert_eq!(read.total(), 66);
    }
}
