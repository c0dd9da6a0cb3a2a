//! Attempts that may take only so long: when one is left for another host, and when it is waited for after all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, stream};
use picom::balance::{Circuit, ConsistentHash};
use picom::registry::Memory;
use picom::{Arguments, Builder, Call, Code, Execution, First, Picom};
use support::nodes::SERVICE;
use support::replicas::{Replica, again, key_of, replicas};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);
/// Longer than anybody waits.
const HANGS: Duration = Duration::from_secs(3600);
/// The longest pause before a first retry of a call that may have run.
const PAUSE: Duration = Duration::from_millis(25);

struct Some {
    replicas: Vec<Replica>,
    client: Picom,
    key: String,
}

impl Some {
    /// So many replicas that take 5 ms.
    async fn of(count: usize, options: impl Fn(Builder) -> Builder) -> Self {
        let registry = Memory::new();
        let mut replicas = replicas(&registry, count, 5 * MS, options).await;
        let client = Picom::builder("caller").registry(registry).build().unwrap();
        let key = key_of(&client, replicas[0].addr).await;
        for replica in &mut replicas {
            replica.settle().await;
        }
        Self { replicas, client, key }
    }

    /// A call that goes to the first replica first, the attempts of which may take so long.
    fn call(&self, timeout: Duration) -> Call<impl Arguments, First<u64>> {
        again(&self.client).balance(ConsistentHash).key(&self.key).attempt_timeout(timeout)
    }

    fn circuit(&self, position: usize) -> Circuit {
        let states = self.client.channel(SERVICE).endpoints();
        states.into_iter().find(|state| state.endpoint.addr == self.replicas[position].addr).unwrap().circuit
    }
}

