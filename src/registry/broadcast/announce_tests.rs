//! When what is sent of one's own instances, with a time that the test makes up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use super::super::datagram::tests::decode;
use super::*;
use crate::state::NodeState;

const PERIOD: Duration = Duration::from_secs(2);
const HERE: Sender = Sender { process: 1, registry: 0 };

fn announcer() -> Announcer {
    Announcer::new(HERE, PERIOD, false, false)
}

fn instance(id: &str, port: u16) -> Instance {
    Instance {
        service: "service1".to_owned(),
        id: id.to_owned(),
        incarnation: 77,
        address: None,
        port,
        weight: 1,
        zone: None,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        status: NodeStatus::only(NodeState::Running),
    }
}

/// Sends what is due until `end`, and returns what was sent, and how long after the beginning.
fn run(own: &mut Announcer, begin: Instant, end: Instant) -> Vec<(Duration, Datagram)> {
    let mut sent = Vec::new();
    let mut now = begin;
    while now <= end {
        for outgoing in own.due(now) {
            sent.push((now - begin, decode(&outgoing.body.unwrap()).unwrap()));
            own.sent(now, outgoing.key, Ok(()));
        }
        let Some(next) = own.next() else { break };
        assert!(next > now, "the schedule stands still");
        now = next;
    }
    sent
}

#[test]
fn the_first_goes_out_at_once_and_twice_and_then_one_each_period() {
    let (mut own, now) = (announcer(), Instant::now());
    let (_, state) = own.add(now, instance("one", 4000));
    assert_eq!(*state.borrow(), first());
    let sent = run(&mut own, now, now + Duration::from_secs(60));
    assert_eq!(*state.borrow(), RegistrationState::Registered);
    assert_eq!((sent[0].0, sent[1].0), (Duration::ZERO, COPY_AFTER));
    for pair in sent[1..].windows(2) {
        let pause = pair[1].0 - pair[0].0;
        assert!((PERIOD.mul_f64(1.0 - JITTER)..=PERIOD).contains(&pause), "a pause of {pause:?}");
    }
    assert!(sent.windows(2).all(|pair| pair[0].1.sequence < pair[1].1.sequence), "numbers grow strictly");
    assert!((32..=39).contains(&sent.len()), "{} datagrams in a minute", sent.len());
}

#[test]
fn another_status_is_told_at_once_and_twice() {
    let (mut own, now) = (announcer(), Instant::now());
    let (key, _state) = own.add(now, instance("one", 4000));
    run(&mut own, now, now + COPY_AFTER);
    let later = now + Duration::from_millis(300);
    assert_eq!(run(&mut own, later, later).len(), 0);
    assert!(own.set_status(later, key, NodeStatus::now(NodeState::Stopped, Some("maintenance"))).is_some());
    let sent = run(&mut own, later, later + Duration::from_millis(100));
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|(_, datagram)| datagram.instance.status.to_string() == "stopped: maintenance"));
}

#[test]
fn leaving_is_told_twice_and_then_all_is_done() {
    let (mut own, now) = (announcer(), Instant::now());
    let (key, state) = own.add(now, instance("one", 4000));
    run(&mut own, now, now + COPY_AFTER);
    let (_, mut left) = own.leave(now, key).unwrap();
    assert_eq!(*state.borrow(), RegistrationState::Left);
    assert!(!own.is_done() && left.try_recv().is_err());
    let sent = run(&mut own, now, now + PERIOD * 3);
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|(_, datagram)| datagram.kind == Kind::Leave));
    assert!(own.is_done() && own.next().is_none());
    left.try_recv().unwrap().unwrap();
    assert!(own.leave(now, key).is_none() && own.set_status(now, key, NodeStatus::only(NodeState::Up)).is_none());
}

#[test]
fn what_is_registered_again_is_not_taken_back_by_a_late_notice() {
    let (mut own, now) = (announcer(), Instant::now());
    let (key, _state) = own.add(now, instance("one", 4000));
    let _left = own.leave(now, key);
    let (_again, state) = own.add(now, instance("one", 4000));
    let sent = run(&mut own, now, now + PERIOD);
    assert!(sent.iter().all(|(_, datagram)| datagram.kind == Kind::Announce), "{sent:?}");
    assert_eq!(*state.borrow(), RegistrationState::Registered);
}

