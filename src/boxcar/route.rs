//! Whom a rover visits next, and how soon.
//!
//! Owns [`Route`], the servers with when each was visited, and [`Pace`], the time between visits. It must never do I/O nor look
//! at a clock. Look next at [`super::rover`], which travels.

use std::time::Duration;

use super::Server;

/// Fewest visits in a row that brought nothing better before the next ones are put off. With more servers than this, it is one
/// for each of them, so that a fleet is converged only when all of it was asked.
pub(super) const QUIET_VISITS: u32 = 5;

/// No time between visits is shorter: a mistake in the unit must not become a flood.
const SHORTEST: Duration = Duration::from_millis(1);
/// Nor longer: what is put off for more than a day was meant to be off.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The servers.
#[derive(Debug, Default)]
pub(super) struct Route {
    stops: Vec<Stop>,
    /// Counts visits, and changes of the servers.
    clock: u64,
}

#[derive(Debug)]
struct Stop {
    server: Server,
    /// Tells it from one of the same name that was dropped.
    added: u64,
    visited: Option<u64>,
    is_visiting: bool,
}

/// A visit that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Visit {
    pub(super) server: Server,
    added: u64,
}

impl Route {
    /// Adds a server, or replaces the one of this name if it was elsewhere. Returns whether anything changed.
    pub(super) fn add(&mut self, id: &str, address: &str) -> bool {
        if self.stops.iter().any(|stop| *stop.server.id == *id && *stop.server.address == *address) {
            return false;
        }
        self.drop_server(id);
        self.clock += 1;
        self.stops.push(Stop {
            server: Server::new(id, address),
            added: self.clock,
            visited: None,
            is_visiting: false,
        });
        true
    }

    /// Returns whether it was there.
    pub(super) fn drop_server(&mut self, id: &str) -> bool {
        let before = self.stops.len();
        self.stops.retain(|stop| *stop.server.id != *id);
        self.stops.len() < before
    }

    pub(super) fn servers(&self) -> Vec<Server> {
        self.stops.iter().map(|stop| stop.server.clone()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.stops.len()
    }

    /// Begins a visit: of two servers at random, to the one that was not visited for longest. A server of which nothing is held
    /// counts as if that were twice as long ago; the one visited last only comes again at once where there is no other. None while each of them is being visited.
    ///
    /// Two at random, rather than the best of all, keeps clients that started together from walking in step.
    pub(super) fn next(&mut self, is_held: impl Fn(&str) -> bool) -> Option<Visit> {
        let mut free: Vec<usize> = (0..self.stops.len()).filter(|at| !self.stops[*at].is_visiting).collect();
        fastrand::shuffle(&mut free);
        let one = *free.first()?;
        let other = free.get(1).copied().unwrap_or(one);
        let age = |at: usize| {
            let stop: &Stop = &self.stops[at];
            let age = stop.visited.map_or(u64::MAX / 2, |visited| self.clock - visited);
            if is_held(&stop.server.id) { age } else { age.saturating_mul(2) }
        };
        let chosen = if age(other) > age(one) { other } else { one };
        self.clock += 1;
        let stop = &mut self.stops[chosen];
        (stop.visited, stop.is_visiting) = (Some(self.clock), true);
        Some(Visit { server: stop.server.clone(), added: stop.added })
    }

    /// A visit is over. Returns whether its server is still one of these.
    pub(super) fn end(&mut self, visit: &Visit) -> bool {
        let stop = self.stops.iter_mut().find(|stop| stop.added == visit.added);
        stop.map(|stop| stop.is_visiting = false).is_some()
    }

    /// All visits that were under way have been given up.
    pub(super) fn rest(&mut self) {
        self.stops.iter_mut().for_each(|stop| stop.is_visiting = false);
    }

    /// Whether the server of this visit is still one of these.
    pub(super) fn knows(&self, visit: &Visit) -> bool {
        self.stops.iter().any(|stop| stop.added == visit.added)
    }
}

/// The time between visits: the base, and longer when they bring nothing.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    base: Duration,
    longest: Duration,
    now: Duration,
    quiet: u32,
}

