//! A second attempt beside a first one that is late: what it brings, what it costs, and when there is none.
//!
//! `cargo test --test hedging -- --nocapture` prints the figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, stream};
use picom::balance::{Circuit, ConsistentHash, RoundRobin};
use picom::registry::{Fixed, Memory};
use picom::{Arguments, Builder, Call, Code, Context, Execution, First, Methods, Picom, Status};
use support::eventually;
use support::nodes::SERVICE;
use support::peer::{CALL, CANCEL, Hello, STATUS, Scripted, frame, map, number, text};
use support::replicas::{PRACTICE, Replica, again, key_of, practise, replicas};
use tokio::sync::Notify;
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);
/// Longer than anybody waits.
const HANGS: Duration = Duration::from_secs(3600);
/// Later than what a busy machine adds to a call that takes 2 ms.
const SLOW: Duration = Duration::from_secs(2);
/// Second attempts that may be saved up.
const BURST: usize = 10;

fn loopback(builder: Builder) -> Builder {
    builder.bind("127.0.0.1")
}

fn in_memory(builder: Builder) -> Builder {
    builder.in_memory()
}

fn client(registry: &Memory) -> Picom {
    Picom::builder("caller").registry(registry.clone()).balance(RoundRobin).build().unwrap()
}

/// Replicas on loopback that take 2 ms, and a client that knows what is usual.
async fn practised(count: usize) -> (Vec<Replica>, Picom) {
    let registry = Memory::new();
    let replicas = replicas(&registry, count, 2 * MS, loopback).await;
    let client = client(&registry);
    practise(&client, PRACTICE).await;
    (replicas, client)
}

/// Most second attempts that so many calls may come to.
fn most(calls: usize) -> usize {
    calls * 2 / 100 + BURST
}

fn second_attempts(replicas: &[Replica]) -> usize {
    replicas.iter().map(Replica::again).sum()
}

/// A server that takes 20 ms for a call, and a second for each twentieth of its calls if it is the slow one: far above what a busy machine
/// adds.
async fn at_times_slow(registry: &Memory, calls: &Arc<AtomicUsize>, is_slow: bool) -> Picom {
    let (all, own) = (Arc::clone(calls), AtomicUsize::new(0));
    let methods = Methods::new().unary("again", move |_cx: Context, (): ()| {
        all.fetch_add(1, Ordering::SeqCst);
        let turn = own.fetch_add(1, Ordering::SeqCst);
        let pause = if is_slow && turn % 20 == 10 { 1_000 * MS } else { 20 * MS };
        async move {
            tokio::time::sleep(pause).await;
            Ok::<_, Status>(7u64)
        }
    });
    let node = loopback(Picom::builder(SERVICE).registry(registry.clone())).build().unwrap();
    node.expose(methods.idempotent()).await.unwrap();
    node
}

#[tokio::test]
async fn the_slowest_calls_become_much_faster_for_two_percent_more_of_them() {
    const CALLERS: usize = 50;
    const CALLS: usize = 3_000;
    let (registry, reached) = (Memory::new(), Arc::new(AtomicUsize::new(0)));
    let _servers = join_all([true, false, false].map(|is_slow| at_times_slow(&registry, &reached, is_slow))).await;
    let client = client(&registry);
    let p99 = async |hedged: bool| {
        reached.store(0, Ordering::SeqCst);
        let callers = (0..CALLERS).map(|_| async {
            let mut times = Vec::new();
            for _ in 0..CALLS / CALLERS {
                let begun = Instant::now();
                let call = again(&client);
                assert_eq!(if hedged { call.hedge().await } else { call.await }.unwrap(), 7);
                times.push(begun.elapsed());
            }
            times
        });
        let mut times = join_all(callers).await.concat();
        times.sort_unstable();
        let (p50, p99) = (times[CALLS / 2], times[CALLS * 99 / 100]);
        let extra = reached.load(Ordering::SeqCst) - CALLS;
        println!(
            "{CALLS} calls {}: p50 {p50:.1?}, p99 {p99:.1?}, longest {:.1?}, {extra} attempts more than calls ({:.2} %)",
            if hedged { "with hedge" } else { "without hedge" },
            times[CALLS - 1],
            100.0 * extra as f64 / CALLS as f64
        );
        (p99, extra)
    };
    let (without, none) = p99(false).await;
    let (with, extra) = p99(true).await;
    assert_eq!(none, 0);
    assert!(without >= 1_000 * MS, "the slow calls are not among the slowest hundredth: {without:?}");
    assert!(with < without / 3, "{with:?} with a second attempt, {without:?} without");
    assert!((1..=most(CALLS)).contains(&extra), "{extra} second attempts of {CALLS} calls");
}

