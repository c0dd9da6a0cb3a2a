//! Measures picom beside raw sockets and other RPC frameworks. `picom-bench help` lists the commands.
//!
//! Owns the command line. Must never measure anything in this process: `serve` and `load` are processes of their own.
//! Next: `run` starts them, `workloads` is what they do, `peers` whom they do it to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that fails has no figures")]

mod cli;
mod load;
mod peer;
mod peers;
mod place;
mod run;
mod sample;
mod serve;
mod workloads;

use cli::Arguments;

const HELP: &str = "\
picom-bench run PEERS WORKLOADS [--mode split|same|mt] [--reps N] [--seconds S]
    fresh processes for each run, repetitions interleaved; medians and half of their range. Lists are separated by commas.
picom-bench serve PEER [--mode M]
    serves on a free port of 127.0.0.1, prints its address, and goes on until it is killed
picom-bench load PEER WORKLOAD --addr A [--mode M] [--seconds S] [--calls N] [--server-pid P]
    one run against such a server; prints one line of JSON. With --calls it makes that many calls and measures nothing.";

fn main() {
    let mut arguments = Arguments::parse(std::env::args().skip(1));
    match arguments.next().as_str() {
        "run" => run::main(arguments),
        "serve" => serve::main(arguments),
        "load" => load::main(arguments),
        _ => println!("{HELP}"),
    }
}
