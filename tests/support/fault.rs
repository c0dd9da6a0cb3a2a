//! One row of the table of faults: what was broken, what was measured, and whether that is good enough.
//!
//! Owns [`Row`], whose line `tests/faults` picks out. A row prints its line before it fails, so that a figure that is too bad is
//! seen too. It must never measure anything itself. Look next at `scene.rs` for who is measured, and at `docs/faults.md` for the
//! table.

use std::fmt::{Debug, Write as _};
use std::io::Write as _;
use std::time::Duration;

/// What one fault did, and what it may do at most.
pub(crate) struct Row {
    line: String,
    missed: bool,
}

impl Row {
    pub(crate) fn new(number: u32, fault: &str) -> Self {
        Self { line: format!("fault {number:2} | {fault} |"), missed: false }
    }

    /// Notes a figure, which must not be above `limit`.
    #[allow(clippy::needless_pass_by_value, reason = "figures are small, and a limit reads better without a reference")]
    pub(crate) fn at_most<T: PartialOrd + Debug>(mut self, what: &str, figure: T, limit: T) -> Self {
        // What cannot be compared is no figure.
        let missed = figure.partial_cmp(&limit).is_none_or(|order| order.is_gt());
        self.missed |= missed;
        let _ = write!(self.line, " {what}: {figure:.2?} ({} {limit:?});", if missed { "MORE than" } else { "<=" });
        self
    }

    /// Notes a figure, which must not be below `limit`.
    #[allow(clippy::needless_pass_by_value, reason = "figures are small, and a limit reads better without a reference")]
    pub(crate) fn at_least<T: PartialOrd + Debug>(mut self, what: &str, figure: T, limit: T) -> Self {
        let missed = figure.partial_cmp(&limit).is_none_or(|order| order.is_lt());
        self.missed |= missed;
        let _ = write!(self.line, " {what}: {figure:.2?} ({} {limit:?});", if missed { "LESS than" } else { ">=" });
        self
    }

    /// Notes a time, which must not be above `limit`: with `PICOM_FAULTS=strict`, as `tests/faults` sets it to have the machine for itself.
    /// Beside other tests it may take ten times as long.
    pub(crate) fn within(self, what: &str, figure: Duration, limit: Duration) -> Self {
        let strict = std::env::var("PICOM_FAULTS").is_ok_and(|value| value == "strict");
        self.at_most(what, figure, if strict { limit } else { limit * 10 })
    }

    /// Notes something that the metric does not judge.
    pub(crate) fn also(mut self, what: &str, figure: impl Debug) -> Self {
        let _ = write!(self.line, " {what}: {figure:.2?};");
        self
    }

    /// Prints the line; panics if a figure was above its limit.
    #[track_caller]
    pub(crate) fn finish(self) {
        let verdict = if self.missed { "FAIL" } else { "pass" };
        let line = format!("{} | {verdict}", self.line.trim_end_matches(';'));
        // Written past the test harness, which would keep the line of a test that passes to itself.
        let _ = writeln!(std::io::stderr(), "{line}");
        assert!(!self.missed, "{line}");
    }
}
