//! Windows that grow: on a long path, for whoever reads, up to the bound and not beyond.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::support::*;
use crate::proto::{Config, Connection, Error, Read, SendState};
use crate::wire::frame::put_frame;
use crate::wire::{Flags, Frame, HEADER, Kind, StreamId};

const KIB: u32 = 1024;
const TICK: Duration = Duration::from_millis(1);

/// How the bytes of an upload travel and what becomes of them.
#[derive(Clone, Copy)]
struct Path {
    one_way: Duration,
    /// Bytes that the line carries in a tick.
    line: usize,
    /// Bytes that the reader takes in a tick.
    reader: usize,
    /// What the client answers to the server's PINGs.
    pong: Pong,
}

#[derive(Clone, Copy, PartialEq)]
enum Pong {
    Right,
    Never,
    Twice,
    Foreign,
}

impl Path {
    fn long() -> Self {
        Self { one_way: 10 * TICK, line: usize::MAX, reader: 1 << 40, pong: Pong::Right }
    }

    /// Changes what the client answers; only where lines carry whole frames.
    fn pong(&self, bytes: Bytes) -> Bytes {
        if self.pong == Pong::Right {
            return bytes;
        }
        let mut changed = BytesMut::new();
        for Frame { kind, flags, stream, payload } in frames(&bytes) {
            let times = match (kind, self.pong) {
                (Kind::Pong, Pong::Never) => 0,
                (Kind::Pong, Pong::Twice) => 2,
                _ => 1,
            };
            let foreign = kind == Kind::Pong && self.pong == Pong::Foreign;
            let payload = if foreign { Bytes::from_static(&[0x80, 0, 0, 0, 0, 0, 0, 99]) } else { payload };
            for _ in 0..times {
                put_frame(&mut changed, kind, flags, stream, &payload);
            }
        }
        changed.freeze()
    }
}

/// An upload over a path in a time of its own.
struct World {
    pair: Pair,
    path: Path,
    to_server: VecDeque<(Instant, Bytes)>,
    to_client: VecDeque<(Instant, Bytes)>,
    queued: BytesMut,
    inputs: (BytesMut, BytesMut),
    /// Bytes that the reader may still take.
    allowed: i64,
    /// Read of each stream and not released.
    taken: usize,
    pings: u64,
}

impl World {
    fn new(path: Path, server: Config) -> Self {
        Self {
            pair: Pair::with(client_config(), server),
            path,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            queued: BytesMut::new(),
            inputs: Default::default(),
            allowed: 0,
            taken: 0,
            pings: 0,
        }
    }

    fn call(&mut self) -> StreamId {
        self.taken = 0;
        self.pair.open("upload", b"", false)
    }

    /// Uploads for a while and says how many bytes were read.
    fn upload(&mut self, id: StreamId, ticks: u32) -> usize {
        (0..ticks).map(|_| self.tick(id)).sum()
    }

    fn tick(&mut self, id: StreamId) -> usize {
        self.pair.now += TICK;
        let now = self.pair.now;
        let arrive = |flying: &mut VecDeque<(Instant, Bytes)>, input: &mut BytesMut| {
            while flying.front().is_some_and(|(time, _)| *time <= now) {
                input.extend(flying.pop_front().map(|(_, bytes)| bytes));
            }
        };
        arrive(&mut self.to_client, &mut self.inputs.0);
        arrive(&mut self.to_server, &mut self.inputs.1);
        let Pair { client, server, .. } = &mut self.pair;
        client.receive(&mut self.inputs.0, now).unwrap();
        server.receive(&mut self.inputs.1, now).unwrap();
        while client.send(id, Bytes::from_static(&[0; 32 * 1024])) == Ok(SendState::More) {}
        while client.wants_transmit() {
            self.queued.extend_from_slice(&transmit(client));
            while !client.is_full(id) && client.send(id, Bytes::from_static(&[0; 32 * 1024])).is_ok() {}
        }
        let carried = self.queued.split_to(self.path.line.min(self.queued.len())).freeze();
        self.to_server.push_back((now + self.path.one_way, self.path.pong(carried)));
        let mut read = 0;
        // Chunks are large: who takes one may have to wait for some time.
        self.allowed = self.allowed.min(0) + self.path.reader as i64;
        while self.allowed > 0 {
            let Read::Chunk { bytes, .. } = server.read(id, std::mem::take(&mut self.taken)) else { break };
            self.taken = bytes.len();
            self.allowed -= bytes.len() as i64;
            read += bytes.len();
        }
        server.check_growth();
        let bytes = transmit(server);
        self.pings += frames(&bytes).iter().filter(|frame| frame.kind == Kind::Ping).count() as u64;
        self.to_client.push_back((now + self.path.one_way, bytes));
        read
    }

