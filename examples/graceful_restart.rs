//! Restarts one instance after the other while calls go on, and counts those that fail.
//!
//! ```sh
//! cargo run --example graceful_restart
//! ```
//!
//! Three instances, eight callers. Each instance in turn leaves with `end()` and comes back as a new one. Its callers are
//! told before it goes, calls that it has accepted are finished, and calls that it has not go to another instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use picom::registry::Memory;
use picom::{Picom, Status};

const INSTANCES: usize = 3;
const CALLERS: usize = 8;
/// Calls that must pass between one restart and the next.
const BETWEEN: u64 = 500;

#[picom::service]
trait Work {
    /// Not idempotent: picom never runs it twice.
    async fn work(&self, number: u64) -> Result<u64, Status>;
}

struct Worker;

impl Work for Worker {
    async fn work(&self, number: u64) -> Result<u64, Status> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(number)
    }
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

async fn start(registry: &Memory) -> Result<Picom, Status> {
    let node = Picom::builder("work").registry(registry.clone()).bind("127.0.0.1").build()?;
    node.expose(WorkServer::new(Worker)).await?;
    Ok(node)
}

async fn call_on(client: WorkClient, counts: Arc<Counts>) {
    while !counts.stop.load(Ordering::Relaxed) {
        let number = counts.done.fetch_add(1, Ordering::Relaxed);
        match client.work(number).await {
            Ok(answer) if answer == number => {}
            other => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                println!("failed: {other:?}");
            }
        }
    }
}

/// Waits until so many more calls are done.
async fn calls(counts: &Counts, more: u64) {
    let until = counts.done.load(Ordering::Relaxed) + more;
    while counts.done.load(Ordering::Relaxed) < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = Memory::new();
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(start(&registry).await?);
    }
    let caller = Picom::builder("caller").registry(registry.clone()).build()?;
    let counts = Arc::new(Counts::default());
    let callers: Vec<_> =
        (0..CALLERS).map(|_| tokio::spawn(call_on(caller.client("work"), Arc::clone(&counts)))).collect();

    for (number, instance) in instances.iter_mut().enumerate() {
        calls(&counts, BETWEEN).await;
        let old = std::mem::replace(instance, start(&registry).await?);
        old.end().await?;
        println!("instance {} of {INSTANCES} restarted", number + 1);
    }
    calls(&counts, BETWEEN).await;

    counts.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await?;
    }
    for instance in instances {
        instance.end().await?;
    }
    let (done, failed) = (counts.done.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed));
    println!("{done} calls, {failed} failed");
    if failed > 0 { Err("a graceful restart must not fail a call".into()) } else { Ok(()) }
}
