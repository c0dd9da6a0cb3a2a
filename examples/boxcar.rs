//! Three servers and some clients that share them out by the numbers of their connections, without knowing anybody's load.
//!
//! ```sh
//! cargo run --example boxcar
//! ```
//!
//! The servers answer a line with a line, over plain TCP. Each of 8 clients keeps 6 connections and works with all of them. Then
//! one server is restarted, and gets its share again. Intervals are 20 ms here, so that it does not take a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use picom::boxcar::{Boxcar, Listener, Pool, Rover};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinSet;
use tokio::time::sleep;

const SERVERS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: usize = 8;
const CONNECTIONS: usize = 6;

/// Serves until the future is dropped, and its connections with it.
async fn serve(mut listener: Listener, answers: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Some(mut connection) = listener.accept().await {
        let answers = Arc::clone(&answers);
        connections.spawn(async move {
            let (read, mut write) = connection.split();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                sleep(Duration::from_millis(5)).await;
                answers.fetch_add(1, Ordering::Relaxed);
                if write.write_all(format!("you said {line}\n").as_bytes()).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// Asks as fast as the answers come, with whatever connection is free.
async fn work(boxcar: Arc<Boxcar>) {
    loop {
        let Ok(mut connection) = boxcar.lease(Duration::from_secs(5)).await else { continue };
        let mut answer = [0; 15];
        let asked = async {
            connection.write_all(b"hello\n").await?;
            connection.read_exact(&mut answer).await
        };
        // Half an exchange is of no use to the next one.
        if asked.await.is_err() {
            connection.discard();
        }
    }
}

/// How many answers each server gives in a second, and how far the busiest is above the mean.
async fn measure(when: &str, answers: &[Arc<AtomicU64>]) {
    let before: Vec<u64> = answers.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    sleep(Duration::from_secs(1)).await;
    let now = answers.iter().map(|count| count.load(Ordering::Relaxed));
    let load: Vec<u64> = now.zip(before).map(|(now, before)| now - before).collect();
    let (most, sum) = (load.iter().max().unwrap_or(&0), load.iter().sum::<u64>());
    let spread = (most * SERVERS.len() as u64) as f64 / sum.max(1) as f64;
    println!("{when}: {load:?} answers a second, max/mean {spread:.2}");
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let answers: Vec<Arc<AtomicU64>> = SERVERS.iter().map(|_| Arc::default()).collect();
    let (mut addresses, mut servers) = (Vec::new(), Vec::new());
    for count in &answers {
        let listener = Listener::bind("127.0.0.1:0").await?;
        addresses.push(listener.local_addr()?.to_string());
        servers.push(tokio::spawn(serve(listener, Arc::clone(count))));
    }

    let mut workers = JoinSet::new();
    for _ in 0..CLIENTS {
        let rover = Rover::new().interval(Duration::from_millis(20)).max_interval(Duration::from_millis(160));
        let boxcar = Arc::new(Boxcar::new(rover, Pool::new(CONNECTIONS)));
        for (id, address) in SERVERS.iter().zip(&addresses) {
            boxcar.add_server(id, address);
        }
        boxcar.start();
        (0..CONNECTIONS).for_each(|_| _ = workers.spawn(work(Arc::clone(&boxcar))));
    }

    sleep(Duration::from_secs(1)).await;
    measure("three servers", &answers).await;

    if let Some(server) = servers.pop() {
        server.abort();
    }
    sleep(Duration::from_secs(1)).await;
    measure("without c    ", &answers).await;

    let listener = Listener::bind(addresses[2].as_str()).await?;
    tokio::spawn(serve(listener, Arc::clone(&answers[2])));
    sleep(Duration::from_secs(2)).await;
    measure("c is back    ", &answers).await;
    Ok(())
}
