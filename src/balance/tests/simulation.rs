//! A small world of clients and servers, in virtual time and from one seed.
//!
//! Owns the model: open arrivals, servers with a queue and four workers, service times with an exponential distribution, and
//! calls that are given up at their deadline. It must never know a policy. Look next at `faults.rs` for what is asked of it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::circuit::Fault;
use super::super::{Balancer, End as Ended, Fleet, Group, Member, Request, Seat};
use super::{addr, seat};
use crate::registry::Endpoint;

const WORKERS: usize = 4;

/// What happens, by server and time in seconds.
pub(super) struct Scenario {
    pub(super) policy: Arc<dyn Balancer>,
    pub(super) servers: usize,
    pub(super) clients: usize,
    /// Calls a second of all clients together.
    pub(super) rate: f64,
    pub(super) seconds: f64,
    pub(super) deadline: f64,
    /// Mean time that a worker takes.
    pub(super) mean: fn(usize, f64) -> f64,
    /// Whether it fails every call after 0.2 ms.
    pub(super) fails: fn(usize, f64) -> bool,
    /// Server 0 is not listed before this.
    pub(super) joins: f64,
    /// Whether servers report their load.
    pub(super) reports: bool,
    pub(super) seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    Answered(f64),
    Failed,
    TimedOut,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    client: usize,
    pub(super) server: usize,
    pub(super) at: f64,
    is_probe: bool,
    pub(super) end: Option<End>,
}

#[derive(Default)]
struct Server {
    busy: usize,
    queue: VecDeque<usize>,
}

struct Client {
    fleet: Arc<Fleet>,
    members: Vec<Arc<Member>>,
    group: Group,
    /// The server of each seat.
    places: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Worked(usize),
    Fails(usize),
    Deadline(usize),
    Joins,
}

struct World<'a> {
    scenario: &'a Scenario,
    start: Instant,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    servers: Vec<Server>,
    clients: Vec<Client>,
    calls: Vec<Call>,
}

/// Every call, in the order of arrival.
pub(super) fn run(scenario: &Scenario) -> Vec<Call> {
    fastrand::seed(scenario.seed);
    let start = Instant::now();
    let mut world = World {
        scenario,
        start,
        now: 0,
        events: BinaryHeap::new(),
        count: 0,
        servers: (0..scenario.servers).map(|_| Server::default()).collect(),
        clients: (0..scenario.clients).map(|_| Client::new(scenario, start)).collect(),
        calls: Vec::new(),
    };
    world.after(0.0, Event::Arrival);
    if scenario.joins > 0.0 {
        world.after(scenario.joins, Event::Joins);
    }
    while let Some(Reverse((now, _, event))) = world.events.pop() {
        world.now = now;
        world.happens(event);
    }
    world.calls
}

impl Client {
    fn new(scenario: &Scenario, start: Instant) -> Self {
        let fleet = Arc::new(Fleet::new("service1".into(), start));
        let seats: Vec<Seat> = (0..scenario.servers).map(|n| seat(Endpoint::new(addr(n)), &fleet)).collect();
        let first = usize::from(scenario.joins > 0.0);
        let members = seats.iter().map(|seat| Arc::clone(&seat.member)).collect();
        let group = Group::new(seats[first..].to_vec(), Arc::clone(&fleet), 1, start);
        Self { fleet, members, group, places: (first..scenario.servers).collect() }
    }

    fn all_listed(&mut self, now: Instant) {
        self.members[0].warm_up(now);
        self.places = (0..self.members.len()).collect();
        let seat = |n: usize| Seat { endpoint: Arc::new(Endpoint::new(addr(n))), member: Arc::clone(&self.members[n]) };
        self.group = Group::new(self.places.iter().map(|n| seat(*n)).collect(), Arc::clone(&self.fleet), 1, now);
    }
}

fn exponential(mean: f64) -> f64 {
    -(1.0 - fastrand::f64()).ln() * mean
}

