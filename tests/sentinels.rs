//! Nodes that stand for a dependency: they start and stop as it comes and goes.
//!
//! Owns only tests. Look next at `pick.rs` for how the dependency's address is asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use picom::registry::{Endpoints, Instance, Memory, Registration, Registry, RegistryError, Watch};
use picom::{Code, Methods, NodeState, Picom, Sentinel};
use support::{eventually, until};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// How often tests with a real clock look.
const OFTEN: Duration = Duration::from_millis(20);

fn nodes() -> (Picom, Picom) {
    let registry = Memory::new();
    let node = |name| Picom::builder(name).registry(registry.clone()).build().unwrap();
    (node("mongo"), node("service1"))
}

async fn becomes(node: &Picom, state: NodeState) {
    eventually(&format!("the node is {state}"), async || node.state().state == state).await;
}

#[tokio::test]
async fn a_dependency_is_picked_while_it_accepts_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (mongo, service) = nodes();
    mongo.stand_for(Sentinel::tcp(addr.to_string()).interval(OFTEN)).await.unwrap();
    let picked = service.pick("mongo").timeout(support::PATIENCE).await.unwrap();
    assert_eq!((picked.addr, picked.status.state), (addr, NodeState::Running));

    drop(listener);
    becomes(&mongo, NodeState::Stopped).await;
    assert_eq!(mongo.state().reason.as_deref(), Some("connection refused"));
    let error = service.pick("mongo").timeout(Duration::ZERO).await.unwrap_err();
    assert!(error.to_string().contains("stopped: connection refused"), "{error}");

    let waiting = tokio::spawn(service.pick("mongo").timeout(support::PATIENCE).into_future());
    let _again = TcpListener::bind(addr).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().addr, addr);
    mongo.end().await.unwrap();
    assert!(service.watch("mongo").current().endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn two_failures_stop_it_and_one_success_starts_it_every_two_seconds() {
    let (seen, looks) = (Arc::new(Mutex::new(Ok(()))), Arc::new(AtomicUsize::new(0)));
    let (says, counts) = (Arc::clone(&seen), Arc::clone(&looks));
    let check = move || {
        counts.fetch_add(1, Ordering::SeqCst);
        let seen: Result<(), String> = says.lock().unwrap().clone();
        async { seen }
    };
    let (mongo, _) = nodes();
    *seen.lock().unwrap() = Err("no primary".to_owned());
    let begun = Instant::now();
    mongo.stand_for(Sentinel::new("127.0.0.1:27017", check)).await.unwrap();
    assert_eq!(mongo.state().state, NodeState::Up);
    let after = async |milliseconds| {
        tokio::time::sleep_until(begun + Duration::from_millis(milliseconds)).await;
        mongo.state().to_string()
    };
    assert_eq!(after(1900).await, "up", "one failure may be bad luck");
    assert_eq!(after(2100).await, "stopped: no primary");
    *seen.lock().unwrap() = Ok(());
    assert_eq!(after(3900).await, "stopped: no primary");
    assert_eq!(after(4100).await, "running");
    *seen.lock().unwrap() = Err("no primary again".to_owned());
    assert_eq!(after(6100).await, "running");
    *seen.lock().unwrap() = Ok(());
    assert_eq!(after(8100).await, "running");
    *seen.lock().unwrap() = Err("no primary again".to_owned());
    assert_eq!(after(10_100).await, "running", "only failures in a row count");
    assert_eq!(after(12_100).await, "stopped: no primary again");
    assert_eq!(looks.load(Ordering::SeqCst), 7);

    mongo.end().await.unwrap();
    assert_eq!(after(60_000).await, "down");
    assert_eq!(looks.load(Ordering::SeqCst), 7, "after `end` nobody looks");
}

/// A registry that shows at once what it is given, and takes long to say so.
#[derive(Debug)]
struct Slow(Memory);

#[async_trait::async_trait]
impl Registry for Slow {
    fn describe(&self) -> String {
        "slow".to_owned()
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        let registration = self.0.register(instance).await;
        sleep(Duration::from_secs(3)).await;
        registration
    }

    fn watch(&self, service: &str) -> Watch {
        self.0.watch(service)
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        self.0.known()
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_seen_first_is_registered_however_long_the_registry_takes() {
    type Check = fn() -> futures::future::BoxFuture<'static, Result<(), String>>;
    let cases: [(Check, u32, u64, &str); 4] = [
        (|| Box::pin(async { Ok(()) }), 2, 0, "running"),
        (|| Box::pin(async { Err("no primary".to_owned()) }), 1, 0, "stopped: no primary"),
        (|| Box::pin(async { Err("no primary".to_owned()) }), 2, 0, "up"),
        (|| Box::pin(std::future::pending()), 1, 1000, "stopped: no answer within 1s"),
    ];
    for (check, failures, looks_for, expected) in cases {
        let registry = Memory::new();
        let mongo = Picom::builder("mongo").registry(Slow(registry.clone())).build().unwrap();
        let mut watch = registry.watch("mongo");
        let begun = Instant::now();
        let sentinel = Sentinel::new("127.0.0.1:27017", check).failures(failures);
        let standing = tokio::spawn(async move { mongo.stand_for(sentinel).await.map(|()| mongo) });
        let seen = until(&mut watch, "the dependency", |e| e.endpoints.len() == 1).await;
        assert_eq!(
            (seen.endpoints[0].status.to_string().as_str(), begun.elapsed().as_millis()),
            (expected, looks_for.into())
        );
        let _mongo = standing.await.unwrap().unwrap();
        assert_eq!(begun.elapsed().as_millis(), (looks_for + 3000).into(), "{expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn how_often_is_enough_can_be_chosen() {
    let well = Arc::new(Mutex::new(true));
    let says = Arc::clone(&well);
    let check = move || {
        let well = *says.lock().unwrap();
        async move { if well { Ok(()) } else { Err(String::new()) } }
    };
    let (mongo, _) = nodes();
    let second = Duration::from_secs(1);
    let sentinel = Sentinel::new("127.0.0.1:27017", check).interval(second).successes(3).failures(0);
    mongo.stand_for(sentinel).await.unwrap();
    sleep(second * 19 / 10).await;
    assert_eq!(mongo.state().state, NodeState::Up);
    sleep(second / 5).await;
    assert_eq!(mongo.state().state, NodeState::Running, "after the third look");
    *well.lock().unwrap() = false;
    sleep(second).await;
    assert_eq!(mongo.state().to_string(), "stopped", "none is taken for one, and an empty reason for none");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_or_panics_has_failed_and_is_not_the_end() {
    let turn = Arc::new(AtomicUsize::new(0));
    let turns = Arc::clone(&turn);
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let check = move || {
        let (turn, held) = (turns.fetch_add(1, Ordering::SeqCst), Arc::clone(&held));
        assert!(turn != 4, "a panic before there is a future");
        async move {
            match turn {
                0 | 6 => Ok(()),
                1 | 2 => std::future::pending().await,
                _ => panic!("a check of {held:?} went wrong"),
            }
        }
    };
    let (mongo, _) = nodes();
    let begun = Instant::now();
    mongo.stand_for(Sentinel::new("127.0.0.1:27017", check)).await.unwrap();
    let after = async |milliseconds| {
        tokio::time::sleep_until(begun + Duration::from_millis(milliseconds)).await;
        mongo.state().to_string()
    };
    assert_eq!(after(100).await, "running");
    assert_eq!(after(4900).await, "running", "the second one has not hung long enough");
    assert_eq!(after(5100).await, "stopped: no answer within 1s");
    mongo.start().unwrap();
    assert_eq!(after(5200).await, "running", "what the program says stands until the health changes");
    assert_eq!(after(12_100).await, "running");
    assert_eq!(turn.load(Ordering::SeqCst), 7);
    mongo.end().await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(Arc::strong_count(&alive), 1, "neither the check nor what hung is kept");
}

#[tokio::test]
async fn a_node_that_is_dropped_looks_no_more() {
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let check = move || {
        let _held = &held;
        async { Ok(()) }
    };
    let (mongo, service) = nodes();
    mongo.stand_for(Sentinel::new("127.0.0.1:27017", check).interval(OFTEN)).await.unwrap();
    becomes(&mongo, NodeState::Running).await;
    drop(mongo);
    eventually("the check is dropped", async || Arc::strong_count(&alive) == 1).await;
    eventually("the instance is gone", async || service.watch("mongo").current().endpoints.is_empty()).await;
}

#[tokio::test]
async fn a_node_either_exposes_or_stands_for_one_thing() {
    let (mongo, service) = nodes();
    let sentinel = || Sentinel::new("127.0.0.1:27017", async || Ok(()));
    mongo.stand_for(sentinel()).await.unwrap();
    let errors = [mongo.stand_for(sentinel()).await.unwrap_err(), mongo.expose(Methods::new()).await.unwrap_err(), {
        service.expose(Methods::new()).await.unwrap();
        service.stand_for(sentinel()).await.unwrap_err()
    }];
    for error in errors {
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    }
    mongo.end().await.unwrap();
    mongo.stand_for(sentinel()).await.expect("one that has ended may begin again");
}

#[tokio::test]
async fn what_cannot_be_looked_after_is_refused() {
    let (mongo, _) = nodes();
    let ok = || async || Ok(());
    let refused = [
        Sentinel::new("", ok()),
        Sentinel::new("127.0.0.1", ok()),
        Sentinel::new(":27017", ok()),
        Sentinel::new("127.0.0.1:0", ok()),
        Sentinel::new("0.0.0.0:27017", ok()),
        Sentinel::new("[::]:27017", ok()),
        Sentinel::tcp("127.0.0.1:65536"),
    ];
    for sentinel in refused {
        let shown = format!("{sentinel:?}");
        let error = mongo.stand_for(sentinel).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{shown}: {error}");
        assert_eq!(mongo.state().state, NodeState::Down, "{shown}");
    }
    mongo.stand_for(Sentinel::new("[::1]:27017", ok())).await.expect("an address of IPv6 is one");
}

#[tokio::test]
async fn the_instance_that_stands_for_a_dependency_has_its_address() {
    let registry = Memory::new();
    let mongo = Picom::builder("mongo").registry(registry.clone()).advertise("127.0.0.9").port(9999).build().unwrap();
    mongo.stand_for(Sentinel::new("127.0.0.7:27017", async || Ok(()))).await.unwrap();
    let endpoint = Arc::clone(&registry.watch("mongo").current().endpoints[0]);
    assert_eq!((endpoint.addr, endpoint.id.as_str()), ("127.0.0.7:27017".parse().unwrap(), "mongo-127.0.0.7-27017"));
}

#[cfg(feature = "http")]
mod http {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers every request with the same head and no body, and keeps the connection open.
    async fn server(head: Arc<Mutex<String>>) -> (std::net::SocketAddr, tokio_util::task::AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let head = head.lock().unwrap().clone();
                connections.spawn(async move {
                    let mut request = [0; 1024];
                    let length = stream.read(&mut request).await.unwrap_or(0);
                    assert!(request[..length].starts_with(b"GET /health?deep=1 HTTP/1.1\r\n"));
                    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()).await;
                    std::future::pending::<()>().await;
                });
            }
        });
        (addr, tokio_util::task::AbortOnDropHandle::new(task))
    }

    #[tokio::test]
    async fn only_a_status_of_success_is_healthy_and_nothing_is_followed_or_read() {
        let head = Arc::new(Mutex::new(String::new()));
        let (addr, _server) = server(Arc::clone(&head)).await;
        let url = format!("http://127.0.0.1:{}/health?deep=1", addr.port());
        let cases = [
            ("200 OK\r\nContent-Length: 1000000", None),
            ("503 Service Unavailable\r\nContent-Length: 0", Some("answered 503 Service Unavailable")),
            ("204 No Content", None),
            ("302 Found\r\nLocation: /health?deep=1\r\nContent-Length: 0", Some("answered 302 Found")),
            ("299 Odd\r\nTransfer-Encoding: chunked", None),
            ("404 Not Found\r\nContent-Length: 9", Some("answered 404 Not Found")),
        ];
        let (mongo, service) = nodes();
        *head.lock().unwrap() = cases[0].0.to_owned();
        mongo.stand_for(Sentinel::http(url).interval(OFTEN)).await.unwrap();
        assert_eq!(service.pick("mongo").timeout(support::PATIENCE).await.unwrap().addr.port(), addr.port());
        for (answer, reason) in cases {
            *head.lock().unwrap() = answer.to_owned();
            becomes(&mongo, if reason.is_some() { NodeState::Stopped } else { NodeState::Running }).await;
            assert_eq!(mongo.state().reason.as_deref(), reason, "{answer}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_hangs_or_is_not_there_is_not_healthy() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let (mongo, _) = nodes();
        let sentinel = Sentinel::http(&url).interval(OFTEN).timeout(Duration::from_millis(100));
        mongo.stand_for(sentinel).await.unwrap();
        becomes(&mongo, NodeState::Stopped).await;
        assert_eq!(mongo.state().reason.as_deref(), Some("no answer within 100ms"));
        mongo.end().await.unwrap();
        drop(silent);
        mongo.stand_for(Sentinel::http(url).interval(OFTEN)).await.unwrap();
        becomes(&mongo, NodeState::Stopped).await;
        let reason = mongo.state().reason.unwrap();
        assert!(reason.contains("refused"), "{reason}");
    }

    #[tokio::test]
    async fn urls_that_cannot_work_are_refused() {
        let (mongo, _) = nodes();
        for url in ["", "localhost", "ftp://127.0.0.1/", "http://", "http://127.0.0.1:0/", "mailto:x@y"] {
            let error = mongo.stand_for(Sentinel::http(url)).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{url}: {error}");
        }
    }
}
