//! The table under hostile and unlucky input, with a time that the test makes up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::SystemTime;

use proptest::prelude::*;

use super::super::datagram::tests::said;
use super::super::seal::Seal;
use super::*;
use crate::registry::Instance;
use crate::registry::settings::Hidden;
use crate::state::{NodeState, NodeStatus};

const PERIOD: Duration = Duration::from_secs(2);
/// What an instance lives after it was last heard.
const LIFE: Duration = Duration::from_secs(5);
const MS: Duration = Duration::from_millis(1);
const HERE: Sender = Sender { process: 1, registry: 0 };

struct World {
    table: Table,
    now: Instant,
    sequence: u64,
    news: Vec<Event>,
}

impl World {
    fn new() -> Self {
        Self { table: Table::new(HERE, false, true), now: Instant::now(), sequence: 0, news: Vec::new() }
    }

    fn announce(&mut self, id: &str, port: u16, incarnation: u64) -> Result<(), Refusal> {
        self.sequence += 1;
        self.hear(datagram(id, port, incarnation, self.sequence))
    }

    fn hear(&mut self, datagram: Datagram) -> Result<(), Refusal> {
        self.hear_from([10, 0, 0, 9], datagram)
    }

    fn hear_from(&mut self, ip: [u8; 4], datagram: Datagram) -> Result<(), Refusal> {
        if self.table.admit(self.now, &datagram)? {
            self.table.hear(self.now, SocketAddr::from((ip, 5000)), datagram, &mut self.news)?;
        }
        Ok(())
    }

    fn sweep_after(&mut self, time: Duration) {
        self.now += time;
        self.table.sweep(self.now, &mut self.news);
    }

    fn ids(&self) -> Vec<String> {
        self.table.list("service1").iter().map(|endpoint| endpoint.id.clone()).collect()
    }

    fn gone(&mut self) -> Vec<(String, Gone)> {
        let news = std::mem::take(&mut self.news);
        let gone = news.into_iter().filter_map(|event| match event {
            Event::Removed { endpoint, reason, .. } => Some((endpoint.id.clone(), reason)),
            _ => None,
        });
        gone.collect()
    }
}

/// The announcement of an instance whose process has a sender of its own.
fn datagram(id: &str, port: u16, incarnation: u64, sequence: u64) -> Datagram {
    let instance = Instance {
        service: "service1".to_owned(),
        id: id.to_owned(),
        incarnation,
        address: None,
        port,
        weight: 1,
        zone: None,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        status: NodeStatus::only(NodeState::Running),
    };
    let (sender, instance) = (Sender { process: incarnation, registry: 7 }, Arc::new(instance));
    Datagram { kind: Kind::Announce, period: PERIOD, sender, sequence, replica: false, instance }
}

fn leave(id: &str, incarnation: u64, sequence: u64) -> Datagram {
    Datagram { kind: Kind::Leave, ..datagram(id, 4000, incarnation, sequence) }
}

#[test]
fn an_instance_is_gone_3_s_after_its_own_period_was_missed() {
    for period in [Duration::from_millis(100), PERIOD, Duration::from_secs(60)] {
        let mut world = World::new();
        world.hear(Datagram { period, ..datagram("one", 4000, 1001, 1) }).unwrap();
        assert_eq!(world.table.look_at(), Some(world.now + period + GRACE));
        world.sweep_after(period + GRACE - MS);
        assert_eq!(world.ids(), ["one"], "{period:?}");
        world.sweep_after(MS);
        assert_eq!(world.ids(), [""; 0], "{period:?}");
        assert_eq!(world.gone(), [("one".to_owned(), Gone::Missed)]);
    }
}

#[test]
fn one_lost_datagram_in_a_row_is_forgiven() {
    let mut world = World::new();
    for _ in 0..5 {
        world.announce("one", 4000, 1001).unwrap();
        world.sweep_after(PERIOD);
        world.sweep_after(PERIOD);
    }
    assert_eq!(world.gone(), []);
}

#[test]
fn an_observer_that_was_stopped_for_8_s_doubts_itself_once() {
    let mut world = World::new();
    for (id, incarnation) in [("one", 1001), ("two", 1002)] {
        world.announce(id, 4000, incarnation).unwrap();
    }
    world.sweep_after(Duration::from_secs(8));
    assert_eq!(world.ids(), ["one", "two"], "the observer was asleep, not they");
    world.announce("one", 4000, 1001).unwrap();
    world.sweep_after(LIFE);
    assert_eq!(world.ids(), [""; 0], "after that the usual time counts");

    // The same when a datagram is what it wakes up to.
    let mut world = World::new();
    world.announce("one", 4000, 1001).unwrap();
    world.now += Duration::from_secs(8);
    world.announce("two", 4001, 1002).unwrap();
    world.sweep_after(MS);
    assert_eq!(world.ids(), ["one", "two"]);
    world.sweep_after(LIFE);
    assert_eq!(world.ids(), [""; 0]);
}

