//! Whatever two sides do to each other, when all streams are over no credit is missing, and no window exceeds its size.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;

use super::support::*;
use crate::proto::{Batch, Config, Connection, Event, Open, Read};
use crate::status::{Code, Status};
use crate::wire::{Refusal, StreamId};

/// One thing that somebody does. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Open { len: usize, end: bool, deadline: bool },
    Send { server: bool, which: usize, len: usize },
    SendBytes { server: bool, which: usize, len: usize },
    Finish { server: bool, which: usize },
    Abort { which: usize },
    Cancel { which: usize },
    Read { server: bool, which: usize, release: bool },
    Answer { which: usize, len: usize },
    Start { which: usize },
    Fail { which: usize },
    Refuse { which: usize },
    Transmit { server: bool },
    Deliver { to_server: bool, len: usize },
    Flow { server: bool, which: usize, rounds: usize },
    Time { millis: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = || prop_oneof![4 => 0..300usize, 2 => 300..6000usize, 1 => 6000..100_000usize];
    let which = || 0..8usize;
    let step = prop_oneof![
        4 => (len(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(len, end, deadline)| Step::Open { len, end, deadline }),
        4 => (any::<bool>(), which(), len()).prop_map(|(server, which, len)| Step::Send { server, which, len }),
        1 => (any::<bool>(), which(), len()).prop_map(|(server, which, len)| Step::SendBytes { server, which, len }),
        2 => (any::<bool>(), which()).prop_map(|(server, which)| Step::Finish { server, which }),
        1 => which().prop_map(|which| Step::Abort { which }),
        2 => which().prop_map(|which| Step::Cancel { which }),
        6 => (any::<bool>(), which(), any::<bool>())
            .prop_map(|(server, which, release)| Step::Read { server, which, release }),
        2 => (which(), len()).prop_map(|(which, len)| Step::Answer { which, len }),
        2 => which().prop_map(|which| Step::Start { which }),
        1 => which().prop_map(|which| Step::Fail { which }),
        1 => which().prop_map(|which| Step::Refuse { which }),
        6 => any::<bool>().prop_map(|server| Step::Transmit { server }),
        8 => (any::<bool>(), prop_oneof![1..50usize, 1..100_000usize])
            .prop_map(|(to_server, len)| Step::Deliver { to_server, len }),
        2 => (any::<bool>(), which(), 1..20usize)
            .prop_map(|(server, which, rounds)| Step::Flow { server, which, rounds }),
        1 => (0..50u64).prop_map(|millis| Step::Time { millis }),
    ];
    prop::collection::vec(step, 1..150)
}

/// One machine, what is on its way to it, and the streams that it knows.
struct End {
    machine: Connection,
    pipe: VecDeque<u8>,
    input: BytesMut,
    ids: Vec<StreamId>,
    /// What was read of each stream and not released.
    unreleased: std::collections::HashMap<StreamId, usize>,
}

impl End {
    fn pick(&self, which: usize) -> Option<StreamId> {
        if self.ids.is_empty() { None } else { Some(self.ids[which % self.ids.len()]) }
    }

    fn read(&mut self, id: StreamId, release: bool) -> bool {
        let owed = self.unreleased.entry(id).or_default();
        let count = if release { std::mem::take(owed) } else { 0 };
        match self.machine.read(id, count) {
            Read::Chunk { bytes, .. } => {
                *owed += bytes.len();
                true
            }
            _ => false,
        }
    }

    fn receive(&mut self, len: usize, now: std::time::Instant) {
        let len = len.min(self.pipe.len());
        self.input.extend(self.pipe.drain(..len));
        self.machine.receive(&mut self.input, now).unwrap();
        while let Some(event) = self.machine.poll_event() {
            if let Event::Call { id, .. } = event {
                self.ids.push(id);
            }
        }
        let machine = &self.machine;
        self.ids.retain(|id| machine.streams.get(*id).is_some());
    }
}

struct World {
    client: End,
    server: End,
    now: std::time::Instant,
}

impl World {
    fn new() -> Self {
        let windows = |config| Config { stream_window: 9000, connection_window: 30_000, ..config };
        // The random client cancels more than an honest one would.
        let server = Config { max_calls: 6, cancel_budget: 1_000_000, ..server_config() };
        let Pair { client, server, now, .. } =
            Pair::with(Config { wants_load: true, ..windows(client_config()) }, loaded(windows(server)));
        let end = |machine| End {
            machine,
            pipe: VecDeque::new(),
            input: BytesMut::new(),
            ids: Vec::new(),
            unreleased: Default::default(),
        };
        Self { client: end(client), server: end(server), now }
    }

    fn end(&mut self, server: bool) -> &mut End {
        if server { &mut self.server } else { &mut self.client }
    }

    fn transmit(&mut self, server: bool) {
        let bytes = transmit(&mut self.end(server).machine);
        self.end(!server).pipe.extend(&bytes);
    }

    /// A body that flows and is read, a round trip of a millisecond at a time: its window may grow.
    fn flow(&mut self, server: bool, which: usize, rounds: usize) {
        let Some(id) = self.end(server).pick(which) else { return };
        for _ in 0..rounds {
            let machine = &mut self.end(server).machine;
            while machine.streams.get(id).is_some() && !machine.is_full(id) && machine.message(id, &[5; 3000]).is_ok() {
            }
            for server in [server, !server] {
                self.transmit(server);
                let now = self.now;
                self.end(!server).receive(usize::MAX, now);
                while self.end(!server).read(id, true) {}
                self.now += Duration::from_micros(500);
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let now = self.now;
        match *step {
            Step::Open { len, end, deadline } => {
                let deadline = deadline.then(|| now + Duration::from_millis(30));
                let opened = self.client.machine.open(Open { end, deadline, ..call("m") }, now, put(&vec![1; len]));
                self.client.ids.extend(opened);
            }
            Step::Send { server, which, len } => {
                let end = self.end(server);
                if let Some(id) = end.pick(which).filter(|id| !end.machine.is_full(*id)) {
                    end.machine.message(id, &vec![2; len]).ok();
                }
            }
            Step::SendBytes { server, which, len } => {
                let end = self.end(server);
                if let Some(id) = end.pick(which) {
                    end.machine.parts(id, b"head", vec![3; len].into()).ok();
                }
            }
            Step::Finish { server, which } => {
                let end = self.end(server);
                if let Some(id) = end.pick(which) {
                    end.machine.finish(id);
                }
            }
            Step::Abort { which } => {
                if let Some(id) = self.client.pick(which) {
                    self.client.machine.abort_body(id, &Status::aborted("no"));
                }
            }
            Step::Cancel { which } => {
                if let Some(id) = self.client.pick(which) {
                    self.client.machine.cancel(id);
                }
            }
            Step::Read { server, which, release } => {
                let end = self.end(server);
                if let Some(id) = end.pick(which) {
                    end.read(id, release);
                }
            }
            Step::Answer { which, len } => {
                if let Some(id) = self.server.pick(which) {
                    self.server.machine.answer(id, None, put(&vec![4; len])).ok();
                }
            }
            Step::Start { which } => {
                if let Some(id) = self.server.pick(which) {
                    self.server.machine.start_answer(id, None);
                }
            }
            Step::Fail { which } => {
                if let Some(id) = self.server.pick(which) {
                    self.server.machine.fail(id, &wire_status(Code::Internal, "no"));
                }
            }
            Step::Refuse { which } => {
                if let Some(id) = self.server.pick(which) {
                    self.server.machine.refuse(id, Refusal::Busy, None, "no");
                }
            }
            Step::Transmit { server } => self.transmit(server),
            Step::Deliver { to_server, len } => self.end(to_server).receive(len, now),
            Step::Flow { server, which, rounds } => self.flow(server, which, rounds),
            Step::Time { millis } => {
                self.now += Duration::from_millis(millis);
                self.client.machine.handle_timeout(self.now).unwrap();
                self.server.machine.handle_timeout(self.now).unwrap();
            }
        }
    }

    /// Lets every call come to an end.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            for server in [false, true] {
                self.transmit(server);
                let now = self.now;
                self.end(!server).receive(usize::MAX, now);
            }
            for id in self.server.ids.clone() {
                while self.server.read(id, true) {}
                self.server.machine.fail(id, &wire_status(Code::Internal, "over"));
            }
            for id in self.client.ids.clone() {
                while self.client.read(id, true) {}
            }
            let idle =
                |end: &End| end.machine.open_calls() == 0 && !end.machine.wants_transmit() && end.pipe.is_empty();
            if idle(&self.client) && idle(&self.server) {
                return;
            }
        }
        panic!("it does not come to an end: {:?} {:?}", self.client.machine, self.server.machine);
    }
}

