//! Many nodes on one loopback network of datagrams: how soon everybody knows everybody, and what it costs.
//!
//! Owns only tests. The large one takes half a minute and a good part of a core, so it runs on request only:
//! `cargo test --release --test registry_broadcast_many -- --ignored --nocapture`. Look next at `registry_broadcast.rs`.
#![cfg(feature = "broadcast")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::registry::{Freshness, Registry};
use picom::{NodeState, NodeStatus};
use support::broadcast::Network;
use support::{instance, until};
use tokio::time::Instant;

/// How long the steady state is looked at.
const LOOK: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_nodes_know_each_other() {
    many(20, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn two_hundred_nodes_know_each_other() {
    many(200, LOOK).await;
}

async fn many(count: u16, look: Duration) {
    let network = Network::new();
    let began = Instant::now();
    let mut nodes = Vec::new();
    for n in 0..count {
        let registry = network.registry();
        let mut given = instance("calculator", &format!("calculator-host1-{n}-00c0ffee00c0ffee"), 10_000 + n);
        given.zone = Some("eu-west-1a".to_owned());
        given.tags = vec!["blue".to_owned()];
        given.meta.insert("version".to_owned(), "1.20.3".to_owned());
        let watch = registry.watch("calculator");
        let registration = registry.register(given).await.unwrap();
        nodes.push((registry, watch, registration));
    }
    let all = usize::from(count);
    for (_, watch, _) in &mut nodes {
        until(watch, "everybody is known", |snapshot| snapshot.endpoints.len() == all).await;
    }
    println!("{count} nodes: everybody knows everybody after {:.2?}", began.elapsed());

    let change = Instant::now();
    nodes[0].2.set_status(NodeStatus::now(NodeState::Stopped, Some("maintenance")));
    for (_, watch, _) in &mut nodes {
        until(watch, "everybody knows of the change", |snapshot| {
            snapshot.endpoints.iter().any(|endpoint| endpoint.status.state == NodeState::Stopped)
        })
        .await;
    }
    let took = change.elapsed();
    println!("{count} nodes: a change is everywhere after {took:.2?}");
    assert!(took < Duration::from_secs(1), "a change took {took:?}");

    let stranger = network.stranger();
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let (mut datagrams, mut bytes, mut longest) = (0_u32, 0, 0);
    while let Some(left) = look.checked_sub(begin.elapsed()) {
        let Some(datagram) = stranger.hear_within(left).await else { break };
        datagrams += 1;
        bytes += datagram.len();
        longest = longest.max(datagram.len());
    }
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = (cpu_seconds() - cpu) / seconds;
    println!(
        "{count} nodes: {:.0} datagrams/s in all, {:.0} bytes/s, at most {longest} bytes each, {:.1} % of a core",
        f64::from(datagrams) / seconds,
        bytes as f64 / seconds,
        cpu * 100.0
    );
    assert!(longest <= 300, "{longest} bytes");
    // Once each period, which is cut by up to a fifth.
    let expected = f64::from(count) * seconds / 1.8;
    assert!((0.5..1.5).contains(&(f64::from(datagrams) / expected)), "{datagrams} datagrams in {seconds:.1} s");
    for (_, watch, _) in &nodes {
        let snapshot = watch.current();
        assert_eq!((snapshot.endpoints.len(), snapshot.freshness), (all, Freshness::Live));
    }
}

/// What this process has used of a processor so far; 0 where nobody says.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / 100.0
}
