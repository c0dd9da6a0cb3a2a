//! Who is left alone, for how long, and how it comes back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::super::circuit::{EJECTION, FAILURES_IN_A_ROW};
use super::super::{Boxcar, Circuit, Fault, Group, PeakEwma, Random, RoundRobin};
use super::{Few, some};
use crate::logged::Logged;

const SECOND: Duration = Duration::from_secs(1);

fn circuit(of: &Few, position: usize) -> Circuit {
    of.group.states(of.now)[position].circuit
}

fn fail(of: &Few, position: usize, times: u32) {
    for _ in 0..times {
        of.member(position).failed(Fault::Call, of.now);
    }
}

/// The time for which it is left alone.
fn ejected(of: &Few, position: usize) -> Duration {
    match circuit(of, position) {
        Circuit::Open(left) => left,
        other => panic!("it should be open, but is {other:?}"),
    }
}

#[test]
fn five_failures_in_a_row_eject_and_four_do_not() {
    let mut three = some(3);
    fail(&three, 0, FAILURES_IN_A_ROW - 1);
    assert_eq!(circuit(&three, 0), Circuit::Closed);
    three.answer(0, SECOND / 1000);
    fail(&three, 0, FAILURES_IN_A_ROW - 1);
    assert_eq!(circuit(&three, 0), Circuit::Closed, "an answer came in between");
    fail(&three, 0, 1);
    let left = ejected(&three, 0);
    assert!((EJECTION / 2..=EJECTION).contains(&left), "{left:?}");
    assert_eq!(three.shares(&Random, 300)[0], 0, "it must get no calls");
}

#[test]
fn more_than_a_fifth_of_twenty_calls_eject() {
    // One failure after every three and after every four answers.
    for (answers, ejects) in [(3, true), (5, false)] {
        let mut three = some(3);
        for round in 0..10 {
            assert!(round > 3 || circuit(&three, 0) == Circuit::Closed, "after {round} rounds of {answers}");
            fail(&three, 0, 1);
            (0..answers).for_each(|_| three.answer(0, SECOND / 1000));
        }
        assert_eq!(matches!(circuit(&three, 0), Circuit::Open(_)), ejects, "one failure to {answers} answers");
    }
    let mut slowly = some(3);
    for _ in 0..10 {
        fail(&slowly, 0, 1);
        slowly.answer(0, SECOND / 1000);
        slowly.pass(3 * SECOND);
    }
    assert_eq!(circuit(&slowly, 0), Circuit::Closed, "too few calls in ten seconds to tell");
}

#[test]
fn one_call_finds_out_and_each_ejection_is_longer_than_the_last() {
    let mut three = some(3);
    fail(&three, 0, FAILURES_IN_A_ROW);
    let mut longest = EJECTION;
    for round in 0..10 {
        let left = ejected(&three, 0);
        assert!((longest / 2..=longest).contains(&left), "round {round}: {left:?} of at most {longest:?}");
        three.pass(left - Duration::from_nanos(1));
        assert_eq!(three.shares(&RoundRobin, 30), [0, 15, 15], "one nanosecond too early");
        three.pass(Duration::from_nanos(1));
        assert_eq!(circuit(&three, 0), Circuit::Open(Duration::ZERO));
        // Of many calls at once, one.
        let choices: Vec<_> = (0..30).map(|_| three.choose(&RoundRobin)).collect();
        let probes: Vec<_> = choices.iter().filter(|choice| choice.position == 0).collect();
        assert_eq!(probes.len(), 1, "{choices:?}");
        assert!(probes[0].is_probe && choices.iter().filter(|choice| choice.is_probe).count() == 1);
        assert_eq!(circuit(&three, 0), Circuit::HalfOpen);
        three.member(0).end_probe(Some(false), three.now);
        longest = (longest * 2).min(Duration::from_secs(300));
    }
    assert_eq!(longest, Duration::from_secs(300));
    let left = ejected(&three, 0);
    three.pass(left);
    while three.choose(&PeakEwma).position != 0 {}
    three.member(0).end_probe(Some(true), three.now);
    assert_eq!(circuit(&three, 0), Circuit::Closed);
    let shares = three.shares(&Random, 3000);
    assert!((20..250).contains(&shares[0]), "it must come back slowly: {shares:?}");
    three.pass(10 * SECOND);
    assert!(three.shares(&Random, 3000)[0] > 800, "and be back after ten seconds");
    // Soon after, it is the next one in the row; after as long as the longest, the first.
    fail(&three, 0, FAILURES_IN_A_ROW);
    assert!(ejected(&three, 0) >= Duration::from_secs(150));
}

