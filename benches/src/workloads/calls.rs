//! W1, one call after the other, and W2, many in flight on one connection.
//!
//! Must never send what a caller would not: each waits for its answer and calls again. Next: `meter`.

use std::future::Future;

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
        Some(("w2", number)) => number.parse().ok(),
        _ => None,
    }
}

/// `add` from that many callers.
pub(crate) async fn adds<C: Client>(client: C, in_flight: usize, plan: &Plan) -> Figures {
    drive(in_flight, plan, move |number| {
        let client = client.clone();
        async move { assert_eq!(client.add(number, 1).await, number.wrapping_add(1), "the sum is right") }
    })
    .await
}

/// Lets that many callers call and call again.
pub(crate) async fn drive<F, R>(callers: usize, plan: &Plan, call: F) -> Figures
where
    F: Fn(u64) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let mut tasks = JoinSet::new();
    let each = plan.calls.map(|calls| calls / callers as u64);
    for _ in 0..callers {
        let call = call.clone();
        tasks.spawn(async move {
            let mut lap = Lap::start();
            let mut number = 0;
            while each != Some(number) {
                call(number).await;
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
    let mut figures = Figures::from([
        ("rate".to_owned(), calls as f64 / used.seconds),
        ("client_cpu_us".to_owned(), used.client_cpu * 1e6 / calls as f64),
    ]);
    if let Some(server) = used.server_cpu {
        figures.insert("server_cpu_us".to_owned(), server * 1e6 / calls as f64);
        figures.insert("cpu_us".to_owned(), (server + used.client_cpu) * 1e6 / calls as f64);
    }
    percentiles(latencies, &mut figures);
    figures
}
