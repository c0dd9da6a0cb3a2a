//! What the policies promise, in virtual time.
//!
//! Owns only tests. Look next at `simulation.rs` for the world in which they run.

#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod choosing;
mod circuits;
mod faults;
mod simulation;
mod subsets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Balancer, Choice, End, Fleet, Group, Member, Request, Seat};
use crate::registry::Endpoint;

fn addr(number: usize) -> SocketAddr {
    let number = u16::try_from(number).unwrap_or_default();
    let [high, low] = number.to_be_bytes();
    ([10, 0, high, low], 4000).into()
}

fn seat(endpoint: Endpoint, fleet: &Arc<Fleet>) -> Seat {
    let member = Arc::new(Member::new(endpoint.addr, Arc::clone(fleet)));
    Seat { endpoint: Arc::new(endpoint), member }
}

/// Endpoints of one client and its time.
struct Few {
    start: Instant,
    now: Instant,
    seats: Vec<Seat>,
    group: Group,
}

/// So many endpoints, none of which is new.
fn some(count: usize) -> Few {
    some_of((0..count).map(|number| Endpoint::new(addr(number))))
}

fn some_of(endpoints: impl IntoIterator<Item = Endpoint>) -> Few {
    fastrand::seed(7);
    let begun = Instant::now();
    let fleet = Arc::new(Fleet::new("service1".into(), begun));
    let start = begun + Duration::from_secs(100);
    let seats: Vec<Seat> = endpoints.into_iter().map(|endpoint| seat(endpoint, &fleet)).collect();
    Few { start, now: start, group: Group::new(seats.clone(), fleet, 1, start), seats }
}

impl Few {
    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn request(&self) -> Request<'static> {
        Request { key: None, zone: None, is_call: true, now: self.now }
    }

    fn choose(&self, policy: &dyn Balancer) -> Choice {
        self.group.choose(policy, self.request(), &[]).expect("there are endpoints")
    }

    /// How often each is chosen in so many calls that are over at once.
    fn shares(&self, policy: &dyn Balancer, calls: usize) -> Vec<usize> {
        self.shares_of(policy, calls, |_| self.request())
    }

    fn shares_of<'a>(&self, policy: &dyn Balancer, calls: usize, request: impl Fn(usize) -> Request<'a>) -> Vec<usize> {
        let mut shares = vec![0; self.seats.len()];
        for call in 0..calls {
            let choice = self.group.choose(policy, request(call), &[]).expect("there are endpoints");
            if choice.is_probe {
                self.seats[choice.position].member.end_probe(None, self.now);
            }
            shares[choice.position] += 1;
        }
        shares
    }

    fn member(&self, position: usize) -> &Member {
        &self.seats[position].member
    }

    /// A call to this one is answered in this time, which has passed by then.
    fn answer(&mut self, position: usize, took: Duration) {
        let sent = self.now;
        self.member(position).begin(sent);
        self.pass(took);
        if self.group.states(self.now)[position].latency.is_none() {
            // The first one is not measured.
            self.member(position).took(sent, self.now);
        }
        self.member(position).took(sent, self.now);
        self.member(position).end(End::Answered);
    }
}
