//! How many calls a server should run at once: the arithmetic.
//!
//! Owns the two signals of overload and the step that both share. It must never count calls, read a clock or wait. Look next
//! at [`super::admission`], which feeds it and lives by what it says.
//!
//! The step is that of Netflix's concurrency limits (`GradientLimit`): `limit · gradient + √limit`, with a gradient between
//! a half and one. The root is the room that keeps asking for more.

use std::time::Duration;

use tokio::time::Instant;

/// Fewest calls that [`Gradient`] allows: one that is wrong must leave enough to find out.
const FLOOR: usize = 8;
/// The same for [`Lateness`], for each thread that runs tasks: one that runs, and one that is ready when that ends.
const FEWEST_PER_WORKER: usize = 2;
/// Where the limit of [`Gradient`] starts.
pub(super) const START: usize = 64;
/// How often the limit is thought over.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// How late ready tasks may run, all of an interval long, before the process counts as overloaded: the queueing time at which
/// WeChat's DAGOR decides so. A timer is exact to 1 ms, a worker of tokio looks at sockets at least every 61 tasks, and a machine that has
/// other things to do gives the processor back within some milliseconds.
pub(super) const LATE: Duration = Duration::from_millis(20);
/// How late they typically run at most once that is known: half of that. Less leaves a processor idle where calls also wait for other things.
const AIM: Duration = Duration::from_millis(10);
/// For how long overload is known after it was seen last.
const REMEMBERED: Duration = Duration::from_secs(10);
/// For so many intervals as few calls run as may be before the lateness that is left counts as that of others: fewer would not help, and
/// a second is longer than what was let in before takes to end.
const FEWEST_FOR: u32 = 10;
/// How much longer than the least a call may take before the limit shrinks, as in Netflix's `Gradient2Limit`.
const TOLERANCE: f64 = 1.5;
/// The smallest gradient of times: a limit is at most halved at once, as in Netflix's.
const STEEPEST: f64 = 0.5;
/// The same for lateness above [`LATE`], which grows with what runs, so that one step may be the whole way.
const STEEPEST_LATE: f64 = 0.1;
/// How many times its root the limit shrinks at once, below that.
const STEEPEST_ROOTS: f64 = 4.0;
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

fn within(limit: f64, floor: usize, ceiling: usize) -> usize {
    // Positive, and at most the ceiling after the comparison.
    (limit as usize).clamp(floor.min(ceiling), ceiling)
}

/// The limit that follows how late ready tasks run. Lateness means that the processors have more to do than they can; the time
/// that calls take says nothing of it, because calls that wait for something else cost nothing.
#[derive(Debug)]
pub(super) struct Lateness {
    limit: f64,
    floor: usize,
    ceiling: usize,
    /// When overload was seen last.
    seen: Option<Instant>,
    /// For how many intervals tasks have been late although as few calls ran as may be…
    fewest_for: u32,
    /// … and the lateness that is therefore not theirs: others use the machine too.
    others: Duration,
}

/// What was measured in an interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// How much too late tasks ran: the least…
    pub(super) least: Duration,
    /// … and the median.
    pub(super) typical: Duration,
    /// Whether the server was full most of the time.
    pub(super) full: bool,
    /// How many calls ran at once, at most.
    pub(super) most: usize,
}

impl Lateness {
    /// No limit but the ceiling, where so many threads run the tasks.
    pub(super) fn new(workers: usize, ceiling: usize) -> Self {
        Self {
            limit: ceiling as f64,
            floor: workers * FEWEST_PER_WORKER,
            ceiling,
            seen: None,
            fewest_for: 0,
            others: Duration::ZERO,
        }
    }

