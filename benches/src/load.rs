//! The client's process: one workload against one server.
//!
//! Owns the line of JSON. Must never start a server. Next: `workloads`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::cli::Arguments;
use crate::peer::Peer;
use crate::peers::{self, Visit, raw_std};
use crate::place::{Mode, Side};
use crate::sample::Sample;
use crate::workloads::{self, Plan};

pub(crate) fn main(mut arguments: Arguments) {
    let mode = arguments.option("mode").unwrap_or(Mode::Split);
    let (peer, workload) = (arguments.next(), arguments.next());
    let plan = Plan {
        address: arguments.option::<SocketAddr>("addr").expect("--addr is needed"),
        server: arguments.option("server-pid"),
        measured: Duration::from_secs_f64(arguments.option("seconds").unwrap_or(1.0)),
        calls: arguments.option("calls"),
    };
    let figures = if peer == raw_std::NAME {
        let _pinned = mode.enter(Side::Client);
        raw_std::load(&workload, &plan)
    } else {
        peers::visit(&peer, Load { mode, plan, workload: &workload })
    };
    let sample = Sample { peer, workload, mode: mode.name().to_owned(), figures };
    println!("{}", serde_json::to_string(&sample).expect("a sample is JSON"));
}

struct Load<'a> {
    mode: Mode,
    plan: Plan,
    workload: &'a str,
}

impl Visit for Load<'_> {
    type Output = workloads::Figures;

    fn visit<P: Peer>(self) -> workloads::Figures {
        let runtime = self.mode.enter(Side::Client);
        // From a task of the runtime, as users call: the thread of `block_on` is no worker.
        let workload = self.workload.to_owned();
        let task = runtime.spawn(async move { workloads::run::<P>(&workload, self.plan).await });
        runtime.block_on(task).expect("the workload ran through")
    }
}
