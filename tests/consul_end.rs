//! `end()`, step by step: what Consul sees of it, what callers see, and how long it may take.
//!
//! Owns only tests. Look next at `consul_rolling.rs` for many of them under load.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use picom::registry::{Combine, Consul, Fixed, Memory, Registry};
use picom::{Code, Execution, Methods, Picom, Status};
use serde_json::Value;
use support::consul::Agent;
use support::fake_consul::{FakeConsul, Reply, entry};
use support::process::{self, Process, SERVICE, Setup};
use support::work::{Journal, WorkClient};
use support::{client, eventually, passing};
use tokio::time::Instant;

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

/// A call of `process` that hangs there for so long.
async fn hang(node: &Picom, process: &Process, milliseconds: u64) -> tokio::task::JoinHandle<Result<u32, Status>> {
    let client: WorkClient = node.client(SERVICE);
    let (pid, addr) = (process.pid(), process.addr);
    // The connection is there when the call is made, so that both are before whatever comes next.
    assert_eq!(client.who().on(addr).await.unwrap(), pid);
    let call = tokio::spawn(client.nap(pid, milliseconds).on(addr).into_future());
    // A later call on the same connection is answered, so the first has arrived.
    assert_eq!(client.who().on(addr).await.unwrap(), pid);
    call
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_deregisters_first_then_finishes_what_runs() {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let setup = Setup::new(&agent, Duration::from_secs(3), journal.path());
    let (mut leaving, staying) = (Process::start(&setup).await, Process::start(&setup).await);
    passing(&agent, 2).await;
    let node = client(&agent);
    let slow = hang(&node, &leaving, 2000).await;
    leaving.terminate();
    let ports = passing(&agent, 1).await;
    assert_eq!(ports, [staying.addr.port()], "the one that leaves is taken back");
    assert!(!slow.is_finished(), "it is taken back while a call still runs there");
    let typed: WorkClient = node.client(SERVICE);
    for _ in 0..100 {
        assert_eq!(typed.who().await.unwrap(), staying.pid(), "new calls go to the other");
    }
    assert!(!slow.is_finished(), "all of that happened while the call still ran");
    assert_eq!(slow.await.unwrap().unwrap(), leaving.pid(), "what runs finishes");
    let status = leaving.ended().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn connections_are_drained_only_after_the_registry_has_answered() {
    let (listed, may_leave): (Arc<Mutex<Option<Value>>>, _) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let (list, may) = (Arc::clone(&listed), Arc::clone(&may_leave));
    let consul = FakeConsul::start(move |request| {
        let mut list = list.lock().unwrap();
        match request.verb() {
            "register" => {
                let port = request.body["Port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap();
                *list = Some(entry(request.body["ID"].as_str().unwrap(), port));
                Reply::text(200, "")
            }
            "deregister" if !may.load(Ordering::Relaxed) => Reply::Hold,
            "deregister" => {
                *list = None;
                Reply::text(200, "")
            }
            "pass" => Reply::text(200, ""),
            _ => Reply::list(7, list.as_slice()),
        }
    })
    .await;
    let node =
        Picom::builder("service1").registry(Consul::new(&consul.url()).unwrap()).bind("127.0.0.1").build().unwrap();
    let methods = Methods::new().unary("id", async |_cx, number: u64| Ok::<_, Status>(number));
    let addr = node.expose(methods).await.unwrap().local_addr();
    // It does not ask Consul, so that only the connection can tell it that the service leaves.
    let caller = Picom::builder("caller").registry(Fixed::new([("service1", [addr.to_string()])])).build().unwrap();
    let call = async |number: u64| caller.fetch::<u64>("service1", "id", number).await;
    assert_eq!(call(0).await.unwrap(), 0);

    let ending = node.clone();
    let end = tokio::spawn(async move { ending.end().await });
    consul.asked("the instance is taken back", |requests| requests.iter().any(|r| r.verb() == "deregister")).await;
    for number in 0..10 {
        assert_eq!(call(number).await.unwrap(), number, "as long as Consul lists the instance, it serves");
    }
    assert!(!end.is_finished());
    may_leave.store(true, Ordering::Relaxed);
    consul.wake();
    end.await.unwrap().unwrap();
    let error = call(0).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_never_ends_is_cut_at_the_drain_timeout_and_counted() {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let mut setup = Setup::new(&agent, Duration::from_secs(3), journal.path());
    setup.drain_timeout = Duration::from_secs(1);
    let mut leaving = Process::start(&setup).await;
    let node = client(&agent);
    let endless = [hang(&node, &leaving, 60_000).await, hang(&node, &leaving, 60_000).await];
    leaving.terminate();
    let said = leaving.line().await;
    let (took, result) = said.split_once(' ').unwrap();
    println!("end() with two calls that never end, and 1 s to drain: {took} ms");
    assert!(result.contains("2 calls were still running after 1s and were cut"), "end() says how many: {result}");
    let took: u64 = took.parse().unwrap();
    assert!((1000..3000).contains(&took), "end() took {took} ms with a limit of 1 s");
    for call in endless {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Maybe), "{error}");
        assert!(error.to_string().contains("the time for draining is over"), "the caller hears why: {error}");
    }
    assert_eq!(leaving.ended().await.code(), Some(1), "end() failed, and the program says so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_consul_leaving_still_ends_in_time_and_loses_no_call() {
    let Some(mut dead) = Agent::start().await else { return };
    let Some(frozen) = Agent::start().await else { return };
    let journal = Journal::new();
    let mut cases = Vec::new();
    for agent in [&dead, &frozen] {
        let process = Process::start(&Setup::new(agent, Duration::from_secs(3), journal.path())).await;
        let node = client(agent);
        let call = hang(&node, &process, 1000).await;
        cases.push((process, node, call));
    }
    dead.kill();
    frozen.stop();
    let begun = Instant::now();
    for (case, (mut process, _node, call)) in ["gone", "frozen"].into_iter().zip(cases) {
        process.terminate();
        assert_eq!(call.await.unwrap().unwrap(), process.pid(), "with Consul {case}, a call was lost");
        let status = process.ended().await;
        println!("with Consul {case}, end() took {:.1?}", begun.elapsed());
        assert!(status.success(), "with Consul {case}, leaving ended with {status}");
        assert!(begun.elapsed() < Duration::from_secs(9), "with Consul {case}, leaving took {:?}", begun.elapsed());
    }
    frozen.cont();
    eventually("the agent answers again", async || frozen.http("GET", "/v1/status/leader", None, "").await.is_some())
        .await;
}

#[tokio::test]
async fn a_consul_that_was_never_there_does_not_hold_up_the_end() {
    let silent = FakeConsul::start(|_| Reply::Hold).await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (what, url) in [("silent", silent.url()), ("refusing", format!("http://{nobody}"))] {
        let memory = Memory::new();
        // With so short a TTL it is soon known that there is no answer.
        let consul = Consul::new(&url).unwrap().ttl(Duration::from_secs(1));
        let registry = Combine::first().and(consul).and(memory.clone());
        let node = Picom::builder("service1").registry(registry).bind("127.0.0.1").build().unwrap();
        let methods = Methods::new().unary("id", async |_cx, number: u64| Ok::<_, Status>(number));
        node.expose(methods).await.unwrap();
        assert_eq!(memory.watch("service1").current().endpoints.len(), 1, "{what}");
        let begun = Instant::now();
        node.end().await.unwrap();
        println!("with a {what} Consul beside another registry, end() took {:.1?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(3), "{what}: {:?}", begun.elapsed());
        assert!(memory.watch("service1").current().endpoints.is_empty(), "{what}");
    }
}
