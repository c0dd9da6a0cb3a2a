//! Whether those who call on one connection stand in each other's way.
//!
//! Owns the rule, which looks at counts once in a while, so that a call costs nothing for it. It must never act on what it finds. Look next
//! at [`super::dial`], which asks, and at [`super::target`], which spreads calls over more connections.
//!
//! With 64 and with 256 calls in flight on two workers, on two cores that nobody else used, threads found the lock held once in two calls, and two
//! connections made 1.3 times as many calls, with one wait in eight calls. Another day, where the server had the same two cores, it was 0.95
//! and 1.07 times as many.

use std::time::{Duration, Instant};

/// How long is counted before it is looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// So many periods in a row say the same before anything follows from it: a burst is no reason for one more connection.
const CROWDED_PERIODS: u32 = 10;
/// So many calls for one wait, or fewer, are a crowd: half of what was seen where a second connection helped, and twice of what was left then.
const CALLS_FOR_A_WAIT: u64 = 4;
/// Waits in a second below which they cost nothing that matters: each takes some microseconds.
const WAITS: u64 = 1_000;
/// Calls in a second on one connection below which there cannot be as many waits, even if all of two or three looks at the lock were one.
const FEW_CALLS: u64 = 300;
/// How long there are so few before calls go back to one connection.
const CALM_FOR: Duration = Duration::from_secs(10);

/// Whether so many calls in that time are too few for anybody to wait.
pub(super) fn are_few(calls: u64, time: Duration) -> bool {
    u128::from(calls) * 1_000 / time.as_millis().max(1) < u128::from(FEW_CALLS)
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Strain {
    /// Those who call wait for each other.
    Crowded,
    /// There are too few calls for that.
    Calm,
}

/// The counts of one connection.
#[derive(Debug)]
pub(super) struct Gauge {
    since: Instant,
    calls: u64,
    waits: u32,
    crowded: u32,
    calm_since: Option<Instant>,
}

impl Gauge {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, calls: 0, waits: 0, crowded: 0, calm_since: None }
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= PERIOD
    }

    /// What follows from the numbers of calls and of waits since the connection began; the latter begins anew after four billion.
    pub(super) fn look(&mut self, now: Instant, (calls, waits): (u64, u32)) -> Option<Strain> {
        let (since, millis) = (self.since, now.saturating_duration_since(self.since).as_millis());
        let a_second = |count: u64| u128::from(count) * 1_000 / millis.max(1);
        let made = calls.saturating_sub(self.calls);
        let waited = u64::from(waits.wrapping_sub(self.waits));
        (self.since, self.calls, self.waits) = (now, calls, waits);
        let is_crowded = waited * CALLS_FOR_A_WAIT >= made && a_second(waited) >= u128::from(WAITS);
        self.crowded = if is_crowded { self.crowded + 1 } else { 0 };
        if a_second(made) >= u128::from(FEW_CALLS) {
            self.calm_since = None;
        } else if now.saturating_duration_since(*self.calm_since.get_or_insert(since)) >= CALM_FOR {
            self.calm_since = None;
            return Some(Strain::Calm);
        }
        if self.crowded == CROWDED_PERIODS {
            self.crowded = 0;
            return Some(Strain::Crowded);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said in so many seconds of so many calls and waits in each.
    fn said(gauge: &mut Gauge, seconds: u64, calls: u64, waits: u64) -> Vec<Strain> {
        let begin = gauge.since;
        let (mut total, mut all) = ((gauge.calls, u64::from(gauge.waits)), Vec::new());
        for period in 1..=10 * seconds {
            let now = begin + PERIOD * u32::try_from(period).unwrap_or(u32::MAX);
            assert!(gauge.is_due(now) && !gauge.is_due(now - Duration::from_millis(1)));
            total = (total.0 + calls / 10, total.1 + waits / 10);
            // The count of waits is one that begins anew.
            all.extend(gauge.look(now, (total.0, total.1 as u32)));
        }
        all
    }

    #[test]
    fn it_is_crowded_where_one_in_four_waits_for_a_second_and_not_with_few_calls() {
        let mut gauge = Gauge::new(Instant::now());
        assert_eq!(said(&mut gauge, 3, 500_000, 125_000), [Strain::Crowded; 3], "one of four");
        assert_eq!(said(&mut gauge, 30, 500_000, 124_990), [], "one less");
        assert_eq!(said(&mut gauge, 1, 4_000, 1_000), [Strain::Crowded], "as few as can be");
        assert_eq!(said(&mut gauge, 9, 3_990, 990), [], "one less");
        assert_eq!(said(&mut gauge, 30, 500_000, 0), [], "nobody waits");
    }

    #[test]
    fn a_burst_is_no_crowd() {
        let mut gauge = Gauge::new(Instant::now());
        for _ in 0..10 {
            let now = gauge.since;
            for period in 1..CROWDED_PERIODS {
                let count = (gauge.calls + 50_000, gauge.waits + 50_000);
                assert_eq!(gauge.look(now + PERIOD * period, count), None);
            }
            let count = (gauge.calls + 50_000, gauge.waits);
            assert_eq!(gauge.look(now + PERIOD * CROWDED_PERIODS, count), None, "nobody waited in the last tenth");
        }
    }

    #[test]
    fn it_is_calm_after_ten_seconds_with_few_calls_also_if_nothing_was_read_meanwhile() {
        let mut gauge = Gauge::new(Instant::now());
        assert_eq!(said(&mut gauge, 60, 300, 0), [], "enough calls");
        assert_eq!(said(&mut gauge, 10, 290, 0), [Strain::Calm]);
        let now = gauge.since;
        assert_eq!(gauge.look(now + CALM_FOR - Duration::from_millis(1), (gauge.calls, 0)), None);
        assert_eq!(gauge.look(now + CALM_FOR, (gauge.calls, 0)), Some(Strain::Calm));
        assert_eq!(gauge.look(now + CALM_FOR + PERIOD, (0, 0)), None, "calls that were taken back are no calls");
    }

    #[test]
    fn counts_may_begin_anew() {
        let mut gauge = Gauge { waits: u32::MAX - 10_000, ..Gauge::new(Instant::now()) };
        assert_eq!(said(&mut gauge, 1, 400_000, 200_000), [Strain::Crowded]);
    }
}
