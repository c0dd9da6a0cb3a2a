//! Tables that talk to each other without a network, under a clock that the test turns.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::super::frame::{Beat, Change, Frame, MAX_OWNERS, Put};
use super::super::record::{Details, MAX_DATA};
use super::*;

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
}

impl Net {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let tables = (0..count).map(|n| Table::new(n as u64 + 1, BEAT, LIFE, now)).collect();
        let (links, on_its_way) = (Vec::new(), VecDeque::new());
        Self { now, tables, paused: vec![false; count], links, on_its_way, frames: 0, bytes: 0 }
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
                    while let Some(frame) = self.tables[from.0].next_frame(from.1, self.now) {
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
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        self.tables[end.0].receive(end.1, out.split_off(4).freeze(), self.now).unwrap();
        self.settle();
    }
}

fn change(owner: u64, incarnation: u64, to: u64, beat: u64, put: Vec<Put>) -> Change {
    Change { owner, incarnation, beat, from: 0, to, gone: false, put, freed: Vec::new() }
}

fn tier(net: &Net, table: usize, role: &str) -> Option<Tier> {
    net.tables[table].endpoints(&Query::parse(role).unwrap()).first().map(|endpoint| endpoint.tier)
}

#[test]
fn a_newcomer_learns_everything_and_changes_reach_everybody_along_a_chain() {
    let mut net = Net::new(4);
    let first = net.add(0, content("one@1.0.0"));
    for n in 1..4 {
        net.join(n - 1, n);
    }
    net.everywhere(&["one@1.0.0"]);
    net.add(3, content("two"));
    net.everywhere(&["one@1.0.0", "two"]);
    let stopped = NodeStatus::now(crate::NodeState::Stopped, Some("repair"));
    net.tables[0].set_status(first.number, &stopped, net.now);
    net.settle();
    let seen = net.tables[3].get(&Query::parse("one@^1").unwrap());
    assert_eq!(seen[0].details.status.to_string(), "stopped: repair");
    net.tables[0].free(first, net.now).unwrap();
    net.settle();
    net.everywhere(&["two"]);
}

#[test]
fn cycles_do_no_harm_and_nothing_is_said_back() {
    let mut net = Net::new(3);
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        net.join(a, b);
    }
    let before = net.frames;
    net.add(0, content("one"));
    net.everywhere(&["one"]);
    assert!(net.frames - before <= 4, "one change cost {} frames on three links", net.frames - before);
}

#[test]
fn a_beat_late_by_one_removes_nobody_and_a_silent_member_is_removed_after_its_lifetime() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    net.add(2, content("one"));
    net.pass(Duration::from_secs(60));
    net.everywhere(&["one"]);
    net.paused[2] = true;
    net.pass(LIFE - BEAT - BEAT / 4);
    assert_eq!(net.roles(0), ["one"]);
    net.pass(BEAT * 2);
    assert_eq!((net.roles(0), net.roles(1)), (vec![], vec![]));
    net.paused[2] = false;
    net.pass(BEAT);
    net.everywhere(&["one"]);
}

#[test]
fn an_observer_that_stood_still_removes_nobody() {
    for standing in [0, 1, 2] {
        let mut net = Net::seeking(3);
        net.join(0, 1);
        net.join(1, 2);
        for n in 0..3 {
            net.add(n, content(["zero", "one", "two"][n]));
        }
        net.pass(Duration::from_secs(20));
        net.paused[standing] = true;
        net.pass(Duration::from_secs(8));
        net.paused[standing] = false;
        // It looks at the time before it has read anything.
        net.tables[standing].tick(net.now);
        assert_eq!(net.roles(standing), ["one", "two", "zero"], "member {standing} doubted others first");
        assert_eq!(net.tables[standing].refusals.pauses, 1);
        net.pass(BEAT * 2);
        net.everywhere(&["one", "two", "zero"]);
    }
}

