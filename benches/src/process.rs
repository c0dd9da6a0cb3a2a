//! The processes of one run: a fresh server, and a client that measures.
//!
//! Owns the children and what they print. Must never leave one behind, nor wait for ever. Next: `serve`, `load`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
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
    /// With how a process ended and what it said last.
    Failed(String),
}

/// Lines of a child's complaint that are kept; a panic has two.
const LAST_WORDS: usize = 4;

/// A child, killed when this goes.
struct Running {
    child: Child,
    /// What it has said on its standard error, which is shown too.
    complaint: Option<JoinHandle<Vec<String>>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("this program can be started again");
        let said = BufReader::new(child.stderr.take().expect("it was asked for"));
        let complaint = thread::spawn(move || {
            let mut last = Vec::new();
            for line in said.lines().map_while(Result::ok) {
                eprintln!("{line}");
                last.push(line);
                if last.len() > LAST_WORDS {
                    last.remove(0);
                }
            }
            last
        });
        Self { child, complaint: Some(complaint) }
    }

    /// How it ended, if it did by itself, and what it said last.
    fn reason(mut self, who: &str) -> String {
        // One that has said all closes its output a moment before it ends.
        thread::sleep(Duration::from_millis(50));
        let status = self.child.try_wait().ok().flatten();
        self.stop();
        let last = self.complaint.take().and_then(|complaint| complaint.join().ok()).unwrap_or_default().join(" ");
        let how = status.map_or_else(|| "did not end".to_owned(), |status| format!("ended with {status}"));
        if last.is_empty() { format!("the {who} {how}") } else { format!("the {who} {how}: {last}") }
    }

    fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
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
    let mut server = Running::start(&mut server);
    let mut address = String::new();
    let out = server.child.stdout.take().expect("it was asked for");
    BufReader::new(out).read_line(&mut address).expect("the server says its address");
    if address.is_empty() {
        return Ended::Failed(server.reason("server"));
    }
    let mut client = Running::start(
        myself(agent)
            .args(["load", peer, workload, "--mode", mode.name(), "--addr", address.trim(), "--with-parent"])
            .args(["--seconds", &seconds.to_string(), "--server-pid", &server.child.id().to_string()]),
    );
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = client.child.try_wait().expect("a child can be asked") {
            break status;
        }
        if begun.elapsed() > PATIENCE + Duration::from_secs_f64(10.0 * seconds) {
            return Ended::Failed(format!("{} after {:.0?}", client.reason("client"), begun.elapsed()));
        }
        // This process only waits here: looking more often would take from what is measured.
        thread::sleep(Duration::from_millis(5));
    };
    let mut line = String::new();
    let said = client.child.stdout.take().expect("it was asked for").read_to_string(&mut line);
    match (status.code(), said.ok().and_then(|_| serde_json::from_str(&line).ok())) {
        (Some(0), Some(sample)) => Ended::Measured(sample),
        (Some(CANNOT), _) => Ended::Cannot,
        _ => {
            let reason = client.reason("client");
            // Without its server no client gets far.
            let is_alone = matches!(server.child.try_wait(), Ok(Some(_)));
            Ended::Failed(if is_alone { format!("{reason}; {}", server.reason("server")) } else { reason })
        }
    }
}