    fn window(&self, id: StreamId) -> u32 {
        window(&self.pair.server, id)
    }
}

fn window(machine: &Connection, id: StreamId) -> u32 {
    machine.streams.get(id).unwrap().body.as_ref().unwrap().incoming.window.size()
}

/// With windows that have far to grow, whatever the default is.
fn server_config() -> Config {
    Config { stream_window: 256 * KIB, ..super::support::server_config() }
}

fn fixed() -> Config {
    // At the bound from the beginning, so that nothing grows.
    Config { connection_window: 512 * KIB, ..server_config() }
}

#[test]
fn on_a_long_path_the_window_grows_to_its_bound_and_throughput_with_it() {
    for one_way in [10, 25] {
        let path = Path { one_way: one_way * TICK, ..Path::long() };
        let (mut without, mut with) = (World::new(path, fixed()), World::new(path, server_config()));
        let id = without.call();
        let slow = without.upload(id, 500);
        assert_eq!((without.window(id), without.pings), (256 * KIB, 0));
        let id = with.call();
        with.upload(id, 1500);
        assert_eq!(with.window(id), 4096 * KIB, "half of the connection's");
        let fast = with.upload(id, 500);
        assert!(fast > 10 * slow, "{slow} and {fast} bytes in half a second");
        assert_eq!(with.pings, 4, "once for each doubling");
        // The sender may use the window to its last byte, and not one more.
        let Pair { server, now, .. } = &mut with.pair;
        let (_, left, gathered) = server.streams.get(id).unwrap().body.as_ref().unwrap().incoming.window.parts();
        let most = (left + gathered) as usize;
        for (cost, result) in [(most, Ok(())), (HEADER + 1, Err(Error::FlowControl))] {
            let mut input = BytesMut::new();
            let mut rest = cost;
            while rest > 0 {
                let len = if rest > 60_000 { 50_000 } else { rest };
                put_frame(&mut input, Kind::Data, Flags::NONE, id, &vec![0; len - HEADER]);
                rest -= len;
            }
            assert_eq!(server.receive(&mut input, *now), result);
        }
    }
}

#[test]
fn a_window_grows_no_further_than_the_line_or_the_reader_needs() {
    // 25 MB/s over 20 ms are half a megabyte.
    for path in [Path { line: 25_000, ..Path::long() }, Path { reader: 25_000, ..Path::long() }] {
        let mut world = World::new(path, server_config());
        let id = world.call();
        world.upload(id, 1000);
        let rate = world.upload(id, 2000) / 2000;
        assert!(rate > 22_000, "{rate} bytes in a millisecond");
        assert!((1024 * KIB..=2048 * KIB).contains(&world.window(id)), "{}", world.window(id));
        let pings = world.pings;
        world.upload(id, 5000);
        assert!(world.pings - pings <= 3, "{} more PINGs did not pay", world.pings - pings);
    }
}

