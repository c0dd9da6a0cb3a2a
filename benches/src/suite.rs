//! What `all` and `guard` run.
//!
//! Owns the lists. Must never know how a run goes. Next: `run`, `checks`.

use std::process::ExitCode;

use crate::checks::{Beside, guarded};
use crate::cli::{Arguments, refuse};
use crate::consul;
use crate::peer::Peer as _;
use crate::peers::picom::Typed;
use crate::peers::picom_consul::ThroughConsul;
use crate::peers::picom_name::ByName;
use crate::peers::picom_one::One;
use crate::peers::picom_two::Two;
use crate::peers::raw::Raw;
use crate::peers::tarpc::Tarpc;
use crate::peers::tonic::{Tonic, TonicTuned};
use crate::peers::volo::Volo;
use crate::peers::{self, moleculer};
use crate::place::Mode::{self, Mt, Same, Split};
use crate::run::Runner;
use crate::sample::Sample;
use crate::{table, verdict};

/// Where the lines of JSON go unless told otherwise.
const JSON: &str = "target/picom-bench.jsonl";

/// Every workload in every mode that says something about it.
const ALL: [(&str, Mode); 29] = [
    ("w1", Same),
    ("w1", Split),
    ("w2-64", Split),
    ("w2-256", Split),
    ("w2-1024", Split),
    ("w2-64", Mt),
    ("w2-256", Mt),
    ("w2-1024", Mt),
    ("w3-1k", Split),
    ("w3-64k", Split),
    ("w3-1m", Split),
    ("w4-items-down", Split),
    ("w4-items-up", Split),
    ("w4-sent-down", Split),
    ("w4-sent-up", Split),
    ("w4-chunks-down", Split),
    ("w4-chunks-up", Split),
    ("w5-1000", Split),
    ("w5-10000", Split),
    ("w6", Split),
    ("w6", Mt),
    ("w7-1", Split),
    ("w7-256", Split),
    ("w8-1", Split),
    ("w8-10", Split),
    ("w8-100", Split),
    ("w8-1000", Split),
    ("w8-1", Mt),
    ("w8-1000", Mt),
];

/// Their medians of few runs hang on luck: they get twice as many.
const UNSTEADY: [&str; 4] = ["w3-64k", "w3-1m", "w4-chunks-down", "w4-chunks-up"];

/// Whether a peer is in a row: what would say nothing new is left out.
fn takes_part(peer: &str, workload: &str, mode: Mode) -> bool {
    match (workload, mode) {
        ("w2-64" | "w2-1024", Mt) => {
            [Raw::NAME, Typed::NAME, ByName::NAME, Tarpc::NAME, Tonic::NAME, Volo::NAME].contains(&peer)
        }
        ("w7-1" | "w7-256", _) => [Typed::NAME, ThroughConsul::NAME].contains(&peer),
        _ if [ThroughConsul::NAME, One::NAME].contains(&peer) => false,
        _ if peer == Two::NAME => [("w1", Same), ("w2-256", Split)].contains(&(workload, mode)),
        _ if peer == TonicTuned::NAME => ["w3", "w4", "w6"].contains(&&workload[..2]),
        _ => true,
    }
}

