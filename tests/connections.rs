//! How many connections a client has to one server: one as long as that does, one more where calls had to wait for a place, or threads for each
//! other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use picom::balance::{Circuit, EndpointState};
use picom::registry::{Instance, Memory, Registry};
use picom::{Builder, Code, Picom, Status, args};
use support::held::{Scene, client};
use support::nodes::SERVICE;
use support::peer::{CALL, DRAIN, Hello, Scripted, frame, idle};
use support::{eventually, instance};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Open calls that a connection may have, unless a test says otherwise: the default.
const CALLS: usize = 1_024;

#[tokio::test]
async fn one_call_too_many_gets_one_more_connection_and_waits_where_there_may_be_but_one() {
    for (most, calls, connections, run) in
        [(2, CALLS, 1, CALLS), (2, CALLS + 1, 2, CALLS + 1), (1, CALLS + 1, 1, CALLS), (4, 3 * CALLS, 3, 3 * CALLS)]
    {
        let scene = Scene::new(|server| server, |client| client.max_connections_per_endpoint(most)).await;
        let held = scene.hold(calls);
        scene.until_running(run).await;
        let known = scene.state();
        assert_eq!(scene.proxy.connections(), connections, "{calls} calls, at most {most} connections: {known:?}");
        assert_eq!(known.connections, connections, "{known:?}");
        if run < calls {
            // One ends, and the one that waited takes its place.
            scene.may_end.add_permits(1);
            scene.until_running(run).await;
        }
        scene.finish(held).await;
        assert_eq!(scene.most.load(Ordering::SeqCst), run);
        println!("{calls} calls at once with at most {most} connections: {run} ran at once, on {connections}");
    }
}