#[test]
fn a_slow_reader_gets_no_larger_window() {
    let mut world = World::new(Path { reader: 2000, ..Path::long() }, server_config());
    let id = world.call();
    world.upload(id, 5000);
    assert_eq!(world.window(id), 256 * KIB);
    assert!(world.pings <= 6, "{}", world.pings);
}

#[test]
fn a_short_path_is_asked_for_once() {
    let mut world = World::new(Path { one_way: Duration::ZERO, ..Path::long() }, server_config());
    world.pair.now += TICK;
    let mut pings = 0;
    let id = world.call();
    for _ in 0..2000 {
        world.pair.client.message(id, &[0; 60_000]).unwrap();
        world.pair.run();
        read_all(&mut world.pair.server, id);
        pings += frames(&std::mem::take(&mut world.pair.sent.1)).iter().filter(|f| f.kind == Kind::Ping).count();
        world.pair.now += Duration::from_micros(50);
    }
    assert_eq!((window(&world.pair.server, id), pings), (256 * KIB, 1));
}

#[test]
fn calls_with_small_bodies_cause_no_pings() {
    let mut world = World::new(Path::long(), server_config());
    for _ in 0..1000 {
        let id = world.pair.call("add", &[0; 20_000], true);
        read_messages(&mut world.pair.server, id);
        world.pair.server.answer(id, None, put(&[0; 20_000])).unwrap();
        world.pair.run();
        read_messages(&mut world.pair.client, id);
        world.pair.now += TICK;
    }
    assert_eq!((world.pair.server.growth.parts().2, world.pair.client.growth.parts().2), (0, 0));
    world.pair.assert_clean();
}

#[test]
fn pongs_that_never_come_or_come_twice_or_are_foreign_do_no_harm() {
    for (pong, size, pings) in
        [(Pong::Never, 256 * KIB, 1), (Pong::Foreign, 256 * KIB, 1), (Pong::Twice, 4096 * KIB, 4)]
    {
        let mut world = World::new(Path { pong, ..Path::long() }, server_config());
        // Nobody asked yet.
        let mut early = BytesMut::new();
        put_frame(&mut early, Kind::Pong, Flags::NONE, StreamId::CONNECTION, &[0x80, 0, 0, 0, 0, 0, 0, 0]);
        put_frame(&mut early, Kind::Pong, Flags::NONE, StreamId::CONNECTION, &[0x80, 0, 0, 0, 0, 0, 0, 1]);
        world.pair.server.receive(&mut early, world.pair.now).unwrap();
        let id = world.call();
        assert!(world.upload(id, 2000) > 10 << 20);
        assert_eq!((world.window(id), world.pings), (size, pings));
    }
}

#[test]
fn all_windows_together_grow_by_half_of_the_connections_and_give_it_back() {
    let mut world = World::new(Path::long(), server_config());
    let first = world.call();
    world.upload(first, 1000);
    let second = world.call();
    world.upload(second, 3000);
    let (bound, grown, _) = world.pair.server.growth.parts();
    assert_eq!((bound, grown), (4096 * KIB, 4096 * KIB));
    assert_eq!((world.window(first), world.window(second)), (4096 * KIB, 512 * KIB));
    for id in [first, second] {
        world.pair.client.cancel(id);
    }
    for flying in [&mut world.to_server, &mut world.to_client] {
        flying.clear();
    }
    world.pair.run();
    assert_eq!(world.pair.server.growth.parts().1, 0);
}

#[test]
fn pings_stay_far_below_the_budget_whatever_streams_do() {
    let mut world = World::new(Path { one_way: TICK, ..Path::long() }, server_config());
    for _ in 0..100 {
        // Over before its window could grow to the bound.
        let id = world.call();
        world.upload(id, 50);
        world.pair.server.fail(id, &wire_status(crate::status::Code::Internal, "enough"));
        for _ in 0..5 {
            world.tick(id);
        }
    }
    // Five and a half seconds.
    assert!(world.pings <= 55, "{}", world.pings);
}