/// What the steps below must be able to reach.
#[test]
fn a_body_that_flows_in_both_directions_makes_both_windows_grow() {
    let mut world = World::new();
    world.step(&Step::Open { len: 10, end: false, deadline: false });
    world.flow(false, 0, 1);
    world.step(&Step::Start { which: 0 });
    world.flow(false, 0, 20);
    world.flow(true, 0, 20);
    for end in [&world.client, &world.server] {
        assert!(end.machine.growth.parts().1 > 0, "nothing has grown: {:?}", end.machine.growth);
    }
    world.settle();
}

/// Nothing is lost on the way either: a batch that is cut anywhere is one sequence of bytes.
#[test]
fn an_unread_batch_is_left_alone() {
    let mut world = World::new();
    world.step(&Step::Open { len: 10, end: true, deadline: false });
    let mut batch = Batch::default();
    world.client.machine.transmit(&mut batch);
    let len = batch.len();
    world.step(&Step::Open { len: 10, end: true, deadline: false });
    world.client.machine.transmit(&mut batch);
    assert_eq!(batch.len(), len, "a batch is only filled when it is empty");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_credit_is_lost_whatever_happens(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            // So that nothing looks like no time at all.
            world.now += Duration::from_micros(300);
            world.client.machine.check_growth();
            world.server.machine.check_growth();
        }
        world.settle();
        let World { client, server, now } = world;
        let pair = Pair {
            client: client.machine,
            server: server.machine,
            now,
            client_events: VecDeque::new(),
            server_events: VecDeque::new(),
            sent: Default::default(),
        };
        pair.assert_clean();
        for machine in [&pair.client, &pair.server] {
            prop_assert!(machine.streams.ids().is_empty());
        }
    }
}
