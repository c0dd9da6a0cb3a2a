//! The processes of one run: a fresh server, and a client that measures.
//!
//! Owns the children and what they print. Must never leave one behind, nor wait for ever. Next: `serve`, `load`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::consul::Agent;
use crate::load::CANNOT;
use crate::place::Mode;
use crate::sample::Sample;
use crate::workloads::idle;

/// What a run may take beyond the time measured: streams and connections are made first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that every server takes from one address.
const USUAL: usize = 1_000;

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Measured(Sample),
    /// The peer has no such thing.
    Cannot,
    /// The processes have said why.
    Failed,
}

/// A child, killed when this goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program again, to find its services where the agent is, if there is one.
fn myself(agent: Option<&Agent>) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some(agent) = agent {
        command.env("PICOM_REGISTRY", &agent.url);
    }
    command
}

/// One run, beside the agent if there is one.
pub(crate) fn once(peer: &str, workload: &str, mode: Mode, seconds: f64, agent: Option<&Agent>) -> Ended {
    let mut server = myself(agent);
    server.args(["serve", peer, "--mode", mode.name(), "--with-parent"]);
    if let Some(connections) = idle::connections(workload).filter(|&connections| connections > USUAL) {
        server.args(["--connections", &connections.to_string()]);
    }
    let mut server = Running(server.spawn().expect("this program can be started again"));
    let mut address = String::new();
    let out = server.0.stdout.take().expect("it was asked for");
    BufReader::new(out).read_line(&mut address).expect("the server says its address");
    if address.is_empty() {
        return Ended::Failed;
    }
    let client = myself(agent)
        .args(["load", peer, workload, "--mode", mode.name(), "--addr", address.trim(), "--with-parent"])
        .args(["--seconds", &seconds.to_string(), "--server-pid", &server.0.id().to_string()])
        .spawn();
    let mut client = Running(client.expect("this program can be started again"));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = client.0.try_wait().expect("a child can be asked") {
            break status;
        }
        if begun.elapsed() > PATIENCE + Duration::from_secs_f64(10.0 * seconds) {
            eprintln!("{peer} {workload} {}: not done after {:?}", mode.name(), begun.elapsed());
            return Ended::Failed;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let mut line = String::new();
    let said = client.0.stdout.take().expect("it was asked for").read_to_string(&mut line);
    match (status.code(), said.ok().and_then(|_| serde_json::from_str(&line).ok())) {
        (Some(0), Some(sample)) => Ended::Measured(sample),
        (Some(CANNOT), _) => Ended::Cannot,
        _ => {
            eprintln!("{peer} {workload} {}: failed", mode.name());
            Ended::Failed
        }
    }
}
