//! Fresh processes for each run, repetitions interleaved.
//!
//! Owns the children and what becomes of their lines. Must never leave a server behind. Next: `serve`, `load`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::cli::Arguments;
use crate::place::Mode;
use crate::sample::{Sample, medians};

/// A server's process, killed when this goes.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(peer: &str, mode: Mode) -> Self {
        let mut child = myself()
            .args(["serve", peer, "--mode", mode.name(), "--with-parent"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let mut address = String::new();
        let out = child.stdout.take().expect("it was asked for");
        BufReader::new(out).read_line(&mut address).expect("the server says its address");
        Self { child, address: address.trim().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, and then its client has said so.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn myself() -> Command {
    Command::new(std::env::current_exe().expect("this program has a path"))
}

/// One run; `None` when it failed, after the processes have said why.
pub(crate) fn once(peer: &str, workload: &str, mode: Mode, seconds: f64) -> Option<Sample> {
    let server = Server::start(peer, mode);
    let output = myself()
        .args(["load", peer, workload, "--mode", mode.name(), "--addr", &server.address])
        .args(["--seconds", &seconds.to_string(), "--server-pid", &server.child.id().to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("this program can be started again");
    serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
}

pub(crate) fn main(mut arguments: Arguments) {
    let (peers, workloads) = (arguments.list(), arguments.list());
    let mode = arguments.option("mode").unwrap_or(Mode::Split);
    let repetitions: usize = arguments.option("reps").unwrap_or(3);
    let seconds = arguments.option("seconds").unwrap_or(1.0);
    for workload in &workloads {
        let mut samples: Vec<Sample> = Vec::new();
        for _ in 0..repetitions {
            samples.extend(peers.iter().filter_map(|peer| once(peer, workload, mode, seconds)));
        }
        println!("{workload} {}", mode.name());
        let mut first = None;
        for peer in &peers {
            let middles = medians(samples.iter().filter(|sample| sample.peer == *peer));
            let Some(rate) = middles.get("rate") else { continue };
            let first = *first.get_or_insert(rate.median);
            print!("  {peer:<12} {:>12.0}/s ±{:>2.0} %  x{:.3}", rate.median, rate.spread * 100.0, rate.median / first);
            for (name, middle) in middles.iter().filter(|(name, _)| *name != "rate") {
                print!("  {name} {:.4}", middle.median);
            }
            println!();
        }
    }
}
