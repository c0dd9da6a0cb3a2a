//! Two machines in a world of their own: virtual time, latency, partial delivery, loss.
//!
//! Each seed is one world, and the same seed is the same world. The applications act on events only, as a driver does, so
//! an event that is missing shows as a call that never ends. `PICOM_SIM_SEED` runs one seed, `PICOM_SIM_SEEDS` says how
//! many are run otherwise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;

use self::apps::{Calling, Handled};
use self::plan::Plan;
use super::support::*;
use crate::proto::{Batch, Config, Connection, Error};
use crate::wire::StreamId;

mod apps;
mod plan;

/// How many worlds are run by default.
const SEEDS: u64 = 200;

/// By then, in virtual time, every call has ended.
const DOOMSDAY: Duration = Duration::from_secs(600);

/// The way of bytes in one direction.
#[derive(Default)]
struct Pipe {
    batch: Batch,
    flying: VecDeque<(Instant, Bytes)>,
    in_flight: usize,
    last: Option<Instant>,
    input: BytesMut,
}

struct World {
    rng: Rng,
    start: Instant,
    now: Instant,
    client: Connection,
    server: Connection,
    to_server: Pipe,
    to_client: Pipe,
    plans: Vec<Plan>,
    waiting: VecDeque<usize>,
    calls: BTreeMap<StreamId, Calling>,
    handled: BTreeMap<StreamId, Handled>,
    names: BTreeMap<u16, String>,
    outcomes: Vec<Option<String>>,
    ran: BTreeSet<usize>,
    latency: u64,
    loss: Option<Instant>,
    drain: Option<Instant>,
    lost: bool,
    trace: std::collections::hash_map::DefaultHasher,
    steps: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let window = |rng: &mut Rng| [4096, 10_000, 65_536, 256 * 1024][rng.usize(..4)];
        let connection_window = |rng: &mut Rng| [16_384, 100_000, 8 << 20][rng.usize(..3)];
        let client = Config {
            stream_window: window(&mut rng),
            connection_window: connection_window(&mut rng),
            wants_load: seed % 2 == 0,
            ..client_config()
        };
        let server = Config {
            stream_window: window(&mut rng),
            connection_window: connection_window(&mut rng),
            max_calls: [1, 3, 100][rng.usize(..3)],
            ..loaded(server_config())
        };
        let Pair { client, server, now, .. } = Pair::fresh(client, server);
        let plans: Vec<Plan> = (0..rng.usize(1..25)).map(|_| Plan::random(&mut rng)).collect();
        let millis = |rng: &mut Rng| now + Duration::from_millis(rng.u64(..4000));
        Self {
            start: now,
            now,
            client,
            server,
            to_server: Pipe::default(),
            to_client: Pipe::default(),
            waiting: VecDeque::new(),
            calls: BTreeMap::new(),
            handled: BTreeMap::new(),
            names: BTreeMap::new(),
            outcomes: vec![None; plans.len()],
            plans,
            ran: BTreeSet::new(),
            latency: [0, 1, 20, 200][rng.usize(..4)],
            loss: (rng.u8(..4) == 0).then(|| millis(&mut rng)),
            drain: (rng.u8(..4) == 0).then(|| millis(&mut rng)),
            lost: false,
            trace: Default::default(),
            steps: 0,
            rng,
        }
    }

    /// Runs until every call has ended, and says what happened as one number.
    fn run(mut self) -> u64 {
        let mut order: Vec<usize> = (0..self.plans.len()).collect();
        order.sort_by_key(|plan| self.plans[*plan].start);
        let mut order: VecDeque<usize> = order.into();
        loop {
            while order.front().is_some_and(|plan| self.start + self.plans[*plan].start <= self.now) {
                self.waiting.extend(order.pop_front());
            }
            self.settle();
            self.client.check_growth();
            self.server.check_growth();
            let ended = order.is_empty() && self.waiting.is_empty() && self.calls.is_empty();
            if ended && (self.lost || self.handled.is_empty()) && self.is_quiet() {
                break;
            }
            let next_call = order.front().map(|plan| self.start + self.plans[*plan].start);
            let Some(next) = self.next_time().into_iter().chain(next_call).min() else {
                panic!("nothing will ever happen: {}", self.describe());
            };
            assert!(next - self.start < DOOMSDAY, "calls never end: {}", self.describe());
            self.now = self.now.max(next);
        }
        self.check_outcomes();
        if !self.lost && !self.client.is_closed() {
            let pair = Pair {
                client: self.client,
                server: self.server,
                now: self.now,
                client_events: VecDeque::new(),
                server_events: VecDeque::new(),
                sent: Default::default(),
            };
            pair.assert_clean();
        }
        self.trace.finish()
    }

    fn describe(&self) -> String {
        let calls: Vec<_> = self.calls.iter().map(|(id, call)| (id, &self.plans[call.plan])).collect();
        format!("{:?} of {calls:?}; {:?}; {:?}; {:?}", self.waiting, self.handled.keys(), self.client, self.server)
    }

    fn is_quiet(&self) -> bool {
        let quiet = |pipe: &Pipe| pipe.batch.is_empty() && pipe.flying.is_empty();
        self.lost
            || (quiet(&self.to_server)
                && quiet(&self.to_client)
                && !self.client.wants_transmit()
                && !self.server.wants_transmit())
    }

    /// When something happens next.
    fn next_time(&self) -> Option<Instant> {
        let arrivals = [&self.to_server, &self.to_client].map(|pipe| pipe.flying.front().map(|(time, _)| *time));
        let timers = [self.client.timeout(), self.server.timeout(), self.loss, self.drain];
        let calls = self.calls.values().flat_map(|call| [call.reader.pause, call.cancel]);
        let handled = self.handled.values().flat_map(|call| [call.reader.pause, call.act]);
        arrivals.into_iter().chain(timers).chain(calls).chain(handled).flatten().min()
    }

    /// Does everything that can be done at this time.
    fn settle(&mut self) {
        loop {
            self.steps += 1;
            assert!(self.steps < 2_000_000, "it spins: {}", self.describe());
            let before = self.trace.finish();
            let moved = self.tick();
            self.events();
            if !moved && before == self.trace.finish() {
                return;
            }
        }
    }

    fn note(&mut self, what: impl Hash) {
        (self.now - self.start).hash(&mut self.trace);
        what.hash(&mut self.trace);
    }

    fn tick(&mut self) -> bool {
        let now = self.now;
        let mut moved = false;
        if !self.lost && self.loss.is_some_and(|loss| loss <= now) {
            self.lose(Error::Io { kind: std::io::ErrorKind::ConnectionReset, text: "reset".into() });
        }
        self.loss = self.loss.filter(|loss| *loss > now);
        if self.drain.is_some_and(|drain| drain <= now) {
            self.drain = None;
            self.server.drain();
            self.note("drain");
        }
        for side in [true, false] {
            let machine = if side { &mut self.client } else { &mut self.server };
            if machine.timeout().is_some_and(|due| due <= now) {
                machine.handle_timeout(now).unwrap();
                moved = true;
            }
        }
        if !self.lost {
            moved |= self.fly(true);
            moved |= self.fly(false);
            moved |= self.land(true);
            moved |= !self.lost && self.land(false);
        }
        moved |= self.start_calls();
        moved |= self.clocks();
        moved
    }

    /// Lets a machine write as much as its pipe takes.
    fn fly(&mut self, to_server: bool) -> bool {
        let (machine, pipe) =
            if to_server { (&mut self.client, &mut self.to_server) } else { (&mut self.server, &mut self.to_client) };
        if pipe.batch.is_empty() {
            machine.transmit(&mut pipe.batch);
        }
        let mut moved = false;
        while !pipe.batch.is_empty() && pipe.in_flight < 100_000 {
            let mut slices = [std::io::IoSlice::new(&[]); 4];
            let filled = pipe.batch.slices(&mut slices);
            let bytes = slices[..filled].iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat();
            let count = if self.rng.bool() { bytes.len() } else { self.rng.usize(1..=bytes.len()) };
            let bytes = Bytes::copy_from_slice(&bytes[..count]);
            let arrival = self.now + Duration::from_micros(self.rng.u64(..=self.latency * 1000));
            let arrival = pipe.last.map_or(arrival, |last| arrival.max(last));
            pipe.last = Some(arrival);
            pipe.batch.advance(count);
            pipe.in_flight += count;
            pipe.flying.push_back((arrival, bytes));
            machine.wrote();
            moved = true;
        }
        moved
    }

    /// Lets bytes arrive.
    fn land(&mut self, to_server: bool) -> bool {
        let (machine, pipe) =
            if to_server { (&mut self.server, &mut self.to_server) } else { (&mut self.client, &mut self.to_client) };
        let Some((time, _)) = pipe.flying.front() else { return false };
        if *time > self.now || machine.is_congested() {
            return false;
        }
        let Some((_, bytes)) = pipe.flying.pop_front() else { return false };
        pipe.in_flight -= bytes.len();
        if machine.is_closed() {
            return true;
        }
        pipe.input.extend_from_slice(&bytes);
        let len = bytes.len();
        let result = machine.receive(&mut pipe.input, self.now);
        self.note((to_server, len));
        match result {
            Ok(()) => (),
            // The client has left after a drain.
            Err(error @ Error::PeerClosed { .. }) if to_server => self.lose(error),
            Err(error) => panic!("{error}"),
        }
        true
    }

    fn lose(&mut self, error: Error) {
        self.note("lost");
        self.lost = true;
        self.to_server.flying.clear();
        self.to_client.flying.clear();
        self.client.lost(error.clone());
        self.server.lost(error);
    }

    fn check_outcomes(&self) {
        for (plan, outcome) in self.outcomes.iter().enumerate() {
            let outcome = outcome.as_deref().unwrap_or_else(|| panic!("call {plan} never ended"));
            let ran = self.ran.contains(&plan);
            assert!(!(outcome.starts_with("never") || outcome == "not opened") || !ran, "{plan} ran: {outcome}");
        }
    }
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("PICOM_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PICOM_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

#[test]
fn every_call_ends_in_every_world() {
    for seed in seeds() {
        let result = std::panic::catch_unwind(|| World::new(seed).run());
        if let Err(panic) = result {
            eprintln!("PICOM_SIM_SEED={seed} shows it again");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in seeds().into_iter().take(20) {
        assert_eq!(World::new(seed).run(), World::new(seed).run(), "PICOM_SIM_SEED={seed}");
    }
}
