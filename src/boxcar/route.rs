//! Whom a rover visits next.
//!
//! Owns [`Route`], the servers with when each was visited and whether it was there. It must never do I/O nor look at a clock.
//! Look next at [`super::pace`] for how soon, and at [`super::travel`], which travels.

use super::Server;

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
    /// The last visit did not reach it.
    is_lost: bool,
}

/// Which servers a visit may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Among {
    /// Any.
    All,
    /// Those that the last visit reached, and those that had none.
    Reached,
    /// Those that it did not reach.
    Lost,
}

/// What the end of a visit says of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It was dropped meanwhile.
    Dropped,
    /// It is where it was.
    Known,
    /// It was reached, and the time before it was not.
    Back,
    /// It was not reached, and the time before it was.
    Lost,
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
            is_lost: false,
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

    /// Whether there are servers that the last visit did not reach.
    pub(super) fn has_lost(&self) -> bool {
        self.stops.iter().any(|stop| stop.is_lost)
    }

    /// Begins a visit: of two servers at random, to the one that was not visited for longest. A server of which nothing is held
    /// counts as if that were twice as long ago; the one visited last only comes again at once where there is no other. None while each of them is being visited.
    ///
    /// Two at random, rather than the best of all, keeps clients that started together from walking in step.
    pub(super) fn next(&mut self, among: Among, is_held: impl Fn(&str) -> bool) -> Option<Visit> {
        let may = |stop: &Stop| !stop.is_visiting && (among == Among::All || stop.is_lost == (among == Among::Lost));
        let mut free: Vec<usize> = (0..self.stops.len()).filter(|at| may(&self.stops[*at])).collect();
        fastrand::shuffle(&mut free);
        let one = *free.first()?;
        let other = free.get(1).copied().unwrap_or(one);
        let age = |at: usize| {
            let stop: &Stop = &self.stops[at];
            let age = stop.visited.map_or(u64::MAX / 2, |visited| self.clock - visited);
            if is_held(&stop.server.id) { age } else { age.saturating_mul(2) }
        };
        let chosen = if age(other) > age(one) { other } else { one };
        Some(self.begin(chosen))
    }

    /// Begins another visit to the same server, unless there is one or it was dropped.
    pub(super) fn again(&mut self, visit: &Visit) -> Option<Visit> {
        let at = self.stops.iter().position(|stop| stop.added == visit.added && !stop.is_visiting)?;
        Some(self.begin(at))
    }

    fn begin(&mut self, at: usize) -> Visit {
        self.clock += 1;
        let stop = &mut self.stops[at];
        (stop.visited, stop.is_visiting) = (Some(self.clock), true);
        Visit { server: stop.server.clone(), added: stop.added }
    }

    /// A visit is over, and has reached its server or not.
    pub(super) fn end(&mut self, visit: &Visit, reached: bool) -> Met {
        let Some(stop) = self.stops.iter_mut().find(|stop| stop.added == visit.added) else { return Met::Dropped };
        stop.is_visiting = false;
        match (std::mem::replace(&mut stop.is_lost, !reached), reached) {
            (true, true) => Met::Back,
            (false, false) => Met::Lost,
            (true, false) | (false, true) => Met::Known,
        }
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
            let visit = route.next(Among::All, &is_held).unwrap();
            assert_eq!(route.end(&visit, true), Met::Known);
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
            let visit = route.next(Among::All, |_| true).unwrap();
            route.end(&visit, true);
            visit.server.id() != "c"
        });
        assert!(rounds.count() < 40, "(1/3)^40 is no accident");
    }

    #[test]
    fn a_server_is_visited_once_at_a_time_and_none_of_none() {
        let mut route = route(&["a", "b"]);
        let (one, other) = (route.next(Among::All, |_| true).unwrap(), route.next(Among::All, |_| true).unwrap());
        assert_ne!(one.server, other.server);
        assert_eq!(route.next(Among::All, |_| true), None, "both are being visited");
        route.end(&one, true);
        assert_eq!(route.next(Among::All, |_| true).unwrap().server, one.server);
        assert_eq!(Route::default().next(Among::All, |_| true), None);
    }

    #[test]
    fn a_server_that_was_dropped_is_not_the_one_of_the_same_name() {
        let mut route = route(&["a"]);
        let visit = route.next(Among::All, |_| true).unwrap();
        assert!(!route.add("a", "127.0.0.1:4040"), "nothing new");
        assert!(route.add("a", "127.0.0.1:4041"), "it has moved");
        assert!(!route.knows(&visit));
        assert_eq!(route.end(&visit, true), Met::Dropped);
        assert_eq!(route.next(Among::All, |_| true).unwrap().server.address(), "127.0.0.1:4041");
        assert!(route.drop_server("a") && !route.drop_server("a"));
        assert_eq!(route.len(), 0);
    }

    #[test]
    fn a_server_that_was_not_reached_is_apart_until_it_is() {
        let mut route = route(&["a", "b"]);
        let visit = route.next(Among::Reached, |_| true).unwrap();
        assert!(!route.has_lost() && route.next(Among::Lost, |_| true).is_none());
        assert_eq!(route.end(&visit, false), Met::Lost);
        assert_eq!(route.next(Among::Reached, |_| true).map(|other| other.server == visit.server), Some(false));
        let again = route.next(Among::Lost, |_| true).unwrap();
        assert_eq!(again.server, visit.server);
        assert_eq!(route.next(Among::Lost, |_| true), None, "it is being visited");
        assert_eq!(route.end(&again, false), Met::Known);
        let again = route.again(&again).unwrap();
        assert_eq!((route.end(&again, true), route.has_lost()), (Met::Back, false));
        route.drop_server(visit.server.id());
        assert_eq!(route.again(&again), None, "it is gone");
    }
}