impl Pace {
    pub(super) fn new(base: Duration, longest: Duration) -> Self {
        let base = base.clamp(SHORTEST, LONGEST);
        Self { base, longest: longest.clamp(base, LONGEST), now: base, quiet: 0 }
    }

    /// Something has changed, or may have.
    pub(super) fn quicken(&mut self) {
        (self.now, self.quiet) = (self.base, 0);
    }

    /// A visit brought nothing better. Doubles the time once that was so often enough, for this many servers.
    pub(super) fn nothing_better(&mut self, servers: usize) {
        self.quiet = self.quiet.saturating_add(1);
        if self.quiet as usize > servers.max(QUIET_VISITS as usize) {
            self.now = self.now.saturating_mul(2).min(self.longest);
        }
    }

    /// The time to the next visit, 10 % more or less, so that clients do not fall into step.
    pub(super) fn pause(&self) -> Duration {
        self.now.mul_f64(0.9 + 0.2 * fastrand::f64())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn route(ids: &[&str]) -> Route {
        let mut route = Route::default();
        for id in ids {
            assert!(route.add(id, "127.0.0.1:4040"));
        }
        route
    }

    /// How often each server is visited in 10,000 rounds.
    fn visits(route: &mut Route, is_held: impl Fn(&str) -> bool) -> BTreeMap<String, u32> {
        let mut visits = BTreeMap::new();
        for _ in 0..10_000 {
            let visit = route.next(&is_held).unwrap();
            assert!(route.end(&visit));
            *visits.entry(visit.server.id().to_owned()).or_default() += 1;
        }
        visits
    }

    #[test]
    fn everyone_is_visited_and_those_not_held_more_often() {
        let even = visits(&mut route(&["a", "b", "c", "d"]), |_| true);
        assert!(even.values().all(|visits| (2_300..2_700).contains(visits)), "{even:?}");

        let uneven = visits(&mut route(&["a", "b", "c", "d"]), |id| id != "d");
        assert!(uneven["d"] > uneven["a"] * 21 / 20, "d is not held: {uneven:?}");
        assert!(uneven["a"] > 2_000, "a is not forgotten for d: {uneven:?}");

        let two = visits(&mut route(&["a", "b"]), |id| id == "a");
        assert!(two.values().all(|visits| *visits == 5_000), "two take turns, whatever is held: {two:?}");
    }

    #[test]
    fn a_newcomer_is_next_as_soon_as_it_is_drawn() {
        let mut route = route(&["a", "b"]);
        visits(&mut route, |_| true);
        route.add("c", "127.0.0.1:4041");
        // It wins whenever it is one of the two of three that are drawn: 2 of 3 rounds.
        let rounds = (0..).take_while(|_| {
            let visit = route.next(|_| true).unwrap();
            route.end(&visit);
            visit.server.id() != "c"
        });
        assert!(rounds.count() < 40, "(1/3)^40 is no accident");
    }

    #[test]
    fn a_server_is_visited_once_at_a_time_and_none_of_none() {
        let mut route = route(&["a", "b"]);
        let (one, other) = (route.next(|_| true).unwrap(), route.next(|_| true).unwrap());
        assert_ne!(one.server, other.server);
        assert_eq!(route.next(|_| true), None, "both are being visited");
        route.end(&one);
        assert_eq!(route.next(|_| true).unwrap().server, one.server);
        assert_eq!(Route::default().next(|_| true), None);
    }

    #[test]
    fn a_server_that_was_dropped_is_not_the_one_of_the_same_name() {
        let mut route = route(&["a"]);
        let visit = route.next(|_| true).unwrap();
        assert!(!route.add("a", "127.0.0.1:4040"), "nothing new");
        assert!(route.add("a", "127.0.0.1:4041"), "it has moved");
        assert!(!route.knows(&visit) && !route.end(&visit));
        assert_eq!(route.next(|_| true).unwrap().server.address(), "127.0.0.1:4041");
        assert!(route.drop_server("a") && !route.drop_server("a"));
        assert_eq!(route.len(), 0);
    }

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
