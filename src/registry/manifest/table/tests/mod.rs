//! Tables that talk to each other without a network, under a clock that the test turns.
//!
//! Owns [`Net`]. Look next at `living.rs` for honest members, at `rhythm.rs` for when they speak, at `comparing.rs` for how their
//! tables heal, and at `hostile.rs` for the others.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::super::frame::{Beat, Change, Frame, MAX_OWNERS, Put};
use super::super::record::{Details, MAX_DATA};
use super::*;

mod comparing;
mod hostile;
mod living;
mod rhythm;

const BEAT: Duration = Duration::from_secs(2);
const LIFE: Duration = Duration::from_secs(6);

fn content(role: &str) -> Content {
    let address = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7)));
    Content::of_details(role, Details { address, port: 4000, ..Details::default() })
}

fn persistent(role: &str) -> Content {
    Content::of_details(role, Details { port: 4000, persistent: true, ..Details::default() })
}

/// One end of a link: the table that has it, and what it is called there.
type End = (usize, u64);

/// Tables and the links between them; whatever is on its way has not arrived yet.
struct Net {
    now: Instant,
    tables: Vec<Table>,
    paused: Vec<bool>,
    links: Vec<(End, End)>,
    on_its_way: VecDeque<(End, Bytes)>,
    frames: usize,
    bytes: usize,
    /// How often somebody has named all whom it knows.
    digests: usize,
    /// How often each member has looked at the time.
    looks: BTreeMap<usize, usize>,
    /// Whether every summary is changed on its way to what its receiver would say.
    lies: bool,
}

impl Net {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let tables = (0..count).map(|n| Table::new(n as u64 + 1, BEAT, LIFE, now)).collect();
        let (links, on_its_way) = (Vec::new(), VecDeque::new());
        let paused = vec![false; count];
        Self {
            now,
            tables,
            paused,
            links,
            on_its_way,
            frames: 0,
            bytes: 0,
            digests: 0,
            looks: BTreeMap::new(),
            lies: false,
        }
    }

    /// Every member looks for others.
    fn seeking(count: usize) -> Self {
        let mut net = Self::new(count);
        net.tables.iter_mut().for_each(|table| table.rooted = false);
        net
    }

    fn join(&mut self, a: usize, b: usize) {
        let (owner_a, owner_b) = (self.tables[a].me, self.tables[b].me);
        let at_a = self.tables[a].link_up(owner_b, owner_b, self.now).unwrap();
        let at_b = self.tables[b].link_up(owner_a, owner_a, self.now).unwrap();
        self.links.push(((a, at_a), (b, at_b)));
        self.settle();
    }

    fn cut(&mut self, a: usize, b: usize) {
        let is_it = |(x, y): &(End, End)| (x.0, y.0) == (a, b) || (x.0, y.0) == (b, a);
        let (cut, kept): (Vec<_>, Vec<_>) = self.links.drain(..).partition(is_it);
        self.links = kept;
        for (x, y) in cut {
            self.on_its_way.retain(|(end, _)| *end != x && *end != y);
            self.tables[x.0].link_down(x.1);
            self.tables[y.0].link_down(y.1);
        }
    }

    /// Lets everything be said and heard, except by those who stand still.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            for (a, b) in self.links.clone() {
                for (from, to) in [(a, b), (b, a)] {
                    if self.paused[from.0] {
                        continue;
                    }
                    while let Some(mut frame) = self.tables[from.0].next_frame(from.1, self.now) {
                        self.digests += usize::from(matches!(frame, Frame::Pulse { full: true, .. }));
                        if let (true, Frame::Summary { sum, .. }) = (self.lies, &mut frame) {
                            *sum = self.tables[to.0].summary();
                        }
                        let mut out = BytesMut::new();
                        frame.encode(&mut out);
                        self.frames += 1;
                        self.bytes += out.len();
                        self.on_its_way.push_back((to, out.split_off(4).freeze()));
                    }
                    self.tables[from.0].written(from.1);
                }
            }
            let (later, arriving): (VecDeque<_>, VecDeque<_>) =
                self.on_its_way.drain(..).partition(|(end, _)| self.paused[end.0]);
            self.on_its_way = later;
            self.tables.iter_mut().for_each(|table| drop(table.take_bells()));
            if arriving.is_empty() {
                return;
            }
            for ((table, link), frame) in arriving {
                self.tables[table].receive(link, frame, self.now).unwrap();
            }
        }
        panic!("they never stop talking");
    }

    /// Lets the time pass in steps of half a second.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += BEAT / 4;
            for (table, _) in self.tables.iter_mut().zip(&self.paused).filter(|(_, paused)| !**paused) {
                table.tick(self.now);
            }
            self.settle();
        }
    }

    /// Lets the time pass, and every member look at it only when it has to.
    fn live(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }

    /// Goes on to the next time at which somebody has to look at it, or to the end, and lets only those look.
    fn step(&mut self, end: Instant) {
        let awake = || (0..self.tables.len()).filter(|table| !self.paused[*table]);
        let next = awake().map(|table| self.tables[table].due()).min().unwrap_or(end);
        // As exactly as timers are.
        self.now = next.max(self.now + Duration::from_millis(1)).min(end);
        for table in awake().filter(|table| self.tables[*table].due() <= self.now).collect::<Vec<_>>() {
            *self.looks.entry(table).or_default() += 1;
            self.tables[table].tick(self.now);
        }
        self.settle();
    }

    fn roles(&self, table: usize) -> Vec<String> {
        let mut roles: Vec<_> = self.tables[table].find(|_| true).into_iter().map(|record| record.service).collect();
        roles.sort();
        roles
    }

    fn everywhere(&self, roles: &[&str]) {
        for table in 0..self.tables.len() {
            assert_eq!(self.roles(table), roles, "in the table of member {table}");
        }
    }

    fn add(&mut self, table: usize, content: Content) -> RecordId {
        let id = self.tables[table].add(content, self.now).unwrap();
        self.settle();
        id
    }

    /// Lets a forger say something over the link between two members, as the first one.
    fn forge(&mut self, from: usize, to: usize, frame: &Frame) {
        let ends = self.links.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
        let (_, end) = ends.into_iter().find(|(a, b)| (a.0, b.0) == (from, to)).unwrap();
        self.tables[end.0].receive(end.1, bytes_of(frame), self.now).unwrap();
        self.settle();
    }
}

/// As it travels.
fn bytes_of(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.split_off(4).freeze()
}

fn change(owner: u64, incarnation: u64, to: u64, beat: u64, put: Vec<Put>) -> Change {
    Change { owner, incarnation, beat, from: 0, to, gone: false, put, freed: Vec::new(), why: Vec::new() }
}

fn tier(net: &mut Net, table: usize, role: &str) -> Option<Tier> {
    net.tables[table].endpoints(&Query::parse(role).unwrap()).first().map(|endpoint| endpoint.tier)
}
