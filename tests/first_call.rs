//! The first call: how long it waits for an instance, and what it waits with.
//!
//! Everything is within one process and in paused time, so waiting costs nothing and no machine is too slow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::future::IntoFuture;
use std::time::Duration;

use picom::registry::{Fixed, Memory};
use picom::{Builder, Code, Context, Methods, Picom, Status};
use tokio::time::{Instant, sleep, timeout};

const SERVICE: &str = "service1";

fn builder(name: &str, registry: &Memory) -> Builder {
    Picom::builder(name).registry(registry.clone()).in_memory()
}

fn methods() -> Methods {
    Methods::new().unary("ping", |_cx: Context, (): ()| async move { Ok::<_, Status>(7u8) }).unary(
        "slow",
        |_cx: Context, (): ()| async move {
            sleep(Duration::from_secs(8)).await;
            Ok::<_, Status>(8u8)
        },
    )
}

/// Exposes the methods after a while, and keeps the node until the test ends.
fn later(registry: &Memory, after: Duration) {
    let node = builder(SERVICE, registry).build().unwrap();
    tokio::spawn(async move {
        sleep(after).await;
        node.expose(methods()).await.unwrap();
        std::future::pending::<()>().await;
    });
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_first_instance_however_old_the_client_is() {
    for age in [Duration::ZERO, Duration::from_secs(6), Duration::from_secs(3600)] {
        let registry = Memory::new();
        let client = builder("service2", &registry).build().unwrap();
        let channel = client.channel(SERVICE);
        sleep(age).await;
        later(&registry, Duration::from_millis(4400));
        let answer = client.fetch::<u8>(SERVICE, "ping", ()).await;
        assert_eq!(answer.expect("the instance came before the wait was over"), 7, "a client of the age {age:?}");
        drop(channel);
    }
}

#[tokio::test(start_paused = true)]
async fn it_gives_up_after_the_wait_and_says_why() {
    let registry = Memory::new();
    let client = builder("service2", &registry).build().unwrap();
    later(&registry, Duration::from_millis(4600));
    let begun = Instant::now();
    let error = client.fetch::<u8>(SERVICE, "ping", ()).await.unwrap_err();
    let waited = begun.elapsed();
    let rest = waited.checked_sub(Duration::from_millis(4500));
    assert!(rest.is_some_and(|rest| rest < Duration::from_millis(100)), "it waited {waited:?}");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().starts_with("unknown service"), "{error}");
    let begun = Instant::now();
    let error = client.fetch::<u8>("another", "ping", ()).timeout(Duration::from_secs(2)).await.unwrap_err();
    assert!(begun.elapsed() <= Duration::from_secs(2), "no longer than its own deadline: {error}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_place_goes_elsewhere_when_the_server_leaves() {
    let registry = Memory::new();
    let full = builder(SERVICE, &registry).max_calls(1).build().unwrap();
    full.expose(methods()).await.unwrap();
    let client = builder("service2", &registry).max_connections_per_endpoint(1).build().unwrap();
    let long = tokio::spawn(client.fetch::<u8>(SERVICE, "slow", ()).into_future());
    sleep(Duration::from_millis(100)).await;
    let waiting = client.clone();
    let waiting = tokio::spawn(async move {
        let begun = Instant::now();
        (waiting.fetch::<u8>(SERVICE, "ping", ()).await, begun.elapsed())
    });
    sleep(Duration::from_millis(100)).await;
    later(&registry, Duration::ZERO);
    sleep(Duration::from_millis(100)).await;
    let leaving = tokio::spawn(async move { full.end().await });
    let (answer, took) = waiting.await.unwrap();
    assert_eq!(answer.unwrap(), 7);
    assert!(took < Duration::from_secs(1), "it waited {took:?} for a server that was leaving");
    assert_eq!(long.await.unwrap().unwrap(), 8, "the call that ran is finished");
    leaving.await.unwrap().unwrap();
}

#[test]
fn a_connection_that_was_being_made_when_its_runtime_ended_is_made_anew() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let (first, second) = (runtime(), runtime());
    let registry = Fixed::new([(SERVICE, [addr.to_string()])]);
    let node = Picom::builder("service2").registry(registry).build().unwrap();
    first.block_on(async {
        let call = node.fetch::<u8>(SERVICE, "ping", ()).into_future();
        timeout(Duration::from_millis(200), call).await.expect_err("nobody accepts, so the call cannot be over");
    });
    drop((first, silent));
    second.block_on(async {
        let server = Picom::builder(SERVICE).registry(Memory::new()).bind("127.0.0.1").port(addr.port());
        let server = server.build().unwrap();
        server.expose(methods()).await.unwrap();
        assert_eq!(node.fetch::<u8>(SERVICE, "ping", ()).await.expect("the server is there now"), 7);
    });
}