#[test]
fn a_probe_that_nobody_waits_for_says_nothing() {
    let mut two = some(2);
    fail(&two, 0, FAILURES_IN_A_ROW);
    two.pass(EJECTION);
    while two.choose(&Random).position != 0 {}
    assert_eq!(circuit(&two, 0), Circuit::HalfOpen);
    two.member(0).end_probe(None, two.now);
    assert_eq!(circuit(&two, 0), Circuit::Open(Duration::ZERO), "the next call finds out");
    let pick = super::Request { is_call: false, ..two.request() };
    for _ in 0..50 {
        let choice = two.group.choose(&Random, pick, &[]).expect("there are two");
        assert!(choice.position == 1 && !choice.is_probe, "who makes no call cannot find out: {choice:?}");
    }
}

#[test]
fn never_more_than_half_are_ejected() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5)] {
        let all = some(count);
        for position in 0..count {
            fail(&all, position, 2 * FAILURES_IN_A_ROW);
        }
        let open = (0..count).filter(|position| matches!(circuit(&all, *position), Circuit::Open(_))).count();
        assert_eq!(open, most, "of {count}");
        let called = all.shares(&Random, 500).iter().filter(|calls| **calls > 0).count();
        assert_eq!(called, count - most, "of {count}, calls go on");
    }
}

#[test]
fn when_the_others_leave_the_ejected_are_all_there_is() {
    let four = some(4);
    fail(&four, 0, FAILURES_IN_A_ROW);
    fail(&four, 1, FAILURES_IN_A_ROW);
    let fleet = Arc::clone(four.group.fleet());
    let group = Group::new(four.seats[..3].to_vec(), fleet, 1, four.now);
    let states = group.states(four.now);
    let open = states.iter().filter(|state| matches!(state.circuit, Circuit::Open(_))).count();
    assert!(open * 2 <= 3, "more than half are ejected: {states:?}");
}

#[test]
fn the_place_of_one_that_is_gone_is_free_again() {
    let mut four = some(4);
    for round in 0..5 {
        let gone = four.seats.remove(0);
        (0..FAILURES_IN_A_ROW).for_each(|_| gone.member.failed(Fault::Call, four.now));
        let new = super::seat((*gone.endpoint).clone(), four.group.fleet());
        four.seats.push(new);
        four.group = Group::new(four.seats.clone(), Arc::clone(four.group.fleet()), 1, four.now);
        drop(gone);
        assert!(!four.group.fleet().has_too_many_ejected(), "round {round}");
    }
    fail(&four, 0, FAILURES_IN_A_ROW);
    fail(&four, 1, FAILURES_IN_A_ROW);
    assert!(matches!((circuit(&four, 0), circuit(&four, 1)), (Circuit::Open(_), Circuit::Open(_))));
}

#[test]
fn a_lost_connection_rests_the_endpoint_and_a_new_one_ends_that() {
    let mut three = some(3);
    let mut before = Duration::ZERO;
    for round in 0..FAILURES_IN_A_ROW - 1 {
        three.member(0).failed(Fault::Connection, three.now);
        let Circuit::Resting(left) = circuit(&three, 0) else { panic!("{:?}", circuit(&three, 0)) };
        let longest = Duration::from_millis(50) * (1 << round);
        assert!((longest / 2..=longest).contains(&left) && left > before / 2, "round {round}: {left:?}");
        assert_eq!(three.shares(&Random, 100)[0], 0);
        before = left;
    }
    assert!(three.group.states(three.now)[0].latency > Some(SECOND), "a failure counts as a long time");
    three.member(0).connected(three.now);
    assert_eq!(three.group.states(three.now)[0].latency, None, "and no longer than the reason for it");
    assert_eq!(circuit(&three, 0), Circuit::Closed);
    assert!(three.shares(&Random, 100)[0] > 0);
    for position in 0..3 {
        three.member(position).refused(None, three.now);
    }
    assert!(three.shares(&Random, 300).iter().all(|calls| *calls > 50), "all rest, so all are as good");
    three.pass(SECOND);
    assert_eq!(circuit(&three, 0), Circuit::Closed, "one that says nothing is left alone for a second");
    three.member(0).refused(Some(Duration::from_secs(3600)), three.now);
    assert_eq!(circuit(&three, 0), Circuit::Resting(Duration::from_secs(5)), "a server may ask for so much only");
}

