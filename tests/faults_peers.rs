//! Services that are cut off, frozen, or replaced by somebody else at their address, under traffic of every kind.
//!
//! Owns only tests; each is a row of `docs/faults.md` and prints its figure. Look next at `faults_consul.rs` for a Consul in
//! trouble, and at `consul_kill.rs` and `consul_rolling.rs` for services that die or leave.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use picom::registry::Memory;
use picom::{Methods, Picom, Status};
use serde_json::json;
use support::client;
use support::consul::Agent;
use support::eventually;
use support::fault::Row;
use support::process::{self, Process, SERVICE, Setup};
use support::proxy::{Mode, Proxy};
use support::scene::{Scene, Traffic, lasts};
use support::work::{Journal, WorkClient};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// So long that it is never Consul that notices.
const TTL: Duration = Duration::from_secs(60);
/// Within so long a peer that has fallen silent is noticed.
const NOTICED: Duration = Duration::from_secs(6);

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

/// Services behind proxies, which are all that the callers know of.
struct Proxied {
    scene: Scene,
    proxies: Vec<Proxy>,
    callers: Vec<Picom>,
    // It knows the proxies; the services tell another one of themselves.
    _agent: Agent,
}

async fn proxied() -> Option<Proxied> {
    let scene = Scene::start(TTL).await?;
    let agent = Agent::start().await?;
    let mut proxies = Vec::new();
    for process in &scene.processes {
        let proxy = Proxy::start(process.addr).await;
        let check = json!({"TTL": "600s", "Status": "passing"});
        let service = json!({"ID": format!("proxy-{}", proxy.addr.port()), "Name": SERVICE, "Address": "127.0.0.1",
            "Port": proxy.addr.port(), "Check": check});
        agent.put("/v1/agent/service/register", &service).await;
        proxies.push(proxy);
    }
    let callers = vec![client(&agent), client(&agent)];
    Some(Proxied { scene, proxies, callers, _agent: agent })
}

