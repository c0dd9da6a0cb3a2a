//! One runtime of one thread for each core, and an instance of the service on each: no call crosses threads.
//!
//! ```sh
//! cargo run --release --example runtime_per_core
//! ```
//!
//! The work of a connection then never moves between cores. Each instance listens on a port of its own and registers by
//! itself, so callers spread over them as over hosts, and nothing needs to share a port.

use std::collections::HashSet;
use std::thread;

use picom::registry::Memory;
use picom::{Picom, Status};
use tokio::sync::{mpsc, watch};

#[picom::service]
trait Calculator {
    #[rpc(idempotent)]
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status>;
}

struct Calc;

impl Calculator for Calc {
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status> {
        Ok(a + b)
    }
}

/// Serves until `stop` is dropped. With a registry such as Consul, `Picom::new("calculator")` is all that a node needs.
async fn serve(registry: Memory, up: mpsc::Sender<()>, mut stop: watch::Receiver<()>) -> Result<(), Status> {
    let node = Picom::builder("calculator").registry(registry).bind("127.0.0.1").build()?;
    node.expose(CalculatorServer::new(Calc)).await?;
    // The other side waits for as many as it has started.
    let _ = up.send(()).await;
    // An error is what stops it: the sender is gone.
    let _ = stop.changed().await;
    node.end().await
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cores = thread::available_parallelism()?.get();
    let registry = Memory::new();
    let (stop, stopped) = watch::channel(());
    let (up, mut ups) = mpsc::channel(cores);
    let mut threads = Vec::new();
    for _ in 0..cores {
        let (registry, up, stopped) = (registry.clone(), up.clone(), stopped.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        threads.push(thread::spawn(move || runtime.block_on(serve(registry, up, stopped))));
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for _ in 0..cores {
            ups.recv().await;
        }
        let caller = Picom::builder("caller").registry(registry).build()?;
        let calc: CalculatorClient = caller.client("calculator");
        let mut answered = HashSet::new();
        for n in 0..100 {
            let (sum, info) = calc.add(n, 1).with_info().await?;
            assert_eq!(sum, n + 1);
            answered.insert(info.endpoint());
        }
        println!("100 calls were answered by {} of {cores} instances", answered.len());
        Ok::<_, Status>(())
    })?;

    drop(stop);
    for thread in threads {
        thread.join().map_err(|_| "a server panicked")??;
    }
    Ok(())
}
