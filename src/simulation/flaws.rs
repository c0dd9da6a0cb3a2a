//! Worlds in which something is wrong on purpose: each kind of mistake must be found, or the other worlds prove nothing.
//!
//! Owns the kinds of mistakes, what the simulator says of each, and the judgement of single events. Look next at
//! [`super::journal`], which judges.

use std::sync::Arc;
use std::time::Duration;

use super::journal::{CallId, Journal, Life, REMOVED_LIMIT, Terms};
use super::net::{Death, Net};
use super::runs::Judge;
use super::world;
use crate::registry::{Endpoint, Endpoints, Freshness};
use crate::{Execution, Status};

/// How many worlds a mistake may stay hidden in.
const HIDDEN: u64 = 200;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Clients take every method for idempotent.
    SaysIdempotent,
    /// What a failed call says of its execution is that it never ran.
    Lies,
    /// Handlers take for ever, and nobody limits them.
    Hangs,
    /// Processes that were killed go on.
    Haunts,
    /// Clients do not hear of those who have left.
    Deaf,
    /// Nothing is repaired in the end.
    StaysBroken,
    /// Clients hold on to a stream that they do not read.
    HoldsStream,
    /// A task is left.
    LeavesTask,
    /// Handlers go on although nobody waits for them any more, also when another attempt was answered.
    RunsOn,
    /// Second attempts cost nothing.
    Squanders,
}

#[test]
fn what_is_wrong_on_purpose_is_found() {
    let expected = [
        (Flaw::SaysIdempotent, "ran twice"),
        (Flaw::Lies, "told Err(Status"),
        (Flaw::Hangs, "does not end"),
        (Flaw::Haunts, "which is dead"),
        (Flaw::Deaf, "left the list"),
        (Flaw::StaysBroken, "does not answer again"),
        (Flaw::HoldsStream, "calls are open"),
        (Flaw::LeavesTask, "1 tasks are left"),
        (Flaw::RunsOn, "although nobody waits any more"),
        (Flaw::RunsOn, "although another attempt was answered"),
        (Flaw::Squanders, "second attempts of"),
    ];
    for (flaw, text) in expected {
        let found = |seed: &u64| {
            let outcome = world::run_flawed(*seed, Some(flaw));
            outcome.violations.iter().any(|violation| violation.contains(text))
        };
        let seed = (0..HIDDEN).find(found);
        assert!(seed.is_some(), "{flaw:?} is not found in {HIDDEN} worlds: nothing says \"{text}\"");
    }
}

#[tokio::test(start_paused = true)]
async fn what_must_never_happen_is_seen() {
    let terms = |idempotent| Terms { from: 100, idempotent, limit: None, most: 2 };
    let [here, there] = [4000, 4001].map(|port| Life::new(port, port));
    let of = |happens: &dyn Fn(&Journal)| {
        let journal = Journal::new();
        journal.began(1, terms(false));
        journal.began(2, terms(true));
        happens(&journal);
        let book = journal.book();
        book.violations.join("; ")
    };
    let failed = |execution| Err(Status::unavailable("gone").with_execution(execution));
    let soon = Duration::ZERO;
    let fine = of(&|journal| {
        journal.ran(1, &here, None);
        journal.finished(1, &here);
        journal.ended(1, &Ok(()), soon);
        journal.ran(2, &here, None);
        journal.ran(2, &there, None);
        journal.ended(2, &failed(Execution::Maybe), soon);
        journal.close();
    });
    assert_eq!(fine, "");
    let twice = of(&|journal| [&here, &there].into_iter().for_each(|life| journal.ran(1, life, None)));
    assert_eq!(twice, "call 1 ran twice, at [4000, 4001]");
    let often = of(&|journal| [&here, &there, &here].into_iter().for_each(|life| journal.ran(2, life, None)));
    assert_eq!(often, "call 2 ran more than 2 times, at [4000, 4001, 4000]");
    let lied = of(&|journal| {
        journal.ran(2, &here, None);
        journal.ended(2, &failed(Execution::Never), soon);
    });
    assert!(lied.starts_with("call 2 ran 1 times, 0 times to its end, and its caller was told"), "{lied}");
    let half = of(&|journal| {
        journal.ran(1, &here, None);
        journal.ended(1, &failed(Execution::Done), soon);
    });
    assert!(half.starts_with("call 1 ran 1 times, 0 times to its end, and its caller was told"), "{half}");
    let early = of(&|journal| {
        journal.ended(1, &failed(Execution::Never), soon);
        journal.ran(1, &here, None);
    });
    assert_eq!(early, "call 1 runs, of which was said that it never did");
    let idle = of(&|journal| journal.ended(1, &failed(Execution::Done), soon));
    assert!(idle.starts_with("call 1 ran 0 times"), "{idle}");
    let open = of(&|journal| journal.close());
    assert_eq!(open, "call 1 never ended; call 2 never ended");
    let slow = of(&|journal| {
        journal.ran(1, &here, None);
        journal.finished(1, &here);
        journal.ended(1, &Ok(()), Duration::from_millis(1));
    });
    assert_eq!(slow, "call 1 ended 1ms too late");
    let nobody = of(&|journal| journal.ran(3, &here, None));
    assert_eq!(nobody, "a call 3 runs that nobody made");
    let second = Duration::from_secs(1);
    let generous = of(&|journal| {
        let limited = |limit| Terms { limit: Some(limit), ..terms(true) };
        journal.began(3, limited(second));
        journal.ran(3, &here, Some(second));
        journal.ran(3, &here, Some(second * 2));
        journal.began(4, limited(second));
        journal.ran(4, &here, None);
    });
    let more = "more than its caller's Some(1s)";
    assert_eq!(generous, format!("call 3 has Some(2s), {more}; call 4 has None, {more}"));
    let second = of(&|journal| {
        (0..100).for_each(|_| journal.hedged(100));
        journal.made_second_attempts(100, 2);
        (0..99).for_each(|_| journal.hedged(101));
        journal.made_second_attempts(101, 2);
    });
    assert_eq!(second, "101 made 2 second attempts of 99 calls");
    here.ends();
    let ghost = of(&|journal| journal.finished(1, &here));
    assert_eq!(ghost, "call 1 is handled at 4000, which is dead");
}