pub(crate) fn all(arguments: &Arguments) -> ExitCode {
    let mut runner = Runner::new(arguments, Some(JSON.to_owned()));
    let names: Option<String> = arguments.option("peers");
    let mut peers: Vec<String> = match &names {
        Some(names) => names.split(',').map(str::to_owned).collect(),
        None => peers::ALL.iter().map(|&name| name.to_owned()).collect(),
    };
    peers::check(&peers);
    let installed = peers.iter().any(|peer| peer == moleculer::NAME).then(moleculer::install);
    if let Some(Err(reason)) = installed {
        println!("{} is skipped: {reason}", moleculer::NAME);
        peers.retain(|peer| peer != moleculer::NAME);
    }
    let repetitions = |workload: &str| runner.repetitions * if UNSTEADY.contains(&workload) { 2 } else { 1 };
    let rows = ALL.map(|(workload, mode)| {
        let in_it = |peer: &&String| takes_part(peer, workload, mode);
        (workload, mode, peers.iter().filter(in_it).cloned().collect::<Vec<_>>(), repetitions(workload))
    });
    let runs: usize = rows.iter().map(|(_, _, peers, repetitions)| peers.len() * repetitions).sum();
    println!(
        "{} workloads, {} peers, {} repetitions: about {:.0} minutes on a quiet machine",
        ALL.len(),
        peers.len(),
        runner.repetitions,
        runs as f64 * (runner.seconds + 1.0) / 60.0,
    );
    if consul::program().is_none() {
        println!("W7 is skipped: there is no Consul at $CONSUL_BIN, and no `consul` on the path");
    }
    println!("every run goes to {} as a line of JSON", arguments.option("json").unwrap_or(JSON.to_owned()));
    let mut samples = Vec::new();
    for (workload, mode, peers, repetitions) in rows {
        let more = runner.workload(&peers, workload, mode, repetitions);
        table::figures(&more);
        samples.extend(more);
    }
    verdict::table(&samples);
    runner.end()
}

pub(crate) fn table(arguments: &mut Arguments) {
    let path = arguments.next();
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| refuse(format_args!("{path}: {error}")));
    let read = |line: &str| {
        serde_json::from_str::<Sample>(line).unwrap_or_else(|error| refuse(format_args!("{path}: {error}")))
    };
    let samples: Vec<Sample> = text.lines().map(read).collect();
    let mut blocks: Vec<(&str, &str)> = Vec::new();
    for sample in &samples {
        let block = (sample.workload.as_str(), sample.mode.as_str());
        if !blocks.contains(&block) {
            blocks.push(block);
        }
    }
    for (workload, mode) in blocks {
        let here = |sample: &&Sample| sample.workload == workload && sample.mode == mode;
        table::figures(&samples.iter().filter(here).cloned().collect::<Vec<_>>());
    }
    verdict::table(&samples);
}

/// Tries until a ratio holds beside quiet runs of both: neighbours slow either of them, so that a ratio beside noise says
/// nothing, good or bad.
const TRIES: usize = 3;

pub(crate) fn guard(arguments: &Arguments) -> ExitCode {
    let mut runner = Runner { again: 0, ..Runner::new(arguments, None) };
    let mut open: Vec<_> = guarded().collect();
    for number in 1..=TRIES {
        let mut runs: Vec<(&str, Mode)> = open.iter().map(|check| (check.workload, check.mode)).collect();
        runs.dedup();
        let mut samples = Vec::new();
        for (workload, mode) in runs {
            samples.extend([Raw::NAME, Typed::NAME].iter().filter_map(|peer| runner.one(peer, workload, mode)));
        }
        let noise = samples.iter().map(|sample| sample.noise).fold(0.0, f64::max);
        println!("try {number}: others took up to {:.0} % of a core", noise * 100.0);
        open.retain(|check| {
            debug_assert!(matches!(check.beside, Beside::Raw(_)), "nothing else is measured");
            let value = verdict::reached(&samples, check.peer, check);
            let good = value.is_some_and(|value| check.holds(value, check.floor));
            let here = |sample: &&Sample| sample.workload == check.workload && sample.mode == check.mode.name();
            let quiet = samples.iter().filter(here).all(Sample::is_quiet);
            let shown = value.map_or("no figure".to_owned(), table::short);
            let word = match (good, quiet) {
                (true, true) => "",
                (false, true) => "  MISSED",
                (_, false) => "  too noisy to tell",
            };
            println!(
                "  {:<32} {shown:>8} of raw, {} {}{word}",
                check.name(),
                if check.less { "at most" } else { "at least" },
                check.floor
            );
            !(good && quiet)
        });
        if open.is_empty() {
            return ExitCode::SUCCESS;
        }
    }
    ExitCode::FAILURE
}