/// How many sockets to this port this process holds.
fn sockets_to(addr: SocketAddr) -> usize {
    let port = format!(":{:04X}", addr.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("the kernel lists its sockets");
    let held = |line: &&str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns.get(2).is_some_and(|to| to.ends_with(&port)) && columns.get(9).is_some_and(|inode| *inode != "0")
    };
    table.lines().filter(held).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_loses_everything_is_noticed_in_six_seconds_and_leaves_nothing_open() {
    let Some(Proxied { scene, proxies, callers, _agent }) = proxied().await else { return };
    let traffic = Traffic::start(&callers);
    traffic.more(100).await;
    proxies[0].set(Mode::Hold);
    lasts(NOTICED + Duration::from_secs(1)).await;
    let report = scene.finish(traffic).await;
    drop(callers);
    let dropped = Instant::now();
    eventually("nothing is open to the peer that is cut off", async || sockets_to(proxies[0].addr) == 0).await;
    Row::new(11, "half-open: one of three peers loses all packets both ways")
        .within("noticed after", report.at_full_rate().noticed(), NOTICED)
        .at_most("timeouts in % of calls", report.timeouts(), 0.1)
        .at_most("failed idempotent calls", report.failed_looks(None), 0)
        .at_most("connections closed after", dropped.elapsed(), Duration::from_secs(30))
        .also("other calls lost that had been sent", report.failed().len())
        .also("calls", report.outcomes.len())
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_only_consul_can_reach_is_left_alone_after_six_seconds() {
    let Some(Proxied { scene, proxies, callers, _agent }) = proxied().await else { return };
    let traffic = Traffic::start(&callers);
    traffic.more(50).await;
    // Calls get there; no word comes back.
    proxies[0].set(Mode::HoldBack);
    let cut = Instant::now();
    lasts(NOTICED).await;
    let noticed = Instant::now();
    traffic.more(200).await;
    let report = scene.finish(traffic).await;
    let late = report.failed().into_iter().filter(|call| call.begun >= noticed).count();
    let slow = report.outcomes.iter().filter(|call| call.begun >= noticed).map(|call| call.took).max().unwrap();
    assert!(report.noticed() > Duration::from_secs(1), "no call hung, so nothing was tested");
    Row::new(14, "partition one way between callers and one of three, Consul well")
        .at_most("failed idempotent calls after 6 s", report.at_full_rate().failed_looks(Some(noticed)), 0)
        .at_most("failed idempotent calls before", report.failed_looks(Some(cut)), 0)
        .also("failed calls of any kind after 6 s", late)
        .also("longest call after 6 s", slow)
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_half_closed_and_slow_connections_fail_no_idempotent_call() {
    let Some(Proxied { scene, proxies, callers, _agent }) = proxied().await else { return };
    let traffic = Traffic::start(&callers);
    for mode in [
        Mode::Reset,
        Mode::HalfClose,
        Mode::Delay(Duration::from_millis(50)),
        Mode::Trickle(Duration::from_millis(2)),
        Mode::Cut,
    ] {
        proxies[0].set(mode);
        traffic.more(80).await;
        proxies[0].set(Mode::Pass);
        traffic.more(20).await;
    }
    let report = scene.finish(traffic).await;
    Row::new(14, "one of three: reset, half-closed, delayed up to 50 ms, a byte each 2 ms, closed")
        .at_most("failed idempotent calls", report.at_full_rate().failed_looks(None), 0)
        .also("longest failover", report.failover().1)
        .also("other calls lost that had been sent", report.failed().len())
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_of_one_name_that_start_at_once_never_share_an_id() {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let setup = Setup::new(&agent, Duration::from_secs(3), journal.path());
    let begun = Instant::now();
    let processes = tokio::join!(Process::start(&setup), Process::start(&setup), Process::start(&setup));
    let typed: WorkClient = client(&agent).client(SERVICE);
    for process in [&processes.0, &processes.1, &processes.2] {
        eventually("it is reached", async || typed.who().await.is_ok_and(|pid| pid == process.pid())).await;
    }
    let reached = begun.elapsed();
    let services = agent.get("/v1/agent/services").await;
    let ids = services.as_object().unwrap().values().filter(|service| service["Service"] == SERVICE).count();
    // A fixed port is part of the id, and only one can listen there.
    let port = processes.0.addr.port();
    let second = Picom::builder(SERVICE).registry(Memory::new()).bind("127.0.0.1").port(port).build().unwrap();
    let refused = second.expose(Methods::new()).await.map(drop);
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains(&port.to_string())), "{refused:?}");
    Row::new(21, "three processes of one name start at once, a fourth wants a taken port")
        .at_most("shared ids", 3 - ids, 0)
        .within("all reached after (two beats)", reached, Duration::from_secs(2))
        .finish();
}

/// Kills one of three and lets somebody else listen at its address, which Consul goes on to list.
async fn replaced<T>(row: Row, take_over: impl AsyncFnOnce(SocketAddr) -> T, judged: impl FnOnce(Row) -> Row) {
    let Some(mut scene) = Scene::start(Duration::from_secs(30)).await else { return };
    let traffic = scene.traffic();
    traffic.more(50).await;
    let addr = scene.processes[0].addr;
    scene.processes[0].kill().await;
    let _other = take_over(addr).await;
    let taken = Instant::now();
    traffic.more(300).await;
    let report = scene.finish(traffic).await;
    let late = report.failed().into_iter().filter(|call| call.begun >= taken).count();
    judged(row)
        .at_most("failed idempotent calls", report.at_full_rate().failed_looks(None), 0)
        .at_most("failed calls of any kind that began afterwards", late, 0)
        .also("longest failover", report.failover().1)
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_service_at_the_port_of_a_dead_one_is_never_called() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let take_over = async |addr: SocketAddr| {
        let builder = Picom::builder("mail").registry(Memory::new()).bind("127.0.0.1").port(addr.port());
        let mail = builder.build().unwrap();
        let method = |runs: &Arc<AtomicUsize>| {
            let runs = Arc::clone(runs);
            move |_cx: picom::Context, id: u64| {
                runs.fetch_add(1, Ordering::Relaxed);
                async move { Ok::<_, Status>(id as u32) }
            }
        };
        mail.expose(Methods::new().unary("look", method(&counted)).unary("act", method(&counted))).await.unwrap();
        mail
    };
    replaced(Row::new(22, "port of a killed service taken by another service"), take_over, |row| {
        row.at_most("calls that ran at the other", runs.load(Ordering::Relaxed), 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_says_nothing_at_the_port_of_a_dead_service_costs_no_call() {
    let take_over = async |addr: SocketAddr| {
        let listener = TcpListener::bind(addr).await.unwrap();
        let listening = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                kept.push(stream);
            }
        });
        // A handle is a future itself, and not to be waited for.
        Some(tokio_util::task::AbortOnDropHandle::new(listening))
    };
    replaced(Row::new(23, "port of a killed service taken by a program that says nothing"), take_over, |row| row).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and a half"]
async fn a_service_frozen_for_a_minute_is_left_alone_and_has_its_share_again_soon_after() {
    let Some(scene) = Scene::start(Duration::from_secs(30)).await else { return };
    let callers = [client(&scene.agent), client(&scene.agent)];
    let traffic = Traffic::start(&callers);
    traffic.more(200).await;
    let frozen = &scene.processes[0];
    frozen.freeze();
    lasts(Duration::from_secs(60)).await;
    frozen.thaw();
    let thawed = Instant::now();
    let typed: WorkClient = callers[0].client(SERVICE);
    eventually("it has its share again", async || {
        let mut own = 0;
        for _ in 0..30 {
            own += usize::from(typed.who().await.unwrap() == frozen.pid());
        }
        own >= 8
    })
    .await;
    let back = thawed.elapsed();
    let report = scene.finish(traffic).await;
    Row::new(10, "one of three frozen for 60 s, then thawed")
        .within("noticed after", report.at_full_rate().noticed(), NOTICED)
        .at_most("timeouts in % of calls", report.timeouts(), 0.1)
        .at_most("failed idempotent calls", report.failed_looks(None), 0)
        .at_most("share back after", back, Duration::from_secs(15))
        .also("other calls lost that had been sent", report.failed().len())
        .also("calls", report.outcomes.len())
        .finish();
}
