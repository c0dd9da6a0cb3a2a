//! What becomes of several connections to one server when they get too old, when it leaves, when one of them falls silent, and where it
//! takes no more of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use picom::balance::{Circuit, EndpointState};
use picom::registry::{Instance, Memory, Registry};
use picom::{Code, Context, Execution, Methods, Picom, Status};
use support::held::{Scene, client};
use support::nodes::{SERVICE, pair_with};
use support::peer::{CALL, DRAIN, Hello, PING, PONG, Scripted, frame, idle};
use support::proxy::Proxy;
use support::{eventually, instance};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn connections_that_are_too_old_are_replaced_only_as_far_as_calls_need_them() {
    let limits = |server: picom::Builder| server.max_calls(8).max_connection_age(Duration::from_secs(60));
    let scene = Scene::new(limits, |client| client.max_connections_per_endpoint(3)).await;
    let counts = || (scene.state().connections, scene.proxy.open());
    let old = scene.hold(20);
    scene.until_running(20).await;
    assert_eq!(counts(), (3, 3));
    sleep(Duration::from_secs(70)).await;
    assert_eq!(counts(), (0, 3), "all take no more calls, and stay for those that they have");
    let few = scene.hold(5);
    scene.until_running(25).await;
    assert_eq!(counts(), (1, 4), "five calls need one");
    let more = scene.hold(15);
    scene.until_running(40).await;
    assert_eq!(counts(), (3, 6), "twenty need three, however many there were before");
    scene.finish(old).await;
    eventually("the old ones are closed", async || counts() == (3, 3)).await;
    scene.finish(few).await;
    scene.finish(more).await;
    sleep(Duration::from_secs(70)).await;
    eventually("those without calls are closed", async || counts() == (0, 0)).await;
    scene.quick().await;
    assert_eq!((scene.ran(), scene.proxy.connections()), (40, 7), "each call ran once, and each connection was needed");
}

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn a_connection_that_has_to_go_leaves_its_place_at_a_full_server_to_the_next() {
    for (connections, per_peer) in [(2, 1_000), (1_000, 2)] {
        let limits = |server: picom::Builder| {
            let server = server.max_connections(connections).max_connections_per_peer(per_peer);
            server.max_calls(4).max_connection_age(Duration::from_secs(60))
        };
        let scene = Scene::new(limits, |client| client).await;
        let mut held = Vec::new();
        for age in 1..=2 {
            held.push(scene.hold(8));
            scene.until_running(8 * age).await;
            assert_eq!((scene.state().connections, scene.proxy.open()), (2, 2 * age));
            sleep(Duration::from_secs(70)).await;
        }
        // As many as there may be were told to go and have calls. Yet another two would be without end.
        let refused = scene.client.fetch::<u64>(SERVICE, "quick", ()).await.unwrap_err();
        assert_eq!((refused.code(), refused.execution()), (Code::Unavailable, Execution::Never), "{refused}");
        assert!(refused.message().contains("limit of 2 connections"), "{refused}");
        for calls in held {
            scene.finish(calls).await;
        }
        scene.quick().await;
    }
}

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_place_on_a_connection_that_gets_too_old_have_one_on_the_next() {
    const WAITING: usize = 500;
    let limits = |server: picom::Builder| server.max_calls(8).max_connection_age(Duration::from_secs(60));
    let scene = Scene::new(limits, |client| client.max_connections_per_endpoint(1)).await;
    let held = scene.hold_from(&scene.client, 8);
    scene.until_running(8).await;
    let waiting = scene.hold_from(&scene.client, WAITING);
    sleep(Duration::from_secs(70)).await;
    assert_eq!((scene.running(), scene.proxy.open()), (16, 2), "eight have a place on the next");
    scene.may_end.add_permits(WAITING + 8);
    let results = held.join_all().await.into_iter().chain(waiting.join_all().await);
    let failed: Vec<Status> = results.filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} calls failed, of which the first: {}", failed.len(), failed[0]);
    assert_eq!(scene.ran(), WAITING + 8);
}

