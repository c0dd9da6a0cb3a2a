//! What changes around services: the wall clock, the address of Consul, their rights there, and how many ask it at once.
//!
//! Owns only tests; each is a row of `docs/faults.md` and prints its figure. Look next at `faults_consul.rs` for a Consul in
//! trouble.
#![cfg(all(unix, feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use picom::Picom;
use picom::registry::{Consul, Freshness, Registration, RegistrationState, Registry, Watch};
use serde_json::{Value, json};
use support::clock::{self, FalseClock, Temporary};
use support::consul::Agent;
use support::fake_consul::{FakeConsul, Reply, Request, entry, listing};
use support::fault::Row;
use support::logged::Logged;
use support::process::{self, Process, SERVICE, Setup, TOKEN};
use support::proxy::{Mode, Proxy};
use support::scene::{Scene, Stalls, Traffic, lasts};
use support::work::Journal;
use support::{eventually, instance, passing, state};
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

/// How many ask one agent.
const HERD: usize = 500;

/// An agent that remembers who registered, each under a name of its own.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<HashMap<String, Value>>>);

impl Memory {
    /// What an agent answers whose lists are at this index, and one further for each who has registered.
    fn answer(&self, index: u64, request: &Request) -> Reply {
        let mut known = self.0.lock().unwrap();
        let last = request.path.rsplit('/').next().unwrap_or_default();
        match request.verb() {
            "register" => {
                let id = request.body["ID"].as_str().unwrap();
                let mut listed = entry(id, 4000);
                listed["Service"]["Meta"] = request.body["Meta"].clone();
                known.insert(id.to_owned(), listed);
                Reply::text(200, "")
            }
            "pass" if known.contains_key(last.trim_start_matches("service:")) => Reply::text(200, ""),
            "pass" => Reply::text(404, "Unknown check ID"),
            _ if request.path == "/v1/acl/token/self" => Reply::text(401, "ACL support disabled"),
            _ => {
                let list: Vec<_> = known.get(last).cloned().into_iter().collect();
                let now = index + list.len() as u64;
                // As Consul: a query is answered when there is news, or after 55 s and up to a sixteenth.
                let wait = Duration::from_secs(55).mul_f64(1.0 + fastrand::f64() / 16.0);
                if request.index() == Some(now) { Reply::HoldFor(wait, now, list) } else { Reply::list(now, &list) }
            }
        }
    }
}

/// The most requests in any second since `from`.
fn peak(requests: &[Request], from: Instant) -> usize {
    let times: Vec<_> = requests.iter().map(|request| request.at).filter(|at| *at >= from).collect();
    let second = Duration::from_secs(1);
    let within = |start: &Instant| times.iter().filter(|at| **at >= *start && **at - *start < second).count();
    times.iter().map(within).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two and a half minutes"]
async fn five_hundred_who_beat_and_watch_spread_out_when_their_agent_restarts() {
    let memory = Memory::default();
    let before = memory.clone();
    let fake = FakeConsul::start(move |request| before.answer(100, request)).await;
    // They have started at any time: each with settings of its own, or they would share one watch as the clients of one
    // process do.
    let members = join_all((0..HERD).map(async |number| {
        lasts(Duration::from_secs(30).mul_f64(number as f64 / HERD as f64)).await;
        let registry = Consul::new(&fake.url()).unwrap().token(format!("token-{number}"));
        let name = format!("herd-{number}");
        let registration = registry.register(instance(&name, &name, 4000)).await.unwrap();
        (registry.watch(&name), registration)
    }))
    .await;
    for (_, registration) in &members {
        state(registration, "Registered", |state| *state == RegistrationState::Registered).await;
    }
    let (settled, stalls) = (Instant::now(), Stalls::watch());
    // As long as the longest period of what they do.
    lasts(Duration::from_secs(60)).await;
    let steady = fake.requests().iter().filter(|request| request.at >= settled).count() as f64 / 60.0;
    // Gone for 3 s, and back without memory.
    fake.becomes(|_| Reply::Reset);
    memory.0.lock().unwrap().clear();
    lasts(Duration::from_secs(3)).await;
    let back = Instant::now();
    let after = memory.clone();
    fake.becomes(move |request| after.answer(7, request));
    eventually("all are registered again", async || {
        // Whoever waits for news hears of it.
        fake.wake();
        memory.0.lock().unwrap().len() == HERD
    })
    .await;
    let again = back.elapsed();
    let live = |(watch, registration): &(Watch, Registration)| {
        let list = watch.current();
        list.freshness == Freshness::Live
            && list.usable().len() == 1
            && registration.state() == RegistrationState::Registered
    };
    let mut all_well = false;
    while back.elapsed() < Duration::from_secs(60) && !all_well {
        fake.wake();
        lasts(Duration::from_millis(100)).await;
        all_well = members.iter().all(live);
    }
    let well = back.elapsed();
    assert!(all_well, "{} of {HERD} lists and registrations are well", members.iter().filter(|m| live(m)).count());
    let requests = fake.requests();
    for second in 0..40 {
        let from = back + Duration::from_secs(second);
        let in_it = requests.iter().filter(|request| request.at >= from && request.at < from + Duration::from_secs(1));
        let mut kinds = std::collections::BTreeMap::<_, usize>::new();
        in_it.for_each(|request| *kinds.entry((request.verb(), request.index().is_some())).or_default() += 1);
        println!("second {second}: {} requests: {kinds:?}", kinds.values().sum::<usize>());
    }
    let peak = peak(&requests, back);
    let stall = stalls.bearable(Duration::from_millis(500));
    Row::new(25, "agent of 500 that beat and watch restarts without memory")
        .at_most("peak of requests a second, in times of the steady rate", peak as f64 / steady, 3.0)
        .at_most("all registered again after (a beat and TTL/6)", again, Duration::from_secs(16))
        .also("all have their lists again and have seen themselves listed after", well)
        .also("steady rate a second", steady)
        .also("peak", peak)
        .also("longest time in which the test did not run", stall)
        .finish();
}