#[test]
fn a_relay_that_stood_still_costs_nobody_behind_it() {
    // 0 - 1 - 2 - 3 with another connection of 0, so that it is never cut off.
    for rooted in [true, false] {
        let mut net = if rooted { Net::new(5) } else { Net::seeking(5) };
        for (a, b) in [(0, 1), (1, 2), (2, 3), (0, 4)] {
            net.join(a, b);
        }
        let roles = ["r0", "r1", "r2", "r3", "r4"];
        roles.iter().enumerate().for_each(|(n, role)| assert_eq!(net.add(n, content(role)).number, 1));
        net.pass(Duration::from_secs(21));
        net.tables.iter_mut().for_each(|table| table.take_events().clear());
        net.paused[1] = true;
        net.pass(Duration::from_secs(8));
        net.paused[1] = false;
        net.pass(BEAT * 3);
        net.everywhere(&roles);
        for n in [0, 2, 3, 4] {
            let lost = net.tables[n].take_events().into_iter().filter_map(|event| match event {
                Event::Freed(record) => Some(record.role),
                _ => None,
            });
            // Only those who are told by others than the one that stood still can know that it does.
            assert!(lost.into_iter().all(|role| role == "r1"), "member {n} lost somebody who lives");
        }
    }
}

#[test]
fn who_is_cut_off_remembers_and_who_is_not_forgets() {
    let mut net = Net::seeking(3);
    net.tables[1].rooted = true;
    net.join(0, 1);
    net.join(1, 2);
    net.add(0, content("zero"));
    net.add(2, content("two"));
    net.pass(BEAT);
    net.cut(0, 1);
    assert_eq!(net.roles(0), ["two", "zero"], "nothing is removed for a lost connection");
    assert_eq!(tier(&net, 1, "zero"), Some(Tier::Doubtful), "but its other end is doubted");
    net.pass(LIFE * 3);
    assert!(!net.tables[0].is_connected(net.now));
    assert_eq!(net.roles(0), ["zero"], "the table has only what lives");
    assert_eq!(tier(&net, 0, "two"), Some(Tier::Unhealthy), "but readers keep what was known");
    assert_eq!((net.roles(1), net.roles(2)), (vec!["two".to_owned()], vec!["two".to_owned()]));
    net.join(0, 1);
    net.pass(BEAT);
    net.everywhere(&["two", "zero"]);
    assert_eq!(tier(&net, 0, "two"), Some(Tier::Healthy));
    assert_eq!(tier(&net, 1, "zero"), Some(Tier::Healthy));
}

#[test]
fn a_remembered_member_that_is_not_there_any_more_is_forgotten_with_the_next_connection() {
    let mut net = Net::seeking(3);
    net.join(0, 1);
    net.join(1, 2);
    net.add(2, content("two"));
    net.pass(BEAT);
    net.cut(0, 1);
    net.tables[2].leave(net.now);
    net.settle();
    net.pass(LIFE * 2);
    assert_eq!(tier(&net, 0, "two"), Some(Tier::Unhealthy));
    net.join(0, 1);
    net.pass(BEAT);
    assert_eq!(tier(&net, 0, "two"), None);
}

#[test]
fn two_halves_heal() {
    let mut net = Net::seeking(6);
    for (a, b) in [(0, 1), (1, 2), (3, 4), (4, 5), (2, 3)] {
        net.join(a, b);
    }
    let left = net.add(0, content("left"));
    net.add(5, content("right"));
    net.pass(BEAT * 2);
    net.cut(2, 3);
    net.pass(LIFE * 3);
    assert_eq!((net.roles(0), net.roles(5)), (vec!["left".to_owned()], vec!["right".to_owned()]));
    net.tables[0].free(left, net.now).unwrap();
    net.add(1, content("new-left"));
    net.add(4, content("new-right"));
    net.join(2, 3);
    net.pass(BEAT);
    net.everywhere(&["new-left", "new-right", "right"]);
}

#[test]
fn leaving_is_known_at_once_and_is_not_undone_by_one_who_missed_it() {
    let mut net = Net::new(4);
    net.join(0, 1);
    net.join(1, 2);
    net.join(0, 3);
    net.add(3, content("left"));
    net.pass(BEAT);
    net.cut(1, 2);
    net.tables[3].leave(net.now);
    net.settle();
    assert_eq!((net.roles(0), net.roles(1)), (vec![], vec![]));
    assert_eq!(net.roles(2), ["left"], "it has not heard of it");
    net.join(1, 2);
    net.pass(BEAT);
    net.everywhere(&[]);
}