    /// Whether overload was seen of late.
    pub(super) fn is_known(&self, now: Instant) -> bool {
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) < REMEMBERED)
    }

    /// Whether there is no limit but the ceiling.
    pub(super) fn is_whole(&self) -> bool {
        self.limit >= self.ceiling as f64
    }

    /// What of this lateness stays however few calls run.
    fn of_others(&mut self, lateness: Duration, known: bool) -> Duration {
        let fewest = self.limit as usize <= self.floor.min(self.ceiling);
        self.fewest_for = if known && fewest && lateness > AIM { self.fewest_for + 1 } else { 0 };
        self.others = if !known {
            Duration::ZERO
        } else if self.fewest_for >= FEWEST_FOR {
            lateness
        } else {
            self.others.min(lateness)
        };
        self.others
    }

    /// The limit after an interval.
    pub(super) fn next(&mut self, Measured { least, typical, full, most }: Measured, now: Instant) -> usize {
        let most = most as f64;
        let known = self.is_known(now);
        // One moment in which all is prompt is enough to doubt an overload that is news; later the median tells more.
        let lateness = if known { typical } else { least };
        let lateness = lateness.saturating_sub(self.of_others(lateness, known));
        let too_late = lateness.as_secs_f64() / AIM.as_secs_f64() - 1.0;
        let roots = |limit: f64| limit - limit.sqrt() * too_late.min(STEEPEST_ROOTS);
        // Where the limit is right, the lateness is about the aim, on either side of it.
        // And what is known of others is known as long as they go on.
        if lateness > LATE || (known && full && lateness > AIM / 2) || self.others > AIM / 2 {
            self.seen = Some(now);
        }
        self.limit = if known && lateness > LATE && most > self.limit {
            // This is still the lateness of those who ran before the limit shrank.
            self.limit
        } else if lateness > LATE {
            self.limit.min(most) * (LATE.as_secs_f64() / lateness.as_secs_f64()).max(STEEPEST_LATE)
        } else if known && full {
            // By roots, as it grows: calls that also wait are many although few of them are ready, so that a part of the lateness is
            // more than that part of them.
            roots(self.limit)
        } else if most >= (self.limit / 2.0).floor() {
            step(self.limit, 1.0)
        } else if known {
            // Nobody asks for more, perhaps because they were refused.
            self.limit
        } else {
            self.limit * 2.0
        };
        let limit = within(self.limit, self.floor, self.ceiling);
        self.limit = self.limit.clamp(limit as f64, self.ceiling as f64);
        limit
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
                return within(self.limit, FLOOR, ceiling);
            }
            None if now >= self.span_ends => {
                self.least = [f64::INFINITY, self.least[0]];
                self.span_ends = now + BELIEVED;
                if std::mem::take(&mut self.pressed) {
                    // Under lasting pressure the least seen is that of a queue, if only a short one.
                    self.probe = Some((self.limit, PROBE_INTERVALS));
                    self.limit /= PROBE_SHARE;
                    return within(self.limit, FLOOR, ceiling);
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
        let limit = within(self.limit, FLOOR, ceiling);
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

    const PROMPT: Measured = Measured { least: Duration::ZERO, typical: Duration::ZERO, full: false, most: 0 };

    fn late(lateness: Duration, most: usize) -> Measured {
        Measured { least: lateness, typical: lateness, full: true, most }
    }

    #[test]
    fn lateness_shrinks_the_limit_from_what_runs_down_to_two_a_worker_and_promptness_lifts_it() {
        const WORKERS: usize = 2;
        const FEWEST: usize = WORKERS * FEWEST_PER_WORKER;
        let mut now = Instant::now();
        let mut lateness = Lateness::new(WORKERS, CEILING);
        assert_eq!(lateness.next(late(LATE, 1_000), now), CEILING, "at the limit, not past it");
        let mut limit = lateness.next(late(LATE * 4, 1_000), now);
        assert_eq!(limit, 250, "a quarter of what ran");
        assert_eq!(lateness.next(late(LATE * 4, 1_000), now), 250, "those who ran before still do");
        for _ in 0..8 {
            limit = lateness.next(late(Duration::from_secs(1), limit), now);
        }
        assert_eq!(limit, FEWEST);
        assert_eq!(lateness.next(PROMPT, now), FEWEST, "nobody asks for more");
        let used = lateness.next(Measured { most: FEWEST, ..PROMPT }, now);
        assert!(used > FEWEST && used <= 2 * FEWEST, "{used}");
        now += REMEMBERED;
        let mut intervals = 0;
        while limit < CEILING {
            limit = lateness.next(PROMPT, now);
            intervals += 1;
        }
        assert!(INTERVAL * intervals < Duration::from_secs(2), "{intervals} intervals until it is gone");
        let mut few = Lateness::new(8, 4);
        assert_eq!(few.next(late(Duration::from_secs(1), 4), now), 4, "a ceiling below the fewest");
    }

    #[test]
    fn once_overload_is_known_the_limit_settles_where_tasks_are_only_a_little_late() {
        // Calls that need the processor for so many milliseconds and wait for so many others.
        for (needs, waits) in [(0.2, 0.0), (1.0, 0.0), (1.0, 50.0), (0.1, 50.0), (0.2, 1_000.0)] {
            let enough = 1.0 + waits / needs;
            let lateness = |calls: usize| Duration::from_secs_f64((calls as f64 - enough).max(0.0) * needs / 1e3);
            let mut now = Instant::now();
            let (mut limit, mut most) = (Lateness::new(1, CEILING), enough as usize * 4 + 400);
            let (mut used, mut times) = (Vec::new(), Vec::new());
            // Ten minutes of more calls than that.
            for interval in 0..6_000 {
                now += INTERVAL;
                most = limit.next(late(lateness(most), most), now);
                if interval > 300 {
                    used.push((most as f64 / enough).min(1.0));
                    times.push(lateness(most));
                }
            }
            let share = used.iter().sum::<f64>() / used.len() as f64;
            let mean = times.iter().sum::<Duration>() / times.len() as u32;
            println!(
                "{needs} ms of the processor and {waits} ms without: {share:.3} of it was used, tasks were {mean:.1?} late"
            );
            assert!(share > 0.95, "{needs} ms of the processor and {waits} ms without: {share:.3} of it was used");
            assert!(mean < AIM * 2, "{needs} ms of the processor and {waits} ms without: tasks were {mean:.1?} late");
        }
    }

    #[test]
    fn lateness_that_stays_however_few_calls_run_does_not_keep_them_few() {
        for neighbours in [AIM * 2, LATE * 2] {
            let mut now = Instant::now();
            let mut limit = Lateness::new(2, CEILING);
            let mut most = 1_000;
            for interval in 0..120 {
                now += INTERVAL;
                most = limit.next(late(neighbours.max(if interval == 0 { LATE * 2 } else { AIM }), most), now);
            }
            assert!(most > 500, "{most} calls after 12 s in which tasks were {neighbours:?} late whatever ran");
        }
    }

    #[test]
    fn tasks_that_are_a_little_late_hold_nobody_back_unless_most_find_the_server_full() {
        let little = (AIM + LATE) / 2;
        let mut now = Instant::now();
        let mut limit = Lateness::new(1, CEILING);
        for _ in 0..100 {
            now += INTERVAL;
            assert_eq!(limit.next(late(little, 100), now), CEILING, "no overload was seen before");
        }
        assert_eq!(limit.next(late(LATE * 2, 100), now), 50);
        now += INTERVAL;
        assert!(limit.next(late(little, 50), now) < 50, "full");
        let after = limit.next(Measured { full: false, ..late(little, 40) }, now);
        let next = limit.next(Measured { full: false, ..late(little, after) }, now);
        assert!(next > after, "not full: {next} after {after}");
        now += REMEMBERED;
        assert!(limit.next(Measured { full: true, ..late(little, next) }, now) > next, "overload is forgotten");
    }
}
