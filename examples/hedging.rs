//! Three instances, one of them slow at times: what a second attempt does to the slowest calls.
//!
//! ```sh
//! cargo run --example hedging
//! ```
//!
//! All in one process. The same calls are made without and with `.hedge()`, in turn to all instances, so that nothing else keeps
//! calls away from the slow one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use picom::balance::RoundRobin;
use picom::registry::Memory;
use picom::{Context, Methods, Picom, Status};

const CALLS: usize = 1_000;
const CALLERS: usize = 20;

/// An instance that takes 20 ms for a call, or a second for one of so many.
async fn instance(registry: &Memory, calls: &Arc<AtomicUsize>, slow_one_of: usize) -> Result<Picom, Status> {
    let node = Picom::builder("service1").registry(registry.clone()).in_memory().build()?;
    let (all, own) = (Arc::clone(calls), AtomicUsize::new(1));
    let work = move |_cx: Context, (): ()| {
        all.fetch_add(1, Ordering::Relaxed);
        let is_slow = own.fetch_add(1, Ordering::Relaxed) % slow_one_of == 0;
        async move {
            tokio::time::sleep(Duration::from_millis(if is_slow { 1_000 } else { 20 })).await;
            Ok::<_, Status>(())
        }
    };
    // Without this, a call with `.hedge()` is an error.
    node.expose(Methods::new().unary("work", work).idempotent()).await?;
    Ok(node)
}

/// Makes all calls, and says how long the slowest hundredth took at least.
async fn p99(node: &Picom, hedged: bool) -> Result<Duration, Status> {
    let callers = (0..CALLERS).map(|_| async {
        let mut times = Vec::new();
        for _ in 0..CALLS / CALLERS {
            let begun = Instant::now();
            let call = node.fetch::<()>("service1", "work", ());
            if hedged {
                call.hedge().await?
            } else {
                call.await?
            }
            times.push(begun.elapsed());
        }
        Ok::<_, Status>(times)
    });
    let mut times = try_join_all(callers).await?.concat();
    times.sort_unstable();
    Ok(times[times.len() * 99 / 100])
}

#[tokio::main]
async fn main() -> Result<(), Status> {
    let (registry, made) = (Memory::new(), Arc::new(AtomicUsize::new(0)));
    let mut instances = Vec::new();
    for slow_one_of in [20, usize::MAX, usize::MAX] {
        instances.push(instance(&registry, &made, slow_one_of).await?);
    }
    let node = Picom::builder("service2").registry(registry).balance(RoundRobin).build()?;
    for hedged in [false, true] {
        let p99 = p99(&node, hedged).await?;
        let made = made.swap(0, Ordering::Relaxed);
        let how = if hedged { "with hedge" } else { "without" };
        println!("{how}: {CALLS} calls, p99 {} ms, {made} attempts", p99.as_millis());
    }
    for instance in instances {
        instance.end().await?;
    }
    Ok(())
}
