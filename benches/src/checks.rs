//! What picom promises beside `raw` and beside the other frameworks.
//!
//! Owns the floors and the targets: below a floor something is wrong, a target is what is reachable. They are ratios, which
//! travel from machine to machine, but for memory. Must never measure. Next: `verdict`.

use crate::peer::Peer as _;
use crate::peers::picom;
use crate::peers::picom_consul::ThroughConsul;
use crate::place::Mode::{self, Mt, Same, Split};

/// What a figure is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// `raw` in this workload.
    Raw(&'static str),
    /// Another peer in the same workload.
    Peer(&'static str),
    /// Its own best in the workloads that begin like this.
    Best(&'static str),
    /// Nothing: the figure has a unit.
    Nothing,
}

/// One promise. Ratios are picom's figure through the other's; where less is better, floor and target are what it may be at
/// most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) peer: &'static str,
    pub(crate) workload: &'static str,
    pub(crate) mode: Mode,
    pub(crate) figure: &'static str,
    pub(crate) less: bool,
    pub(crate) beside: Beside,
    pub(crate) floor: f64,
    pub(crate) target: f64,
    /// Ratios to other peers that must be reached; `*` is the best of all other frameworks.
    pub(crate) peers: &'static [(&'static str, f64)],
}

const PICOM: &str = picom::Typed::NAME;
const CONSUL: &str = ThroughConsul::NAME;

const fn more(
    workload: &'static str,
    mode: Mode,
    floor: f64,
    target: f64,
    peers: &'static [(&'static str, f64)],
) -> Check {
    Check {
        peer: PICOM,
        workload,
        mode,
        figure: "rate",
        less: false,
        beside: Beside::Raw(workload),
        floor,
        target,
        peers,
    }
}

const fn less(
    (workload, figure): (&'static str, &'static str),
    floor: f64,
    target: f64,
    peers: &'static [(&'static str, f64)],
) -> Check {
    Check {
        peer: PICOM,
        workload,
        mode: Split,
        figure,
        less: true,
        beside: Beside::Raw(workload),
        floor,
        target,
        peers,
    }
}

/// Items that are sent one by one, beside raw's that are ready: how an item comes into the system is part of the system.
const fn sent(workload: &'static str, ready: &'static str) -> Check {
    Check { beside: Beside::Raw(ready), ..more(workload, Split, 0.20, 0.35, &[("tonic", 2.0)]) }
}

const fn memory(workload: &'static str, figure: &'static str) -> Check {
    Check { beside: Beside::Nothing, ..less((workload, figure), 15.0, 9.0, &[("tarpc", 0.5)]) }
}

pub(crate) const CHECKS: [Check; 30] = [
    more("w1", Same, 0.80, 0.92, &[("tarpc", 1.15), ("tonic", 3.0)]),
    more("w2-64", Split, 0.50, 0.70, &[("tarpc", 2.0), ("tonic", 9.0)]),
    more("w2-256", Split, 0.35, 0.55, &[("tarpc", 3.0), ("tonic", 9.0)]),
    more("w2-1024", Split, 0.25, 0.40, &[("tarpc", 3.0), ("tonic", 9.0)]),
    more("w2-256", Mt, 0.20, 0.40, &[("tarpc", 4.0), ("tonic", 10.0)]),
    less(("w2-256", "cpu_us"), 3.0, 2.0, &[("tarpc", 1.0 / 3.0)]),
    less(("w2-256", "p99_us"), 3.0, 2.0, &[("tarpc", 1.0 / 3.0)]),
    more("w3-1k", Split, 0.45, 0.65, &[("*", 1.0)]),
    more("w3-64k", Split, 0.65, 0.85, &[("*", 1.0)]),
    more("w3-1m", Split, 0.70, 0.85, &[("*", 1.0)]),
    more("w4-items-down", Split, 0.40, 0.70, &[("tonic", 1.0)]),
    more("w4-items-up", Split, 0.40, 0.70, &[("tonic", 1.0)]),
    sent("w4-sent-down", "w4-items-down"),
    sent("w4-sent-up", "w4-items-up"),
    more("w4-chunks-down", Split, 0.70, 0.90, &[("*", 1.0)]),
    more("w4-chunks-up", Split, 0.50, 0.70, &[("*", 1.0)]),
    memory("w5-1000", "server_idle_kib_each"),
    memory("w5-1000", "client_idle_kib_each"),
    memory("w5-1000", "server_kib_each"),
    memory("w5-1000", "client_kib_each"),
    memory("w5-10000", "server_idle_kib_each"),
    memory("w5-10000", "client_idle_kib_each"),
    memory("w5-10000", "server_kib_each"),
    memory("w5-10000", "client_kib_each"),
    less(("w6", "p99_us"), 3.0, 1.0, &[("tonic", 1.0 / 8.0)]),
    Check { figure: "bulk_mb_s", ..more("w6", Split, 0.70, 0.95, &[]) },
    Check { mode: Mt, ..less(("w6", "p99_us"), 2.0, 1.3, &[("tonic", 1.0 / 3.0)]) },
    Check { peer: CONSUL, beside: Beside::Peer(PICOM), ..more("w7-1", Split, 0.90, 1.0, &[]) },
    Check { peer: CONSUL, beside: Beside::Peer(PICOM), ..more("w7-256", Split, 0.90, 1.0, &[]) },
    // No floor: `raw` cannot hold it either.
    Check { beside: Beside::Best("w8-"), ..more("w8-1000", Split, 0.0, 0.85, &[]) },
];

/// What `guard` looks at: quick, and steady beside neighbours.
pub(crate) fn guarded() -> impl Iterator<Item = &'static Check> {
    let steady = |check: &&Check| match check.beside {
        Beside::Raw(workload) => matches!((workload, check.mode), ("w1", _) | ("w2-256" | "w6", Split)),
        _ => false,
    };
    CHECKS.iter().filter(steady)
}
