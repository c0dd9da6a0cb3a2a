//! Runs in turns: every repetition goes through all peers, so that a slow minute hits all of them.
//!
//! Owns what is kept of the runs, also as lines of JSON. Must never choose among runs by their results, only by the noise
//! beside them. Next: `process` for one run, `noise`, `table`.

use std::fs::{self, File};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::{Arguments, refuse};
use crate::consul::Agent;
use crate::noise;
use crate::peer::Peer as _;
use crate::peers::picom_consul::ThroughConsul;
use crate::place::Mode;
use crate::process::{Ended, once};
use crate::sample::Sample;
use crate::{peers, table, workloads};

/// How runs are made.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) seconds: f64,
    pub(crate) repetitions: usize,
    /// How often a run is made again because somebody else used the machine.
    pub(crate) again: usize,
    pub(crate) json: Option<File>,
    /// Runs that broke off: their peers have no figures, which must not look like a peer that has no such thing.
    pub(crate) failed: Vec<String>,
}

impl Runner {
    pub(crate) fn new(arguments: &Arguments, json: Option<String>) -> Self {
        Self {
            seconds: arguments.option("seconds").unwrap_or(1.0),
            repetitions: arguments.option::<NonZeroUsize>("reps").map_or(3, NonZeroUsize::get),
            again: arguments.option("again").unwrap_or(1),
            json: arguments.option("json").or(json).map(|path| create(&path)),
            failed: Vec::new(),
        }
    }

    /// So many repetitions of one workload.
    pub(crate) fn workload(&mut self, peers: &[String], workload: &str, mode: Mode, repetitions: usize) -> Vec<Sample> {
        let mut samples = Vec::new();
        let mut peers = peers.to_vec();
        for _ in 0..repetitions {
            // A peer that cannot do it now cannot do it the next time.
            peers.retain(|peer| match self.one(peer, workload, mode) {
                Some(sample) => {
                    samples.push(sample);
                    true
                }
                None => false,
            });
        }
        samples
    }

    /// How the command ends: with the failures, if there were any.
    pub(crate) fn end(&self) -> ExitCode {
        for failed in &self.failed {
            eprintln!("FAILED: {failed}");
        }
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// One run, made again while there was noise, as often as that may be; the quietest.
    pub(crate) fn one(&mut self, peer: &str, workload: &str, mode: Mode) -> Option<Sample> {
        // In W7 also beside those that do not ask it, so that all have the same neighbour. The probe looks while it runs.
        let with_consul = peer == ThroughConsul::NAME || workload.starts_with("w7-");
        let mut best: Option<Sample> = None;
        for _ in 0..=self.again {
            // A fresh one knows nothing of the servers that were killed.
            let agent = if with_consul { Agent::start() } else { None };
            if with_consul && agent.is_none() {
                println!("{peer} {workload} {}: left out, there is no Consul", mode.name());
                break;
            }
            let before = noise::wait();
            let mut sample = match once(peer, workload, mode, self.seconds, agent.as_ref()) {
                Ended::Measured(sample) => sample,
                Ended::Cannot => {
                    println!("{peer} {workload} {}: left out, this peer cannot do it", mode.name());
                    break;
                }
                Ended::Failed(reason) => {
                    self.failed.push(format!("{peer} {workload} {}: {reason}", mode.name()));
                    break;
                }
            };
            sample.noise = before.max(noise::look());
            if best.as_ref().is_none_or(|best| sample.noise < best.noise) {
                best = Some(sample);
            }
            if best.as_ref().is_some_and(Sample::is_quiet) {
                break;
            }
        }
        let sample = best?;
        if let Some(json) = &mut self.json {
            writeln!(json, "{}", serde_json::to_string(&sample).expect("a sample is JSON"))
                .expect("the file can be written");
        }
        Some(sample)
    }
}

pub(crate) fn create(path: &str) -> File {
    let folder = Path::new(path).parent().map_or(Ok(()), fs::create_dir_all);
    folder.and_then(|()| File::create(path)).unwrap_or_else(|error| refuse(format_args!("{path}: {error}")))
}

pub(crate) fn main(mut arguments: Arguments) -> ExitCode {
    let (peers, workloads) = (arguments.list(), arguments.list());
    if peers.is_empty() || workloads.is_empty() {
        refuse("run needs peers and workloads, such as `run raw,picom w1,w2-256`");
    }
    peers::check(&peers);
    workloads::check(&workloads);
    let mode = arguments.option("mode").unwrap_or(Mode::Split);
    let mut runner = Runner::new(&arguments, None);
    for workload in &workloads {
        table::figures(&runner.workload(&peers, workload, mode, runner.repetitions));
    }
    runner.end()
}
