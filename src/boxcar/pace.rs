//! How soon a rover asks again.
//!
//! Owns [`Pace`], the time between visits, for the rover of a pool of connections and for that of a balancing policy. It must
//! never look at a clock. Look next at [`super::travel`], which travels, and at `client/rover.rs`, which asks peers of picom.

use std::time::Duration;

/// Fewest visits in a row that brought nothing better before the next ones are put off. With more servers than this, it is one
/// for each of them, so that a fleet is converged only when all of it was asked.
const QUIET_VISITS: u32 = 5;

/// No time between visits is shorter: a mistake in the unit must not become a flood.
const SHORTEST: Duration = Duration::from_millis(1);
/// Nor longer: what is put off for more than a day was meant to be off.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How many visits come in the time of one where each brings something much better than the worst that is held.
const FOLLOW_UPS: u32 = 10;

/// The time between visits: the base, and longer when they bring nothing.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    base: Duration,
    longest: Duration,
    now: Duration,
    quiet: u32,
}

impl Pace {
    pub(crate) fn new(base: Duration, longest: Duration) -> Self {
        let base = base.clamp(SHORTEST, LONGEST);
        Self { base, longest: longest.clamp(base, LONGEST), now: base, quiet: 0 }
    }

    /// Something has changed, or may have.
    pub(crate) fn quicken(&mut self) {
        (self.now, self.quiet) = (self.base, 0);
    }

    /// A visit brought nothing better. Doubles the time once that was so often enough, for this many servers.
    pub(crate) fn nothing_better(&mut self, servers: usize) {
        self.quiet = self.quiet.saturating_add(1);
        if self.quiet as usize > servers.max(QUIET_VISITS as usize) {
            self.now = self.now.saturating_mul(2).min(self.longest);
        }
    }

    /// The time to the next visit, 10 % more or less, so that clients do not fall into step.
    pub(crate) fn pause(&self) -> Duration {
        jittered(self.now)
    }

    /// The same for what is asked at a steady pace, however little the others bring: who was not there.
    pub(crate) fn steady(&self) -> Duration {
        jittered(self.base)
    }

    /// The same where the last visit brought so much that the next one to the same server is worth it at once.
    pub(super) fn follow_up(&self) -> Duration {
        jittered(self.base / FOLLOW_UPS)
    }
}

fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_in_vain_are_put_off_up_to_a_limit_and_a_change_brings_them_back() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(second, 8 * second);
        let mut waits = Vec::new();
        for _ in 0..QUIET_VISITS + 5 {
            pace.nothing_better(3);
            waits.push(pace.now.as_secs());
        }
        assert_eq!(waits, [1, 1, 1, 1, 1, 2, 4, 8, 8, 8]);
        pace.quicken();
        assert_eq!(pace.now, second);

        (0..20).for_each(|_| pace.nothing_better(20));
        assert_eq!(pace.now, second, "20 servers, and each was asked once, about");
        pace.nothing_better(20);
        assert_eq!(pace.now, 2 * second);
        assert_eq!(Pace::new(second, Duration::ZERO).longest, second, "never shorter than the base");
    }

    #[test]
    fn pauses_differ_by_a_tenth_at_most() {
        let pace = Pace::new(Duration::from_secs(1), Duration::from_secs(1));
        let pauses: Vec<_> = (0..1_000).map(|_| pace.pause().as_millis()).collect();
        assert!(pauses.iter().all(|pause| (900..=1_100).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause < 930) && pauses.iter().any(|pause| *pause > 1_070));
        assert!(Pace::new(Duration::MAX, Duration::MAX).pause() > LONGEST / 2);
        assert!(Pace::new(Duration::ZERO, Duration::ZERO).pause() > Duration::ZERO);
    }
}
