//! Three instances, one of them slow: who gets the calls, and what the caller knows of each.
//!
//! ```sh
//! cargo run --example balancing
//! ```
//!
//! All in one process. The same calls are made by the default policy and by round robin; then calls with a key go to one
//! instance each.

use std::collections::BTreeMap;
use std::time::Duration;

use picom::balance::{Balancer, ConsistentHash, PeakEwma, RoundRobin};
use picom::registry::Memory;
use picom::{Context, Methods, Picom, Status};

/// An instance that takes this long for a call.
async fn instance(registry: &Memory, pause: Duration) -> Result<Picom, Status> {
    let node = Picom::builder("service1").registry(registry.clone()).in_memory().build()?;
    let work = move |_cx: Context, (): ()| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, Status>(())
    };
    node.expose(Methods::new().unary("work", work)).await?;
    Ok(node)
}

/// How many of 60 calls each instance gets.
async fn shares(node: &Picom, policy: impl Balancer + Clone) -> Result<Vec<usize>, Status> {
    let known = node.channel("service1").endpoints();
    let mut shares: BTreeMap<_, _> = known.into_iter().map(|state| (state.endpoint.addr, 0)).collect();
    for _ in 0..60 {
        let call = node.fetch::<()>("service1", "work", ()).balance(policy.clone());
        let ((), info) = call.with_info().await?;
        *shares.entry(info.endpoint()).or_default() += 1;
    }
    Ok(shares.into_values().collect())
}

#[tokio::main]
async fn main() -> Result<(), Status> {
    let registry = Memory::new();
    let mut instances = Vec::new();
    for pause in [2, 2, 40] {
        instances.push(instance(&registry, Duration::from_millis(pause)).await?);
    }
    // For all calls of a node; a client (`Channel::balance`) and a call (`Call::balance`) may choose another policy.
    let node = Picom::builder("service2").registry(registry).balance(PeakEwma).build()?;

    println!("round robin: {:?}", shares(&node, RoundRobin).await?);
    println!("peak EWMA:   {:?}", shares(&node, PeakEwma).await?);
    for user in ["anna", "anna", "bert"] {
        let call = node.fetch::<()>("service1", "work", ()).balance(ConsistentHash).key(user);
        let ((), info) = call.with_info().await?;
        println!("{user} belongs to {}", info.endpoint());
    }
    for state in node.channel("service1").endpoints() {
        println!("{}: {:?}, {:?}", state.endpoint.addr, state.circuit, state.latency);
    }
    for instance in instances {
        instance.end().await?;
    }
    Ok(())
}
