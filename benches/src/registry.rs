//! What the registries without a server cost: 200 nodes in one process, which is a process of its own for every run.
//!
//! Owns the list of runs, the bounds, and what is printed. Must never measure: `registry_run` does. Next: `registry_run`,
//! `registry_nodes`.

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};

use crate::cli::{Arguments, refuse};
use crate::noise;
use crate::place::Mode;
use crate::registry_nodes::{NODES, RUNS, SERVICES};
use crate::run::create;
use crate::sample::Sample;
use crate::table::short;

/// How the nodes' runtime is made unless told otherwise: as `#[tokio::main]` makes it.
pub(crate) const MODE: Mode = Mode::Mt;

/// A figure as it is printed, and what it must not exceed.
struct Figure {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    /// For the runs whose name begins with the text.
    bound: Option<(&'static str, f64)>,
}

const fn figure(name: &'static str, title: &'static str, unit: &'static str) -> Figure {
    Figure { name, title, unit, bound: None }
}

impl Figure {
    const fn at_most(self, bound: f64, runs: &'static str) -> Self {
        Self { bound: Some((runs, bound)), ..self }
    }

    fn bound(&self, sample: &Sample) -> Option<f64> {
        self.bound.filter(|(runs, _)| sample.workload.starts_with(runs)).map(|(_, bound)| bound)
    }
}

const FIGURES: [Figure; 17] = [
    figure("joined_ms", "everybody knows everybody", "ms"),
    figure("register_p50_ms", "registered, known everywhere, median", "ms").at_most(1000.0, ""),
    figure("register_max_ms", "                             worst", "ms").at_most(1000.0, ""),
    figure("state_p50_ms", "another state, known everywhere, median", "ms").at_most(1000.0, ""),
    figure("state_max_ms", "                                worst", "ms").at_most(1000.0, ""),
    figure("free_p50_ms", "freed, known everywhere, median", "ms").at_most(1000.0, ""),
    figure("free_max_ms", "                        worst", "ms").at_most(1000.0, ""),
    figure("sent_b_s", "sent by a node, mean", "B/s").at_most(4096.0, ""),
    figure("sent_s", "", "/s"),
    figure("received_b_s", "received by a node, mean", "B/s").at_most(4096.0, "manifest"),
    figure("received_s", "", "/s"),
    figure("median_b", "a datagram, median", "B").at_most(300.0, "broadcast"),
    figure("longest_b", "            longest", "B").at_most(300.0, "broadcast"),
    figure("cpu_percent", "CPU of all nodes, of one core", "%").at_most(2.0, "manifest"),
    figure("kib_each", "memory of a node", "KiB").at_most(2048.0, ""),
    figure("busiest_sent_b_s", "sent by the busiest node", "B/s"),
    figure("busiest_received_b_s", "received by the busiest node", "B/s"),
];

pub(crate) fn main(mut arguments: Arguments) -> ExitCode {
    let mut names = arguments.list();
    if names.is_empty() {
        names = RUNS.map(str::to_owned).to_vec();
    }
    if let Some(name) = names.iter().find(|name| !RUNS.contains(&name.as_str())) {
        refuse(format_args!("there is no registry run {name:?}: {}", RUNS.join(", ")));
    }
    let mode = arguments.option("mode").unwrap_or(MODE);
    let seconds: f64 = arguments.option("seconds").unwrap_or(20.0);
    let mut json = arguments.option::<String>("json").map(|path| create(&path));
    println!(
        "{NODES} nodes in one process, {SERVICES} services each, {seconds} s of doing nothing; mode {}",
        mode.name()
    );
    let mut missed = Vec::new();
    for name in names {
        let Some(sample) = once(&name, mode, seconds) else {
            missed.push(format!("{name} failed"));
            continue;
        };
        if let Some(json) = &mut json {
            writeln!(json, "{}", serde_json::to_string(&sample).expect("a sample is JSON"))
                .expect("the file can be written");
        }
        missed.extend(print(&sample));
    }
    for missed in &missed {
        eprintln!("MISSED: {missed}");
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run in a process of its own, which nothing else has made larger before. It ends by itself, whatever happens.
fn once(name: &str, mode: Mode, seconds: f64) -> Option<Sample> {
    let before = noise::wait();
    let mut run = Command::new(std::env::current_exe().expect("this program has a path"));
    run.args(["registry-run", name, "--mode", mode.name(), "--seconds", &seconds.to_string(), "--with-parent"]);
    let run = run.stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("this program can be started again");
    let read = |output: &[u8]| serde_json::from_slice::<Sample>(output).ok();
    let mut sample = run.status.success().then(|| read(&run.stdout)).flatten()?;
    sample.noise = before.max(noise::look());
    Some(sample)
}

/// Every figure of a run with its bound; what is past one.
fn print(sample: &Sample) -> Vec<String> {
    let noisy = if sample.is_quiet() { String::new() } else { format!("  ({:.0} % noise)", sample.noise * 100.0) };
    println!("\n{} {}{noisy}", sample.workload, sample.mode);
    let mut missed = Vec::new();
    for figure in FIGURES.iter().filter(|figure| sample.figures.contains_key(figure.name)) {
        let value = sample.figures[figure.name];
        let bound = figure.bound(sample);
        let is_missed = bound.is_some_and(|bound| value > bound);
        let beside = bound.map_or(String::new(), |bound| format!("at most {bound}"));
        let mark = if is_missed { "  MISSED" } else { "" };
        println!(
            "{}",
            format!("  {:<42} {:>8} {:<4} {beside}{mark}", figure.title, short(value), figure.unit).trim_end()
        );
        if is_missed {
            let title = if figure.title.starts_with(' ') { figure.name } else { figure.title };
            missed.push(format!("{}: {title}: {} {}", sample.workload, short(value), figure.unit));
        }
    }
    missed
}