impl World<'_> {
    fn seconds(&self) -> f64 {
        self.now as f64 / 1e9
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_nanos(self.now)
    }

    fn after(&mut self, seconds: f64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((self.now + (seconds * 1e9) as u64, self.count, event)));
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrival => {
                self.arrives();
                if self.seconds() < self.scenario.seconds {
                    self.after(exponential(1.0 / self.scenario.rate), Event::Arrival);
                }
            }
            Event::Worked(call) => {
                let server = self.calls[call].server;
                self.servers[server].busy -= 1;
                if self.calls[call].end.is_none() {
                    self.ends(call, End::Answered(self.seconds() - self.calls[call].at));
                }
                while let Some(next) = self.servers[server].queue.pop_front() {
                    // What was given up is not worked on.
                    if self.calls[next].end.is_none() {
                        self.works(next);
                        break;
                    }
                }
            }
            Event::Fails(call) => self.ends(call, End::Failed),
            Event::Deadline(call) if self.calls[call].end.is_none() => self.ends(call, End::TimedOut),
            Event::Deadline(_) => {}
            Event::Joins => {
                let now = self.instant();
                self.clients.iter_mut().for_each(|client| client.all_listed(now));
            }
        }
    }

    fn arrives(&mut self) {
        let client = fastrand::usize(..self.clients.len());
        let request = Request { key: None, zone: None, is_call: true, now: self.instant() };
        let caller = &self.clients[client];
        let choice = caller.group.choose(&*self.scenario.policy, request, &[]).expect("there are endpoints");
        let server = caller.places[choice.position];
        caller.members[server].begin(self.instant());
        let call = self.calls.len();
        self.calls.push(Call { client, server, at: self.seconds(), is_probe: choice.is_probe, end: None });
        if (self.scenario.fails)(server, self.seconds()) {
            self.after(0.0002, Event::Fails(call));
            return;
        }
        self.after(self.scenario.deadline, Event::Deadline(call));
        if self.servers[server].busy < WORKERS { self.works(call) } else { self.servers[server].queue.push_back(call) }
    }

    fn works(&mut self, call: usize) {
        let server = self.calls[call].server;
        self.servers[server].busy += 1;
        let mean = (self.scenario.mean)(server, self.seconds());
        self.after(exponential(mean), Event::Worked(call));
    }

    fn ends(&mut self, call: usize, end: End) {
        let now = self.instant();
        let Call { client, server, at, is_probe, .. } = self.calls[call];
        let member = &self.clients[client].members[server];
        if let End::Answered(_) = end {
            member.took(self.start + Duration::from_secs_f64(at), now);
            let Server { busy, queue } = &self.servers[server];
            if self.scenario.reports {
                let slot = u32::try_from(busy + queue.len()).unwrap_or(u32::MAX);
                member.reported(slot, WORKERS as u32, now);
            }
        }
        if is_probe {
            member.end_probe(Some(matches!(end, End::Answered(_))), now);
        }
        if !matches!(end, End::Answered(_)) {
            member.failed(Fault::Call, now);
        }
        member.end(if matches!(end, End::Answered(_)) { Ended::Answered } else { Ended::Unanswered });
        self.calls[call].end = Some(end);
    }
}

/// Figures of the calls that arrived between two times, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    pub(super) calls: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) timed_out: f64,
    pub(super) failed: f64,
    /// Of server 0.
    pub(super) share: f64,
    /// Calls of the server with the most, over the average.
    pub(super) most: f64,
}

pub(super) fn figures(calls: &[Call], servers: usize, from: f64, to: f64) -> Figures {
    let calls: Vec<&Call> = calls.iter().filter(|call| (from..to).contains(&call.at)).collect();
    let share = |what: &dyn Fn(&Call) -> bool| {
        calls.iter().filter(|call| what(call)).count() as f64 / calls.len().max(1) as f64
    };
    // One that was given up took longer than any other.
    let mut took: Vec<f64> = calls
        .iter()
        .filter_map(|call| match call.end {
            Some(End::Answered(took)) => Some(took),
            Some(End::TimedOut) => Some(f64::INFINITY),
            _ => None,
        })
        .collect();
    took.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| took.get((took.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN);
    let most = (0..servers).map(|n| share(&|call| call.server == n)).fold(0.0, f64::max);
    Figures {
        calls: calls.len(),
        p50: at(0.5),
        p99: at(0.99),
        timed_out: share(&|call| call.end == Some(End::TimedOut)),
        failed: share(&|call| call.end == Some(End::Failed)),
        share: share(&|call| call.server == 0),
        most: most * servers as f64,
    }
}
