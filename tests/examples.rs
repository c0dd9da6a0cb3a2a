//! Every example runs, ends with success and says what it should.
//!
//! Owns no example: it runs the programs that `cargo test` has built beside this one. Those that find each other through
//! Consul run against an agent of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use futures::StreamExt;
use support::PATIENCE;
use support::consul::Agent;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// The programs that this file runs; a test keeps it complete.
const RUN: [&str; 15] = [
    "balancing",
    "boxcar",
    "by_name",
    "context",
    "errors",
    "file_transfer",
    "graceful_restart",
    "hedging",
    "hello",
    "pick",
    "quickstart",
    "runtime_per_core",
    "service1",
    "service2",
    "two_terminals",
];

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An example that is about to run, without the variables that would change what it does.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(program.is_file(), "{} is missing; build it with `cargo build --examples`", program.display());
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("PICOM_") || name.starts_with("CONSUL_") {
            command.env_remove(&variable);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a program to its end, which must be a good one; returns what it printed.
async fn succeeds(command: &mut Command) -> String {
    let output: Output = timeout(PATIENCE * 3, command.output()).await.expect("the example ends").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

fn says(output: &str, lines: &[&str]) {
    for line in lines {
        assert!(output.contains(line), "nothing says {line:?} in:\n{output}");
    }
}

const TOUR: [&str; 7] = [
    "typed:     add(2, 5) = 7",
    "by name:   add(2, 5) = 7",
    "down:      count(5) = [0, 1, 2, 3, 4]",
    "up:        sum(1..=10) = 55",
    "both ways: echo = fro",
    "its error: divide(1, 0) = DivisionByZero",
    "service1 has left",
];

#[tokio::test]
async fn balancing_keeps_away_from_the_slow_one() {
    let output = succeeds(&mut example("balancing")).await;
    says(&output, &["round robin: [20, 20, 20]", "anna belongs to ", ": Closed, Some("]);
    let shares = output.split("peak EWMA:   ").nth(1).and_then(|rest| rest.lines().next()).expect("its shares");
    let least: usize = shares.trim_matches(['[', ']']).split(", ").map(|share| share.parse().unwrap()).min().unwrap();
    assert!(least < 10, "the slow one of three got {least} of 60 calls: {output}");
    let owners: Vec<_> = output.lines().filter(|line| line.starts_with("anna")).collect();
    assert!(owners.len() == 2 && owners[0] == owners[1], "{output}");
}

#[tokio::test]
async fn hedging_shortens_the_slowest_calls() {
    let output = succeeds(&mut example("hedging")).await;
    let p99 = |of: &str| {
        let line = output.lines().find(|line| line.starts_with(of)).unwrap_or_else(|| panic!("no {of} in {output}"));
        let number = line.split("p99 ").nth(1).and_then(|rest| rest.split(" ms").next()).expect("milliseconds");
        number.parse::<u64>().expect("a number")
    };
    assert!(p99("with hedge") < p99("without") / 2, "{output}");
}

#[tokio::test]
async fn quickstart_needs_nothing() {
    let output = succeeds(&mut example("quickstart")).await;
    says(&output, &["memory://quickstart"]);
    says(&output, &TOUR);
}

#[tokio::test]
async fn quickstart_does_the_same_through_consul() {
    let Some(agent) = Agent::start().await else { return };
    let url = agent.url().replace("http://", "consul://");
    let output = succeeds(example("quickstart").env("PICOM_REGISTRY", &url)).await;
    says(&output, &[&url]);
    says(&output, &TOUR);
}

#[tokio::test]
async fn quickstart_does_the_same_through_every_registry_that_needs_no_server() {
    let port = free_port();
    let urls = [
        "memory://elsewhere".to_owned(),
        format!("manifest://local:{}", free_port()),
        format!("broadcast://127.255.255.255:{}", free_port()),
        format!("broadcast://239.77.5.5:{}?period=200ms", free_port()),
        format!("fixed://service1=127.0.0.1:{port}"),
    ];
    for url in urls {
        let mut quickstart = example("quickstart");
        if url.starts_with("fixed") {
            quickstart.arg(port.to_string());
        }
        let output = succeeds(quickstart.env("PICOM_REGISTRY", &url)).await;
        says(&output, &[&format!("registered in {url}")]);
        says(&output, &TOUR);
    }
}

#[tokio::test]
async fn the_programs_of_the_readme_run_without_and_with_consul() {
    let (typed, by_name) = (["2 + 5 = 7", "item 0\nitem 1\nitem 2\n"], ["2 + 5 = 7", "items [0, 1, 2]"]);
    says(&succeeds(example("hello").env("PICOM_REGISTRY", "memory://hello")).await, &typed);
    says(&succeeds(example("by_name").env("PICOM_REGISTRY", "memory://by-name")).await, &by_name);
    let Some(agent) = Agent::start().await else { return };
    says(&succeeds(example("hello").env("CONSUL_HTTP_ADDR", agent.url())).await, &typed);
    says(&succeeds(example("by_name").env("CONSUL_HTTP_ADDR", agent.url())).await, &by_name);
}

#[tokio::test]
async fn a_file_comes_back_as_it_went() {
    let output = succeeds(example("file_transfer").arg("4")).await;
    let hashes: BTreeSet<_> = output.lines().filter_map(|line| line.split("sha256 ").nth(1)?.get(..64)).collect();
    assert_eq!((hashes.len(), output.lines().count()), (1, 3), "{output}");
}

#[tokio::test]
async fn errors_name_what_failed_where_and_whether_it_ran() {
    let output = succeeds(&mut example("errors")).await;
    says(
        &output,
        &[
            "application error\n    150 missing",
            "not found: bank.owner at 127.0.0.1:",
            ": no account 7 (attempt 1 of 4; the handler ran)",
            "page 3 is unreadable",
            "the nearest is `withdraw`",
            "argument `amount`",
            "exceed the server's limit of 1048576",
            "deadline exceeded: bank.audit at",
            "the handler panicked; see the server's log",
            "knows no instance of `bnak` (the handler never ran)",
            "connection refused (attempt 4 of 4; the handler never ran)",
        ],
    );
}

#[tokio::test]
async fn a_boxcar_spreads_the_load_and_a_restarted_server_gets_its_share() {
    let output = succeeds(&mut example("boxcar")).await;
    let spreads: Vec<f64> = output.lines().filter_map(|line| line.split("max/mean ").nth(1)?.parse().ok()).collect();
    let [before, without, after] = spreads[..] else { panic!("{output}") };
    assert!(before <= 1.15 && after <= 1.15, "{output}");
    assert!((1.4..=1.7).contains(&without), "two of three do all the work: {output}");
}

#[tokio::test]
async fn a_chain_of_calls_inherits_deadline_and_metadata() {
    let output = succeeds(&mut example("context")).await;
    says(
        &output,
        &[
            "stock: asked by shop for tenant acme, note None, deadline Some(2s)",
            "customer: the price is 5",
            "customer: 42 left on shelf Some(\"7b\"), 1 attempt",
            "customer: deadline exceeded: shop.price at",
        ],
    );
}

#[tokio::test]
async fn a_pick_waits_and_every_state_is_seen() {
    let output = succeeds(&mut example("pick")).await;
    let begins = ["nobody", "up", "running", "picked [", "doing: a backup", "stopped: disk full"];
    let begins =
        begins.into_iter().chain(["deadline exceeded: ", "a node that is stopped cannot become stopped", "nobody"]);
    for (line, begin) in output.lines().zip(begins.clone()) {
        assert!(line.starts_with(begin), "{line:?} instead of {begin:?} in:\n{output}");
    }
    assert_eq!(output.lines().count(), begins.count(), "{output}");
    says(&output, &["is stopped: disk full", "from here it can become doing, running, down"]);
}

#[tokio::test]
async fn every_core_has_an_instance_that_answers() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let line = format!("100 calls were answered by {} of {cores} instances", cores.min(100));
    says(&succeeds(&mut example("runtime_per_core")).await, &[&line]);
}

#[tokio::test]
async fn a_rolling_restart_fails_no_call() {
    says(&succeeds(&mut example("graceful_restart")).await, &["instance 3 of 3 restarted", " calls, 0 failed"]);
}

#[tokio::test]
async fn two_devices_find_each_other_through_consul_and_the_first_leaves_when_told() {
    let Some(agent) = Agent::start().await else { return };
    let mut service1 = Running::start(example("service1").env("CONSUL_HTTP_ADDR", agent.url()));
    service1.says(": Registered").await;

    let output = succeeds(example("service2").env("CONSUL_HTTP_ADDR", agent.url())).await;
    says(&output, &["2 + 5 = 7, says 127.0.0.1:", "item 0\nitem 1\nitem 2\n"]);

    service1.says("add(2, 5) for service2").await;
    service1.signal("TERM");
    service1.says("SIGTERM (15): leaving").await;
    service1.says("service1 has left").await;
    assert_eq!(service1.ends().await, Some(143));
    let left = agent.get("/v1/agent/services").await;
    assert_eq!(left.as_object().map(serde_json::Map::len), Some(0), "it is still registered: {left}");
}

#[cfg(feature = "broadcast")]
#[tokio::test]
async fn a_program_that_a_signal_ends_tells_others_which_and_its_supervisor_too() {
    use picom::registry::broadcast::{Broadcast, Event, Gone};
    for (signal, code, reason) in [("TERM", 143, "down: SIGTERM (15)"), ("INT", 130, "down: SIGINT (2)")] {
        let network = format!("127.255.255.255:{}", free_port());
        let mut events = Broadcast::to(&network).unwrap().events();
        let url = format!("broadcast://{network}");
        let mut service1 = Running::start(example("service1").env("PICOM_REGISTRY", &url));
        service1.says(": Registered").await;
        service1.signal(signal);
        let left = timeout(PATIENCE, async {
            loop {
                if let Event::Removed { service, endpoint, reason } = events.next().await.expect("events do not end") {
                    return (service, endpoint.status.to_string(), reason);
                }
            }
        });
        let left = left.await.expect("others hear that it leaves");
        assert_eq!(left, ("service1".to_owned(), reason.to_owned(), Gone::Left));
        assert_eq!(service1.ends().await, Some(code));
    }
}

#[tokio::test]
async fn two_terminals_need_no_server_and_either_may_be_first() {
    // A port of their own, so that nobody else on this machine is found.
    let port = free_port().to_string();
    let mut calling = Running::start(example("two_terminals").args(["call", &port]));
    calling.says("waiting for a greeter").await;
    let mut serving = Running::start(example("two_terminals").args(["serve", &port]));
    serving.says("greeter listens at").await;
    calling.says("hello, Grace, from process").await;
    let output = succeeds(example("two_terminals").args(["call", &port])).await;
    says(&output, &["there is one at 127.0.0.1:", "hello, Ada, from process"]);
    serving.signal("TERM");
    serving.says("SIGTERM (15): greeter has left").await;
}

#[test]
fn no_example_is_left_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let names: BTreeSet<_> = files.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(RUN));
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.starts_with("//! "), "{} must open with what it shows and how to run it", file.display());
    }
}

/// A program that goes on until it is told to stop.
struct Running {
    child: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for a line that contains `what`.
    async fn says(&mut self, what: &str) {
        let mut seen = Vec::new();
        let found = timeout(PATIENCE, async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                let found = line.contains(what);
                seen.push(line);
                if found {
                    return true;
                }
            }
            false
        });
        if !found.await.unwrap_or(false) {
            let mut errors = String::new();
            let _ = self.child.start_kill();
            self.child.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
            panic!("waited for {what:?}, but it said {seen:#?}\nstderr: {errors}");
        }
    }

    /// Waits for its end; returns its exit code.
    async fn ends(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap().code()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().expect("it still runs").to_string();
        let status = std::process::Command::new("kill").args([&format!("-{name}"), &id]).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{name}");
    }
}