#[test]
fn leaving_removes_at_once_and_only_what_leaves() {
    let mut world = World::new();
    world.announce("one", 4000, 1001).unwrap();
    world.announce("two", 4001, 1002).unwrap();
    world.hear(leave("one", 1003, 1)).unwrap();
    assert_eq!(world.ids(), ["one", "two"], "another incarnation's notice takes nothing back");
    world.hear(leave("one", 1001, 10)).unwrap();
    assert_eq!(world.ids(), ["two"]);
    assert_eq!(world.gone(), [("one".to_owned(), Gone::Left)]);
    assert_eq!(world.hear(datagram("one", 4000, 1001, 9)), Err(Refusal::Replayed), "an older announcement came late");
    assert_eq!(world.ids(), ["two"]);
}

#[test]
fn what_was_heard_is_refused_when_it_is_shown_again() {
    let mut world = World::new();
    let announced = datagram("one", 4000, 1001, 5);
    world.hear(announced.clone()).unwrap();
    assert_eq!(world.hear(announced.clone()), Err(Refusal::Replayed));
    assert_eq!(world.hear(datagram("one", 4000, 1001, 4)), Err(Refusal::Replayed));
    world.sweep_after(LIFE);
    assert_eq!(world.ids(), [""; 0]);
    world.sweep_after(MEMORY - LIFE - MS);
    assert_eq!(world.hear(announced), Err(Refusal::Replayed), "it is remembered for 10 minutes after it was heard");
    assert_eq!(world.ids(), [""; 0]);
    world.hear(datagram("one", 4000, 1001, 6)).unwrap();
    assert_eq!(world.ids(), ["one"], "the sender itself can come back");
}

#[test]
fn one_forged_number_does_not_silence_a_sender_for_long_where_there_is_no_key() {
    let mut world = World { table: Table::new(HERE, false, false), ..World::new() };
    world.hear(datagram("one", 4000, 1001, u64::MAX)).unwrap();
    assert_eq!(world.hear(datagram("one", 4000, 1001, 5)), Err(Refusal::Replayed));
    world.sweep_after(LIFE);
    world.hear(datagram("one", 4000, 1001, 6)).unwrap();
    assert_eq!(world.ids(), ["one"]);
    // The same with a notice, after which nothing is left to be looked at.
    world.hear(leave("one", 1001, u64::MAX)).unwrap();
    world.now += MEMORY_WITHOUT_KEY;
    world.hear(datagram("one", 4000, 1001, 7)).unwrap();
    assert_eq!(world.ids(), ["one"]);
}

#[test]
fn a_restarted_process_takes_its_place_at_its_address_and_the_dead_one_stays_dead() {
    let mut world = World::new();
    world.announce("one", 4000, 1001).unwrap();
    world.announce("one", 4000, 1002).unwrap();
    assert_eq!(world.gone(), [("one".to_owned(), Gone::Replaced)]);
    assert_eq!(world.table.list("service1")[0].incarnation, Some(1002));
    assert_eq!(world.announce("one", 4000, 1001), Err(Refusal::Replayed));
    assert_eq!(world.table.list("service1")[0].incarnation, Some(1002));
}

#[test]
fn of_two_living_users_of_an_id_the_first_stays_and_both_are_reported_once_a_minute() {
    let mut world = World::new();
    world.announce("one", 4000, 1001).unwrap();
    world.news.clear();
    for _ in 0..40 {
        world.announce("one", 4000, 1001).unwrap();
        assert_eq!(world.announce("one", 4001, 1002), Err(Refusal::DuplicateId));
        world.sweep_after(PERIOD);
    }
    let (kept, other) = ("10.0.0.9:4000".parse().unwrap(), "10.0.0.9:4001".parse().unwrap());
    let told = Event::DuplicateId { service: "service1".to_owned(), id: "one".to_owned(), kept, other };
    assert_eq!(world.news, [told.clone(), told]);
    assert_eq!(world.table.list("service1").len(), 1);
    // When the first has left, the second is the only one.
    world.hear(leave("one", 1001, 1000)).unwrap();
    world.announce("one", 4001, 1002).unwrap();
    assert_eq!(world.table.list("service1")[0].incarnation, Some(1002));
}