#[tokio::test(start_paused = true)]
async fn when_everything_becomes_slow_second_attempts_add_no_more_than_they_may() {
    let registry = Memory::new();
    let replicas = replicas(&registry, 3, 5 * MS, in_memory).await;
    let client = client(&registry);
    practise(&client, 1_000).await;
    assert_eq!(second_attempts(&replicas), 0, "calls that all take the same time are never late");
    replicas.iter().for_each(|replica| replica.takes(250 * MS));
    let calls = 5_000;
    let begun = Instant::now();
    let callers = (0..50).map(|_| practise(&client, calls / 50));
    join_all(callers).await;
    let extra = second_attempts(&replicas);
    println!(
        "{calls} calls in {:.1?}, all of them suddenly slow: {extra} second attempts, of {}",
        begun.elapsed(),
        most(calls)
    );
    assert!(extra >= BURST, "what was saved up is not used");
    assert!(extra <= most(calls), "{extra} second attempts of {calls} calls");
    // And no more of them once that is usual.
    practise(&client, 200).await;
    let before = second_attempts(&replicas);
    practise(&client, 200).await;
    assert_eq!(second_attempts(&replicas), before, "calls that all take the same time are never late");
}

#[tokio::test]
async fn the_loser_is_cancelled_and_neither_endpoint_suffers_for_it() {
    let (mut replicas, client) = practised(2).await;
    let key = key_of(&client, replicas[0].addr).await;
    for replica in &mut replicas {
        replica.settle().await;
    }
    replicas[0].takes(HANGS);
    let call = again(&client).balance(ConsistentHash).key(&key).hedge().with_info();
    let (answer, info) = call.await.unwrap();
    let answered = Instant::now();
    assert_eq!((answer, info.endpoint(), info.attempts()), (7, replicas[1].addr, 2));
    replicas[0].witness.began().await;
    let gone = replicas[0].witness.ended_promptly(answered).await;
    println!("the loser's handler was gone {gone:.1?} after the answer");
    for state in client.channel(SERVICE).endpoints() {
        assert_eq!((state.circuit, state.outstanding), (Circuit::Closed, 0), "{state:?}");
        assert!(state.latency.is_none_or(|latency| latency < 1_000 * MS), "as if it had failed: {state:?}");
    }

    // The other way round: the first one answers after all, before the second does.
    replicas[1].settle().await;
    replicas[0].takes(SLOW);
    replicas[1].takes(HANGS);
    let call = again(&client).balance(ConsistentHash).key(&key).hedge().with_info();
    let (answer, info) = call.await.unwrap();
    let answered = Instant::now();
    assert_eq!((answer, info.endpoint(), info.attempts()), (7, replicas[0].addr, 2));
    replicas[1].witness.began().await;
    replicas[1].witness.ended_promptly(answered).await;
}

#[tokio::test]
async fn dropping_a_call_ends_both_attempts() {
    let (mut replicas, client) = practised(2).await;
    for replica in &mut replicas {
        replica.settle().await;
        replica.takes(HANGS);
    }
    let call = tokio::spawn(again(&client).hedge().into_future());
    for replica in &mut replicas {
        replica.witness.began().await;
    }
    let dropped = Instant::now();
    call.abort();
    for replica in &mut replicas {
        replica.witness.ended_promptly(dropped).await;
    }
}

#[tokio::test]
async fn a_call_that_may_do_harm_twice_is_refused_before_it_is_sent() {
    let (mut replicas, client) = practised(2).await;
    for replica in &mut replicas {
        replica.settle().await;
    }
    let before: usize = replicas.iter().map(Replica::calls).sum();
    let error = client.fetch::<u64>(SERVICE, "once", ()).hedge().await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::FailedPrecondition, Execution::Never), "{error}");
    assert!(error.message().contains("idempotent"), "it does not say what to do: {error}");
    let body = stream::iter([1u64]);
    let error = client.fetch::<u64>(SERVICE, "sum", ()).body(body).hedge().await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::FailedPrecondition, Execution::Never), "{error}");
    assert!(error.message().contains("body"), "{error}");
    assert_eq!(replicas.iter().map(Replica::calls).sum::<usize>(), before, "something was sent");
    assert_eq!(client.fetch::<u64>(SERVICE, "once", ()).idempotent().hedge().await.unwrap(), 7);
    // A call that asks for nothing goes its way.
    replicas.iter().for_each(|replica| replica.takes(SLOW));
    for _ in 0..4 {
        let (_, info) = again(&client).with_info().await.unwrap();
        assert_eq!(info.attempts(), 1);
    }
}

