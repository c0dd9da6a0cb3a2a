//! What is asked of every peer.
//!
//! Owns the names of the workloads and the clocks around them. Must never treat peers differently. Next: `calls` for W1 to
//! W3 and W7, then one file for each.

pub(crate) mod calls;
mod growth;
pub(crate) mod idle;
pub(crate) mod meter;
mod mixture;
mod streams;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use self::streams::Stream;
use crate::cli::refuse;
use crate::peer::Peer;
use crate::place::cpu_seconds;

/// What one run measured, by name.
pub(crate) type Figures = BTreeMap<String, f64>;

/// How long a run goes before it is measured.
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    /// The server's process, if its use of processors is wanted.
    pub(crate) server: Option<u32>,
    pub(crate) measured: Duration,
    /// That many calls instead of a time, and no figures: for counting instructions.
    pub(crate) calls: Option<u64>,
}

impl Plan {
    /// Starts the clocks.
    pub(crate) fn watch(&self) -> Watch {
        Watch { server: self.server, begun: Instant::now(), cpu: cpu_of(self.server) }
    }
}

/// The clocks of a run: elapsed, and the processor's of both sides.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    server: Option<u32>,
    begun: Instant,
    cpu: [f64; 2],
}

/// What the clocks showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) seconds: f64,
    pub(crate) client_cpu: f64,
    pub(crate) server_cpu: Option<f64>,
}

fn cpu_of(server: Option<u32>) -> [f64; 2] {
    [cpu_seconds(std::process::id()), server.map_or(0.0, cpu_seconds)]
}

impl Watch {
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn stop(&self) -> Used {
        let seconds = self.begun.elapsed().as_secs_f64();
        let [client, server] = cpu_of(self.server);
        Used { seconds, client_cpu: client - self.cpu[0], server_cpu: self.server.map(|_| server - self.cpu[1]) }
    }
}

impl Used {
    /// Rate, and CPU for each of so many calls.
    pub(crate) fn figures(self, calls: u64) -> Figures {
        let each = |seconds: f64| seconds * 1e6 / calls as f64;
        let mut figures = Figures::from([
            ("rate".to_owned(), calls as f64 / self.seconds),
            ("client_cpu_us".to_owned(), each(self.client_cpu)),
        ]);
        if let Some(server) = self.server_cpu {
            figures.insert("server_cpu_us".to_owned(), each(server));
            figures.insert("cpu_us".to_owned(), each(server + self.client_cpu));
        }
        figures
    }
}

/// Runs one workload; `None` if the peer cannot do it.
pub(crate) async fn run<P: Peer>(workload: &str, plan: &Plan) -> Option<Figures> {
    let figures = if let Some(in_flight) = calls::in_flight(workload) {
        calls::adds(P::connect(plan.address).await, in_flight, plan).await
    } else if let Some(echoes) = calls::echoes(workload) {
        calls::echo(P::connect(plan.address).await, echoes, plan).await
    } else if let Some(stream) = Stream::named(workload) {
        if !P::STREAMS {
            return None;
        }
        streams::run(P::connect(plan.address).await, stream, plan).await
    } else if let Some(connections) = idle::connections(workload) {
        idle::run::<P>(connections, plan).await
    } else if let Some(clients) = growth::clients(workload) {
        growth::run::<P>(clients, plan).await
    } else if workload == "w6" {
        mixture::run(P::connect(plan.address).await, P::STREAMS, plan).await
    } else {
        unknown(workload)
    };
    Some(figures)
}

/// Refuses names that are none.
pub(crate) fn check(names: &[String]) {
    let known = |name: &str| {
        name == "w6"
            || calls::in_flight(name).is_some()
            || calls::echoes(name).is_some()
            || Stream::named(name).is_some()
            || idle::connections(name).is_some()
            || growth::clients(name).is_some()
    };
    if let Some(name) = names.iter().find(|name| !known(name)) {
        unknown(name);
    }
}

fn unknown(name: &str) -> ! {
    refuse(format_args!(
        "there is no workload {name:?}, but w1, w2-N, w3-1k, w3-64k, w3-1m, w4-{{items,sent,chunks}}-{{down,up}}, w5-N, w6, w7-N and w8-N"
    ))
}