#[test]
fn replicas_share_an_id() {
    let mut world = World::new();
    for (port, incarnation) in [(4000, 1001), (4001, 1002)] {
        world.hear(Datagram { replica: true, ..datagram("one", port, incarnation, 1) }).unwrap();
    }
    assert_eq!(world.ids(), ["one:00000000000003e9", "one:00000000000003ea"]);
    world.hear(Datagram { replica: true, ..leave("one", 1001, 2) }).unwrap();
    assert_eq!(world.ids(), ["one:00000000000003ea"]);
}

#[test]
fn what_changed_is_told_and_what_did_not_is_no_news() {
    let mut world = World::new();
    world.announce("one", 4000, 1001).unwrap();
    world.announce("one", 4000, 1001).unwrap();
    assert_eq!(world.news.len(), 1, "{:?}", world.news);
    let mut stopped = datagram("one", 4000, 1001, 100);
    said(&mut stopped).status = NodeStatus::now(NodeState::Stopped, Some("maintenance"));
    world.hear(stopped).unwrap();
    assert!(matches!(&world.news[1], Event::Changed { endpoint, .. } if endpoint.status.state == NodeState::Stopped));
}

#[test]
fn the_address_is_the_one_that_is_announced_else_where_it_came_from() {
    let mut world = World::new();
    world.announce("one", 4000, 1001).unwrap();
    let mut named = datagram("two", 4000, 1002, 1);
    said(&mut named).address = Some([10, 9, 9, 9].into());
    world.hear(named).unwrap();
    let addrs: Vec<_> = world.table.list("service1").iter().map(|endpoint| endpoint.addr.to_string()).collect();
    assert_eq!(addrs, ["10.0.0.9:4000", "10.9.9.9:4000"]);
}

#[test]
fn the_same_words_keep_an_instance_alive_and_from_another_place_they_are_news() {
    let mut world = World::new();
    let words = datagram("one", 4000, 1001, 0);
    for (sequence, host, news) in [(1, 1, 1), (2, 1, 1), (3, 2, 2), (4, 2, 2), (5, 1, 3)] {
        world.hear_from([10, 0, 0, host], Datagram { sequence, ..words.clone() }).unwrap();
        let addr = world.table.list("service1")[0].addr.to_string();
        assert_eq!((addr, world.news.len()), (format!("10.0.0.{host}:4000"), news), "datagram {sequence}");
        world.sweep_after(LIFE - MS);
    }
    assert_eq!(world.hear_from([10, 0, 0, 1], Datagram { sequence: 5, ..words }), Err(Refusal::Replayed));
    world.sweep_after(MS);
    assert_eq!(world.ids(), [""; 0]);
}