#[tokio::test]
async fn a_host_that_hangs_is_left_for_another_and_its_handler_is_dropped() {
    let mut two = Some::of(2, |builder| builder.bind("127.0.0.1")).await;
    two.replicas[0].takes(HANGS);
    let begun = Instant::now();
    let (answer, info) = two.call(50 * MS).with_info().await.unwrap();
    let took = begun.elapsed();
    assert_eq!((answer, info.endpoint(), info.attempts()), (7, two.replicas[1].addr, 2));
    println!("answered by another host {took:.1?} after the call, with 50 ms for each attempt");
    two.replicas[0].witness.began().await;
    two.replicas[0].witness.ended_promptly(begun + 50 * MS).await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_may_take_as_long_as_it_was_said_and_no_longer() {
    let three = Some::of(3, Builder::in_memory).await;
    for (takes, attempts) in [(48, 1), (52, 2)] {
        three.replicas[0].takes(takes * MS);
        let begun = Instant::now();
        let (_, info) = three.call(50 * MS).with_info().await.unwrap();
        assert_eq!(info.attempts(), attempts, "it takes {takes} ms of 50");
        let most = if attempts == 1 { 50 * MS } else { 50 * MS + PAUSE + 8 * MS };
        assert!(begun.elapsed() <= most, "{:?}", begun.elapsed());
    }
    // The same with a stream, of which the first item counts.
    three.replicas[0].takes(HANGS);
    let call = three.client.stream::<u64>(SERVICE, "items", ()).balance(ConsistentHash).key(&three.key);
    let (items, info) = call.attempt_timeout(50 * MS).with_info().await.unwrap();
    assert_eq!((info.attempts(), items.count().await), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nothing_can_follow_has_the_rest_of_the_deadline() {
    // Nobody else.
    let one = Some::of(1, Builder::in_memory).await;
    one.replicas[0].takes(100 * MS);
    let (_, info) = one.call(10 * MS).with_info().await.unwrap();
    assert_eq!(info.attempts(), 1);
    // Everybody was asked; the last one answers.
    let two = Some::of(2, Builder::in_memory).await;
    two.replicas.iter().for_each(|replica| replica.takes(100 * MS));
    let (_, info) = two.call(10 * MS).with_info().await.unwrap();
    assert_eq!((info.attempts(), info.endpoint()), (2, two.replicas[1].addr));
    let error = two.call(10 * MS).timeout(90 * MS).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::DeadlineExceeded, Execution::Maybe), "{error}");
    assert_eq!((error.attempts(), error.endpoint()), (2, Some(two.replicas[1].addr.to_string().as_str())), "{error}");
    // Tied to one, or without another attempt.
    let (_, info) = two.call(10 * MS).on(two.replicas[0].addr).with_info().await.unwrap();
    assert_eq!((info.attempts(), info.endpoint()), (1, two.replicas[0].addr));
    let (_, info) = two.call(10 * MS).retries(0).with_info().await.unwrap();
    assert_eq!(info.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_retry_budget_is_used_up_slow_attempts_are_waited_for() {
    const CALLS: usize = 400;
    let two = Some::of(2, Builder::in_memory).await;
    two.replicas[0].takes(1_000 * MS);
    let calls = (0..CALLS).map(|_| two.call(10 * MS).with_info().into_future());
    let attempts: Vec<_> = join_all(calls).await.into_iter().map(|answer| answer.unwrap().1.attempts()).collect();
    let moved = attempts.iter().filter(|attempts| **attempts == 2).count();
    println!("of {CALLS} calls to a host that is too slow {moved} went to another one, and none failed");
    let before = two.replicas[0].calls() + two.replicas[1].calls() - CALLS - moved;
    // A fifth of the calls, and ten a second over the ten seconds that are looked back over.
    assert_eq!(moved, (CALLS + before) / 5 + 100, "{before} calls were made before");
}

#[tokio::test(start_paused = true)]
async fn taking_too_long_speaks_against_an_endpoint() {
    let three = Some::of(3, Builder::in_memory).await;
    three.replicas[0].takes(HANGS);
    for n in 0..5 {
        assert_eq!(three.circuit(0), Circuit::Closed, "after {n} attempts that took too long");
        let (_, info) = three.call(10 * MS).with_info().await.unwrap();
        assert_eq!(info.attempts(), 2);
    }
    assert!(matches!(three.circuit(0), Circuit::Open(_)), "{:?}", three.circuit(0));
    assert_eq!(three.circuit(1), Circuit::Closed);
    let (_, info) = three.call(10 * MS).with_info().await.unwrap();
    assert_eq!(info.attempts(), 1, "it is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_call_may_have_both_a_second_attempt_and_a_limit_for_each() {
    let three = Some::of(3, Builder::in_memory).await;
    for _ in 0..100 {
        three.call(1_000 * MS).hedge().await.unwrap();
    }
    three.replicas.iter().for_each(|replica| replica.takes(HANGS));
    let begun = Instant::now();
    // One is late after some 5 ms, a second one is made beside it; the first one's time is up, and then the second one's.
    let error = three.call(50 * MS).hedge().timeout(1_000 * MS).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::DeadlineExceeded, Execution::Maybe), "{error}");
    assert_eq!((error.attempts(), begun.elapsed().as_millis()), (3, 1_000), "{error}");
    let asked: Vec<_> = three.replicas.iter().map(|replica| replica.hand.guards.alive()).collect();
    assert_eq!(asked, [0; 3], "somebody still works for a call that is over");
}

#[tokio::test]
async fn a_call_that_may_do_harm_twice_is_refused_before_it_is_sent() {
    let two = Some::of(2, |builder| builder.bind("127.0.0.1")).await;
    let before = two.replicas[0].calls() + two.replicas[1].calls();
    let error = two.client.fetch::<u64>(SERVICE, "once", ()).attempt_timeout(50 * MS).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::FailedPrecondition, Execution::Never), "{error}");
    assert!(error.message().contains("idempotent"), "it does not say what to do: {error}");
    let call = two.client.fetch::<u64>(SERVICE, "sum", ()).body(stream::iter([1u64]));
    let error = call.attempt_timeout(50 * MS).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::FailedPrecondition, Execution::Never), "{error}");
    assert_eq!(two.replicas[0].calls() + two.replicas[1].calls(), before, "something was sent");
    let call = two.client.fetch::<u64>(SERVICE, "once", ()).idempotent();
    assert_eq!(call.attempt_timeout(500 * MS).await.unwrap(), 7);
}
