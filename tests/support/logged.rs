//! What an operator would read.
//!
//! Owns the counting of lines of the log, for the tests of the crate and for those beside it. It must never print them.

use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Counts picom's lines of one level and of graver ones.
pub(crate) struct Logged {
    level: Level,
    lines: AtomicUsize,
}

impl Logged {
    pub(crate) fn at(level: Level) -> Self {
        Self { level, lines: AtomicUsize::new(0) }
    }

    pub(crate) fn lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }
}

impl Subscriber for Logged {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        *of.level() <= self.level && of.target().starts_with("picom")
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn event(&self, _: &Event<'_>) {
        self.lines.fetch_add(1, Ordering::Relaxed);
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
