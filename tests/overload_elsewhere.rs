//! What callers do to a service that is dead or overloaded altogether, and a chain of services to its last one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use picom::registry::{Fixed, Memory};
use picom::{Code, Context, Execution, Methods, Picom, Status};
use support::fault::Row;
use support::nodes::SERVICE;
use support::peer::{CALL, Hello, Peer, Scripted};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// A server that takes every call and dies of it.
async fn dying(calls: &Arc<AtomicUsize>) -> Scripted {
    let calls = Arc::clone(calls);
    let hello = Hello { idempotent: vec!["work".into()], ..Hello::server(SERVICE) };
    Scripted::start(move |mut peer, _| {
        let (hello, calls) = (hello.clone(), Arc::clone(&calls));
        async move {
            peer.greet(&hello).await;
            peer.next(CALL).await;
            calls.fetch_add(1, Ordering::SeqCst);
            // Those that came with it count too.
            while let Ok(Some(frame)) = timeout(Duration::from_millis(5), peer.frame()).await {
                calls.fetch_add(usize::from(frame.kind == CALL), Ordering::SeqCst);
            }
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_dead_service_gets_a_fifth_more_attempts_than_calls_and_ten_a_second() {
    const SECONDS: u64 = 60;
    // An address within this process at which nobody listens, so that the clock can be a paused one.
    let registry = Memory::new();
    let node = Picom::builder(SERVICE).registry(registry.clone()).in_memory().build().unwrap();
    let addr = node.expose(Methods::new()).await.unwrap().local_addr();
    drop(node);
    for per_second in [2, 20, 200] {
        let client = Picom::builder("caller").registry(Fixed::new([(SERVICE, [addr.to_string()])])).build().unwrap();
        let (begun, mut calls) = (Instant::now(), Vec::new());
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while begun.elapsed() < Duration::from_secs(SECONDS) {
            ticks.tick().await;
            calls.push(tokio::spawn(client.fetch::<u64>(SERVICE, "work", ()).idempotent().into_future()));
        }
        let (mut attempts, made) = (0, calls.len() as u64);
        for call in calls {
            let error = call.await.unwrap().unwrap_err();
            assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");
            attempts += u64::from(error.attempts());
        }
        // The last of them were still being tried again when no more were made.
        let seconds = begun.elapsed().as_secs() + 1;
        let limit = made + made / 5 + 10 * seconds;
        assert!(attempts > made, "nothing was tried again");
        Row::new(28, &format!("dead service, {per_second} calls/s for a minute of virtual time"))
            .at_most("attempts", attempts, limit)
            .also("calls", made)
            .also("seconds", seconds)
            .finish();
    }
}

/// A service that calls the next one when it is called.
async fn link_in_a_chain(name: &str, next: &'static str, registry: &Memory, leaf: &Scripted) -> Picom {
    let caller = match next {
        SERVICE => Picom::builder(name).registry(Fixed::new([(SERVICE, [leaf.addr.to_string()])])).build().unwrap(),
        _ => Picom::builder(name).registry(registry.clone()).build().unwrap(),
    };
    let methods = Methods::new().unary("work", move |_cx: Context, (): ()| {
        let caller = caller.clone();
        async move { caller.fetch::<u64>(next, "work", ()).idempotent().await }
    });
    let node = support::nodes::builder(name, registry).build().unwrap();
    node.expose(methods.idempotent()).await.unwrap();
    node
}

#[tokio::test]
async fn a_chain_of_three_does_not_multiply_what_its_dead_leaf_gets() {
    const ROUNDS: usize = 8;
    const CALLS: usize = 400;
    let registry = Memory::new();
    let reached = Arc::new(AtomicUsize::new(0));
    let leaf = dying(&reached).await;
    let _middle = link_in_a_chain("middle", SERVICE, &registry, &leaf).await;
    let _front = link_in_a_chain("front", "middle", &registry, &leaf).await;
    let client = support::nodes::builder("caller", &registry).build().unwrap();
    for _ in 0..ROUNDS {
        let call = || client.fetch::<u64>("front", "work", ()).idempotent().into_future();
        for answer in join_all((0..CALLS / ROUNDS).map(|_| call())).await {
            let error = answer.unwrap_err();
            assert_eq!(error.code(), Code::Unavailable, "{error}");
        }
    }
    let reached = reached.load(Ordering::SeqCst);
    assert!(reached > CALLS, "the last link of the chain tried nothing again: {reached} attempts");
    Row::new(29, "chain of three, the leaf dead")
        .at_most("attempts at the leaf in times of the calls", reached as f64 / CALLS as f64, 2.0)
        .also("calls", CALLS)
        .finish();
}

#[tokio::test]
async fn a_full_method_holds_no_other_method_back() {
    let held = Arc::new(tokio::sync::Semaphore::new(0));
    let began = Arc::new(AtomicBool::new(false));
    let (wait, begin) = (Arc::clone(&held), Arc::clone(&began));
    let methods = Methods::new()
        .unary("slow", move |_cx: Context, (): ()| {
            let (wait, begin) = (Arc::clone(&wait), Arc::clone(&begin));
            async move {
                begin.store(true, Ordering::SeqCst);
                wait.acquire().await.unwrap().forget();
                Ok::<_, Status>(7u64)
            }
        })
        .max_concurrent(1)
        .unary("quick", |_cx: Context, (): ()| async { Ok::<_, Status>(8u64) });
    let pair = support::nodes::pair(methods).await;
    let slow = tokio::spawn(pair.client.fetch::<u64>(SERVICE, "slow", ()).into_future());
    support::eventually("the method is full", async || began.load(Ordering::SeqCst)).await;
    let mut refused = 0;
    for _ in 0..300 {
        refused += usize::from(pair.client.fetch::<u64>(SERVICE, "slow", ()).retries(0).await.is_err());
        assert_eq!(
            pair.client.fetch::<u64>(SERVICE, "quick", ()).retries(0).await.unwrap(),
            8,
            "after {refused} refusals"
        );
    }
    assert_eq!(refused, 300, "a full method took another call");
    held.add_permits(1);
    assert_eq!(slow.await.unwrap().unwrap(), 7);
}

/// A server that refuses as busy as long as it is told to, and counts the calls that reach it.
async fn refusing(calls: &Arc<AtomicUsize>, refuses: &Arc<AtomicBool>) -> Scripted {
    let (calls, refuses) = (Arc::clone(calls), Arc::clone(refuses));
    Scripted::start(move |mut peer: Peer, _| {
        let (calls, refuses) = (Arc::clone(&calls), Arc::clone(&refuses));
        async move {
            peer.greet(&Hello::server(SERVICE)).await;
            while let Some(frame) = peer.frame().await {
                if frame.kind != CALL {
                    continue;
                }
                calls.fetch_add(1, Ordering::SeqCst);
                match refuses.load(Ordering::SeqCst) {
                    true => peer.refuse(frame.stream, 1, 1, "not now").await,
                    false => peer.answer(frame.stream, &[7]).await,
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn when_every_server_refuses_calls_are_not_tried_elsewhere_and_then_not_sent_until_it_ends() {
    let (reached, refuses) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let servers = [refusing(&reached, &refuses).await, refusing(&reached, &refuses).await];
    let endpoints: Vec<_> = servers.iter().map(|server| server.addr.to_string()).collect();
    let client = Picom::builder("caller").registry(Fixed::new([(SERVICE, endpoints)])).build().unwrap();
    let call = || client.fetch::<u64>(SERVICE, "work", ()).into_future();
    let (mut elsewhere, mut surfaced, mut held_back) = (0, 0, 0);
    for _ in 0..1_000 {
        let error = call().await.unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::ResourceExhausted, Execution::Never), "{error}");
        match (error.message().contains("overloaded: the service refused"), error.attempts()) {
            (false, _) => elsewhere += 1,
            (true, 0) => held_back += 1,
            (true, _) => surfaced += 1,
        }
    }
    let sent = reached.load(Ordering::SeqCst);
    println!(
        "of 1000 calls to a service that refuses all, {elsewhere} were tried again, {surfaced} were not, and {held_back} were not \
         even sent; the servers got {sent}"
    );
    assert!(elsewhere > 0, "the first refusals are tried elsewhere");
    assert!(surfaced > 0, "a call is told at once that the whole service is overloaded");
    assert!(held_back > 800, "{held_back} of 1000 were held back");
    assert!(sent < 200, "{sent} attempts reached servers that refuse everything");

    refuses.store(false, Ordering::SeqCst);
    let begun = Instant::now();
    let mut well = 0;
    let mut ticks = interval(Duration::from_millis(2));
    while well < 200 {
        ticks.tick().await;
        well = if call().await.is_ok() { well + 1 } else { 0 };
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "calls are still held back {:?} after it ended",
            begun.elapsed()
        );
    }
    println!("200 calls in a row succeeded {:.1?} after the service had recovered", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_too_old_are_left_without_a_failed_call() {
    let methods = || {
        Methods::new().unary("work", |_cx: Context, (): ()| async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            Ok::<_, Status>(7u64)
        })
    };
    let age = Duration::from_millis(100);
    let pair = support::nodes::pair_with(methods(), |server| server.max_connection_age(age), |client| client).await;
    let proxy = support::proxy::Proxy::start(pair.exposed.local_addr()).await;
    let client = Picom::builder("caller").registry(Fixed::new([(SERVICE, [proxy.addr.to_string()])])).build().unwrap();
    let begun = Instant::now();
    let callers = (0..20).map(|_| async {
        let mut calls = 0;
        while begun.elapsed() < Duration::from_secs(2) {
            // Not idempotent, so a call that may have run would fail.
            assert_eq!(client.fetch::<u64>(SERVICE, "work", ()).await.unwrap(), 7);
            calls += 1;
        }
        calls
    });
    let calls: usize = join_all(callers).await.into_iter().sum();
    let connections = proxy.connections();
    println!("{calls} calls on {connections} connections in 2 s, none of which failed");
    assert!((12..=40).contains(&connections), "{connections} connections of 90 to 110 ms each in 2 s");
    let forever = support::nodes::pair(methods()).await;
    assert_eq!(forever.client.fetch::<u64>(SERVICE, "work", ()).await.unwrap(), 7);
}
