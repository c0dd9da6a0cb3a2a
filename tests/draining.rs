//! Instances that leave in the middle of many calls, without a registry that could tell anybody before the connection does.
//!
//! Owns only tests. Look next at `consul_rolling.rs` for the same across processes, at a steady rate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream;
use picom::registry::{Fixed, Memory};
use picom::{Bytes, Context, Methods, Picom, Status, Streaming, args};
use serde::Deserialize;

/// How often each call ran.
type Runs = Arc<Mutex<HashMap<u64, u32>>>;

#[derive(Deserialize)]
struct Number {
    id: u64,
}

fn ran(runs: &Runs, id: u64) {
    *runs.lock().unwrap().entry(id).or_default() += 1;
}

fn methods(runs: &Runs) -> Methods {
    let (one, many, up) = (Arc::clone(runs), Arc::clone(runs), Arc::clone(runs));
    Methods::new()
        .unary("one", move |_cx: Context, Number { id }: Number| {
            ran(&one, id);
            async move {
                // Half of them answer at once, half after others have had their turn.
                if id % 2 == 0 {
                    tokio::task::yield_now().await;
                }
                Ok::<_, Status>(id)
            }
        })
        .server_streaming("many", move |_cx: Context, Number { id }: Number| {
            ran(&many, id);
            async move { Ok(stream::iter((0..20).map(|_| Bytes::from(vec![7; 10_000])))) }
        })
        .client_streaming("up", move |_cx: Context, Number { id }: Number, mut body: Streaming<Bytes>| {
            ran(&up, id);
            async move {
                let mut len = 0;
                while let Some(piece) = body.message().await? {
                    len += piece.len();
                }
                Ok(len)
            }
        })
}

#[tokio::test]
async fn who_ends_a_node_that_is_ending_waits_for_it() {
    let (finish, finished) = tokio::sync::watch::channel(false);
    let registry = Memory::new();
    let node = Picom::builder("service1").registry(registry.clone()).bind("127.0.0.1").build().unwrap();
    let slow = Methods::new().unary("slow", move |_cx: Context, (): ()| {
        let mut finished = finished.clone();
        async move { Ok::<_, Status>(finished.wait_for(|finished| *finished).await.is_ok()) }
    });
    node.expose(slow).await.unwrap();
    let caller = Picom::builder("caller").registry(registry).build().unwrap();
    let call = tokio::spawn(caller.fetch::<bool>("service1", "slow", ()).into_future());
    tokio::time::timeout(Duration::from_secs(5), async {
        while finish.receiver_count() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the call runs");
    let (first, second) = (node.clone(), node.clone());
    let first = tokio::spawn(async move { first.end().await });
    tokio::task::yield_now().await;
    let mut second = tokio::spawn(async move { second.end().await });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut second).await;
    assert!(early.is_err(), "the second end returned while a call still ran: {early:?}");
    finish.send_replace(true);
    assert!(call.await.unwrap().unwrap());
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
}

/// Starts a node, on this port if one is given.
async fn serve(port: u16, runs: &Runs) -> (Picom, u16) {
    // Nobody looks into this registry.
    let node = Picom::builder("service1").registry(Memory::new()).bind("127.0.0.1").port(port);
    let node = node.drain_delay(Duration::ZERO).build().unwrap();
    let port = node.expose(methods(runs)).await.unwrap().local_addr().port();
    (node, port)
}

/// One call that must not run twice, of a kind that depends on its number.
async fn call(node: &Picom, id: u64) -> Result<(), Status> {
    let args = args! { id: id };
    let right = match id % 8 {
        0 => node.fetch::<Bytes>("service1", "many", args).multiple().await?.len() == 20,
        1 | 2 => {
            // As much as a server that does not take the call can ask for, and more.
            let body = stream::iter((0..60).map(|_| Bytes::from(vec![7; 10_000])));
            node.fetch::<usize>("service1", "up", args).body(body).await? == 600_000
        }
        _ => node.fetch::<u64>("service1", "one", args).await? == id,
    };
    if right { Ok(()) } else { Err(Status::internal("a wrong answer")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_instances_leave_under_full_load_and_no_call_fails_or_runs_twice() {
    let runs = Runs::default();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(serve(0, &runs).await);
    }
    let addresses = nodes.iter().map(|(_, port)| format!("127.0.0.1:{port}"));
    let fixed = Fixed::new([("service1", addresses.collect::<Vec<_>>())]);
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..2)
        .flat_map(|_| {
            let caller = Picom::builder("caller").registry(fixed.clone()).build().unwrap();
            vec![caller; 8]
        })
        .map(|caller| {
            let (stop, next) = (Arc::clone(&stop), Arc::clone(&next));
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = call(&caller, id).await {
                        failed.push((id, error));
                    }
                }
                failed
            })
        })
        .collect();
    for round in 0..40 {
        let (node, port) = &mut nodes[round % 3];
        let begun = next.load(Ordering::Relaxed);
        node.end().await.unwrap();
        (*node, _) = serve(*port, &runs).await;
        while next.load(Ordering::Relaxed) < begun + 50 {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut failed = Vec::new();
    for caller in callers {
        failed.extend(caller.await.unwrap());
    }
    let calls = next.load(Ordering::Relaxed);
    println!("{calls} calls while 40 instances left, {} failed", failed.len());
    for (id, error) in &failed {
        println!("{id}: {error}");
    }
    assert!(failed.is_empty(), "{} of {calls} calls failed, of which the first: {:?}", failed.len(), failed.first());
    let runs = runs.lock().unwrap();
    let wrong: Vec<_> = (0..calls).filter(|id| runs.get(id) != Some(&1)).collect();
    assert!(wrong.is_empty(), "these calls did not run exactly once: {wrong:?}");
}