#[test]
fn one_peer_with_10_000_instances_fills_only_its_share() {
    let mut world = World::new();
    world.hear_from([10, 0, 0, 1], datagram("other", 4000, 1, 1)).unwrap_or_else(|why| panic!("{why:?}"));
    let mut refused = 0;
    for n in 1..=10_000_u64 {
        let mut forged = datagram(&format!("forged{n}"), 4000, 5000, n);
        said(&mut forged).service = format!("service{n}");
        match world.hear_from([10, 0, 0, 66], forged) {
            Ok(()) => assert!(n <= MAX_PER_SOURCE as u64, "instance {n} was taken"),
            Err(why) => {
                assert_eq!(why, Refusal::FullOfSource, "instance {n}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 10_000 - MAX_PER_SOURCE);
    world.hear_from([10, 0, 0, 2], datagram("another", 4000, 2, 1)).unwrap();
    assert_eq!(world.table.len, MAX_PER_SOURCE + 2, "others have their own share");
    // What went makes room.
    world.sweep_after(LIFE);
    assert_eq!((world.table.len, world.table.sources.len()), (0, 0));
    world.hear_from([10, 0, 0, 66], datagram("one", 4000, 5000, 20_000)).unwrap();
}

#[test]
fn the_table_and_the_memory_of_senders_are_bounded() {
    let mut world = World::new();
    for n in 0..MAX_INSTANCES as u64 {
        let ip = [10, 0, 1, u8::try_from(n / 1000).unwrap()];
        world.hear_from(ip, datagram(&format!("id{n}"), 4000, 100 + n, 1)).unwrap();
    }
    assert_eq!(world.hear_from([10, 0, 2, 1], datagram("late", 4000, 50, 1)), Err(Refusal::Full));
    assert_eq!(world.table.len, MAX_INSTANCES);
    assert_eq!(world.table.senders.len(), MAX_SENDERS, "the one that was silent longest is forgotten");
    world.sweep_after(LIFE);
    world.sweep_after(MEMORY);
    world.announce("one", 4000, 1).unwrap();
    world.announce("one", 4000, 2).unwrap();
    world.sweep_after(LIFE);
    assert!(world.table.senders.len() <= 2, "senders that are silent for long are forgotten");
}

#[test]
fn a_wall_clock_an_hour_off_plays_no_part() {
    let hour = Duration::from_secs(3600);
    for since in [SystemTime::now() - hour, SystemTime::now() + hour] {
        let mut world = World::new();
        let mut odd = datagram("one", 4000, 1001, 1);
        said(&mut odd).status.since = Some(since);
        world.hear(odd).unwrap();
        world.sweep_after(LIFE - MS);
        assert_eq!(world.ids(), ["one"]);
        world.sweep_after(MS);
        assert_eq!(world.ids(), [""; 0]);
    }
}

#[test]
fn one_does_not_hear_oneself_nor_on_request_ones_process() {
    let own = |registry| Datagram { sender: Sender { registry, ..HERE }, ..datagram("one", 4000, 1001, 1) };
    for (ignore_process, heard) in [(false, 1), (true, 0)] {
        let mut world = World { table: Table::new(HERE, ignore_process, true), ..World::new() };
        world.hear(own(0)).unwrap();
        assert_eq!(world.ids(), [""; 0]);
        world.hear(own(1)).unwrap();
        assert_eq!(world.ids().len(), heard);
    }
}

#[test]
fn under_a_key_forged_joins_and_leaves_are_not_even_opened() {
    let [ours, mut theirs] = [1, 2].map(|byte| Seal::new(Some(&Hidden([byte; 32]))).unwrap());
    let mut plain = Seal::new(None).unwrap();
    for forged in [datagram("two", 4001, 1002, 1), leave("one", 1001, 100)] {
        let body = forged.encode().unwrap();
        assert_eq!(ours.open(&plain.close(&body).unwrap()).unwrap_err(), Refusal::Unsealed);
        assert_eq!(ours.open(&theirs.close(&body).unwrap()).unwrap_err(), Refusal::WrongKey);
    }
}

#[test]
fn a_leave_notice_says_why() {
    let mut world = World::new();
    world.announce("one", 4000, 1001).unwrap();
    let mut notice = leave("one", 1001, 5);
    said(&mut notice).status = NodeStatus::now(NodeState::Down, Some("SIGTERM (15)"));
    world.hear(notice).unwrap();
    let Some(Event::Removed { endpoint, reason: Gone::Left, .. }) = world.news.last() else {
        panic!("it has left: {:?}", world.news)
    };
    assert_eq!((endpoint.status.to_string().as_str(), endpoint.addr.port()), ("down: SIGTERM (15)", 4000));
}

/// One thing that may happen to the table.
#[derive(Clone, Debug)]
enum Step {
    Hear { id: u8, incarnation: u64, port: u16, sequence: u64, leaves: bool, replica: bool, source: u8 },
    Wait(u64),
    Forgive,
}

fn step() -> impl Strategy<Value = Step> {
    let hear = (0..4_u8, 0..4_u64, 4000..4003_u16, 0..40_u64, any::<bool>(), any::<bool>(), 0..3_u8).prop_map(
        |(id, incarnation, port, sequence, leaves, replica, source)| Step::Hear {
            id,
            incarnation,
            port,
            sequence,
            leaves,
            replica,
            source,
        },
    );
    prop_oneof![8 => hear, 3 => (0..7000_u64).prop_map(Step::Wait), 1 => Just(Step::Forgive)]
}

proptest! {
    #[test]
    fn in_any_order_of_events_the_counts_are_right_and_nobody_lives_for_ever(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new();
        let mut known: i64 = 0;
        for step in steps {
            match step {
                Step::Hear { id, incarnation, port, sequence, leaves, replica, source } => {
                    let kind = if leaves { Kind::Leave } else { Kind::Announce };
                    let of = datagram(&format!("id{id}"), port, 1000 + incarnation, sequence);
                    let _ = world.hear_from([10, 0, 0, source], Datagram { kind, replica, ..of });
                }
                Step::Wait(ms) => world.sweep_after(Duration::from_millis(ms)),
                Step::Forgive => world.table.forgive(world.now),
            }
            for event in world.news.drain(..) {
                match event {
                    Event::Added { .. } => known += 1,
                    Event::Removed { .. } => known -= 1,
                    _ => {}
                }
            }
            let listed = world.table.list("service1").len();
            prop_assert_eq!((listed, known), (world.table.len, world.table.len as i64));
            prop_assert_eq!(world.table.sources.values().sum::<usize>(), listed);
            let first = world.table.services.values().flat_map(HashMap::values).map(Entry::gone_at).min();
            prop_assert!(first.is_none_or(|first| world.table.look_at().is_some_and(|at| at <= first)));
        }
        while let Some(at) = world.table.look_at() {
            world.now = at;
            world.sweep_after(Duration::ZERO);
        }
        prop_assert_eq!(world.table.len, 0);
    }
}
