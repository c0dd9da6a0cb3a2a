//! W5: what a connection costs in memory, on each side, after one call.
//!
//! Must never count what one connection alone would cost: the first are made before. Next: `place` for what memory is.

use futures::StreamExt;
use futures::stream;

use super::{Figures, Plan};
use crate::peer::{Client, Peer};
use crate::place::memory_kib;

/// Connections that are made before the count begins.
const FIRST: usize = 20;
/// Connections that are made at once.
const AT_ONCE: usize = 32;

/// How many connections, if it is this workload.
pub(crate) fn connections(workload: &str) -> Option<usize> {
    workload.strip_prefix("w5-")?.parse().ok()
}

pub(crate) async fn run<P: Peer>(connections: usize, plan: &Plan) -> Figures {
    let first = connect::<P>(FIRST, plan).await;
    let before = memory(plan);
    let more = connect::<P>(connections, plan).await;
    // What was only needed to connect goes.
    tokio::time::sleep(plan.measured / 2).await;
    let after = memory(plan);
    drop((first, more));
    let each = |side: usize| (after[side] - before[side]) / connections as f64;
    let mut figures = Figures::from([("client_kib_each".to_owned(), each(0))]);
    if plan.server.is_some() {
        figures.insert("server_kib_each".to_owned(), each(1));
    }
    figures
}

fn memory(plan: &Plan) -> [f64; 2] {
    [memory_kib(std::process::id()), plan.server.map_or(0.0, memory_kib)]
}

async fn connect<P: Peer>(count: usize, plan: &Plan) -> Vec<P::Client> {
    stream::iter(0..count)
        .map(|_| async {
            let client = P::connect(plan.address).await;
            assert_eq!(client.add(1, 2).await, 3, "the sum is right");
            client
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}