#[tokio::test]
async fn with_one_replica_or_an_endpoint_of_its_own_there_is_no_second_attempt() {
    let (replicas, client) = practised(1).await;
    replicas[0].takes(SLOW);
    let (_, info) = again(&client).hedge().with_info().await.unwrap();
    assert_eq!(info.attempts(), 1);

    let (replicas, client) = practised(2).await;
    replicas[0].takes(SLOW);
    let (_, info) = again(&client).on(replicas[0].addr).hedge().with_info().await.unwrap();
    assert_eq!((info.endpoint(), info.attempts()), (replicas[0].addr, 1));
    let (_, attempts) = until_it_goes_to(&client, &replicas[0], 0).await;
    assert_eq!(attempts, 1, "`retries(0)` allows one attempt in all");
    let (_, attempts) = until_it_goes_to(&client, &replicas[0], 1).await;
    assert_eq!(attempts, 2, "the same call, with one attempt more");
}

/// Calls until a first attempt goes to this replica, and says who answered after how many attempts.
async fn until_it_goes_to(client: &Picom, replica: &Replica, retries: u32) -> (std::net::SocketAddr, u32) {
    for _ in 0..20 {
        let before = replica.calls();
        let (_, info) = again(client).hedge().retries(retries).with_info().await.unwrap();
        if replica.calls() > before {
            return (info.endpoint(), info.attempts());
        }
    }
    panic!("twenty calls in turn never met {}", replica.addr);
}

