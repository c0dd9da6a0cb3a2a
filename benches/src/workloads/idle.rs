//! W5: what a connection costs in memory, on each side, before its first call where a peer connects without one, and after it.
//!
//! Must never count what one connection alone would cost: the first are made before. Next: `place` for what memory is.

use futures::StreamExt;
use futures::stream;

use super::{Figures, Plan};
use crate::peer::{Client, Peer};
use crate::place::memory_kib;

/// Connections of all that are made before the count begins.
const FIRST: usize = 20;
/// Connections that are made at once.
const AT_ONCE: usize = 32;

/// How many connections, if it is this workload.
pub(crate) fn connections(workload: &str) -> Option<usize> {
    workload.strip_prefix("w5-")?.parse().ok()
}

pub(crate) async fn run<P: Peer>(connections: usize, plan: &Plan) -> Figures {
    let first = connect::<P>(FIRST, plan).await;
    call(&first).await;
    let before = memory(plan);
    let counted = connections.saturating_sub(FIRST).max(1);
    let more = connect::<P>(counted, plan).await;
    let idle = rested(plan).await;
    call(&more).await;
    let called = rested(plan).await;
    drop((first, more));
    let each = |now: [f64; 2], side: usize| (now[side] - before[side]) / counted as f64;
    let mut figures = Figures::new();
    for (side, name) in ["client", "server"].into_iter().enumerate().take(1 + usize::from(plan.server.is_some())) {
        figures.insert(format!("{name}_idle_kib_each"), each(idle, side));
        figures.insert(format!("{name}_kib_each"), each(called, side));
    }
    figures
}

/// The memory when what was only needed for a moment is gone.
async fn rested(plan: &Plan) -> [f64; 2] {
    tokio::time::sleep(plan.measured / 2).await;
    memory(plan)
}

fn memory(plan: &Plan) -> [f64; 2] {
    [memory_kib(std::process::id()), plan.server.map_or(0.0, memory_kib)]
}

/// One call on each connection.
async fn call<C: Client>(clients: &[C]) {
    let call = async |client: &C| assert_eq!(client.add(1, 2).await, 3, "the sum is right");
    stream::iter(clients).for_each_concurrent(AT_ONCE, call).await;
}

async fn connect<P: Peer>(count: usize, plan: &Plan) -> Vec<P::Client> {
    stream::iter(0..count).map(|_| P::connect(plan.address)).buffer_unordered(AT_ONCE).collect().await
}