#[tokio::test]
async fn calls_that_are_on_their_way_when_the_server_leaves_a_connection_are_made_on_the_next_however_many_they_are() {
    const CALLS: usize = 900;
    let server = Scripted::start(|mut peer, number| async move {
        peer.greet(&Hello { max_calls: 1_000, ..Hello::server(SERVICE) }).await;
        for came in 1..=CALLS {
            let call = peer.next(CALL).await;
            if number > 0 {
                peer.answer(call.stream, &[7]).await;
            } else if came == CALLS {
                // It has accepted none of them.
                peer.send(&frame(DRAIN, 0, 0, &0u64.to_be_bytes())).await;
            }
        }
        idle(peer).await;
    })
    .await;
    let client = client(|client| client, &[server.addr.to_string()]);
    // None is idempotent.
    let calls = (0..CALLS).map(|_| client.fetch::<u64>(SERVICE, "any", ()).into_future());
    let failed: Vec<Status> = join_all(calls).await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of {CALLS} calls failed, of which the first: {}", failed.len(), failed[0]);
    assert_eq!(server.accepted(), 2);
}

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn no_call_fails_or_runs_twice_while_one_connection_after_the_other_gets_too_old() {
    const CALLERS: usize = 20;
    const CALLS: usize = 300;
    let ran = Arc::<AtomicUsize>::default();
    let runs = Arc::clone(&ran);
    let methods = Methods::new().unary("work", move |_cx: Context, (): ()| {
        runs.fetch_add(1, Ordering::SeqCst);
        async {
            sleep(Duration::from_millis(100)).await;
            Ok::<_, Status>(7u64)
        }
    });
    let limits = |server: picom::Builder| server.max_calls(8).max_connection_age(Duration::from_secs(2));
    let pair = pair_with(methods, limits, |client| client).await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let client = client(|client| client, &[proxy.addr.to_string()]);
    let (most, usable) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begun = Instant::now();
    let callers = (0..CALLERS).map(|_| async {
        for _ in 0..CALLS {
            // Not idempotent, so one that may have run would fail.
            assert_eq!(client.fetch::<u64>(SERVICE, "work", ()).await.expect("no call fails"), 7);
            most.fetch_max(proxy.open(), Ordering::SeqCst);
            usable.fetch_max(client.channel(SERVICE).endpoints()[0].connections, Ordering::SeqCst);
        }
    });
    join_all(callers).await;
    let (made, took) = (proxy.connections(), begun.elapsed());
    println!("{} calls in {took:.1?} on {made} connections, of which there were {most:?} at most", CALLERS * CALLS);
    assert_eq!(ran.load(Ordering::SeqCst), CALLERS * CALLS, "each call ran once");
    assert_eq!(usable.load(Ordering::SeqCst), 3, "twenty calls at once need three");
    assert!(most.load(Ordering::SeqCst) <= 6, "{most:?} connections at once: three, and those that had to go");
    let each = took.as_secs_f64() / 2.0;
    assert!((1.0..=3.6 * each).contains(&(made as f64)), "{made} connections of 1.8 to 2.2 s each in {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_wait_for_each_other_have_a_connection_each_again_after_these_got_too_old() {
    let scene = Scene::new(|server| server.max_connection_age(Duration::from_secs(5)), |client| client).await;
    // Not only one after the other. On a machine that others use too it takes a while until threads meet for a second.
    let until_both_are_used = async |which: &str| {
        let used = timeout(3 * support::PATIENCE, async {
            let mut in_a_row = 0;
            while in_a_row < 3 {
                sleep(Duration::from_millis(200)).await;
                in_a_row = if scene.used() == 2 { in_a_row + 1 } else { 0 };
            }
        });
        assert!(used.await.is_ok(), "all calls stay on one connection of {which}: {:?}", scene.state());
    };
    scene
        .crowd(async || {
            until_both_are_used("the first two").await;
            eventually("they are too old", async || scene.proxy.connections() > 2).await;
            until_both_are_used("those after them").await;
        })
        .await;
}

/// Two servers, each behind a proxy, in a registry that says what a test says.
async fn two(options: impl Fn(picom::Builder) -> picom::Builder) -> [Scene; 2] {
    [Scene::new(&options, |client| client).await, Scene::new(&options, |client| client).await]
}

fn state(client: &Picom, addr: SocketAddr) -> EndpointState {
    client.channel(SERVICE).endpoints().into_iter().find(|state| state.endpoint.addr == addr).expect("it is listed")
}

fn listed(scene: &Scene, id: &str) -> Instance {
    // The server behind the proxy says in its hello which one it is.
    let incarnation = scene.pair.server.nodes()[SERVICE].endpoints[0].incarnation.unwrap();
    Instance { incarnation, address: Some(scene.proxy.addr.ip()), ..instance(SERVICE, id, scene.proxy.addr.port()) }
}

#[tokio::test]
async fn a_server_that_leaves_finishes_the_calls_on_all_its_connections_and_gets_no_new_one() {
    let [first, second] = two(|server| server.max_calls(4)).await;
    let registry = Memory::new();
    let registration = registry.register(listed(&first, "first")).await.unwrap();
    let _second = registry.register(listed(&second, "second")).await.unwrap();
    let client = client(|client| client.registry(registry), &[]);
    let running = first.hold_from(&client, 10);
    first.until_running(10).await;
    assert_eq!(first.proxy.open(), 3);

    registration.leave().await.unwrap();
    let server = first.pair.server.clone();
    let ending = tokio::spawn(async move { server.end().await });
    let states = || client.channel(SERVICE).endpoints();
    eventually("the client has heard", async || states().len() == 1).await;
    let mut after = 0;
    while !ending.is_finished() {
        assert_eq!(client.fetch::<u64>(SERVICE, "quick", ()).await.unwrap(), 7);
        after += 1;
        assert_eq!((first.proxy.connections(), first.used()), (3, 0), "{after} calls were made after it had left");
        if after == 200 {
            assert_eq!(first.running(), 10, "calls under way go on");
            first.may_end.add_permits(10);
        }
    }
    ending.await.unwrap().expect("no call had to be cut");
    assert!(after >= 200, "only {after} calls were made, although some still ran");
    for result in running.join_all().await {
        assert_eq!(result.expect("it was accepted before"), 7);
    }
    assert_eq!(first.ran(), 10, "each ran once");
    eventually("all its connections are closed", async || first.proxy.open() == 0).await;
}

/// A list that is not told, as between two looks at a file: the connections say it.
#[tokio::test]
async fn calls_that_wait_for_a_place_at_a_server_that_leaves_go_to_another_one() {
    const WAITING: usize = 400;
    let [first, second] = two(|server| server.max_calls(4)).await;
    let addrs = [first.proxy.addr.to_string(), second.proxy.addr.to_string()];
    let client = client(|client| client.max_connections_per_endpoint(2), &addrs);
    let call = || client.fetch::<u64>(SERVICE, "hold", ()).into_future();
    let calls: Vec<_> = (0..WAITING).map(|_| tokio::spawn(call())).collect();
    eventually("both have all that they take", async || first.running() + second.running() == 16).await;
    let server = first.pair.server.clone();
    let ending = tokio::spawn(async move { server.end().await });
    eventually("nobody waits there any more", async || state(&client, first.proxy.addr).connections == 0).await;
    first.may_end.add_permits(WAITING);
    second.may_end.add_permits(WAITING);
    let mut failed = Vec::new();
    for call in calls {
        failed.extend(call.await.unwrap().err());
    }
    ending.await.unwrap().expect("no call had to be cut");
    assert!(failed.is_empty(), "{} of {WAITING} calls failed, of which the first: {}", failed.len(), failed[0]);
    assert_eq!(first.ran() + second.ran(), WAITING, "each ran once");
    println!(
        "{} of {WAITING} calls ran at the server that left, which was asked for {} connections",
        first.ran(),
        first.proxy.connections()
    );
}

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn clients_of_a_server_that_takes_no_more_connections_wait_and_ask_for_one_every_ten_seconds() {
    let [full, other] = two(|server| server.max_calls(2).max_connections(3)).await;
    // Of a lone endpoint nothing is counted.
    let addrs = [full.proxy.addr.to_string(), other.proxy.addr.to_string()];
    let [first, second] = [client(|client| client, &addrs), client(|client| client, &addrs)];
    let asked = || full.proxy.connections();
    let of_first = full.hold_from(&first, 4);
    full.until_running(4).await;
    let of_second = full.hold_from(&second, 2);
    full.until_running(6).await;
    assert_eq!(asked(), 3, "that is all that it takes");
    let waiting = [full.hold_from(&first, 5), full.hold_from(&second, 5)];
    eventually("each asks for one more", async || asked() == 5).await;
    for second in 1..100 {
        sleep(Duration::from_secs(1)).await;
        let most = 5 + 2 * (second / 10 + 1);
        assert!(asked() <= most, "it was asked for {} connections in {second} s, which is more than {most}", asked());
    }
    assert!(asked() >= 5 + 2 * 9, "it was asked for {} connections only, and may have places again", asked());
    assert_eq!(full.running(), 6, "the others wait for a place");
    for (client, connections) in [(&first, 2), (&second, 1)] {
        let state = state(client, full.proxy.addr);
        assert_eq!((state.connections, state.circuit), (connections, Circuit::Closed), "{state:?}");
    }

    // What one client gives back another one takes, though no call of its own has ended.
    let [of_first_waiting, of_second_waiting] = waiting;
    drop((of_first, of_first_waiting));
    first.end().await.unwrap();
    eventually("the other one has more", async || full.proxy.open() == 3).await;
    full.may_end.add_permits(100);
    for result in of_second.join_all().await.into_iter().chain(of_second_waiting.join_all().await) {
        assert_eq!(result.expect("it waited for its place"), 7);
    }
}

/// A server of which each connection after the first says hello, takes its calls, and then nothing any more. The first answers pings, and
/// calls after `work`; those after the second are well, too.
async fn silent_second(work: Duration, idempotent: bool) -> Scripted {
    Scripted::start(move |mut peer, number| async move {
        let names = if idempotent { vec!["any".to_owned()] } else { Vec::new() };
        peer.greet(&Hello { max_calls: 2, idempotent: names, ..Hello::server(SERVICE) }).await;
        if number == 1 {
            peer.next(CALL).await;
            return idle(peer).await;
        }
        let (mut calls, mut due) = (Vec::new(), None);
        loop {
            let came = async {
                match due {
                    Some(due) => timeout_at(due, peer.frame()).await.ok(),
                    None => Some(peer.frame().await),
                }
            };
            match came.await {
                Some(Some(came)) if came.kind == PING => peer.send(&frame(PONG, 0, 0, &came.payload)).await,
                Some(Some(came)) if came.kind == CALL => {
                    due.get_or_insert(Instant::now() + work);
                    calls.push(came.stream);
                }
                Some(Some(_)) => {}
                Some(None) => return,
                None => {
                    for call in calls.drain(..) {
                        peer.answer(call, &[7]).await;
                    }
                    due = None;
                }
            }
        }
    })
    .await
}

/// In time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn one_of_several_connections_that_falls_silent_is_noticed_in_six_seconds_and_the_others_go_on() {
    for idempotent in [true, false] {
        let server = silent_second(Duration::from_secs(8), idempotent).await;
        let client = client(|client| client, &[server.addr.to_string()]);
        let call = || {
            let (begun, call) = (Instant::now(), client.fetch::<u64>(SERVICE, "any", ()).into_future());
            tokio::spawn(async move { (call.await, begun.elapsed()) })
        };
        let first = [call(), call()];
        sleep(Duration::from_secs(1)).await;
        let third = call();
        eventually("there is one more", async || server.accepted() == 2).await;
        let silent = Instant::now();
        // Of two connections, one may be a third that came after the second.
        let is_noticed = async || {
            let connections = state(&client, server.addr).connections;
            silent.elapsed() > Duration::from_secs(1) && (connections == 1 || server.accepted() > 2)
        };
        eventually("it is noticed", is_noticed).await;
        let noticed = silent.elapsed();
        assert!((5.0..=6.0).contains(&noticed.as_secs_f64()), "it was noticed after {noticed:?}");
        let (result, took) = third.await.unwrap();
        match result {
            // On a third connection: the first one has all that it takes.
            Ok(answer) => assert!(idempotent && answer == 7 && took <= Duration::from_secs(15), "{answer} in {took:?}"),
            Err(error) => assert!(
                !idempotent && (error.code(), error.execution()) == (Code::Unavailable, Execution::Maybe),
                "after {took:?}: {error}"
            ),
        }
        for call in first {
            let (result, took) = call.await.unwrap();
            assert_eq!(result.expect("its connection is there"), 7);
            assert!(took < Duration::from_secs(9), "it took {took:?}, although nothing was wrong with its connection");
        }
        assert_eq!(server.accepted(), if idempotent { 3 } else { 2 });
        println!("idempotent: {idempotent}: the silent connection was noticed after {noticed:.2?}");
    }
}
