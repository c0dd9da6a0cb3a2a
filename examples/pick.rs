//! Waits for a node, and sees what it says of itself.
//!
//! ```sh
//! cargo run --example pick
//! ```
//!
//! Two nodes in memory. One comes up without being started, so that a pick waits for it; then it is started, is busy, stops,
//! and leaves. The other sees each state in the snapshots of the service, and picks only while the first one may be called.

use std::time::Duration;

use futures::StreamExt;
use picom::registry::Memory;
use picom::{Code, Methods, Picom, Status};

/// What the registry says of the only instance.
async fn next(snapshots: &mut picom::registry::Snapshots) -> String {
    match snapshots.next().await.and_then(|snapshot| snapshot.endpoints.first().cloned()) {
        Some(endpoint) => endpoint.status.to_string(),
        None => "nobody".to_owned(),
    }
}

#[tokio::main]
async fn main() -> Result<(), Status> {
    let registry = Memory::new();
    let storage = Picom::builder("storage").registry(registry.clone()).started(false).in_memory().build()?;
    let other = Picom::builder("other").registry(registry).build()?;

    let mut snapshots = other.watch("storage");
    println!("{}", next(&mut snapshots).await);

    storage.expose(Methods::new()).await?;
    println!("{}", next(&mut snapshots).await);

    // It is there, but not started: the pick waits.
    let waiting = tokio::spawn(other.pick("storage").timeout(Duration::from_secs(10)).into_future());
    storage.start()?;
    println!("{}", next(&mut snapshots).await);
    let picked = waiting.await.map_err(|error| Status::internal(error.to_string()))??;
    println!("picked {}", picked.addr);

    storage.doing("a backup")?;
    println!("{}", next(&mut snapshots).await);
    // Nobody else is running, so it is better than nobody.
    other.pick("storage").await?;

    storage.stop("disk full")?;
    println!("{}", next(&mut snapshots).await);
    match other.pick("storage").timeout(Duration::from_millis(100)).await {
        Err(error) if error.code() == Code::DeadlineExceeded => println!("{error}"),
        other => println!("not expected: {other:?}"),
    }
    if let Err(error) = storage.stop("again") {
        println!("{error}");
    }

    storage.end().await?;
    println!("{}", next(&mut snapshots).await);
    Ok(())
}