#[test]
fn a_digest_heals_what_was_lost_or_spoiled() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let id = net.add(0, content("one"));
    net.add(0, content("two"));
    net.pass(BEAT);
    net.tables[1].remove(id);
    assert_eq!(net.roles(1), ["two"]);
    net.pass(Duration::from_secs(12));
    net.everywhere(&["one", "two"]);
    assert_eq!(net.tables[0].refusals.takeovers, 1, "a table that differs looks like somebody else's word");
}

#[test]
fn only_the_owner_changes_or_frees_a_record() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    let id = net.add(0, content("mine"));
    net.pass(BEAT);
    let (error, shown) = (net.tables[2].free(id, net.now).unwrap_err(), id.to_string());
    assert!(error.to_string().contains("another member") && error.to_string().contains(&shown), "{error}");

    // The middle one knows the secret and lies, in both directions.
    let body = content("stolen").encode().unwrap();
    let stolen = |incarnation, version| {
        Frame::Change(change(1, incarnation, version, 1 << 40, vec![Put(1, version, body.clone())]))
    };
    for (to, frame) in [(2, stolen(1, 50)), (0, stolen(1, 50)), (2, stolen(9, 1)), (0, stolen(90, 1))] {
        net.forge(1, to, &frame);
        net.pass(BEAT * 6);
        net.everywhere(&["mine"]);
    }
    net.forge(1, 0, &Frame::Change(Change { freed: vec![1], from: 1, ..change(1, 9, 99, 1, vec![]) }));
    net.forge(1, 0, &Frame::Change(Change { gone: true, ..change(1, 1 << 20, 99, 1 << 50, vec![]) }));
    net.forge(1, 2, &Frame::Freed(vec![(id.owner, id.number)]));
    net.forge(1, 2, &Frame::Pulse { full: false, beats: vec![Beat(1, 1, u64::MAX, 7, 7)] });
    net.forge(1, 0, &Frame::Pulse { full: false, beats: vec![Beat(1, 1, u64::MAX, 7, 7)] });
    net.pass(BEAT * 6);
    net.everywhere(&["mine"]);
    assert!(net.tables[0].refusals.takeovers >= 4, "{:?}", net.tables[0].refusals);
    assert_eq!(net.tables[2].refusals.takeovers, 1, "the free of a record that is its owner's alone");
}

#[test]
fn a_member_whose_incarnations_are_used_up_takes_another_name() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    let id = net.add(0, content("mine"));
    net.forge(1, 0, &Frame::Change(change(1, u64::MAX, u64::MAX, u64::MAX, vec![])));
    net.pass(LIFE * 2);
    net.everywhere(&["mine"]);
    assert_ne!(net.tables[0].me, 1);
    net.tables[0].free(id, net.now).unwrap();
    net.settle();
    net.everywhere(&[]);
}

#[test]
fn persistent_records_outlive_their_owner_and_may_be_freed_by_anybody() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    let id = net.add(0, persistent("kept"));
    net.add(0, content("lost"));
    net.pass(BEAT);
    net.cut(0, 1);
    net.paused[0] = true;
    net.pass(Duration::from_secs(180));
    assert_eq!((net.roles(1), net.roles(2)), (vec!["kept".to_owned()], vec!["kept".to_owned()]));
    // Also by somebody who comes later.
    net.tables.push(Table::new(77, BEAT, LIFE, net.now));
    net.paused.push(false);
    net.join(2, 3);
    net.pass(BEAT);
    assert_eq!(net.roles(3), ["kept"]);
    net.tables[3].free(id, net.now).unwrap();
    net.pass(BEAT * 12);
    assert_eq!((net.roles(1), net.roles(2), net.roles(3)), (vec![], vec![], vec![]));
    // Its owner hears of it when it is back.
    net.paused[0] = false;
    net.tables[0].tick(net.now);
    net.join(0, 1);
    net.pass(BEAT * 2);
    net.everywhere(&["lost"]);
}