#[test]
fn of_two_with_one_id_the_newer_counts_and_the_older_takes_its_leave_first() {
    let (mut own, now) = (announcer(), Instant::now());
    let (_, older) = own.add(now, instance("one", 4000));
    let newer = Instance { incarnation: 78, ..instance("one", 4001) };
    let _newer = own.add(now, newer);
    assert_eq!(*older.borrow(), RegistrationState::Left);
    let sent = run(&mut own, now, now);
    assert_eq!([sent[0].1.kind, sent[1].1.kind], [Kind::Leave, Kind::Announce]);
    assert_eq!([sent[0].1.instance.incarnation, sent[1].1.instance.incarnation], [77, 78]);
}

#[test]
fn what_cannot_be_sent_is_the_state_of_the_registration_and_heals() {
    let (mut own, now) = (announcer(), Instant::now());
    let (key, state) = own.add(now, instance("one", 4000));
    own.due(now);
    own.sent(now, key, Err("no route".to_owned()));
    assert_eq!(*state.borrow(), RegistrationState::Retrying("no route".to_owned()));
    assert_eq!(own.next(), Some(now + RETRY));
    assert_eq!(run(&mut own, now, now + RETRY + COPY_AFTER).len(), 2, "after that everything is as at the beginning");
    assert_eq!(*state.borrow(), RegistrationState::Registered);
}

#[test]
fn who_leaves_while_nothing_can_be_sent_is_told_why() {
    let (mut own, now) = (announcer(), Instant::now());
    let (key, _state) = own.add(now, instance("one", 4000));
    let (_, mut left) = own.leave(now, key).unwrap();
    own.trouble("no socket");
    assert!(left.try_recv().unwrap().unwrap_err().to_string().contains("no socket"));
    assert!(own.is_done());
}

#[test]
fn who_only_listens_sends_nothing() {
    let (mut own, now) = (Announcer::new(HERE, PERIOD, false, true), Instant::now());
    let (key, state) = own.add(now, instance("one", 4000));
    assert_eq!(*state.borrow(), RegistrationState::Registered);
    own.set_status(now, key, NodeStatus::only(NodeState::Doing));
    assert_eq!(own.list("service1", [127, 0, 0, 1].into()).count(), 1);
    let (_, mut left) = own.leave(now, key).unwrap();
    left.try_recv().unwrap().unwrap();
    assert!(own.next().is_none() && own.due(now + PERIOD).is_empty());
}

#[test]
fn another_user_of_ones_id_is_reported_and_shown_until_it_is_gone() {
    let (mut own, now) = (announcer(), Instant::now());
    let (_, state) = own.add(now, instance("one", 4000));
    run(&mut own, now, now);
    let home = IpAddr::from([127, 0, 0, 1]);
    let source = IpAddr::from([10, 0, 0, 9]);
    let theirs = |id: &str, incarnation| Datagram {
        kind: Kind::Announce,
        period: PERIOD,
        sender: Sender { process: 2, registry: 0 },
        sequence: 1,
        replica: false,
        instance: Arc::new(Instance { incarnation, ..instance(id, 4001) }),
    };
    assert_eq!(own.meet(now, source, &theirs("two", 78), home), None);
    assert_eq!(own.meet(now, source, &theirs("one", 77), home), Some(Meeting::Same), "it is the same instance");
    let (kept, other) = ("127.0.0.1:4000".parse().unwrap(), "10.0.0.9:4001".parse().unwrap());
    let rival = |tell| Some(Meeting::Rival { kept, other, tell });
    assert_eq!(own.meet(now, source, &theirs("one", 78), home), rival(true));
    assert_eq!(own.meet(now, source, &theirs("one", 78), home), rival(false), "told once a minute");
    assert_eq!(own.meet(now + DUPLICATES_EVERY, source, &theirs("one", 78), home), rival(true));
    run(&mut own, now, now + COPY_AFTER);
    let shown = format!("{:?}", state.borrow());
    assert!(shown.contains("10.0.0.9:4001") && shown.contains("uses the id"), "{shown}");
    let later = now + DUPLICATES_EVERY + PERIOD + GRACE;
    run(&mut own, later, later + PERIOD);
    assert_eq!(*state.borrow(), RegistrationState::Registered);
}