#[tokio::test]
async fn a_server_sees_no_more_connections_than_there_may_be_and_the_rest_of_the_calls_waits() {
    const MOST: usize = 3;
    let scene = Scene::new(|server| server.max_calls(8), |client| client.max_connections_per_endpoint(MOST)).await;
    let held = scene.hold(100);
    scene.until_running(8 * MOST).await;
    let mut given_up = scene.hold(10);
    given_up.shutdown().await;
    scene.finish(held).await;
    assert_eq!(scene.most.load(Ordering::SeqCst), 8 * MOST, "each connection has its limit, and all of it is used");
    assert_eq!(scene.proxy.connections(), MOST);
    scene.quick().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordinary_load_stays_on_one_connection() {
    let scene = Scene::new(|server| server, |client| client).await;
    let callers = (0..64).map(|_| async {
        for _ in 0..10_000 / 64 {
            scene.quick().await;
        }
    });
    join_all(callers).await;
    assert_eq!((scene.proxy.connections(), scene.state().connections), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_wait_for_each_other_get_a_connection_each() {
    let scene = Scene::new(|server| server, |client| client).await;
    scene
        .crowd(async || {
            eventually("there is one more", async || scene.state().connections == 2).await;
            sleep(Duration::from_secs(3)).await;
        })
        .await;
    assert_eq!(scene.proxy.connections(), 2, "no more than threads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_wait_for_each_other_share_a_connection_where_there_may_be_but_one() {
    let scene = Scene::new(|server| server, |client| client.max_connections_per_endpoint(1)).await;
    scene.crowd(async || sleep(Duration::from_secs(3)).await).await;
    assert_eq!(scene.proxy.connections(), 1);
}

#[tokio::test]
async fn one_thread_waits_for_nobody_and_has_one_connection() {
    let scene = Scene::new(|server| server, |client| client).await;
    scene.crowd(async || sleep(Duration::from_secs(3)).await).await;
    assert_eq!(scene.proxy.connections(), 1);
}

/// All who wait must not wake for each call that ends.
#[tokio::test]
async fn ten_thousand_calls_at_once_on_one_connection_all_have_their_turn() {
    let scene = Scene::new(|server| server, |client| client.max_connections_per_endpoint(1)).await;
    let (begun, held) = (std::time::Instant::now(), scene.hold(10_000));
    scene.until_running(CALLS).await;
    timeout(support::PATIENCE, scene.finish(held)).await.expect("they take turns");
    println!("10,000 calls, {CALLS} at a time, took {:?}", begun.elapsed());
    assert_eq!(scene.proxy.connections(), 1);
}

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_needed_any_more_closes_while_the_other_one_is_used() {
    let scene = Scene::new(|server| server.max_calls(4), |client| client).await;
    for round in 1..=2 {
        let held = scene.hold(7);
        scene.until_running(7).await;
        assert_eq!(scene.state().connections, 2, "round {round}");
        scene.finish(held).await;
        for second in (0..300).step_by(10) {
            let connections = scene.state().connections;
            assert!(connections == 2 || second > 200, "{connections} connections after {second} s of little to do");
            scene.quick().await;
            sleep(Duration::from_secs(10)).await;
        }
        assert_eq!(scene.state().connections, 1, "round {round}");
        assert_eq!(scene.proxy.connections(), 1 + round, "one more was made in each round");
    }
}

/// A peer that takes so many calls on each connection, answers those of the first when it may, and does with the others as told.
struct TwoFaced {
    peer: Scripted,
    may_answer: Arc<Notify>,
    may_end: Arc<Notify>,
    /// Calls that came.
    came: Arc<AtomicUsize>,
}

/// What becomes of the second connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Second {
    Dies,
    /// And the first one with it.
    DiesWithFirst,
    Drains,
}

impl TwoFaced {
    async fn new(second: Second) -> Self {
        let (may_answer, may_end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let came = Arc::<AtomicUsize>::default();
        let (answer, end, count) = (Arc::clone(&may_answer), Arc::clone(&may_end), Arc::clone(&came));
        let peer = Scripted::start(move |mut peer, number| {
            let (answer, end, came) = (Arc::clone(&answer), Arc::clone(&end), Arc::clone(&count));
            async move {
                peer.greet(&Hello { max_calls: 2, ..Hello::server(SERVICE) }).await;
                if number > 0 {
                    let call = peer.next(CALL).await;
                    came.fetch_add(1, Ordering::SeqCst);
                    end.notified().await;
                    if second == Second::Drains {
                        peer.send(&frame(DRAIN, 0, 0, &1u64.to_be_bytes())).await;
                        peer.answer(call.stream, &[1]).await;
                        peer.rest().await;
                    }
                    return;
                }
                let calls = [peer.next(CALL).await, peer.next(CALL).await];
                came.fetch_add(2, Ordering::SeqCst);
                answer.notified().await;
                if second == Second::DiesWithFirst {
                    return;
                }
                for call in calls {
                    peer.answer(call.stream, &[0]).await;
                }
                while let Some(call) = peer.frame().await {
                    if call.kind == CALL {
                        peer.answer(call.stream, &[0]).await;
                    }
                }
            }
        })
        .await;
        Self { peer, may_answer, may_end, came }
    }

    /// Two calls on the first connection and one on the second.
    async fn calls(&self, client: &Picom) -> (Vec<JoinHandle<Result<u64, Status>>>, JoinHandle<Result<u64, Status>>) {
        let call = || {
            let call = client.fetch::<u64>(SERVICE, "any", ()).on(self.peer.addr).retries(0).into_future();
            tokio::spawn(call)
        };
        let came = |calls| async move || self.came.load(Ordering::SeqCst) == calls;
        let first = vec![call(), call()];
        eventually("both have come", came(2)).await;
        let third = call();
        eventually("the third has come, on one more connection", came(3)).await;
        (first, third)
    }
}

fn state(client: &Picom, addr: std::net::SocketAddr) -> EndpointState {
    client.channel(SERVICE).endpoints().into_iter().find(|state| state.endpoint.addr == addr).expect("it is listed")
}

/// Beside it one that is well, because of a lone endpoint nothing is counted.
async fn beside(peer: &TwoFaced) -> (Picom, Scene) {
    let other = Scene::new(|server| server, |client| client).await;
    let addrs = [peer.peer.addr.to_string(), other.proxy.addr.to_string()];
    (client(|client| client.max_connections_per_endpoint(2), &addrs), other)
}

#[tokio::test]
async fn one_connection_that_is_lost_fails_no_calls_on_the_other_and_nothing_is_held_against_the_server() {
    let peer = TwoFaced::new(Second::Dies).await;
    let (client, _other) = beside(&peer).await;
    let (first, third) = peer.calls(&client).await;
    peer.may_end.notify_one();
    let lost = timeout(support::PATIENCE, third).await.unwrap().unwrap().unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost}");
    let known = state(&client, peer.peer.addr);
    assert_eq!((known.connections, known.circuit), (1, Circuit::Closed), "{known:?}");
    peer.may_answer.notify_one();
    for call in first {
        assert_eq!(call.await.unwrap().expect("its connection is there"), 0);
    }
    assert_eq!(client.fetch::<u64>(SERVICE, "any", ()).on(peer.peer.addr).await.unwrap(), 0);
    assert_eq!(peer.peer.accepted(), 2, "no other one was needed");
}

#[tokio::test]
async fn all_connections_of_a_server_that_dies_are_one_failure() {
    let peer = TwoFaced::new(Second::DiesWithFirst).await;
    let (client, _other) = beside(&peer).await;
    let (first, third) = peer.calls(&client).await;
    peer.may_end.notify_one();
    peer.may_answer.notify_one();
    for call in first.into_iter().chain([third]) {
        assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
    let known = state(&client, peer.peer.addr);
    // Twice as long would be two.
    assert!(matches!(known.circuit, Circuit::Resting(left) if left <= Duration::from_millis(50)), "{known:?}");
    assert_eq!(known.connections, 0);
}

#[tokio::test]
async fn a_connection_that_drains_is_left_for_the_other() {
    let peer = TwoFaced::new(Second::Drains).await;
    let (client, _other) = beside(&peer).await;
    let (first, third) = peer.calls(&client).await;
    peer.may_end.notify_one();
    assert_eq!(third.await.unwrap().expect("it was accepted before"), 1);
    eventually("it is left", async || state(&client, peer.peer.addr).connections == 1).await;
    peer.may_answer.notify_one();
    for call in first {
        assert_eq!(call.await.unwrap().unwrap(), 0);
    }
    for _ in 0..3 {
        assert_eq!(client.fetch::<u64>(SERVICE, "any", ()).on(peer.peer.addr).await.unwrap(), 0);
    }
    let known = state(&client, peer.peer.addr);
    assert_eq!((peer.peer.accepted(), known.circuit), (2, Circuit::Closed), "{known:?}");
}

#[tokio::test]
async fn a_server_that_reads_nothing_gets_no_more_connections_to_read_nothing_from() {
    let deaf = Scripted::start(|mut peer, _| async move {
        peer.greet(&Hello { max_calls: 60_000, ..Hello::server(SERVICE) }).await;
        idle(peer).await;
    })
    .await;
    let client = client(|client| client, &[deaf.addr.to_string()]);
    let argument = "x".repeat(3_800);
    let call = |_| {
        let call = client.fetch::<u64>(SERVICE, "any", args! { argument: argument.clone() });
        call.timeout(Duration::from_secs(2)).into_future()
    };
    // More than the socket and the queue in front of it hold, and all made long before the first is over.
    let errors: Vec<_> = join_all((0..2_500).map(call)).await.into_iter().map(Result::unwrap_err).collect();
    let waited = errors.iter().filter(|error| error.message().contains("limit of open calls")).count();
    println!("{waited} of 2,500 calls waited for a place");
    assert!(waited > 0, "all calls found a place, so this shows nothing");
    assert_eq!(deaf.accepted(), 1);
}

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_more_connections_is_not_asked_for_them_all_the_time() {
    let scene = Scene::new(|server| server.max_calls(2).max_connections_per_peer(1), |client| client).await;
    let held = scene.hold(2);
    scene.until_running(2).await;
    let waiting = scene.hold(5);
    eventually("one more was tried", async || scene.proxy.connections() == 2).await;
    let mut more = Vec::new();
    for _ in 0..9 {
        sleep(Duration::from_secs(1)).await;
        more.push(scene.hold(1));
        assert_eq!(scene.proxy.connections(), 2, "it was asked again too soon");
    }
    // Those who wait need no newcomer for that.
    eventually("it is asked again", async || scene.proxy.connections() == 3).await;
    let known = scene.state();
    assert_eq!((known.connections, known.circuit), (1, Circuit::Closed), "{known:?}");
    assert_eq!(scene.running(), 2, "the others wait for a place");
    scene.may_end.add_permits(100);
    for calls in [held, waiting].into_iter().chain(more) {
        scene.finish(calls).await;
    }
}

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn a_server_that_has_left_gets_no_more_connections_from_those_who_wait_there() {
    let registry = Memory::new();
    let known = registry.clone();
    let limits = |server: Builder| server.max_calls(2).max_connections_per_peer(1);
    let scene = Scene::new(limits, |client| client.registry(known)).await;
    // The server behind the proxy says in its hello which one it is.
    let incarnation = scene.pair.server.nodes()[SERVICE].endpoints[0].incarnation.unwrap();
    let (address, port) = (Some(scene.proxy.addr.ip()), scene.proxy.addr.port());
    let listed = Instance { incarnation, address, ..instance(SERVICE, "proxy", port) };
    let registration = registry.register(listed).await.unwrap();
    let held = scene.hold(2);
    scene.until_running(2).await;
    let waiting = scene.hold(5);
    eventually("one more was tried", async || scene.proxy.connections() == 2).await;
    registration.leave().await.unwrap();
    eventually("the client has heard", async || scene.client.channel(SERVICE).endpoints().is_empty()).await;
    sleep(Duration::from_secs(25)).await;
    assert_eq!(scene.proxy.connections(), 2, "it was asked for more although it has left");
    scene.finish(held).await;
    scene.finish(waiting).await;
}
