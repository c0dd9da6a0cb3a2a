//! Services that find each other through a real Consul agent and call each other across processes.
//!
//! Owns only tests of what works; look next at `consul_outages.rs` for what fails, and at `support/process.rs` for the
//! processes.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures::StreamExt;
use picom::balance::RoundRobin;
use picom::registry::{Consul, RegistrationState};
use picom::{Bytes, Methods, Picom, args};
use support::consul::Agent;
use support::process::{self, Process, SERVICE, Setup};
use support::tap::Tap;
use support::work::{Journal, WorkClient};
use support::{client, passing};

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

/// Bytes of one piece of a long stream.
const PIECE: usize = 64 << 10;

/// A piece that is like no other: nothing of a stream can be lost, doubled or out of order without one being another.
fn piece(number: u64) -> Bytes {
    static REST: LazyLock<Vec<u8>> = LazyLock::new(|| (8..PIECE as u64).map(|n| (n * n % 251) as u8).collect());
    [&number.to_be_bytes(), REST.as_slice()].concat().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_call_each_other_and_stream_256_mib_both_ways() {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let service = Process::start(&Setup::new(&agent, Duration::from_secs(3), journal.path())).await;
    // Asked once, not until it is so: expose() has returned.
    let list = agent.get(&format!("/v1/health/service/{SERVICE}?passing")).await;
    let ports: Vec<_> = list.as_array().unwrap().iter().map(|entry| entry["Service"]["Port"].as_u64()).collect();
    assert_eq!(ports, [Some(service.addr.port().into())], "visible and passing when expose() returns: {list:#}");
    assert_eq!(service.state, "Registered");

    let node = client(&agent);
    let typed: WorkClient = node.client(SERVICE);
    assert_eq!(typed.who().await.unwrap(), service.pid(), "another process answers");
    assert_eq!(typed.sum(1, futures::stream::iter(0..=10)).await.unwrap(), 55);
    let pid: u32 = node.fetch(SERVICE, "look", args! { id: 2 }).await.unwrap();
    assert_eq!(pid, service.pid(), "the same by name");
    let items: Vec<u64> = node.fetch(SERVICE, "count", args! { id: 3, to: 4 }).multiple().await.unwrap();
    assert_eq!(items, [0, 1, 2, 3]);

    let pieces = (256 << 20) / PIECE as u64;
    let begun = Instant::now();
    let mut echoed = typed.echo(futures::stream::iter(0..pieces).map(piece)).await.unwrap();
    let mut expected = 0..pieces;
    while let Some(received) = echoed.message().await.unwrap() {
        let number = expected.next().expect("no more pieces than were sent");
        assert!(received == piece(number), "piece {number} came back different");
    }
    assert!(expected.is_empty(), "pieces {expected:?} did not come back");
    println!("256 MiB there and back in {:.1?}", begun.elapsed());
}

async fn exposed(registry: Consul) -> Picom {
    let node = Picom::builder("service1").registry(registry).bind("127.0.0.1").build().unwrap();
    let exposed =
        node.expose(Methods::new().unary("id", async |_cx, number: u64| Ok::<_, picom::Status>(number))).await;
    assert_eq!(exposed.unwrap().state(), RegistrationState::Registered);
    node
}

#[tokio::test]
async fn a_registration_has_a_ttl_of_30_seconds_unless_told_otherwise() {
    let Some(agent) = Agent::start().await else { return };
    for (ttl, told, forgotten) in [(None, "30000ms", "300000ms"), (Some(45), "45000ms", "450000ms")] {
        let tap = Tap::start(&agent).await;
        let registry = Consul::new(&tap.url()).unwrap();
        let node = exposed(ttl.map_or(registry.clone(), |ttl| registry.ttl(Duration::from_secs(ttl)))).await;
        // An agent does not tell the TTL of a check, only that it has one; so the TTL is read on its way there.
        let body = tap
            .body("/v1/agent/service/register")
            .unwrap_or_else(|| panic!("no registration in {:#?}", tap.requests()));
        assert_eq!(body["Check"]["TTL"], told, "{body:#}");
        assert_eq!(body["Check"]["DeregisterCriticalServiceAfter"], forgotten, "{body:#}");
        let checks = agent.get("/v1/agent/checks").await;
        let check = &checks[format!("service:{}", body["ID"].as_str().unwrap())];
        assert_eq!((&check["Type"], &check["Status"]), (&"ttl".into(), &"passing".into()), "{checks:#}");
        let services = agent.get("/v1/agent/services").await;
        let meta = &services[body["ID"].as_str().unwrap()]["Meta"];
        let incarnation = meta.as_object().unwrap().iter().find(|(key, _)| key.contains("incarnation"));
        let incarnation = incarnation.unwrap_or_else(|| panic!("no incarnation in {meta}")).1.as_str().unwrap();
        assert!(incarnation.len() == 16 && u64::from_str_radix(incarnation, 16).is_ok(), "{incarnation:?}");
        node.end().await.unwrap();
    }
}

#[tokio::test]
async fn two_thousand_calls_cost_consul_no_request() {
    let Some(agent) = Agent::start().await else { return };
    let (served, called) = (Tap::start(&agent).await, Tap::start(&agent).await);
    let server = exposed(Consul::new(&served.url()).unwrap()).await;
    let caller = Picom::builder("caller").registry(Consul::new(&called.url()).unwrap()).build().unwrap();
    let call = async |number: u64| caller.fetch::<u64>("service1", "id", number).await;
    assert_eq!(call(0).await.unwrap(), 0);
    let (called_before, served_before) = (called.requests().len(), served.requests().len());
    for number in 0..2000 {
        assert_eq!(call(number).await.unwrap(), number);
    }
    // One watch, which hears of a change or two of the instance when it has just been registered, and beats of the service.
    let (called, served) = (&called.requests()[called_before..], &served.requests()[served_before..]);
    println!("2000 calls: {} requests of the caller's watch, {} of the service", called.len(), served.len());
    assert!(called.len() <= 4 && called.iter().all(|r| r.contains("/v1/health/")), "a watch only: {called:?}");
    assert!(served.len() <= 3 && served.iter().all(|r| r.contains("/check/pass/")), "beats only: {served:?}");
    server.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_share_the_calls() {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let setup = Setup::new(&agent, Duration::from_secs(3), journal.path());
    let processes = [Process::start(&setup).await, Process::start(&setup).await, Process::start(&setup).await];
    passing(&agent, 3).await;
    let typed: WorkClient = client(&agent).channel(SERVICE).balance(RoundRobin).client();
    let mut counts = std::collections::HashMap::new();
    for _ in 0..300 {
        *counts.entry(typed.who().await.unwrap()).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(processes.iter().all(|process| counts[&process.pid()] >= 90), "an even share each: {counts:?}");
}