#[test]
fn a_living_owner_hears_that_its_persistent_record_was_freed() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let id = net.add(0, persistent("kept"));
    net.tables[1].free(id, net.now).unwrap();
    net.pass(BEAT * 12);
    net.everywhere(&[]);
    assert_eq!(net.tables[0].refusals.takeovers, 0);
}

#[test]
fn limits_hold_at_their_edge_and_one_past_it() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let now = net.now;
    for _ in 0..MAX_RECORDS {
        net.tables[0].add(content("x"), now).unwrap();
    }
    net.settle();
    assert_eq!(net.roles(1).len(), MAX_RECORDS);
    let error = net.tables[0].add(content("x"), now).unwrap_err();
    assert!(error.to_string().contains("1024 records"), "{error}");
    // One at the limit may still be changed.
    net.tables[0].set_status(1, &NodeStatus::only(crate::NodeState::Stopped), now);
    net.settle();
    let stopped = net.tables[1].find(|record| record.details.status.state == crate::NodeState::Stopped);
    assert_eq!((stopped.len(), net.tables[1].refusals), (1, Refusals::default()));

    let with = |len| Content::of_details("x", Details { data: vec![7; len], ..Details::default() });
    let mut big = Table::new(9, BEAT, LIFE, now);
    big.add(with(MAX_DATA), now).unwrap();
    assert!(big.add(with(MAX_DATA + 1), now).is_err());
    let held = (1..).find(|_| big.add(with(MAX_DATA), now).is_err()).unwrap();
    assert!((MAX_OWNER_BYTES / (MAX_DATA + 200)..MAX_OWNER_BYTES / MAX_DATA).contains(&held), "{held}");
}

#[test]
fn ten_thousand_records_of_one_peer_are_refused_and_the_rest_keeps_working() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    net.add(0, content("good"));
    let body = Content::of_details("x", Details::default()).encode().unwrap();
    let of = |count: u64| (1..=count).map(|n| Put(n, n, body.clone())).collect();
    net.forge(0, 1, &Frame::Change(change(50, 1, MAX_RECORDS as u64 + 1, 1, of(MAX_RECORDS as u64 + 1))));
    assert_eq!(net.tables[1].refusals.records, 1);
    // As differences, one after another.
    for from in 0..10_000u64 {
        let put = vec![Put(from + 1, from + 1, body.clone())];
        let frame = Frame::Change(Change { from, ..change(51, 1, from + 1, 1, put) });
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let ((_, _), (_, link)) = net.links[0];
        if net.tables[1].receive(link, out.split_off(4).freeze(), net.now).is_err() {
            break;
        }
    }
    net.settle();
    let of_peer = net.tables[2].find(|record| record.id.owner == 51).len();
    assert_eq!(of_peer, MAX_RECORDS, "what was acceptable was passed on");
    net.add(2, content("after"));
    assert_eq!(net.tables[0].find(|record| record.service == "after").len(), 1);
}

#[test]
fn members_past_the_limit_are_refused_and_those_that_have_left_make_room() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let body = content("x").encode().unwrap();
    let invent = |net: &mut Net, owner| {
        net.forge(0, 1, &Frame::Change(change(owner, 1, 1, 1, vec![Put(1, 1, body.clone())])));
        net.tables[1].find(|record| record.id.owner == owner).len()
    };
    for owner in 100..100 + MAX_OWNERS as u64 - 2 {
        assert_eq!(invent(&mut net, owner), 1);
    }
    assert_eq!(invent(&mut net, 99), 0);
    assert_eq!(net.tables[1].refusals.owners, 1);
    let leaves = Change { gone: true, ..change(100, 1, 2, 2, vec![]) };
    net.forge(0, 1, &Frame::Change(leaves));
    assert_eq!(invent(&mut net, 99), 1);
}

