//! A budget: so much at once, so much more a second.
//!
//! Owns the leaky bucket that bounds work which a peer can order for free. It must never close anything itself. Look next
//! at `config.rs` for the sizes.

use std::time::{Duration, Instant};

/// A bucket that leaks at a steady rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    size: u32,
    per_second: u32,
    used: u32,
    /// Up to when the leak is counted.
    counted: Instant,
}

impl Budget {
    pub(super) fn new(size: u32, per_second: u32, now: Instant) -> Self {
        Self { size, per_second, used: 0, counted: now }
    }

    /// Uses one unit; false if none is left.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.leak(now);
        if self.used >= self.size {
            return false;
        }
        self.used += 1;
        true
    }

    fn leak(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.counted);
        let leaked = elapsed.as_micros().saturating_mul(u128::from(self.per_second)) / 1_000_000;
        let Some(leaked) = u32::try_from(leaked).ok().filter(|leaked| *leaked < self.used) else {
            self.used = 0;
            self.counted = now;
            return;
        };
        if leaked > 0 {
            self.used -= leaked;
            // Only whole units are counted; the time of a fraction is kept for the next one.
            self.counted += Duration::from_micros(u64::from(leaked) * 1_000_000 / u64::from(self.per_second));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_budget_allows_its_size_at_once_and_its_rate_after() {
        let start = Instant::now();
        let mut budget = Budget::new(10, 5, start);
        assert!((0..10).all(|_| budget.take(start)));
        assert!(!budget.take(start));
        assert!(!budget.take(start + Duration::from_millis(199)));
        assert!(budget.take(start + Duration::from_millis(200)));
        assert!(!budget.take(start + Duration::from_millis(399)));
        assert!(budget.take(start + Duration::from_millis(400)));
        let later = start + Duration::from_secs(3600);
        assert!((0..10).all(|_| budget.take(later)));
        assert!(!budget.take(later));
    }

    #[test]
    fn frequent_asking_does_not_stop_the_leak() {
        let start = Instant::now();
        let mut budget = Budget::new(1, 3, start);
        let granted = (0..=10_000).filter(|ms| budget.take(start + Duration::from_millis(*ms))).count();
        assert!((30..=31).contains(&granted), "{granted}");
    }
}
