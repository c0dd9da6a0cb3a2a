//! W1, one call after the other; W2, many in flight on one connection, and W7, which is that beside Consul; W3, echoes of bodies.
//!
//! Must never send what a caller would not: each waits for its answer and calls again. Next: `meter`.

use std::future::Future;

use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::meter::{self, Lap};
use super::{Figures, Plan, Used, WARM_UP};
use crate::peer::Client;
use crate::sample::percentiles;

/// How many calls the workload keeps in flight, if it is one of these.
pub(crate) fn in_flight(workload: &str) -> Option<usize> {
    match workload.split_once('-') {
        None if workload == "w1" => Some(1),
        Some(("w2" | "w7", number)) => number.parse().ok(),
        _ => None,
    }
}

/// How many bodies of which size the workload keeps in flight, if it is an echo.
pub(crate) fn echoes(workload: &str) -> Option<(usize, usize)> {
    Some(match workload {
        "w3-1k" => (64, 1 << 10),
        "w3-64k" => (64, 64 << 10),
        "w3-1m" => (8, 1 << 20),
        _ => return None,
    })
}

/// `add` from that many callers.
pub(crate) async fn adds<C: Client>(client: C, in_flight: usize, plan: &Plan) -> Figures {
    drive(vec![client; in_flight], plan, add).await
}

/// One call of `add`, checked.
pub(crate) async fn add<C: Client>(client: C, number: u64) -> C {
    assert_eq!(client.add(number, 1).await, number.wrapping_add(1), "the sum is right");
    client
}

/// `echo` from that many callers.
pub(crate) async fn echo<C: Client>(client: C, (in_flight, size): (usize, usize), plan: &Plan) -> Figures {
    let body = Bytes::from(vec![7; size]);
    let mut figures = drive(vec![(client, body); in_flight], plan, echo_once).await;
    if let Some(rate) = figures.get("rate") {
        figures.insert("mb_s".to_owned(), rate * size as f64 / 1e6);
    }
    figures
}

async fn echo_once<C: Client>((client, body): (C, Bytes), _: u64) -> (C, Bytes) {
    let back = client.echo(body.clone()).await;
    assert_eq!((back.len(), back.last()), (body.len(), body.last()), "the same bytes come back");
    (client, body)
}

/// Lets every caller call and call again. What a caller calls with goes into each call and comes back, so that nothing is
/// cloned in between.
pub(crate) async fn drive<C, F, R>(callers: Vec<C>, plan: &Plan, call: F) -> Figures
where
    C: Send + 'static,
    F: Fn(C, u64) -> R + Copy + Send + 'static,
    R: Future<Output = C> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let each = plan.calls.map(|calls| calls / callers.len() as u64);
    for mut caller in callers {
        tasks.spawn(async move {
            let mut lap = Lap::start();
            let mut number = 0;
            while each != Some(number) {
                caller = call(caller, number).await;
                number += 1;
                if !lap.done() {
                    break;
                }
            }
        });
    }
    if each.is_some() {
        while let Some(task) = tasks.join_next().await {
            task.expect("the calls succeed");
        }
        return Figures::new();
    }
    tokio::time::sleep(WARM_UP).await;
    let watch = plan.watch();
    meter::begin();
    tokio::time::sleep(plan.measured).await;
    let latencies = meter::end();
    let used = watch.stop();
    while let Some(task) = tasks.join_next().await {
        task.expect("the calls succeed");
    }
    figures(used, latencies.len(), &latencies)
}

/// Rate, percentiles, and CPU of both sides.
pub(crate) fn figures(used: Used, calls: u64, latencies: &Histogram<u32>) -> Figures {
    let mut figures = used.figures(calls);
    percentiles(latencies, &mut figures);
    figures
}
