//! What changes around services: the wall clock, the address of Consul, and their rights there.
//!
//! Owns only tests; each is a row of `docs/faults.md` and prints its figure. Look next at `faults_consul.rs` for a Consul in
//! trouble.
#![cfg(all(unix, feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use picom::Picom;
use picom::registry::Consul;
use serde_json::{Value, json};
use support::clock::{self, FalseClock, Temporary};
use support::consul::Agent;
use support::fake_consul::{FakeConsul, Reply, listing};
use support::fault::Row;
use support::logged::Logged;
use support::passing;
use support::process::{self, Process, SERVICE, Setup, TOKEN};
use support::proxy::{Mode, Proxy};
use support::scene::{Scene, Traffic, lasts};
use support::work::Journal;
use tokio::time::Instant;

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

/// Says why a test does nothing here, past the test harness.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {why}\n");
}

/// Run as a program of its own, to see that the wall clock of such a program is the false one.
#[test]
fn the_wall_clock_is_told() {
    clock::tell_if_asked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_by_an_hour_costs_no_call_and_no_beat() {
    let Some(clock) = FalseClock::new() else { return };
    let Some(agent) = Agent::start().await else { return };
    let scene = Scene::with(agent, Duration::from_secs(3), &clock.variables()).await;
    let traffic = scene.traffic();
    traffic.more(50).await;
    let before = scene.changes().await;
    for hours in [1, -1] {
        clock.jump(hours);
        // Longer than the TTL.
        lasts(Duration::from_millis(3500)).await;
    }
    let changed = scene.changed_since(&before).await;
    let report = scene.finish(traffic).await;
    Row::new(18, "wall clock of the services jumps an hour ahead, then to an hour behind")
        .at_most("services that missed their TTL of 3 s", changed, 0)
        .at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .also("calls", report.outcomes.len())
        .finish();
}

/// A name that leads elsewhere whenever the test says so, for processes that are started through it.
struct Name {
    hosts: Temporary,
    through: Vec<String>,
}

impl Name {
    /// `None` on a machine that lets nobody mount.
    fn new(file: &str) -> Option<Self> {
        let hosts = Temporary::new(file);
        let mount = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.0.display());
        let through: Vec<_> =
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"].map(str::to_owned).into();
        let name = Self { hosts, through };
        name.leads_to("127.0.0.2");
        let allowed = Command::new(&name.through[0]).args(&name.through[1..]).arg("true").output();
        if allowed.is_ok_and(|tried| tried.status.success()) {
            return Some(name);
        }
        skipped("this machine lets nobody mount, so Consul's name could not be moved");
        None
    }

    fn leads_to(&self, ip: &str) {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.hosts.0).unwrap();
        file.write_all_at(format!("{ip} consul.test\n").as_bytes(), 0).unwrap();
    }

    /// Starts a service that knows Consul by this name, at this port.
    async fn service(&self, agent: &Agent, journal: &Journal, port: u16) -> Process {
        let mut setup = Setup::new(agent, Duration::from_secs(3), journal.path());
        setup.consul = format!("http://consul.test:{port}");
        setup.through.clone_from(&self.through);
        Process::start(&setup).await
    }
}

fn target(agent: &Agent) -> SocketAddr {
    agent.url().trim_start_matches("http://").parse().unwrap()
}

/// Waits until a service that was told that Consul has moved is registered at the new address.
async fn moves(fault: &str, name: &Name, new: &Agent, old_one_fails: impl FnOnce()) {
    name.leads_to("127.0.0.3");
    old_one_fails();
    let moved = Instant::now();
    passing(new, 1).await;
    Row::new(24, &format!("Consul's name points to another address, {fault}"))
        .at_most("registered there after", moved.elapsed(), Duration::from_secs(20))
        .finish();
}

