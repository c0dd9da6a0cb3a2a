//! A Consul that is gone, frozen, restarted, empty, full or without a leader, under traffic of every kind.
//!
//! Owns only tests; each is a row of `docs/faults.md` and prints its figure. Look next at `faults_peers.rs` for services in
//! trouble, and at `registry_consul_faults.rs` for what a real Consul cannot be made to do.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use picom::registry::{Consul, Freshness, RegistrationState, Registry, Watch};
use picom::{Code, Picom};
use support::consul::Agent;
use support::fake_consul::{FakeConsul, entry, listing};
use support::fault::Row;
use support::process::{self, SERVICE};
use support::scene::{Scene, Traffic, lasts};
use support::work::WorkClient;
use support::{client, eventually, instance, passing, state, until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

/// The default.
const TTL: Duration = Duration::from_secs(30);
/// The pause between two beats at that TTL.
const BEAT: Duration = Duration::from_secs(10);

/// Within so long a new caller knows what is wrong.
const NAMED: Duration = Duration::from_secs(5);

/// Waits until the agent can be asked again.
async fn answers(agent: &Agent) {
    eventually("the agent answers", async || {
        let answer = agent.http("GET", "/v1/health/service/nobody", None, "").await;
        answer.is_some_and(|answer| answer.status == 200)
    })
    .await;
}

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_and_started_again_with_its_data_costs_no_call() {
    let Some(agent) = Agent::start_kept().await else { return };
    let mut scene = Scene::with(agent, Duration::from_secs(3), &[]).await;
    let traffic = scene.traffic();
    traffic.more(50).await;
    scene.agent.kill();
    // Longer than the TTL, so that the agent finds all of them overdue.
    lasts(Duration::from_secs(4)).await;
    scene.agent.restart().await;
    let begun = Instant::now();
    answers(&scene.agent).await;
    passing(&scene.agent, 3).await;
    let passed = begun.elapsed();
    traffic.more(100).await;
    let report = scene.finish(traffic).await;
    Row::new(3, "agent killed for 4 s with a TTL of 3 s, its data kept")
        .at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .also("passing again after", passed)
        .also("calls", report.outcomes.len())
        .finish();
}

/// Takes Consul away under traffic and gives it back without its memory.
async fn gone(row: Row, outage: Duration) {
    let Some(mut scene) = Scene::start(TTL).await else { return };
    let traffic = scene.traffic();
    traffic.more(50).await;
    scene.agent.kill();
    let called = Instant::now();
    // With settings of its own, or it would know what the others in this process have remembered.
    let registry = Consul::new(&scene.agent.url()).unwrap().token("of another process");
    let fresh: WorkClient = Picom::builder("fresh").registry(registry).build().unwrap().client(SERVICE);
    let error = fresh.who().await.unwrap_err();
    let told = called.elapsed();
    assert!(error.code() == Code::Unavailable && error.to_string().contains(&scene.agent.url()), "{error}");
    lasts(outage.saturating_sub(told)).await;
    scene.agent.restart().await;
    let begun = Instant::now();
    passing(&scene.agent, 3).await;
    let passed = begun.elapsed();
    traffic.more(50).await;
    let report = scene.finish(traffic).await;
    row.at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .within("a new caller has its error, which names Consul, after", told, NAMED)
        .at_most("all registered again after", passed, Duration::from_secs(20))
        .also("calls", report.outcomes.len())
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes twenty seconds"]
async fn consul_gone_for_ten_seconds_costs_no_call() {
    gone(Row::new(4, "Consul gone for 10 s, then back without memory"), Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes more than a minute"]
async fn consul_gone_for_a_minute_costs_no_call() {
    gone(Row::new(4, "Consul gone for a minute, then back without memory"), Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes"]
async fn consul_gone_for_ten_minutes_costs_no_call() {
    gone(Row::new(4, "Consul gone for 10 min, then back without memory"), Duration::from_secs(600)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and a half"]
async fn a_frozen_agent_is_given_up_in_time_and_costs_no_call() {
    let Some(scene) = Scene::start(TTL).await else { return };
    let registry = Consul::new(&scene.agent.url()).unwrap();
    let mut watch = registry.watch(SERVICE);
    until(&mut watch, "all three", |e| e.usable().len() == 3).await;
    let own = registry.register(instance("service1", "one", 4000)).await.unwrap();
    state(&own, "Registered", |state| *state == RegistrationState::Registered).await;
    let traffic = scene.traffic();
    traffic.more(50).await;
    // One query of 55 s and its slack, and the time of a connection.
    let limit = Duration::from_millis(55_000 * 17 / 16 + 10_000);
    scene.agent.stop();
    let begun = Instant::now();
    let mut states = own.states();
    let beats = async {
        timeout(limit, states.wait_for(|state| matches!(state, RegistrationState::Retrying(_))))
            .await
            .unwrap()
            .unwrap();
        begun.elapsed()
    };
    let seen = async {
        while !matches!(watch.changed().await.freshness, Freshness::Stale(_)) {}
        begun.elapsed()
    };
    let (beats, seen) = tokio::join!(beats, async { timeout(limit + BEAT, seen).await.unwrap() });
    scene.agent.cont();
    let thawed = Instant::now();
    passing(&scene.agent, 3).await;
    until(&mut watch, "the list again", |e| e.freshness == Freshness::Live && e.usable().len() == 3).await;
    let back = thawed.elapsed();
    traffic.more(50).await;
    let report = scene.finish(traffic).await;
    Row::new(5, "agent frozen until a watch gives it up, then thawed")
        .at_most("watch gives up after", seen, limit + Duration::from_millis(500))
        .at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .also("beats known to fail after", beats)
        .also("list live and all passing again after", back)
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_for_five_seconds_costs_no_call() {
    let Some(scene) = Scene::start(TTL).await else { return };
    let entries: Vec<_> =
        scene.processes.iter().map(|process| entry(&process.addr.to_string(), process.addr.port())).collect();
    let fake = FakeConsul::listing(100, &entries).await;
    let caller = || Picom::builder("caller").registry(Consul::new(&fake.url()).unwrap()).build().unwrap();
    let traffic = Traffic::start(&[caller(), caller()]);
    traffic.more(50).await;
    fake.becomes(listing(101, &[]));
    lasts(Duration::from_secs(5)).await;
    fake.becomes(listing(102, &entries));
    fake.asked("the list after that", |requests| requests.iter().any(|r| r.index() == Some(102))).await;
    traffic.more(50).await;
    let report = scene.finish(traffic).await;
    Row::new(6, "Consul lists nobody for 5 s")
        .at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .also("calls", report.outcomes.len())
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_takes_no_more_connections_still_gets_every_beat() {
    let Some(scene) = Scene::start(Duration::from_secs(3)).await else { return };
    let traffic = scene.traffic();
    traffic.more(50).await;
    let before = scene.changes().await;
    let host = scene.agent.url().trim_start_matches("http://").to_owned();
    // Consul takes 200 from one address.
    let mut kept = Vec::new();
    for _ in 0..250 {
        let mut stream = TcpStream::connect(&host).await.unwrap();
        let _ = stream.write_all(b"GET /v1/health/service/nobody?index=1&wait=1m HTTP/1.1\r\nHost: c\r\n\r\n").await;
        kept.push(stream);
    }
    let refused = scene.agent.http("GET", "/v1/status/leader", None, "").await;
    assert!(refused.as_ref().is_none_or(|answer| answer.status != 200), "the agent is not full: {refused:?}");
    // More than a TTL: who could not beat would be critical by now.
    lasts(Duration::from_secs(5)).await;
    drop(kept);
    answers(&scene.agent).await;
    passing(&scene.agent, 3).await;
    let changed = scene.changed_since(&before).await;
    let report = scene.finish(traffic).await;
    Row::new(8, "agent takes no more connections for 5 s, TTL 3 s")
        .at_most("services that missed their TTL", changed, 0)
        .at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes twelve seconds"]
async fn a_service_that_stands_still_for_eight_seconds_is_never_critical() {
    let Some(scene) = Scene::start(TTL).await else { return };
    let before = scene.changes().await;
    scene.processes[0].freeze();
    lasts(Duration::from_secs(8)).await;
    scene.processes[0].thaw();
    // What is to be seen of it is seen after its next beat.
    lasts(Duration::from_secs(2)).await;
    let changed = scene.changed_since(&before).await;
    Row::new(19, "service stands still for 8 s, TTL 30 s").at_most("times critical", changed, 0).finish();
}

/// Three Consul servers: the leader and two others.
async fn three() -> Option<[Agent; 3]> {
    let mut agents = Agent::start_three().await?;
    let leader = Agent::leader(&agents).await.expect("three servers have a leader");
    agents.rotate_left(leader);
    Some(agents)
}

/// The least number of instances that a watch has shown since.
struct Fewest {
    count: Arc<AtomicUsize>,
    _watching: AbortOnDropHandle<()>,
}

impl Fewest {
    fn of(mut watch: Watch) -> Self {
        let fewest = Arc::new(AtomicUsize::new(watch.current().usable().len()));
        let lowest = Arc::clone(&fewest);
        let watching = tokio::spawn(async move {
            loop {
                lowest.fetch_min(watch.changed().await.usable().len(), Ordering::Relaxed);
            }
        });
        Self { count: fewest, _watching: AbortOnDropHandle::new(watching) }
    }

    fn removed(&self, of: usize) -> usize {
        of - self.count.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn no_leader_for_15_seconds_costs_no_call_and_no_instance() {
    let Some([leader, other, left]) = three().await else { return };
    let scene = Scene::with(left, TTL, &[]).await;
    let mut watch = Consul::new(&scene.agent.url()).unwrap().watch(SERVICE);
    until(&mut watch, "all three", |e| e.usable().len() == 3).await;
    let fewest = Fewest::of(watch);
    let traffic = scene.traffic();
    traffic.more(50).await;
    leader.stop();
    other.stop();
    // Consul itself waits for a leader for some seconds before it says that there is none.
    let ((), none) =
        tokio::join!(lasts(Duration::from_secs(15)), scene.agent.http("GET", "/v1/health/service/nobody", None, ""));
    assert!(none.as_ref().is_none_or(|answer| answer.status != 200), "there is a leader: {none:?}");
    leader.cont();
    other.cont();
    answers(&scene.agent).await;
    passing(&scene.agent, 3).await;
    traffic.more(50).await;
    let report = scene.finish(traffic).await;
    Row::new(1, "three Consul servers without a leader for 15 s")
        .at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .at_most("instances removed", fewest.removed(3), 0)
        .also("calls", report.outcomes.len())
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn a_leader_that_is_killed_costs_no_call_and_no_instance() {
    let Some([mut leader, _other, left]) = three().await else { return };
    let scene = Scene::with(left, TTL, &[]).await;
    let mut watch = Consul::new(&scene.agent.url()).unwrap().watch(SERVICE);
    until(&mut watch, "all three", |e| e.usable().len() == 3).await;
    let fewest = Fewest::of(watch);
    let traffic = scene.traffic();
    traffic.more(50).await;
    let leads = async || scene.agent.http("GET", "/v1/status/leader", None, "").await.map(|answer| answer.body);
    let before = leads().await;
    leader.kill();
    let begun = Instant::now();
    eventually("another server leads", async || {
        let now = leads().await;
        now != before && now.is_some_and(|address| address.contains(':'))
    })
    .await;
    let elected = begun.elapsed();
    traffic.more(200).await;
    let report = scene.finish(traffic).await;
    Row::new(1, "of three Consul servers the leader killed")
        .at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .at_most("instances removed", fewest.removed(3), 0)
        .also("another leader after", elected)
        .also("calls", report.outcomes.len())
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute"]
async fn services_whose_agent_is_cut_off_from_the_servers_are_called_on() {
    let Some([leader, own, _other]) = three().await else { return };
    let scene = Scene::with(own, TTL, &[]).await;
    let callers = [client(&leader), client(&leader)];
    let traffic = Traffic::start(&callers);
    traffic.more(50).await;
    scene.agent.stop();
    let begun = Instant::now();
    // The servers find the agent dead, and with it all that it had told them of.
    let limit = begun + Duration::from_secs(60);
    while !leader.get(&format!("/v1/health/service/{SERVICE}?passing")).await.as_array().unwrap().is_empty() {
        assert!(Instant::now() < limit, "the servers have not noticed that the agent is cut off");
        lasts(Duration::from_millis(100)).await;
    }
    let noticed = begun.elapsed();
    lasts(Duration::from_secs(5)).await;
    scene.agent.cont();
    let report = scene.finish(traffic).await;
    Row::new(15, "the only agent of all services cut off from the Consul servers")
        .at_most("failed calls", report.at_full_rate().failed().len(), 0)
        .also("all critical after", noticed)
        .also("calls", report.outcomes.len())
        .finish();
}