#[test]
fn records_that_nobody_may_have_change_nothing() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let mut bodies = vec![Bytes::from_static(b"\xc1"), Bytes::new(), Bytes::from(vec![0x91; 500])];
    let mut with = |change: &dyn Fn(&mut Content)| {
        let mut content = content("x");
        change(&mut content);
        let mut out = BytesMut::new();
        crate::message::encode(&content, &mut out).unwrap();
        bodies.push(out.freeze());
    };
    with(&|content| content.service = "a/b".to_owned());
    with(&|content| content.service = "x".repeat(129));
    with(&|content| content.instance = "x".repeat(129));
    with(&|content| content.weight = 0);
    with(&|content| content.address = Some("0.0.0.0".parse().unwrap()));
    with(&|content| content.address = Some("255.255.255.255".parse().unwrap()));
    with(&|content| content.address = Some("224.0.0.1".parse().unwrap()));
    let good = content("good").encode().unwrap();
    for (n, body) in bodies.iter().enumerate() {
        let put = vec![Put(1, 1, good.clone()), Put(2, 2, body.clone())];
        net.forge(0, 1, &Frame::Change(change(100 + n as u64, 1, 2, 1, put)));
    }
    assert_eq!(net.tables[1].refusals.records, bodies.len() as u64);
    assert_eq!(net.roles(1), [""; 0], "not even the good one beside");
    // Twice the same number, and one that is newer than itself.
    net.forge(0, 1, &Frame::Change(change(200, 1, 2, 1, vec![Put(1, 1, good.clone()), Put(1, 2, good.clone())])));
    net.forge(0, 1, &Frame::Change(change(201, 1, 2, 1, vec![Put(9, 1, good)])));
    assert_eq!(net.roles(1), [""; 0]);
}

#[test]
fn who_babbles_is_cut_off() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let (_, (_, link)) = net.links[0];
    let table = &mut net.tables[1];
    let told = (0..1000).position(|_| table.receive(link, Bytes::from_static(&[77]), net.now).is_err());
    assert_eq!((told, table.refusals.unknown_frames), (Some(100), 101));
    assert!(table.receive(link, Bytes::from_static(&[3, 1]), net.now).is_err());
    assert_eq!(table.refusals.malformed_frames, 1);
}

#[test]
fn a_second_process_under_the_name_of_one_that_is_connected_is_refused() {
    let mut table = Table::new(1, BEAT, LIFE, Instant::now());
    let now = Instant::now();
    table.link_up(2, 20, now).unwrap();
    table.link_up(2, 20, now).unwrap();
    assert_eq!(table.link_up(2, 21, now), Err(Unwanted::Taken));
    assert_eq!(table.link_up(1, 20, now), Err(Unwanted::Myself));
    for owner in 3..speak::MAX_LINKS as u64 + 1 {
        table.link_up(owner, 1, now).unwrap();
    }
    assert_eq!(table.link_up(9999, 1, now), Err(Unwanted::Full));
}

#[test]
fn an_address_of_ones_own_is_filled_in_once_it_is_known() {
    let mut net = Net::new(2);
    net.join(0, 1);
    net.add(0, Content::of_details("one", Details { port: 4000, ..Details::default() }));
    assert_eq!(tier(&net, 1, "one"), None, "nobody else guesses it");
    let now = net.now;
    net.tables[0].set_address("10.0.0.7".parse().unwrap(), now);
    net.settle();
    let seen = net.tables[1].endpoints(&Query::parse("one").unwrap());
    assert_eq!(seen[0].addr.to_string(), "10.0.0.7:4000");
}

