//! W8: more and more clients of one server, each with a connection of its own and as many calls in flight as the others.
//!
//! Must never change what one client does. Next: `calls`.

use super::{Figures, Plan, calls};
use crate::peer::Peer;
use crate::place::memory_kib;

/// Calls that each client keeps in flight.
const EACH: usize = 8;

/// How many clients, if it is this workload.
pub(crate) fn clients(workload: &str) -> Option<usize> {
    workload.strip_prefix("w8-")?.parse().ok()
}

pub(crate) async fn run<P: Peer>(clients: usize, plan: &Plan) -> Figures {
    let mut all = Vec::with_capacity(clients);
    for _ in 0..clients {
        all.push(P::connect(plan.address).await);
    }
    let callers = all.iter().flat_map(|client| std::iter::repeat_n(client, EACH)).cloned().collect();
    let mut figures = calls::drive(callers, plan, calls::add).await;
    figures.insert("client_kib".to_owned(), memory_kib(std::process::id()));
    if let Some(server) = plan.server {
        figures.insert("server_kib".to_owned(), memory_kib(server));
    }
    figures
}
