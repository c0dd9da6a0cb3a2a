//! Measures picom beside raw sockets and other RPC frameworks. `picom-bench help` lists the commands.
//!
//! Owns the command line. Must never measure anything in this process: `serve`, `load` and `registry-run` are processes of
//! their own.
//! Next: `suite` says what is run, `process`
//! starts it, `workloads` is what they do, `peers` whom they do it to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that fails has no figures")]

mod checks;
mod cli;
mod consul;
mod load;
mod noise;
mod peer;
mod peers;
mod place;
mod process;
mod registry;
mod registry_nodes;
mod registry_run;
mod run;
mod sample;
mod serve;
mod suite;
mod table;
mod verdict;
mod workloads;

use std::process::ExitCode;

use cli::Arguments;

const HELP: &str = "\
picom-bench all [--reps N] [--seconds S] [--peers P] [--json FILE]
    everything beside everybody: a block of medians for each workload, then ratios with their floors and targets
picom-bench guard
    a minute: picom beside raw; fails when a ratio is not above its floor in a quiet one of three tries
picom-bench run PEERS WORKLOADS [--mode split|same|mt] [--reps N] [--seconds S] [--json FILE]
    some of it; lists are separated by commas
picom-bench registry [RUNS] [--mode M] [--seconds S] [--json FILE]
    200 nodes on the registries that need no server: how soon a change is everywhere, and what it costs to do nothing for 20 s or S,
    beside their bounds; fails when one is missed
picom-bench table FILE
    what `all` prints, of such a file again
picom-bench serve PEER [--mode M] [--connections N]
    serves on a free port of 127.0.0.1, prints its address, and goes on until it is killed
picom-bench load PEER WORKLOAD --addr A [--mode M] [--seconds S] [--calls N] [--server-pid P]
    one run against such a server; prints one line of JSON. With --calls it makes that many calls and measures nothing.
picom-bench registry-run RUN [--mode M] [--seconds S]
    one of those in this process; prints one line of JSON

Each run has a fresh server and a fresh client, 0.3 s to warm up, and one second that is measured, or --seconds S. Peers take turns. A
run beside which somebody else took more than 5 % of a core is made again, once, or --again N times. benches/README.md lists peers and
workloads. Three repetitions are made unless --reps says otherwise; `all` writes to target/picom-bench.jsonl unless --json does.";

fn main() -> ExitCode {
    let mut arguments = Arguments::parse(std::env::args().skip(1));
    match arguments.next().as_str() {
        "all" => return suite::all(&arguments),
        "guard" => return suite::guard(&arguments),
        "run" => return run::main(arguments),
        "registry" => return registry::main(arguments),
        "registry-run" => registry_run::main(arguments),
        "table" => suite::table(&mut arguments),
        "serve" => serve::main(arguments),
        "load" => load::main(arguments),
        "" | "help" => println!("{HELP}"),
        other => cli::refuse(format_args!("there is no command {other:?}")),
    }
    ExitCode::SUCCESS
}
