//! What the endpoints of one service have in common.
//!
//! Owns the time that all of them count in, the number that is ejected, and the flag that says whether looking at each is
//! worth it. It must never know which endpoints there are. Look next at [`super::circuit`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Shared by all endpoints of one service.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// Whose they are, for the log.
    service: Arc<str>,
    start: Instant,
    /// Somebody may be less than well.
    unwell: AtomicBool,
    size: AtomicUsize,
    ejected: AtomicUsize,
    turn: AtomicUsize,
}

impl Fleet {
    pub(crate) fn new(service: Arc<str>, now: Instant) -> Self {
        Self {
            service,
            start: now,
            unwell: AtomicBool::new(false),
            size: AtomicUsize::new(0),
            ejected: AtomicUsize::new(0),
            // Random, so that many short-lived clients do not all begin with the same endpoint.
            turn: AtomicUsize::new(fastrand::usize(..)),
        }
    }

    pub(super) fn service(&self) -> &str {
        &self.service
    }

    /// A moment in nanoseconds, never 0.
    pub(crate) fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// How many endpoints there are now.
    pub(super) fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    pub(super) fn resize(&self, size: usize) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// The next number.
    pub(super) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Says that looking at each is worth it from now on.
    pub(super) fn somebody_is_unwell(&self) {
        self.unwell.store(true, Ordering::Release);
    }

    pub(super) fn is_somebody_unwell(&self) -> bool {
        self.unwell.load(Ordering::Relaxed)
    }

    /// Before looking at each: whoever finds one that is not well says so again.
    pub(super) fn look_again(&self) {
        self.unwell.swap(false, Ordering::AcqRel);
    }

    /// Takes one of the places for ejected endpoints, if one is free: half of all.
    pub(super) fn eject(&self) -> bool {
        let one_more = |ejected: usize| Some(ejected + 1).filter(|ejected| ejected * 2 <= self.size());
        self.ejected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Gives it back.
    pub(super) fn readmit(&self) {
        self.ejected.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether more than half of all are ejected, because others have left.
    pub(super) fn has_too_many_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed) * 2 > self.size()
    }
}