#[test]
fn a_new_connection_to_an_ejected_endpoint_lets_one_call_find_out_at_once() {
    let three = some(3);
    fail(&three, 0, FAILURES_IN_A_ROW);
    assert!(matches!(circuit(&three, 0), Circuit::Open(left) if !left.is_zero()), "{:?}", circuit(&three, 0));
    three.member(0).connected(three.now);
    assert_eq!(circuit(&three, 0), Circuit::Open(Duration::ZERO), "it is open still");
    let choices: Vec<_> = (0..100).map(|_| three.choose(&RoundRobin)).filter(|choice| choice.position == 0).collect();
    assert_eq!(choices.len(), 1, "one call finds out, the others do not wait for it");
    assert!(choices[0].is_probe);
    three.member(0).end_probe(Some(false), three.now);
    assert!(matches!(circuit(&three, 0), Circuit::Open(left) if !left.is_zero()), "it was not only the connection");
}

#[test]
fn a_policy_says_how_soon_a_newcomer_has_its_share() {
    let mut three = some(3);
    three.member(0).warm_up(three.now);
    three.pass(SECOND * 3 / 2);
    let half = three.shares(&Boxcar::new(), 3_000)[0];
    assert!((400..=600).contains(&half), "half of a third of 3,000 is 500, not {half}");
    three.pass(SECOND * 3 / 2);
    let (boxcar, ewma) = (three.shares(&Boxcar::new(), 3_000)[0], three.shares(&PeakEwma, 3_000)[0]);
    assert!((900..=1_100).contains(&boxcar), "after 3 s all of it, not {boxcar}");
    assert!((200..=400).contains(&ewma), "after 3 of 10 s about 30 %, not {ewma}");
    three.pass(SECOND * 7);
    let ewma = three.shares(&PeakEwma, 3_000)[0];
    assert!((900..=1_100).contains(&ewma), "after 10 s all of it, not {ewma}");
}

#[test]
fn an_attempt_beside_others_goes_to_one_that_is_well_and_was_not_used() {
    let mut four = some(4);
    let beside = |of: &Few, used: &[usize]| {
        let used: Vec<_> = used.iter().map(|position| Arc::clone(&of.seats[*position].member)).collect();
        let taken: BTreeSet<_> = (0..100).map(|_| of.group.choose_beside(&RoundRobin, of.request(), &used)).collect();
        (taken.into_iter().flatten().collect::<Vec<_>>(), of.group.is_in_panic(&used, of.now))
    };
    assert_eq!(beside(&four, &[0]), (vec![1, 2, 3], false));
    four.member(1).failed(Fault::Connection, four.now);
    assert_eq!(beside(&four, &[0]), (vec![2, 3], false), "one rests");
    fail(&four, 2, FAILURES_IN_A_ROW);
    assert_eq!(beside(&four, &[0]), (vec![3], true), "half of them are not well");
    assert_eq!(beside(&four, &[2]), (vec![0, 3], false), "the one that is used does not count");
    assert_eq!(beside(&four, &[0, 3]), (Vec::new(), true), "nobody else is well");
    // One that may be called again has to show first that it works.
    four.pass(EJECTION);
    assert_eq!(beside(&four, &[0]).0, vec![1, 3]);
    assert_eq!(circuit(&four, 2), Circuit::Open(Duration::ZERO), "nobody has taken the duty to find out");
    assert!(beside(&some(1), &[0]).0.is_empty());
}

#[test]
fn what_was_tried_comes_last_then_what_failed() {
    let three = some(3);
    three.member(1).failed(Fault::Connection, three.now);
    let tried = |positions: &[usize]| -> Vec<_> {
        positions.iter().map(|position| Arc::clone(&three.seats[*position].member)).collect()
    };
    let choose = |tried: &[_]| three.group.choose(&RoundRobin, three.request(), tried).map(|choice| choice.position);
    for _ in 0..10 {
        assert_eq!(choose(&tried(&[0])), Some(2), "neither tried nor resting");
        assert_eq!(choose(&tried(&[0, 2])), Some(1), "resting, but not tried");
        assert_ne!(choose(&tried(&[0, 1, 2])), Some(1), "all tried, so one that does not rest");
    }
}

#[test]
fn an_ejection_is_a_warning_in_the_log_and_its_end_a_line() {
    for (level, lines) in [(tracing::Level::WARN, [1, 1]), (tracing::Level::INFO, [1, 2])] {
        let log = Arc::new(Logged::at(level));
        let _logged = tracing::subscriber::set_default(Arc::clone(&log));
        let mut three = some(3);
        fail(&three, 0, FAILURES_IN_A_ROW + 3);
        assert_eq!(log.lines(), lines[0], "{level} after the ejection");
        three.pass(EJECTION);
        while !three.choose(&RoundRobin).is_probe {}
        three.member(0).end_probe(Some(true), three.now);
        three.member(0).end_probe(Some(true), three.now);
        assert_eq!(log.lines(), lines[1], "{level} after the return");
    }
}
