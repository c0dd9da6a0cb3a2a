//! The client's process: one workload against one server.
//!
//! Owns the line of JSON. Must never start a server. Next: `workloads`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::cli::Arguments;
use crate::peer::Peer;
use crate::peers::{self, Visit, moleculer, raw_std};
use crate::place::{Mode, Side, with_parent};
use crate::sample::Sample;
use crate::workloads::{self, Figures, Plan};

/// How the process ends when the peer cannot do the workload.
pub(crate) const CANNOT: i32 = 3;

pub(crate) fn main(mut arguments: Arguments) {
    with_parent(&arguments);
    let mode = arguments.option("mode").unwrap_or(Mode::Split);
    let (peer, workload) = (arguments.next(), arguments.next());
    let plan = Plan {
        address: arguments.option::<SocketAddr>("addr").expect("--addr is needed"),
        server: arguments.option("server-pid"),
        measured: Duration::from_secs_f64(arguments.option("seconds").unwrap_or(1.0)),
        calls: arguments.option("calls"),
    };
    if peer == moleculer::NAME {
        let _pinned = mode.enter(Side::Client);
        moleculer::become_it(moleculer::client(&workload, mode.name(), &plan));
    }
    let figures = if peer == raw_std::NAME {
        let _pinned = mode.enter(Side::Client);
        raw_std::load(&workload, &plan)
    } else {
        peers::visit(&peer, Load { mode, plan, workload: &workload })
    };
    let Some(figures) = figures else { std::process::exit(CANNOT) };
    let sample = Sample { peer, workload, mode: mode.name().to_owned(), noise: 0.0, figures };
    println!("{}", serde_json::to_string(&sample).expect("a sample is JSON"));
}

struct Load<'a> {
    mode: Mode,
    plan: Plan,
    workload: &'a str,
}

impl Visit for Load<'_> {
    type Output = Option<Figures>;

    fn visit<P: Peer>(self) -> Option<Figures> {
        let runtime = self.mode.enter(Side::Client);
        // From a task of the runtime, as users call: the thread of `block_on` is no worker.
        let workload = self.workload.to_owned();
        let task = runtime.spawn(async move { workloads::run::<P>(&workload, &self.plan).await });
        runtime.block_on(task).expect("the workload ran through")
    }
}
