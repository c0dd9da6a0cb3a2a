//! How busy a server is, counted where every connection can read it.
//!
//! Owns the counters and what is reported of them. It must never decide who may run: the server's `admission.rs` does, which
//! is the place to look next.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::wire::load::Load;

/// The work of one server, over all its connections.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// Calls that run.
    pub(crate) running: AtomicUsize,
    /// Calls that wait to run.
    pub(crate) waiting: AtomicUsize,
    /// How many may run at this moment.
    pub(crate) limit: AtomicUsize,
}

impl Gauge {
    pub(crate) fn new(limit: usize) -> Self {
        Self { running: AtomicUsize::new(0), waiting: AtomicUsize::new(0), limit: AtomicUsize::new(limit) }
    }

    /// What is said with an answer, whose call is counted but as good as over, or with a refusal, whose call is not counted.
    pub(super) fn report(&self, answers: bool) -> Load {
        let busy = self.running.load(Ordering::Relaxed).saturating_add(self.waiting.load(Ordering::Relaxed));
        let short = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        Load {
            slot: short(busy.saturating_sub(usize::from(answers))),
            capacity: short(self.limit.load(Ordering::Relaxed)),
        }
    }
}