async fn moves_from_an_agent(file: &str, fault: &str, mode: Mode) {
    let Some(name) = Name::new(file) else { return };
    let (Some(old), Some(new)) = (Agent::start().await, Agent::start().await) else { return };
    let first = Proxy::start_at("127.0.0.2:0".parse().unwrap(), target(&old)).await;
    let port = first.addr.port();
    let _second = Proxy::start_at(SocketAddr::from(([127, 0, 0, 3], port)), target(&new)).await;
    let journal = Journal::new();
    let _service = name.service(&old, &journal, port).await;
    passing(&old, 1).await;
    moves(fault, &name, &new, || first.set(mode)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consul_that_moves_to_another_address_is_found_there() {
    moves_from_an_agent("hosts-dead", "the old one is dead", Mode::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consul_that_moves_away_from_an_address_that_falls_silent_is_found() {
    moves_from_an_agent("hosts-silent", "the old one takes everything and says nothing", Mode::Hold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consul_that_moves_away_from_an_address_that_answers_wrongly_is_found() {
    for (file, fault, answer) in [
        ("hosts-wrong", "the old one answers 502 on connections that it keeps", Reply::text(502, "Bad Gateway")),
        ("hosts-404", "the old one answers 404 on connections that it keeps", Reply::text(404, "Not Found")),
        ("hosts-page", "the old one answers with a page", Reply::text(200, "<html>Parked</html>")),
    ] {
        let (Some(name), Some(new)) = (Name::new(file), Agent::start().await) else { return };
        let good = listing(100, &[]);
        let first = FakeConsul::start_at("127.0.0.2:0".parse().unwrap(), good).await;
        let port = first.addr().port();
        let _second = Proxy::start_at(SocketAddr::from(([127, 0, 0, 3], port)), target(&new)).await;
        let journal = Journal::new();
        let _service = name.service(&new, &journal, port).await;
        first.asked("beats", |requests| requests.iter().filter(|r| r.verb() == "pass").count() > 1).await;
        moves(fault, &name, &new, || first.becomes(move |_| answer.clone())).await;
    }
}

/// A token that may do everything; any UUID will do.
const MANAGEMENT: &str = "6d9a1f7c-0f5b-4d55-9c39-3a4b1f1c9e11";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes more than a minute"]
async fn a_revoked_token_costs_no_call_and_one_line_a_minute() {
    let Some(agent) = Agent::start_with_rights(MANAGEMENT).await else { return };
    let ask = async |method, path: &str, body: Value| -> Value {
        let answer = agent.http(method, path, Some(MANAGEMENT), &body.to_string()).await.unwrap();
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    };
    // So that the test itself sees who passes.
    let rules = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
    ask("PUT", "/v1/acl/policy", json!({"Name": "look", "Rules": rules})).await;
    let anonymous = "/v1/acl/token/00000000-0000-0000-0000-000000000002";
    ask("PUT", anonymous, json!({"Policies": [{"Name": "look"}]})).await;
    let rights = json!({"ServiceIdentities": [{"ServiceName": SERVICE}]});
    let token = ask("PUT", "/v1/acl/token", rights).await;
    let secret = token["SecretID"].as_str().unwrap().to_owned();

    let log = Arc::new(Logged::at(tracing::Level::WARN));
    tracing::subscriber::set_global_default(Arc::clone(&log)).unwrap();
    let url = agent.url();
    let caller = || {
        let registry = Consul::new(&url).unwrap().token(secret.clone());
        Picom::builder("caller").registry(registry).build().unwrap()
    };
    let callers = [caller()];
    let path = format!("/v1/acl/token/{}", token["AccessorID"].as_str().unwrap());
    let scene = Scene::with(agent, Duration::from_secs(30), &[(TOKEN, secret.clone())]).await;
    // One caller that makes all the calls, so that the lines are those of one process with one watch.
    let traffic = Traffic::start(&callers);
    traffic.more(50).await;
    let before = log.lines();
    let deleted = scene.agent.http("DELETE", &path, Some(MANAGEMENT), "").await.unwrap();
    assert_eq!(deleted.status, 200, "{}", deleted.body);
    lasts(Duration::from_secs(60)).await;
    let lines = log.lines() - before;
    let report = scene.finish(traffic).await;
    Row::new(31, "Consul's token of services and caller revoked for a minute")
        .at_most("failed calls", report.failed().len(), 0)
        .at_most("lines of log in the caller in that minute", lines, 1)
        .also("calls", report.outcomes.len())
        .finish();
}
