//! How long a method takes of late, as a distribution.
//!
//! Owns the counts of two windows and the percentiles that are read from them. It must never read a clock nor decide anything. Look
//! next at [`super::hedge`], which asks.

use std::time::Duration;

use tokio::time::Instant;

/// Shorter times are all the same: timers are no finer.
const LEAST: Duration = Duration::from_millis(1);
/// Buckets for each doubling, so that a percentile is at most 4.5 % too long.
const PER_DOUBLING: usize = 16;
/// From 1 ms to 32.8 s, beyond the default deadline of calls. Longer times are all the same.
const DOUBLINGS: usize = 15;
const BUCKETS: usize = 1 + DOUBLINGS * PER_DOUBLING;
/// How long a window is filled. The last one counts too, so that percentiles look back over 10 to 20 s.
const WINDOW: Duration = Duration::from_secs(10);
/// Times in both windows below which a percentile means nothing: with so many, two or three are above the p95.
pub(super) const ENOUGH: u32 = 50;

/// The times of one method.
#[derive(Debug)]
pub(super) struct Latencies {
    since: Instant,
    now: Box<Window>,
    before: Box<Window>,
}

#[derive(Debug)]
struct Window {
    count: u32,
    buckets: [u32; BUCKETS],
}

impl Window {
    fn new() -> Box<Self> {
        Box::new(Self { count: 0, buckets: [0; BUCKETS] })
    }
}

impl Latencies {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, now: Window::new(), before: Window::new() }
    }

    /// Notes that a call took so long, or at least so long.
    pub(super) fn record(&mut self, took: Duration, now: Instant) {
        self.turn(now);
        // More than 2^32 in ten seconds do not come.
        self.now.count = self.now.count.saturating_add(1);
        if let Some(bucket) = self.now.buckets.get_mut(bucket(took)) {
            *bucket = bucket.saturating_add(1);
        }
    }

    /// The time within which this share of the calls was answered, at least 1 ms; `None` if there were too few to tell.
    pub(super) fn percentile(&mut self, share: f64, now: Instant) -> Option<Duration> {
        self.turn(now);
        let count = self.now.count.saturating_add(self.before.count);
        if count < ENOUGH {
            return None;
        }
        let rank = (f64::from(count) * share).ceil();
        let mut below = 0.0;
        let buckets = self.now.buckets.iter().zip(&self.before.buckets);
        let found = buckets.map(|(now, before)| f64::from(*now) + f64::from(*before)).position(|times| {
            below += times;
            below >= rank
        });
        Some(longest_in(found.unwrap_or(BUCKETS - 1)))
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < WINDOW {
            return;
        }
        std::mem::swap(&mut self.now, &mut self.before);
        *self.now = *Window::new();
        if age >= 2 * WINDOW {
            *self.before = *Window::new();
        }
        self.since = now;
    }
}

fn bucket(took: Duration) -> usize {
    let doublings = took.div_duration_f64(LEAST).log2().max(0.0);
    // Cut to the range, and -inf is below it.
    ((doublings * PER_DOUBLING as f64).ceil() as usize).min(BUCKETS - 1)
}

fn longest_in(bucket: usize) -> Duration {
    LEAST.mul_f64((bucket as f64 / PER_DOUBLING as f64).exp2())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn within(found: Option<Duration>, exact: Duration) {
        let found = found.unwrap_or_default();
        assert!((exact..=exact.mul_f64(1.045)).contains(&found), "{found:?} instead of {exact:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn percentiles_are_those_of_the_times_up_to_a_twentieth() {
        let now = Instant::now();
        let mut latencies = Latencies::new(now);
        for n in 1..=1000 {
            latencies.record(n * MS, now);
        }
        for share in [0.5, 0.9, 0.95, 0.98, 1.0] {
            within(latencies.percentile(share, now), (1000.0 * share) as u32 * MS);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_times_than_fifty_tell_nothing() {
        let now = Instant::now();
        let mut latencies = Latencies::new(now);
        for n in 1..=ENOUGH {
            assert_eq!(latencies.percentile(0.95, now), None, "after {} times", n - 1);
            latencies.record(3 * MS, now);
        }
        within(latencies.percentile(0.95, now), 3 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn very_short_and_very_long_times_are_taken_for_the_limits() {
        let now = Instant::now();
        for (took, taken_for) in [(Duration::ZERO, MS), (MS, MS), (Duration::MAX, MS * (1 << DOUBLINGS))] {
            let mut latencies = Latencies::new(now);
            (0..ENOUGH).for_each(|_| latencies.record(took, now));
            assert_eq!(latencies.percentile(0.95, now), Some(taken_for), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_two_windows_is_forgotten_and_no_sooner_than_one() {
        let mut latencies = Latencies::new(Instant::now());
        (0..ENOUGH).for_each(|_| latencies.record(100 * MS, Instant::now()));
        tokio::time::advance(WINDOW).await;
        within(latencies.percentile(0.95, Instant::now()), 100 * MS);
        (0..ENOUGH).for_each(|_| latencies.record(7 * MS, Instant::now()));
        within(latencies.percentile(0.95, Instant::now()), 100 * MS);
        tokio::time::advance(WINDOW).await;
        within(latencies.percentile(0.95, Instant::now()), 7 * MS);
        tokio::time::advance(2 * WINDOW).await;
        assert_eq!(latencies.percentile(0.95, Instant::now()), None);
    }
}
