//! Whom each policy takes when all are well.

use std::sync::Arc;
use std::time::Duration;

use super::super::{
    Balancer, Boxcar, Candidate, Candidates, ConsistentHash, End, LeastOutstanding, PeakEwma, Random, RoundRobin,
    SLOW_START, Weighted, ZoneFirst, key,
};
use super::{Few, Request, addr, some, some_of};
use crate::registry::Endpoint;

const MS: Duration = Duration::from_millis(1);

fn policies() -> [Box<dyn Balancer>; 8] {
    [
        Box::new(PeakEwma),
        Box::new(Boxcar::new()),
        Box::new(LeastOutstanding),
        Box::new(RoundRobin),
        Box::new(Random),
        Box::new(Weighted),
        Box::new(ConsistentHash),
        Box::new(ZoneFirst::new(PeakEwma)),
    ]
}

#[test]
fn every_policy_takes_the_only_one_and_of_none_nobody() {
    for policy in policies() {
        assert_eq!(some(0).group.choose(&*policy, some(0).request(), &[]), None, "{policy:?}");
        let one = some(1);
        assert_eq!(one.choose(&*policy).position, 0, "{policy:?}");
        let three = some(3);
        let none = shown(&three).filter(|_| false);
        assert!(policy.pick(&none).is_none(), "{policy:?} of no candidates");
    }
}

fn shown(of: &Few) -> Candidates<'_> {
    let about = super::super::candidates::About {
        fleet: of.group.fleet(),
        key: Some(3),
        zone: Some("a"),
        now: of.group.fleet().at(of.now),
    };
    Candidates::new(&of.seats, None, about)
}

#[test]
fn every_policy_takes_all_in_the_long_run_and_prefers_what_was_not_tried() {
    for policy in policies() {
        let five = some(5);
        let request = |call: usize| Request { key: Some(key(&call.to_be_bytes())), ..five.request() };
        let shares = five.shares_of(&*policy, 1000, request);
        assert!(shares.iter().all(|calls| (100..=300).contains(calls)), "{policy:?}: {shares:?}");
        let tried: Vec<_> = five.seats.iter().skip(1).map(|seat| Arc::clone(&seat.member)).collect();
        for call in 0..50 {
            let choice = five.group.choose(&*policy, request(call), &tried);
            assert_eq!(choice.map(|choice| choice.position), Some(0), "{policy:?}");
        }
    }
}

#[test]
fn round_robin_gives_each_its_turn() {
    assert_eq!(some(3).shares(&RoundRobin, 30), [10; 3]);
}

#[test]
fn peak_ewma_takes_the_faster_and_the_less_busy() {
    let mut two = some(2);
    two.answer(0, 10 * MS);
    two.answer(1, 20 * MS);
    assert_eq!(two.shares(&PeakEwma, 100), [100, 0], "half the latency");
    two.member(0).begin(two.now);
    two.member(0).begin(two.now);
    assert_eq!(two.shares(&PeakEwma, 100), [0, 100], "30 ms with two others beside it are more than 20 ms");
    assert_eq!(two.shares(&LeastOutstanding, 100), [0, 100]);
    two.member(0).end(End::Answered);
    two.member(0).end(End::Answered);
    assert_eq!(two.shares(&PeakEwma, 100), [100, 0], "they have ended");
}

#[test]
fn latencies_differ_from_a_quarter_on_and_below_that_the_calls_under_way_decide() {
    for (slower, differs) in [(124 * MS, false), (126 * MS, true)] {
        let mut two = some(2);
        two.answer(1, 100 * MS);
        let sent = two.now - slower;
        two.member(0).took(sent, two.now);
        two.member(0).took(sent, two.now);
        let shares = two.shares(&PeakEwma, 1000);
        assert_eq!(shares[0] == 0, differs, "{slower:?} beside 100 ms: {shares:?}");
        assert!(differs || (400..600).contains(&shares[0]), "{slower:?} beside 100 ms: {shares:?}");
        two.member(1).begin(two.now);
        assert_eq!(two.shares(&PeakEwma, 100), [100, 0], "{slower:?} are less than 100 ms twice");
    }
}

#[test]
fn a_longer_latency_is_believed_at_once_and_a_shorter_one_in_time() {
    let mut two = some(2);
    let latency = |two: &Few| two.group.states(two.now)[0].latency.expect("it was measured");
    two.answer(0, 10 * MS);
    two.answer(0, 50 * MS);
    assert!(latency(&two) > 49 * MS, "{:?}", latency(&two));
    two.pass(MS);
    two.answer(0, 10 * MS);
    assert!(latency(&two) > 48 * MS, "one fast answer is not enough: {:?}", latency(&two));
    for _ in 0..500 {
        two.pass(10 * MS);
        two.answer(0, 10 * MS);
    }
    // 10 s, two time constants.
    assert!((10 * MS..18 * MS).contains(&latency(&two)), "{:?}", latency(&two));
    two.pass(Duration::from_secs(5));
    assert!(latency(&two) < 7 * MS, "what is not confirmed fades: {:?}", latency(&two));
}