#[tokio::test(start_paused = true)]
async fn one_that_runs_on_is_seen_unless_nobody_could_tell_it() {
    const BLOCKED: Duration = Duration::from_secs(4);
    let (journal, life) = (Arc::new(Journal::new()), Life::new(1000, 4000));
    let net = Net::new(0, Arc::clone(&journal));
    net.begins(100, 100);
    net.begins(1000, 0);
    let judge = Judge { journal: Arc::clone(&journal), net: Arc::clone(&net), flaw: None };
    let run = |id, outcome: Option<Result<(), Status>>| {
        journal.began(id, Terms { from: 100, idempotent: true, limit: None, most: 2 });
        (0..2).for_each(|_| journal.ran(id, &life, None));
        journal.finished(id, &life);
        let run = judge.begins(&life, id);
        match outcome {
            Some(outcome) => journal.ended(id, &outcome, Duration::ZERO),
            None => journal.given_up(id),
        }
        run
    };
    let (limit, more) = (judge.limit(), Duration::from_millis(1));
    let fails = || Some(Err(Status::aborted("as asked").with_execution(Execution::Done)));
    let outcomes = || [Some(Ok(())), fails(), None];
    let runs = (1..).zip(outcomes()).map(|(id, outcome)| run(id, outcome)).collect::<Vec<_>>();
    tokio::time::advance(limit).await;
    drop(runs);
    assert_eq!(journal.book().violations, [""; 0], "at the limit");
    net.block(100, 0, BLOCKED);
    let runs = (1..).zip(outcomes()).map(|(id, outcome)| run(id, outcome)).collect::<Vec<_>>();
    tokio::time::advance(BLOCKED + limit).await;
    drop(runs);
    assert_eq!(journal.book().violations, [""; 0], "nobody could tell it");
    net.block(0, 100, BLOCKED);
    let runs = (1..).zip(outcomes()).map(|(id, outcome)| run(id, outcome)).collect::<Vec<_>>();
    tokio::time::advance(limit + more).await;
    drop(runs);
    let on = |id: CallId, why: &str| format!("call {id} runs on at 4000 for {:?}, although {why}", limit + more);
    let nobody = "nobody waits any more";
    let expected = [on(1, "another attempt was answered"), on(2, nobody), on(3, nobody)];
    assert_eq!(journal.book().violations, expected, "one past it");
    let last = run(4, None);
    net.dies(100, Death::Killed);
    tokio::time::advance(limit + more).await;
    drop(last);
    assert_eq!(journal.book().violations.len(), 3, "the dead tell nobody");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_not_listed_any_more_is_seen_when_it_is_used() {
    let (journal, addr) = (Journal::new(), crate::transport::simulated::addr(100, 4000));
    let (life, terms) = (Life::new(1000, 4000), Terms { from: 100, idempotent: false, limit: None, most: 1 });
    let list = |endpoints| Endpoints { freshness: Freshness::Live, endpoints, ..Endpoints::unknown() };
    journal.listed(100, "front", &list(vec![Arc::new(Endpoint::new(addr))]));
    journal.listed(100, "leaf", &list(Vec::new()));
    tokio::time::advance(REMOVED_LIMIT * 2).await;
    journal.dials(addr);
    assert_eq!(journal.book().violations, [""; 0], "another service's list says nothing of it");
    journal.listed(100, "front", &list(Vec::new()));
    tokio::time::advance(REMOVED_LIMIT).await;
    journal.dials(addr);
    journal.began(1, terms);
    journal.ran(1, &life, None);
    assert_eq!(journal.book().violations, [""; 0], "at the limit");
    tokio::time::advance(Duration::from_millis(1)).await;
    journal.dials(addr);
    journal.began(2, terms);
    journal.ran(2, &life, None);
    assert_eq!(journal.book().violations.len(), 2, "one past it");
    journal.listed(100, "front", &list(vec![Arc::new(Endpoint::new(addr))]));
    journal.dials(addr);
    assert_eq!(journal.book().violations.len(), 2, "it is back");
}