#[tokio::test]
async fn while_half_of_the_replicas_are_not_well_there_is_no_second_attempt() {
    let (replicas, client) = practised(4).await;
    replicas[0].takes(SLOW);
    let (answered, attempts) = until_it_goes_to(&client, &replicas[0], 3).await;
    assert_eq!(attempts, 2, "three others are well");
    assert_ne!(answered, replicas[0].addr);
    for (sick, more) in [(1, 2), (2, 1)] {
        replicas[0].takes(2 * MS);
        replicas[sick].hand.is_sick.store(true, Ordering::SeqCst);
        eventually("it is ejected", async || {
            let _ = again(&client).await;
            let states = client.channel(SERVICE).endpoints();
            states
                .iter()
                .any(|state| state.endpoint.addr == replicas[sick].addr && matches!(state.circuit, Circuit::Open(_)))
        })
        .await;
        replicas[0].takes(SLOW);
        let (_, attempts) = until_it_goes_to(&client, &replicas[0], 3).await;
        assert_eq!(attempts, more, "with {sick} of four ejected");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_nearer_than_late_is_far_leaves_no_time_for_a_second_attempt() {
    let registry = Memory::new();
    let replicas = replicas(&registry, 2, 50 * MS, in_memory).await;
    let client = client(&registry);
    practise(&client, PRACTICE).await;
    replicas.iter().for_each(|replica| replica.takes(HANGS));
    // Late is after 50 ms, or a little more.
    for (timeout, attempts) in [(99, 1), (120, 2)] {
        let error = again(&client).hedge().timeout(timeout * MS).await.unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::DeadlineExceeded, Execution::Maybe), "{error}");
        assert_eq!(error.attempts(), attempts, "within {timeout} ms: {error}");
        assert!(replicas.iter().all(|replica| replica.hand.guards.alive() <= 1));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_late_before_there_were_fifty_calls() {
    for (practice, attempts) in [(49, 1), (50, 2)] {
        let registry = Memory::new();
        let replicas = replicas(&registry, 2, 5 * MS, in_memory).await;
        let client = client(&registry);
        let key = key_of(&client, replicas[0].addr).await;
        practise(&client, practice).await;
        replicas[0].takes(SLOW);
        let (_, info) = again(&client).balance(ConsistentHash).key(&key).hedge().with_info().await.unwrap();
        assert_eq!(info.attempts(), attempts, "after {practice} calls");
    }
}

#[tokio::test]
async fn of_an_answer_that_streams_it_is_the_first_item_that_counts() {
    let (mut replicas, client) = practised(2).await;
    let key = key_of(&client, replicas[0].addr).await;
    let items = || client.stream::<u64>(SERVICE, "items", ()).balance(ConsistentHash).key(&key).hedge();
    for _ in 0..PRACTICE {
        let all: Vec<_> = items().await.unwrap().collect().await;
        assert_eq!(all.into_iter().collect::<Result<Vec<_>, _>>().unwrap(), [7, 8, 9]);
    }
    replicas[0].settle().await;
    replicas[0].takes(HANGS);
    let (stream, info) = items().with_info().await.unwrap();
    let answered = Instant::now();
    assert_eq!((info.endpoint(), info.attempts()), (replicas[1].addr, 2));
    replicas[0].witness.began().await;
    replicas[0].witness.ended_promptly(answered).await;
    let all: Vec<_> = stream.collect().await;
    assert_eq!(all.into_iter().collect::<Result<Vec<_>, _>>().unwrap(), [7, 8, 9]);
    let call = client.fetch::<u64>(SERVICE, "items", ()).multiple().balance(ConsistentHash).key(&key).hedge();
    let (all, info) = call.with_info().await.unwrap();
    assert_eq!((all, info.attempts()), (vec![7, 8, 9], 2));
}

/// What a scripted server does with a call of which it is told nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Answer,
    /// Nothing, until it is told to die.
    Hold,
    Die,
    Refuse,
    /// Says that something is wrong, and whether the handler ran.
    Fail {
        ran: bool,
    },
}

/// Two scripted servers and what they do; a client that calls the first of them first.
struct Two {
    servers: [(Scripted, Arc<Script>); 2],
    client: Picom,
    key: String,
}

struct Script {
    does: std::sync::Mutex<Does>,
    die: Notify,
    calls: AtomicUsize,
    cancelled: AtomicUsize,
}

impl Script {
    /// A server that says in its hello which methods are idempotent.
    async fn start(idempotent: &[&str]) -> (Scripted, Arc<Self>) {
        let script = Arc::new(Self {
            does: Does::Answer.into(),
            die: Notify::new(),
            calls: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
        });
        let own = Arc::clone(&script);
        let idempotent = idempotent.iter().map(ToString::to_string).collect();
        let hello = Hello { idempotent, ..Hello::server(SERVICE) };
        let server = Scripted::start(move |mut peer, _| {
            let (script, hello) = (Arc::clone(&own), hello.clone());
            async move {
                peer.greet(&hello).await;
                loop {
                    let frame_in = tokio::select! {
                        frame = peer.frame() => frame,
                        () = script.die.notified() => return,
                    };
                    let Some(call) = frame_in else { return };
                    script.cancelled.fetch_add(usize::from(call.kind == CANCEL), Ordering::SeqCst);
                    if call.kind != CALL {
                        continue;
                    }
                    script.calls.fetch_add(1, Ordering::SeqCst);
                    let does = *script.does.lock().unwrap();
                    match does {
                        Does::Answer => peer.answer(call.stream, &[7]).await,
                        Does::Hold => {}
                        Does::Die => return,
                        Does::Refuse => peer.refuse(call.stream, 1, 0, "not now").await,
                        Does::Fail { ran } => {
                            let ran = vec![if ran { 0xc3 } else { 0xc2 }];
                            let status = map(&[("code", number(3)), ("message", text("wrong")), ("ran", ran)]);
                            peer.send(&frame(STATUS, 0, call.stream, &status)).await;
                        }
                    }
                }
            }
        })
        .await;
        (server, script)
    }
}

impl Two {
    async fn practised() -> Self {
        Self::saying([&["again"]; 2]).await
    }

    async fn saying(idempotent: [&[&str]; 2]) -> Self {
        let servers = [Script::start(idempotent[0]).await, Script::start(idempotent[1]).await];
        let endpoints: Vec<_> = servers.iter().map(|(server, _)| server.addr.to_string()).collect();
        let client = Picom::builder("caller").registry(Fixed::new([(SERVICE, endpoints)])).build().unwrap();
        let key = key_of(&client, servers[0].0.addr).await;
        let two = Self { servers, client, key };
        for _ in 0..PRACTICE {
            two.call([Does::Answer; 2]).await.expect("nothing is wrong yet");
        }
        two
    }

    /// A call that goes to the first one first, while they do this.
    fn call(&self, does: [Does; 2]) -> Call<impl Arguments, First<u64>> {
        for (does, (_, script)) in does.into_iter().zip(&self.servers) {
            *script.does.lock().unwrap() = does;
        }
        again(&self.client).balance(ConsistentHash).key(&self.key).retries(1).hedge()
    }

    fn calls(&self) -> [usize; 2] {
        [0, 1].map(|n| self.servers[n].1.calls.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn the_error_of_a_call_with_two_attempts_is_true() {
    // Both are lost, the second one first.
    let two = Two::practised().await;
    let [first, second] = two.calls();
    let call = tokio::spawn(two.call([Does::Hold, Does::Die]).into_future());
    eventually("both were asked", async || two.calls() == [first + 1, second + 1]).await;
    two.servers[0].1.die.notify_waiters();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(
        (error.code(), error.execution(), error.attempts()),
        (Code::Unavailable, Execution::Maybe, 2),
        "{error}"
    );
    assert_eq!(error.endpoint(), Some(two.servers[0].0.addr.to_string().as_str()), "{error}");

    // One says that it never ran, and the other one may have.
    for does in [Does::Refuse, Does::Fail { ran: false }] {
        let two = Two::practised().await;
        let cancelled = || two.servers[0].1.cancelled.load(Ordering::SeqCst);
        let before = cancelled();
        let error = two.call([Does::Hold, does]).timeout(300 * MS).await.unwrap_err();
        assert_eq!((error.execution(), error.attempts()), (Execution::Maybe, 2), "{does:?}: {error}");
        let code = if does == Does::Refuse { Code::DeadlineExceeded } else { Code::InvalidArgument };
        assert_eq!(error.code(), code, "{does:?}: {error}");
        eventually("the other one is cancelled", async || cancelled() > before).await;
    }

    // One has the last word.
    let two = Two::practised().await;
    let error = two.call([Does::Hold, Does::Fail { ran: true }]).await.unwrap_err();
    assert_eq!(
        (error.code(), error.execution(), error.attempts()),
        (Code::InvalidArgument, Execution::Done, 2),
        "{error}"
    );
}

#[tokio::test]
async fn a_failure_of_one_attempt_waits_for_the_other() {
    for does in [Does::Die, Does::Refuse] {
        let two = Two::practised().await;
        let [first, second] = two.calls();
        let call = tokio::spawn(two.call([Does::Hold, does]).into_future());
        eventually("both were asked", async || two.calls() == [first + 1, second + 1]).await;
        // Not before the failure is known to the caller, whose turn that is.
        tokio::time::sleep(20 * MS).await;
        assert!(!call.is_finished(), "{does:?}: the other attempt still runs");
        two.servers[0].1.die.notify_waiters();
        // Both are lost now, and the call has had the attempts that it may have.
        assert_eq!(call.await.unwrap().unwrap_err().attempts(), 2);
    }
    // The first one fails, and the second one is answered.
    let two = Two::practised().await;
    let [first, second] = two.calls();
    let call = tokio::spawn(two.call([Does::Hold, Does::Hold]).into_future());
    eventually("both were asked", async || two.calls() == [first + 1, second + 1]).await;
    two.servers[0].1.die.notify_waiters();
    tokio::time::sleep(20 * MS).await;
    assert!(!call.is_finished(), "the other attempt still runs");
    call.abort();
}

#[tokio::test]
async fn each_server_has_to_say_that_running_a_method_twice_does_no_harm_or_the_caller() {
    let two = Two::saying([&["again"], &["other"]]).await;
    let [first, second] = two.calls();
    let error = two.call([Does::Hold, Does::Answer]).timeout(100 * MS).await.unwrap_err();
    assert_eq!((error.code(), error.attempts()), (Code::DeadlineExceeded, 1), "{error}");
    assert_eq!(two.calls(), [first + 1, second], "the second server was asked");
    let error = again(&two.client).on(two.servers[1].0.addr).hedge().await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::FailedPrecondition, Execution::Never), "{error}");
    assert_eq!(two.calls(), [first + 1, second], "the second server was asked");
    let (_, info) = two.call([Does::Hold, Does::Answer]).idempotent().with_info().await.unwrap();
    assert_eq!((info.attempts(), info.endpoint()), (2, two.servers[1].0.addr));
}

#[tokio::test]
async fn while_servers_refuse_calls_as_busy_there_is_no_second_attempt() {
    let (busy, script) = Script::start(&["again"]).await;
    let registry = Memory::new();
    let slow = replicas(&registry, 3, 2 * MS, loopback).await;
    let endpoints: Vec<_> =
        slow.iter().map(|replica| replica.addr).chain([busy.addr]).map(|addr| addr.to_string()).collect();
    let fixed = Fixed::new([(SERVICE, endpoints)]);
    let client = Picom::builder("caller").registry(fixed).balance(RoundRobin).build().unwrap();
    practise(&client, PRACTICE).await;
    slow[0].takes(SLOW);
    assert_eq!(until_it_goes_to(&client, &slow[0], 3).await.1, 2, "nobody has refused anything");
    slow[0].takes(2 * MS);
    practise(&client, PRACTICE).await;
    *script.does.lock().unwrap() = Does::Refuse;
    slow[0].takes(SLOW);
    eventually("a call was refused", async || {
        let (_, info) = again(&client).with_info().await.unwrap();
        info.attempts() == 2
    })
    .await;
    assert_eq!(until_it_goes_to(&client, &slow[0], 3).await.1, 1, "the service has enough to do");
}
