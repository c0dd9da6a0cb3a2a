//! Consul that notices, forgets, is not there, or is not Consul.
//!
//! Owns only tests. Look next at `registry_consul_faults.rs` for the registry alone; here it is calls that count.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::registry::{Consul, RegistrationState};
use picom::{Code, Execution, Exposed, Methods, Picom, Status};
use support::consul::Agent;
use support::fake_consul::{FakeConsul, Reply, entry, listing};
use support::fault::Row;
use support::load::{Kind, Load};
use support::process::{self, Process, SERVICE, Setup};
use support::work::{Journal, WorkClient};
use support::{PATIENCE, client, eventually, passing};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_service_is_not_called_until_it_lives_again() {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let setup = Setup::new(&agent, Duration::from_secs(2), journal.path());
    let (frozen, other) = (Process::start(&setup).await, Process::start(&setup).await);
    passing(&agent, 2).await;
    let caller = client(&agent);
    let typed: WorkClient = caller.client(SERVICE);
    let answers = async |pid| eventually("it answers", async || typed.who().await.unwrap() == pid).await;
    answers(frozen.pid()).await;
    answers(other.pid()).await;

    frozen.freeze();
    let begun = Instant::now();
    assert_eq!(passing(&agent, 1).await, [other.addr.port()], "Consul notices which one is silent");
    println!("frozen with a TTL of 2 s: critical after {:.1?}", begun.elapsed());
    // The caller has heard of it when a call is answered, for until then every second one would hang.
    answers(other.pid()).await;
    for _ in 0..100 {
        let called = Instant::now();
        assert_eq!(typed.who().await.unwrap(), other.pid(), "no call goes to the frozen one");
        assert!(called.elapsed() < Duration::from_secs(1), "a call waited {:?} for it", called.elapsed());
    }
    other.freeze();
    passing(&agent, 0).await;
    eventually("the caller has heard of it", async || caller.channel(SERVICE).endpoints().is_empty()).await;
    let error = typed.act(1).await.unwrap_err();
    assert!(error.to_string().contains("no healthy instance"), "{error}");
    assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");

    frozen.thaw();
    let thawed = Instant::now();
    assert_eq!(passing(&agent, 1).await, [frozen.addr.port()], "it is back by itself");
    // The caller hears of it from Consul a moment later; until then it says at once that there is nobody.
    eventually("it is called again", async || typed.act(2).await.is_ok_and(|pid| pid == frozen.pid())).await;
    Row::new(20, "TTL of 2 s missed, then the service goes on")
        .within("called again after (a beat is 0.67 s)", thawed.elapsed(), Duration::from_secs(2) / 3)
        .finish();
    other.thaw();
    passing(&agent, 2).await;
    answers(other.pid()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_has_forgotten_everything_costs_no_call() {
    let Some(mut agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let setup = Setup::new(&agent, Duration::from_secs(3), journal.path());
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(Process::start(&setup).await);
    }
    let before = passing(&agent, 3).await;
    let load = Load::start(&client(&agent), 200, &[Kind::Look, Kind::Act, Kind::Sum, Kind::Count]);
    load.more(100).await;
    agent.restart_empty().await;
    let begun = Instant::now();
    let mut after = passing(&agent, 3).await;
    let back = begun.elapsed();
    load.more(300).await;
    let report = load.finish().await;
    println!("agent restarted empty: {report}");
    assert!(report.failed().is_empty(), "{report}: {:#?}", report.failed());
    report.check(&journal.read());
    Row::new(2, "agent restarted without memory, TTL 3 s")
        .within("all listed again after (a beat and TTL/6)", back, Duration::from_millis(1500))
        .at_most("failed calls of any kind", report.failed().len(), 0)
        .finish();
    after.sort_unstable();
    let mut before = before;
    before.sort_unstable();
    assert_eq!(after, before, "the same instances");
}

async fn expose(url: &str) -> (Picom, Exposed, Duration) {
    let registry = Consul::new(url).unwrap().ttl(Duration::from_secs(3));
    let node = Picom::builder("service1").registry(registry).bind("127.0.0.1").build().unwrap();
    let methods = Methods::new().unary("id", async |_cx, number: u64| Ok::<_, Status>(number));
    let begun = Instant::now();
    let exposed = timeout(Duration::from_secs(8), node.expose(methods)).await;
    (node, exposed.expect("expose() returns whatever Consul does").unwrap(), begun.elapsed())
}

async fn registered(mut exposed: Exposed) {
    let registered = async { while exposed.changed().await != RegistrationState::Registered {} };
    timeout(PATIENCE, registered).await.expect("it registers by itself once Consul is there");
}

#[tokio::test]
async fn without_consul_a_service_starts_and_registers_when_consul_does() {
    let Some(mut agent) = Agent::start().await else { return };
    agent.kill();
    let (node, exposed, took) = expose(&agent.url()).await;
    let RegistrationState::Retrying(why) = exposed.state() else { panic!("{:?}", exposed.state()) };
    println!("expose() without Consul: {took:.1?}, {why}");
    assert!(why.contains(&agent.url()) && why.contains("refused"), "it says who and why: {why}");
    agent.restart_empty().await;
    registered(exposed).await;
    let list = agent.get("/v1/health/service/service1?passing").await;
    assert_eq!(list.as_array().unwrap().len(), 1, "{list:#}");
    node.end().await.unwrap();
}

#[tokio::test]
async fn a_consul_that_refuses_or_raves_is_named_with_its_answer() {
    let html = "<html><body>a proxy's page</body></html>";
    let cases: [(&str, Reply, &str); 5] = [
        ("rights", Reply::text(403, "Permission denied"), "403 Forbidden: Permission denied"),
        ("trouble", Reply::text(500, "rpc error: boom"), "500 Internal Server Error: rpc error: boom"),
        ("html", Reply::text(200, html), "HTML"),
        ("nonsense", Reply::text(200, "{]"), "not Consul's JSON"),
        ("reset", Reply::Reset, "reset"),
    ];
    let cases = cases.map(|(name, reply, told)| async move {
        let fake = FakeConsul::start(move |_| reply.clone()).await;
        let url = fake.url();
        let ((node, exposed, took), error) = tokio::join!(expose(&url), first_call(&url));
        let (denied, why) = match exposed.state() {
            RegistrationState::Retrying(why) => (false, why),
            RegistrationState::Denied(why) => (true, why),
            other => panic!("{name}: registered with {other:?}"),
        };
        assert_eq!(denied, name == "rights", "{name}: {why}");
        for said in [&why, &error.to_string()] {
            assert!(said.contains(&url) && said.contains(told), "{name}: who and what is missing: {said}");
        }
        println!("{name}: expose() returned after {took:.1?}: {why}");
        let id = std::sync::Mutex::new(None);
        fake.becomes(move |request| {
            let mut id = id.lock().unwrap();
            if request.verb() == "register" {
                *id = request.body["ID"].as_str().map(str::to_owned);
            } else if request.verb() == "deregister" {
                *id = None;
            } else if request.verb() == "pass" && id.is_none() {
                return Reply::text(404, "Unknown check ID");
            }
            let entries: Vec<_> = id.iter().map(|id| entry(id, 4000)).collect();
            listing(7, &entries)(request)
        });
        registered(exposed).await;
        node.end().await.unwrap();
    });
    futures::future::join_all(cases).await;
}

/// What is not even HTTP, and what never answers.
#[tokio::test]
async fn a_stranger_at_consuls_address_is_named_with_its_answer() {
    let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", stranger.local_addr().unwrap());
    let _strange = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut stream, _)) = stranger.accept().await {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await;
        }
    }));
    let silent = FakeConsul::start(|_| Reply::Hang).await;
    let cases = [("stranger", url), ("silent", silent.url())].map(|(name, url)| async move {
        let ((_node, exposed, took), error) = tokio::join!(expose(&url), first_call(&url));
        let RegistrationState::Retrying(why) = exposed.state() else { panic!("{name}: {:?}", exposed.state()) };
        println!("{name}: expose() returned after {took:.1?}: {why}; a call: {error}");
        assert!(why.contains(&url), "{name}: {why}");
        assert!(error.to_string().contains(&url), "{name}: {error}");
    });
    futures::future::join_all(cases).await;
}

/// The error of a first call through this Consul, which must come within 5 s.
async fn first_call(url: &str) -> Status {
    let node = Picom::builder("caller").registry(Consul::new(url).unwrap()).build().unwrap();
    let begun = Instant::now();
    let error = node.fetch::<u64>("service1", "id", 1_u64).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(5500), "a first call failed only after {:?}", begun.elapsed());
    assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");
    error
}
