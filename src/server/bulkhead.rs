//! How many calls of one method may run or wait at once, so that a slow method does not take the places of the others.
//!
//! Owns one count for each method that has such a limit. It must never wait: the next call is refused. Look next at
//! [`super::admission`] for the limit over all methods.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The limit of one method, over all its names and all connections.
#[derive(Debug)]
pub(super) struct Bulkhead {
    inside: AtomicUsize,
    max: usize,
}

/// One of the places; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Inside(Arc<Bulkhead>);

impl Bulkhead {
    pub(super) fn new(max: usize) -> Self {
        Self { inside: AtomicUsize::new(0), max }
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Inside> {
        let inside = Inside(Arc::clone(self));
        (self.inside.fetch_add(1, Ordering::Relaxed) < self.max).then_some(inside)
    }

    /// Why a call is refused.
    pub(super) fn full(&self, method: &str) -> String {
        format!("`{method}` has its limit of {} calls at once (`max_concurrent`)", self.max)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}
