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

use super::support::*;
use crate::proto::{Batch, Config, Connection, Error, Event, Failure, Open, OpenError, Read, SendError, SendState};
use crate::status::{Code, Status};
use crate::wire::{Refusal, StreamId, WireStatus, parse_prefix};

/// How many worlds are run by default.
const SEEDS: u64 = 200;

/// By then, in virtual time, every call has ended.
const DOOMSDAY: Duration = Duration::from_secs(600);

/// What one call is to be.
#[derive(Clone, Debug)]
struct Plan {
    start: Duration,
    deadline: Option<Duration>,
    idle: Option<Duration>,
    cancel: Option<Duration>,
    /// Lengths of the items after the first message.
    upload: Vec<usize>,
    abort: bool,
    /// Lengths of the items of the answer.
    download: Vec<usize>,
    handling: Handling,
    /// How long the server thinks, and the reader of each side after a chunk.
    thinks: Duration,
    dawdles: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Handling {
    /// Reads all, then answers with one message.
    Unary,
    /// Answers without reading.
    Early,
    /// Reads and answers at the same time.
    Stream,
    /// Some items, then a status.
    Fail,
    Refuse,
    /// Never answers; only with a deadline, an idle limit or a cancel.
    Silent,
}

impl Plan {
    fn random(rng: &mut Rng) -> Self {
        let millis = |rng: &mut Rng, most: u64| Duration::from_millis(rng.u64(0..=most));
        let lens = |rng: &mut Rng| match rng.u8(..8) {
            0..4 => Vec::new(),
            4..6 => (0..rng.usize(..20)).map(|_| rng.usize(..400)).collect(),
            6 => (0..rng.usize(..200)).map(|_| rng.usize(..3000)).collect(),
            _ => (0..rng.usize(1..4)).map(|_| rng.usize(..200_000)).collect(),
        };
        let handling = match rng.u8(..20) {
            0..8 => Handling::Unary,
            8..10 => Handling::Early,
            10..15 => Handling::Stream,
            15..17 => Handling::Fail,
            17..19 => Handling::Refuse,
            _ => Handling::Silent,
        };
        let some = |rng: &mut Rng, least: bool, most: u64| (least || rng.u8(..5) == 0).then(|| millis(rng, most));
        Self {
            start: millis(rng, 3000),
            deadline: some(rng, handling == Handling::Silent, 2000),
            idle: (rng.u8(..8) == 0).then(|| Duration::from_millis(rng.u64(100..3000))),
            cancel: some(rng, false, 1000),
            upload: lens(rng),
            abort: rng.u8(..10) == 0,
            download: if handling == Handling::Unary || handling == Handling::Early {
                vec![if rng.u8(..5) == 0 { rng.usize(..300_000) } else { rng.usize(..500) }]
            } else {
                lens(rng)
            },
            handling,
            thinks: if rng.bool() { Duration::ZERO } else { millis(rng, 500) },
            dawdles: if rng.u8(..4) > 0 { Duration::ZERO } else { millis(rng, 20) },
        }
    }
}

/// The bytes of one item: which, of which call, and in which direction, are all in them.
fn item(call: usize, number: usize, len: usize) -> Vec<u8> {
    // 251 is a prime, so no two places of a frame look alike. Repeated, as test builds are slow with single bytes.
    let pattern: Vec<u8> = (0..251).map(|at| (call * 31 + number * 7 + at) as u8).collect();
    let mut item = pattern.repeat(len / pattern.len() + 1);
    item.truncate(len);
    item
}

/// One direction of a call at its sender.
struct Writer {
    items: VecDeque<Vec<u8>>,
    /// Instead of an end.
    abort: bool,
}

/// One direction of a call at its receiver.
#[derive(Default)]
struct Reader {
    body: Vec<u8>,
    release: usize,
    /// Reads again at this time.
    pause: Option<Instant>,
    done: bool,
}

/// A call at the client.
struct Calling {
    plan: usize,
    writer: Option<Writer>,
    reader: Reader,
    cancel: Option<Instant>,
}

/// A call at the server.
struct Handled {
    plan: usize,
    writer: Option<Writer>,
    reader: Reader,
    /// Answers at this time.
    act: Option<Instant>,
    acted: bool,
}

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
            ..client_config()
        };
        let server = Config {
            stream_window: window(&mut rng),
            connection_window: connection_window(&mut rng),
            max_calls: [1, 3, 100][rng.usize(..3)],
            ..server_config()
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

    fn start_calls(&mut self) -> bool {
        let mut moved = false;
        while let Some(&plan) = self.waiting.front() {
            let now = self.now;
            let Plan { deadline, idle, cancel, upload, abort, .. } = self.plans[plan].clone();
            let end = upload.is_empty() && !abort;
            let method = format!("method{}", plan % 5);
            let head = Open { deadline: deadline.map(|time| now + time), idle, end, ..call(&method) };
            let first = [&plan.to_be_bytes()[..], &item(plan, 0, plan % 3 * 3000)].concat();
            match self.client.open(head, now, put(&first)) {
                Ok(id) => {
                    let items = upload.iter().enumerate().map(|(n, len)| item(plan, n + 1, *len)).collect();
                    let writer = (!end).then_some(Writer { items, abort });
                    let cancel = cancel.map(|time| now + time);
                    self.calls.insert(id, Calling { plan, writer, reader: Reader::default(), cancel });
                    self.write(true, id);
                }
                Err(OpenError::Full) => break,
                Err(OpenError::Draining | OpenError::Closed) => self.outcomes[plan] = Some("not opened".into()),
                Err(error) => panic!("{error:?}"),
            }
            self.waiting.pop_front();
            self.note(plan);
            moved = true;
        }
        moved
    }

    /// What the applications do because time has come.
    fn clocks(&mut self) -> bool {
        let now = self.now;
        let due = |time: &mut Option<Instant>| time.take_if(|time| *time <= now).is_some();
        let mut cancels = Vec::new();
        let mut reads = Vec::new();
        let mut acts = Vec::new();
        for (id, call) in &mut self.calls {
            if due(&mut call.cancel) {
                cancels.push(*id);
            } else if due(&mut call.reader.pause) {
                reads.push((true, *id));
            }
        }
        for (id, call) in &mut self.handled {
            if due(&mut call.reader.pause) {
                reads.push((false, *id));
            }
            if due(&mut call.act) {
                acts.push(*id);
            }
        }
        let moved = !(cancels.is_empty() && reads.is_empty() && acts.is_empty());
        for id in cancels {
            self.client.cancel(id);
            let Some(call) = self.calls.remove(&id) else { continue };
            self.outcomes[call.plan] = Some("cancelled".into());
            self.note("cancelled");
        }
        for (client, id) in reads {
            self.read(client, id);
        }
        for id in acts {
            self.act(id);
        }
        moved
    }

    fn events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            self.note(format!("{event:?}").replace(&format!("{:?}", self.start), ""));
            match event {
                Event::Readable(id) => self.read(true, id),
                Event::Writable(id) => self.write(true, id),
                _ => (),
            }
        }
        while let Some(event) = self.server.poll_event() {
            self.note(match &event {
                Event::Call { id, .. } => format!("call {id:?}"),
                other => format!("{other:?}"),
            });
            match event {
                Event::Call { id, method, .. } => {
                    if let Some(name) = method.name {
                        assert!(self.names.insert(method.number, name.to_string()).is_none(), "told once");
                    }
                    assert_eq!(self.names[&method.number], **self.server.method_name(method.number).unwrap());
                    let call =
                        Handled { plan: usize::MAX, writer: None, reader: Reader::default(), act: None, acted: false };
                    assert!(self.handled.insert(id, call).is_none());
                    self.read(false, id);
                }
                Event::Readable(id) => self.read(false, id),
                Event::Writable(id) => self.write(false, id),
                Event::Cancelled(id) => {
                    self.handled.remove(&id);
                }
                Event::Expired(id) => {
                    self.server.fail(id, &WireStatus::new(Code::DeadlineExceeded, "expired"));
                    self.handled.remove(&id);
                }
                _ => (),
            }
        }
    }

    fn read(&mut self, client: bool, id: StreamId) {
        loop {
            let (machine, reader, dawdles) = if client {
                let Some(call) = self.calls.get_mut(&id) else { return };
                (&mut self.client, &mut call.reader, self.plans[call.plan].dawdles)
            } else {
                let Some(call) = self.handled.get_mut(&id) else { return };
                let dawdles = self.plans.get(call.plan).map_or(Duration::ZERO, |plan| plan.dawdles);
                (&mut self.server, &mut call.reader, dawdles)
            };
            if reader.done || reader.pause.is_some() {
                return;
            }
            let read = machine.read(id, std::mem::take(&mut reader.release));
            let mut end = None;
            match read {
                Read::Pending => return,
                Read::Chunk { bytes, last } => {
                    reader.body.extend_from_slice(&bytes);
                    reader.release = bytes.len();
                    if last {
                        end = Some(Ok(()));
                    } else if !dawdles.is_zero() {
                        reader.pause = Some(self.now + dawdles);
                    }
                }
                Read::End => end = Some(Ok(())),
                Read::Failed(failure) => end = Some(Err(failure)),
            }
            reader.done = end.is_some();
            if client {
                if let Some(end) = end {
                    self.ended(id, end);
                    return;
                }
            } else {
                self.heard(id, end);
            }
        }
    }

    /// The server has read some of a request.
    fn heard(&mut self, id: StreamId, end: Option<Result<(), Failure>>) {
        let Some(call) = self.handled.get_mut(&id) else { return };
        if call.plan == usize::MAX {
            // The first message says which call this is; it comes in one piece or not at all.
            let Some((len, prefix)) = parse_prefix(&call.reader.body) else { return };
            let Some(first) = call.reader.body.get(prefix..prefix + len.min(8)).filter(|first| first.len() == 8) else {
                return;
            };
            call.plan = usize::from_be_bytes(first.try_into().unwrap());
            let plan = &self.plans[call.plan];
            if plan.handling != Handling::Unary {
                call.act = Some(self.now + plan.thinks);
            }
            assert!(self.ran.insert(call.plan), "a call runs once");
        }
        let Some(end) = end else { return };
        let plan = &self.plans[call.plan];
        match end {
            Ok(()) => {
                let got = messages(&call.reader.body);
                assert_eq!(got[0][8..], item(call.plan, 0, call.plan % 3 * 3000));
                let lens: Vec<usize> = got[1..].iter().map(Vec::len).collect();
                assert_eq!(lens, plan.upload);
                assert!(got[1..].iter().enumerate().all(|(n, got)| *got == item(call.plan, n + 1, got.len())));
                assert!(!plan.abort);
            }
            Err(Failure::Status { status, .. }) => assert!(plan.abort && status.code == Code::Aborted.number()),
            // The stream is gone; the event that says so is on its way.
            Err(Failure::Truncated) => return,
            Err(other) => panic!("{other:?}"),
        }
        if plan.handling == Handling::Unary {
            call.act = Some(self.now + plan.thinks);
        }
    }

    /// The server does what it was asked for.
    fn act(&mut self, id: StreamId) {
        let Some(call) = self.handled.get_mut(&id) else { return };
        assert!(!std::mem::replace(&mut call.acted, true));
        let number = call.plan;
        let plan = &self.plans[number];
        let items: VecDeque<Vec<u8>> = plan.download.iter().enumerate().map(|(n, len)| item(number, n, *len)).collect();
        match plan.handling {
            Handling::Unary | Handling::Early => {
                let answered = self.server.answer(id, None, put(&items[0]));
                // Unless the stream is gone; the event that says so is on its way.
                assert!(matches!(answered, Ok(()) | Err(SendError::Over)));
                self.handled.remove(&id);
            }
            Handling::Refuse => {
                self.server.refuse(id, Refusal::Busy, None, "as planned");
                self.handled.remove(&id);
            }
            Handling::Silent => (),
            Handling::Stream | Handling::Fail => {
                self.server.start_answer(id, None);
                call.writer = Some(Writer { items, abort: plan.handling == Handling::Fail });
                self.write(false, id);
            }
        }
    }

    fn write(&mut self, client: bool, id: StreamId) {
        let (machine, writer) = if client {
            let Some(call) = self.calls.get_mut(&id) else { return };
            (&mut self.client, &mut call.writer)
        } else {
            let Some(call) = self.handled.get_mut(&id) else { return };
            (&mut self.server, &mut call.writer)
        };
        let Some(Writer { items, abort }) = writer else { return };
        while let Some(item) = items.pop_front() {
            let sent = if item.len() % 2 == 0 {
                machine.send(id, put(&item)).map_err(|error| format!("{error:?}"))
            } else {
                machine.send_bytes(id, &item[..1], Bytes::copy_from_slice(&item[1..])).map_err(|e| format!("{e:?}"))
            };
            match sent {
                Ok(SendState::More) => (),
                Ok(SendState::Full) => return,
                Err(error) => {
                    assert_eq!(error, "Over");
                    *writer = None;
                    return;
                }
            }
        }
        match (client, *abort) {
            (_, false) => machine.finish(id),
            (true, true) => machine.abort_body(id, &Status::aborted("as planned")),
            (false, true) => machine.fail(id, &WireStatus::new(Code::Internal, "as planned")),
        }
        *writer = None;
        if !client {
            self.handled.remove(&id);
        }
    }

    /// The client knows how its call ended.
    fn ended(&mut self, id: StreamId, end: Result<(), Failure>) {
        let Some(call) = self.calls.remove(&id) else { return };
        let plan = &self.plans[call.plan];
        let whole: Vec<u8> = {
            let mut whole = BytesMut::new();
            for (n, len) in plan.download.iter().enumerate() {
                crate::wire::put_prefix(&mut whole, *len);
                whole.extend_from_slice(&item(call.plan, n, *len));
            }
            whole.to_vec()
        };
        assert!(whole.starts_with(&call.reader.body), "what came is what was sent");
        let outcome = match end {
            Ok(()) => {
                assert_eq!(call.reader.body.len(), whole.len(), "an end is never too early");
                assert!(matches!(plan.handling, Handling::Unary | Handling::Early | Handling::Stream));
                "done".to_owned()
            }
            Err(Failure::Status { status, .. }) => {
                let expired = status.code == Code::DeadlineExceeded.number();
                assert!(expired || (plan.handling == Handling::Fail && call.reader.body.len() == whole.len()));
                "status".to_owned()
            }
            Err(Failure::Refused { .. }) => {
                assert_eq!(plan.handling, Handling::Refuse);
                "refused".to_owned()
            }
            Err(Failure::NotAccepted) => "never: not accepted".to_owned(),
            Err(Failure::Lost { sent, .. }) => {
                assert!(self.lost);
                if sent { "lost".to_owned() } else { "never: lost".to_owned() }
            }
            Err(Failure::Deadline { sent, .. }) => {
                assert!(plan.deadline.is_some());
                if sent { "deadline".to_owned() } else { "never: deadline".to_owned() }
            }
            Err(Failure::Idle { sent, .. }) => {
                assert!(plan.idle.is_some());
                if sent { "idle".to_owned() } else { "never: idle".to_owned() }
            }
            Err(Failure::Truncated) => panic!("a call cannot just be gone"),
        };
        self.outcomes[call.plan] = Some(outcome.clone());
        self.note(outcome);
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