#[test]
fn the_first_answer_of_all_and_what_differs_by_less_than_a_millisecond_tell_nothing() {
    let mut two = some(2);
    let sent = two.now;
    two.pass(500 * MS);
    two.member(0).took(sent, two.now);
    assert_eq!(two.group.states(two.now)[0].latency, None);
    two.answer(0, MS / 2);
    two.answer(1, MS / 50);
    assert_eq!(two.group.states(two.now)[0].latency, Some(MS / 2));
    let shares = two.shares(&PeakEwma, 1000);
    assert!((400..600).contains(&shares[0]), "{shares:?}");
    two.answer(0, 2 * MS);
    assert_eq!(two.shares(&PeakEwma, 100), [0, 100]);
}

#[test]
fn one_that_never_answered_counts_as_the_median() {
    let mut four = some(4);
    for (position, took) in [(0, 5), (1, 10), (2, 100)] {
        four.answer(position, took * MS);
    }
    let shares = four.shares(&PeakEwma, 6000);
    // It wins its draws against the slow one and shares those against the median, which the order of draws decides.
    assert!(shares[3] > 1000 && shares[3] < 2500, "{shares:?}");
    assert_eq!(shares[2], 0, "{shares:?}");
}

#[test]
fn a_failure_weighs_for_seconds_and_a_call_given_up_as_long_as_it_was_waited_for() {
    let mut two = some(2);
    two.answer(0, MS);
    two.answer(1, MS);
    two.member(0).failed(super::super::Fault::Call, two.now);
    assert_eq!(two.shares(&PeakEwma, 100), [0, 100]);
    two.pass(Duration::from_secs(1));
    two.answer(1, MS);
    assert_eq!(two.shares(&PeakEwma, 100), [0, 100], "a second later");
    two.pass(Duration::from_secs(11));
    two.answer(1, MS);
    assert!(two.shares(&PeakEwma, 100)[0] > 0, "after 12 s it is asked again");

    let mut two = some(2);
    two.answer(0, MS);
    two.answer(1, MS);
    let sent = two.now;
    two.pass(300 * MS);
    two.member(0).given_up(sent, two.now);
    assert_eq!(two.shares(&PeakEwma, 100), [0, 100]);
}

#[test]
fn an_endpoint_that_says_nothing_any_more_is_avoided_before_any_call_has_failed() {
    let mut two = some(2);
    two.answer(0, MS);
    two.answer(1, 50 * MS);
    assert_eq!(two.shares(&PeakEwma, 100), [100, 0]);
    two.member(0).begin(two.now);
    two.pass(200 * MS);
    assert_eq!(two.shares(&PeakEwma, 100), [0, 100], "a call has waited there for 200 ms");
    two.answer(0, MS);
    assert_eq!(two.shares(&PeakEwma, 100), [100, 0], "another one was answered meanwhile");
    // An answer that goes on is not waited for.
    two.member(0).answered();
    two.pass(Duration::from_secs(3600));
    two.answer(0, MS);
    two.answer(1, 50 * MS);
    two.pass(Duration::from_secs(1));
    assert_eq!(two.shares(&PeakEwma, 100), [100, 0], "a stream is open there");
    two.member(0).begin(two.now);
    two.pass(200 * MS);
    assert_eq!(two.shares(&PeakEwma, 100), [0, 100], "beside the stream a call has waited for 200 ms");
    two.member(0).end(End::Unanswered);
    two.member(0).end(End::AnsweredBefore);
    assert_eq!(two.group.states(two.now)[0].outstanding, 0);
}

#[test]
fn boxcar_hears_what_the_server_says_for_a_second() {
    let mut two = some(2);
    two.answer(0, 10 * MS);
    two.answer(1, 16 * MS);
    two.member(0).reported(9, 10, two.now);
    two.member(1).reported(1, 10, two.now);
    assert_eq!(two.shares(&Boxcar::new(), 100), [0, 100]);
    assert_eq!(two.shares(&PeakEwma, 100), [100, 0], "other policies do not listen");
    two.pass(Duration::from_secs(5));
    assert_eq!(two.shares(&Boxcar::new(), 100), [100, 0], "an old report says nothing");
    // What a hostile server may say.
    for (slot, capacity) in [(u32::MAX, 1), (u32::MAX, 0), (0, u32::MAX), (1, 0)] {
        two.member(0).reported(slot, capacity, two.now);
        let reported = two.group.states(two.now)[0].reported.expect("it reported before");
        assert!((0.0..=16.0).contains(&reported), "{slot} of {capacity} became {reported}");
    }
}

