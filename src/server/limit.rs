//! How many calls a server should run at once: the arithmetic.
//!
//! Owns the two signals of overload and the step that both share. It must never count calls, read a clock or wait. Look next
//! at [`super::admission`], which feeds it and lives by what it says.
//!
//! The step is that of Netflix's concurrency limits (`GradientLimit`): `limit · gradient + √limit`, with a gradient between
//! a half and one. The root is the room that keeps asking for more.

use std::time::Duration;

use tokio::time::Instant;

/// Fewest calls that an adaptive limit allows: one that is wrong must leave enough to find out.
pub(super) const FLOOR: usize = 8;
/// Where the limit of [`Gradient`] starts.
pub(super) const START: usize = 64;
/// How often the limit is thought over.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// How late ready tasks may run, all of an interval long, before the process counts as overloaded: the queueing time at which
/// WeChat's DAGOR decides so. A timer is exact to 1 ms, a worker of tokio looks at sockets at least every 61 tasks, and a machine that has
/// other things to do gives the processor back within some milliseconds.
const LATE: Duration = Duration::from_millis(20);
/// For how long after that the limit stays although nobody asks for more.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How much longer than the least a call may take before the limit shrinks, as in Netflix's `Gradient2Limit`.
const TOLERANCE: f64 = 1.5;
/// The smallest gradient of times: a limit is at most halved at once, as in Netflix's.
const STEEPEST: f64 = 0.5;
/// The same for lateness, which grows with what runs, so that one step may be the whole way.
const STEEPEST_LATE: f64 = 0.1;
/// How much of a step is taken at once, as in Netflix's `Gradient2Limit`.
const SMOOTHING: f64 = 0.2;
/// For how long the least time of a call is believed at most twice, as in BBR…
const BELIEVED: Duration = Duration::from_secs(10);
/// … but at first not for longer than this.
const BELIEVED_FIRST: Duration = Duration::from_secs(1);
/// To see what a call takes without a queue, the limit is so many times smaller…
const PROBE_SHARE: f64 = 4.0;
/// … for so many intervals: one to serve the queue, one to measure.
const PROBE_INTERVALS: u8 = 2;

fn step(limit: f64, gradient: f64) -> f64 {
    limit * gradient.clamp(STEEPEST, 1.0) + limit.sqrt()
}

fn within(limit: f64, ceiling: usize) -> usize {
    // Positive, and at most the ceiling after the comparison.
    (limit as usize).clamp(FLOOR.min(ceiling), ceiling)
}

/// The limit that follows how late ready tasks run. Lateness means that the processors have more to do than they can; the time
/// that calls take says nothing of it, because calls that wait for something else cost nothing.
#[derive(Debug)]
pub(super) struct Lateness {
    limit: usize,
    ceiling: usize,
    /// When tasks were late last.
    late: Option<Instant>,
}

impl Lateness {
    /// No limit but the ceiling.
    pub(super) fn new(ceiling: usize) -> Self {
        Self { limit: ceiling, ceiling, late: None }
    }

    /// The limit after an interval in which every task ran at least `delay` too late, and at most `most` calls ran at once.
    pub(super) fn next(&mut self, delay: Duration, most: usize, now: Instant) -> usize {
        let limit = self.limit as f64;
        let next = if delay > LATE {
            self.late = Some(now);
            let gradient = LATE.as_secs_f64() / delay.as_secs_f64();
            // No root here: what is to shrink must not grow, however small it is.
            limit.min(most as f64) * gradient.max(STEEPEST_LATE)
        } else if most >= self.limit / 2 {
            step(limit, 1.0)
        } else if self.late.is_some_and(|late| now.saturating_duration_since(late) < REMEMBERED) {
            // Nobody asks for more, perhaps because they were refused.
            limit
        } else {
            limit * 2.0
        };
        self.limit = within(next, self.ceiling);
        self.limit
    }
}

/// The limit that follows how long calls take: the least seen of late, against what they take now.
#[derive(Debug)]
pub(super) struct Gradient {
    limit: f64,
    /// The least mean of an interval, in seconds, in this span and in the one before it.
    least: [f64; 2],
    span_ends: Instant,
    /// Whether the limit was to shrink in this span.
    pressed: bool,
    /// The limit to go back to, after so many intervals.
    probe: Option<(f64, u8)>,
}

impl Gradient {
    pub(super) fn new(now: Instant) -> Self {
        let span_ends = now + BELIEVED_FIRST;
        Self { limit: START as f64, least: [f64::INFINITY; 2], span_ends, pressed: false, probe: None }
    }