#[test]
fn a_day_of_an_idle_mesh_costs_little_and_changes_nothing() {
    let mut net = Net::new(5);
    for n in 0..5 {
        for other in 0..n {
            net.join(other, n);
        }
    }
    for n in 0..5 {
        net.add(n, content(&format!("service-{n}")));
    }
    net.tables.iter_mut().for_each(|table| drop(table.take_events()));
    let before = net.bytes;
    net.pass(Duration::from_secs(600));
    let per_second = (net.bytes - before) / 600 / 5;
    assert!(per_second < 500, "{per_second} bytes per second and member");
    for table in &mut net.tables {
        assert!(table.take_events().iter().all(|event| *event == Event::Heartbeat), "no flapping");
        assert_eq!(table.refusals, Refusals::default());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize),
    Free(usize, usize),
    Status(usize, usize),
    Join(usize, usize),
    Cut(usize, usize),
    Pause(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (m, n) = (0..5usize, 0..5usize);
    prop_oneof![
        m.clone().prop_map(Step::Add),
        (m.clone(), 0..8usize).prop_map(|(m, k)| Step::Free(m, k)),
        (m.clone(), 0..8usize).prop_map(|(m, k)| Step::Status(m, k)),
        (m.clone(), n.clone()).prop_map(|(a, b)| Step::Join(a, b)),
        (m.clone(), n).prop_map(|(a, b)| Step::Cut(a, b)),
        m.prop_map(Step::Pause),
        (1..20u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_all_agree_in_the_end(steps in prop::collection::vec(step(), 1..40)) {
        let mut net = Net::seeking(5);
        let mut truth: BTreeMap<usize, Vec<(RecordId, String)>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add(m) => {
                    let role = format!("role-{m}");
                    let id = net.tables[m].add(content(&role), net.now).unwrap();
                    truth.entry(m).or_default().push((id, role));
                }
                Step::Free(m, k) => {
                    if let Some(records) = truth.get_mut(&m).filter(|records| k < records.len()) {
                        let (id, _) = records.remove(k);
                        let now = net.now;
                        net.tables[m].free(id, now).unwrap();
                    }
                }
                Step::Status(m, k) => {
                    if let Some((id, _)) = truth.get(&m).and_then(|records| records.get(k)) {
                        let status = NodeStatus::now(crate::NodeState::Doing, Some(&k.to_string()));
                        let now = net.now;
                        net.tables[m].set_status(id.number, &status, now);
                    }
                }
                Step::Join(a, b) if a != b => {
                    net.cut(a, b);
                    net.join(a, b);
                }
                Step::Join(..) => {}
                Step::Cut(a, b) => net.cut(a, b),
                Step::Pause(m) => net.paused[m] = !net.paused[m],
                Step::Pass(seconds) => net.pass(Duration::from_secs(seconds)),
            }
        }
        net.paused = vec![false; 5];
        for n in 1..5 {
            net.cut(n - 1, n);
            net.join(n - 1, n);
        }
        net.pass(Duration::from_secs(30));
        let mut wanted: Vec<_> = truth.values().flatten().map(|(_, role)| role.clone()).collect();
        wanted.sort();
        let sums = |table: &Table| table.owners.iter().filter(|(_, owner)| owner.life == Life::Live)
            .map(|(id, owner)| (*id, owner.incarnation, owner.version, owner.sum)).collect::<Vec<_>>();
        for table in 0..5 {
            prop_assert_eq!(net.roles(table), wanted.clone());
            prop_assert_eq!(sums(&net.tables[table]), sums(&net.tables[0]));
            prop_assert_eq!(net.tables[table].refusals.takeovers, 0);
        }
    }

    #[test]
    fn any_frames_of_a_member_leave_a_table_that_works(
        frames in prop::collection::vec((1..6u8, prop::collection::vec(any::<u8>(), 0..64)), 0..40),
        changes in prop::collection::vec((1..4u64, 0..4u64, 0..6u64, 0..6u64, any::<bool>(), 0..8u64), 0..40),
    ) {
        let mut net = Net::new(3);
        net.join(0, 1);
        net.join(1, 2);
        net.add(2, content("good"));
        let (_, (_, link)) = net.links[0];
        for (kind, body) in frames {
            let _ = net.tables[1].receive(link, [&[kind], body.as_slice()].concat().into(), net.now);
        }
        let body = content("forged").encode().unwrap();
        for (owner, incarnation, from, more, gone, beat) in changes {
            let put = if gone { vec![] } else { vec![Put(from + more, from + more, body.clone())] };
            let put = if more == 0 { vec![] } else { put };
            let forged = Change { from, gone, freed: vec![from], ..change(owner, incarnation, from + more, beat, put) };
            let mut out = BytesMut::new();
            Frame::Change(forged).encode(&mut out);
            let _ = net.tables[1].receive(link, out.split_off(4).freeze(), net.now);
            net.settle();
        }
        net.pass(BEAT * 8);
        for table in [1, 2] {
            let good = net.tables[table].get(&Query::parse("good").unwrap());
            prop_assert_eq!(good.len(), 1);
            prop_assert_eq!(net.tables[table].bytes, net.tables[table].owners.values().map(|owner| owner.bytes).sum::<usize>());
        }
    }
}