#[test]
fn weights_are_shares() {
    let weigh = |number, weight| Endpoint { weight, ..Endpoint::new(addr(number)) };
    // A registry may say nonsense.
    let three = some_of([weigh(0, 1), weigh(1, 3), weigh(2, 0)]);
    let shares = three.shares(&Weighted, 5000);
    assert!((800..1200).contains(&shares[0]) && (2800..3200).contains(&shares[1]), "{shares:?}");
    assert!((800..1200).contains(&shares[2]), "a weight of 0 counts as 1: {shares:?}");
    let keyed = three
        .shares_of(&ConsistentHash, 5000, |call| Request { key: Some(key(&call.to_be_bytes())), ..three.request() });
    assert!((2800..3200).contains(&keyed[1]), "{keyed:?}");
}

#[test]
fn a_key_stays_with_its_endpoint_and_only_those_of_one_that_goes_move() {
    let owner = |of: &Few, call: usize| {
        let request = Request { key: Some(key(&call.to_be_bytes())), ..of.request() };
        let choice = of.group.choose(&ConsistentHash, request, &[]).expect("there are endpoints");
        of.seats[choice.position].endpoint.addr
    };
    let (ten, nine) = (some(10), some(9));
    for call in 0..1000 {
        let before = owner(&ten, call);
        assert_eq!(owner(&ten, call), before, "always the same");
        if before != addr(9) {
            assert_eq!(owner(&nine, call), before, "key {call} moved although its endpoint is there");
        }
    }
    assert_eq!(key(b"picom"), 0x1397_749d_7d35_e76d, "programs that were built at different times must agree");
    // One that is full hands its keys on: at 1.25 times the average, but not below 8.
    let first = (0..).find(|call| owner(&ten, *call) == addr(0)).expect("it owns some");
    for busy in 0..8 {
        assert_eq!(owner(&ten, first), addr(0), "with {busy} calls under way");
        ten.member(0).begin(ten.now);
    }
    assert_ne!(owner(&ten, first), addr(0), "with 8 calls under way, and nobody else has any");
    for position in 1..10 {
        (0..8).for_each(|_| ten.member(position).begin(ten.now));
    }
    assert_eq!(owner(&ten, first), addr(0), "when all are as busy, nobody is full");
}

#[test]
fn the_own_zone_goes_first_as_long_as_half_of_it_is_well() {
    let within = |number, zone: &str| Endpoint { zone: Some(zone.into()), ..Endpoint::new(addr(number)) };
    let six = some_of([
        within(0, "a"),
        within(1, "a"),
        within(2, "a"),
        within(3, "b"),
        within(4, "b"),
        Endpoint::new(addr(5)),
    ]);
    let policy = ZoneFirst::new(Random);
    let near = |zone| six.shares_of(&policy, 600, |_| Request { zone, ..six.request() });
    let shares = near(Some("a"));
    assert!(shares[..3].iter().all(|calls| *calls > 150) && shares[3..] == [0; 3], "{shares:?}");
    assert!(near(None).iter().all(|calls| *calls > 50), "without a zone all are near");
    assert!(near(Some("elsewhere")).iter().all(|calls| *calls > 50), "nobody is there");
    six.member(0).refused(Some(Duration::from_secs(5)), six.now);
    let shares = near(Some("a"));
    assert!(shares[0] == 0 && shares[1] > 200 && shares[3..] == [0; 3], "two of three are enough: {shares:?}");
    six.member(1).refused(Some(Duration::from_secs(5)), six.now);
    let shares = near(Some("a"));
    assert!(shares[..2] == [0; 2] && shares[2..].iter().all(|calls| *calls > 80), "one is not: {shares:?}");
}

#[test]
fn a_policy_that_takes_nobody_does_not_stop_calls() {
    #[derive(Debug)]
    struct Nobody;
    impl Balancer for Nobody {
        fn pick<'a>(&self, _: &Candidates<'a>) -> Option<Candidate<'a>> {
            None
        }
    }
    let shares = some(3).shares(&Nobody, 300);
    assert!(shares.iter().all(|calls| *calls > 50), "{shares:?}");
}

#[test]
fn one_that_joins_gets_its_share_in_ten_seconds() {
    for policy in policies().iter().filter(|policy| policy.slow_start() == SLOW_START) {
        let mut five = some(5);
        five.member(0).warm_up(five.now);
        let mut last = 0;
        for (after, bounds) in [(0, 10..60), (5, 50..180), (10, 120..300)] {
            five.now = five.start + Duration::from_secs(after);
            let request = |call: usize| Request { key: Some(key(&call.to_be_bytes())), ..five.request() };
            let share = five.shares_of(&**policy, 1000, request)[0];
            assert!(bounds.contains(&share) && share > last, "{policy:?}: {share} of 1000 after {after} s");
            last = share;
        }
    }
}