    /// The limit after an interval in which calls took `mean` seconds and at most `most` of them ran at once.
    pub(super) fn next(&mut self, mean: f64, most: usize, now: Instant, ceiling: usize) -> usize {
        self.least[0] = self.least[0].min(mean);
        match self.probe.take() {
            Some((limit, 1)) => self.limit = limit,
            Some((limit, more)) => {
                self.probe = Some((limit, more - 1));
                return within(self.limit, ceiling);
            }
            None if now >= self.span_ends => {
                self.least = [f64::INFINITY, self.least[0]];
                self.span_ends = now + BELIEVED;
                if std::mem::take(&mut self.pressed) {
                    // Under lasting pressure the least seen is that of a queue, if only a short one.
                    self.probe = Some((self.limit, PROBE_INTERVALS));
                    self.limit /= PROBE_SHARE;
                    return within(self.limit, ceiling);
                }
            }
            None => {}
        }
        // As long as half of it is not used, the limit is not what decides.
        if most as f64 >= self.limit / 2.0 {
            let least = self.least[0].min(self.least[1]);
            let gradient = if mean > 0.0 { TOLERANCE * least / mean } else { 1.0 };
            self.pressed |= gradient < 1.0;
            let next = step(self.limit, gradient);
            self.limit = self.limit * (1.0 - SMOOTHING) + next * SMOOTHING;
        }
        let limit = within(self.limit, ceiling);
        self.limit = self.limit.clamp(FLOOR.min(ceiling) as f64, ceiling as f64);
        limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILING: usize = 65_536;

    /// What calls take that share `places` for `seconds` each.
    fn queue(calls: usize, places: usize, seconds: f64) -> f64 {
        seconds * (calls as f64 / places as f64).max(1.0)
    }

    #[test]
    fn the_gradient_settles_above_what_the_work_has_places_for_and_stays_there() {
        for (places, seconds) in [(8, 0.010), (100, 0.002), (20, 1.0)] {
            let mut now = Instant::now();
            let (mut gradient, mut limit) = (Gradient::new(now), START);
            let mut seen = Vec::new();
            // Ten minutes of calls that never cease.
            for interval in 0..6_000 {
                now += INTERVAL;
                limit = gradient.next(queue(limit, places, seconds), limit, now, CEILING);
                if interval > 300 {
                    seen.push(limit);
                }
            }
            let used: usize = seen.iter().map(|limit| limit.min(&places)).sum();
            let share = used as f64 / (places * seen.len()) as f64;
            assert!(share > 0.97, "{places} places, of which {share:.3} were used");
            let most = seen.iter().max().copied();
            assert!(most <= Some(places * 3 + 8), "{places} places, and {most:?} calls");
        }
    }

    #[test]
    fn the_gradient_lets_calls_that_only_wait_grow_to_the_ceiling() {
        let mut now = Instant::now();
        let mut gradient = Gradient::new(now);
        let mut limit = START;
        for _ in 0..3_000 {
            now += INTERVAL;
            limit = gradient.next(1.0, limit, now, 4096);
        }
        assert_eq!(limit, 4096);
        assert_eq!(gradient.next(1.0, limit, now, 4096), 4096, "one past the ceiling");
    }

    #[test]
    fn an_unused_gradient_stays_where_it_is() {
        let mut now = Instant::now();
        let mut gradient = Gradient::new(now);
        for _ in 0..1_000 {
            now += INTERVAL;
            assert_eq!(gradient.next(0.01, START / 2 - 1, now, CEILING), START);
        }
    }

    #[test]
    fn lateness_shrinks_the_limit_from_what_runs_down_to_the_floor_and_promptness_lifts_it() {
        let mut now = Instant::now();
        let mut lateness = Lateness::new(CEILING);
        assert_eq!(lateness.next(LATE, 1_000, now), CEILING, "at the limit, not past it");
        let mut limit = lateness.next(LATE * 4, 1_000, now);
        assert_eq!(limit, 250, "a quarter of what ran");
        for _ in 0..20 {
            limit = lateness.next(Duration::from_secs(1), limit, now);
        }
        assert_eq!(limit, FLOOR);
        assert_eq!(lateness.next(Duration::ZERO, 1, now), FLOOR, "nobody asks for more");
        let used = lateness.next(Duration::ZERO, FLOOR, now);
        assert!(used > FLOOR && used < 2 * FLOOR, "{used}");
        now += REMEMBERED;
        let mut intervals = 0;
        while limit < CEILING {
            limit = lateness.next(Duration::ZERO, 1, now);
            intervals += 1;
        }
        assert!(INTERVAL * intervals < Duration::from_secs(2), "{intervals} intervals until it is gone");
        assert_eq!(Lateness::new(4).next(Duration::from_secs(1), 4, now), 4, "a ceiling below the floor");
    }
}
