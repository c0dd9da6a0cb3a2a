//! Hundreds who ask one agent, and what they ask of it after it has lost its memory.
//!
//! Owns only tests; each is a row of `docs/faults.md` and prints its figure. The agent is a scripted one, which keeps what a real
//! one keeps: who is registered, who beats, and an index for each list. Time is virtual: it goes on when all have done what they
//! have to do, so that no figure is that of a machine which is too slow for so many in one process. Look next at `faults_around.rs` for other trouble with
//! Consul's surroundings.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use picom::registry::{Consul, Freshness, Registration, RegistrationState, Registry, Watch};
use serde_json::Value;
use support::fake_consul::{FakeConsul, Reply, Request, entry};
use support::fault::Row;
use support::scene::lasts;
use support::{eventually, instance};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How many ask one agent.
const HERD: usize = 500;
/// Within which a member that does not beat counts as dead, as it is unless somebody sets it.
const TTL: Duration = Duration::from_secs(30);
/// How long it is watched what comes after the restart: as long as what was there before is remembered.
const AFTERWARDS: Duration = Duration::from_secs(65);

/// What an agent knows. Clones are the same one.
#[derive(Clone)]
struct Memory(Arc<Mutex<Catalog>>);

struct Catalog {
    /// Grows with every change of any list.
    index: u64,
    services: HashMap<String, Service>,
    /// The last sign of life of each instance.
    heard: HashMap<String, Instant>,
    /// How often there was none for a TTL.
    missed: usize,
    /// Who waits for a service that is not there hears of everything.
    news: watch::Sender<()>,
}

struct Service {
    entries: BTreeMap<String, Value>,
    index: u64,
    listed: Arc<Reply>,
    news: watch::Sender<()>,
}

impl Memory {
    fn new() -> Self {
        let (services, heard) = (HashMap::new(), HashMap::new());
        Self(Arc::new(Mutex::new(Catalog { index: 100, services, heard, missed: 0, news: watch::Sender::new(()) })))
    }

    /// Starts anew with nothing, from a lower index.
    fn forget(&self) {
        let mut catalog = self.0.lock().unwrap();
        catalog.index = 7;
        catalog.services.clear();
        catalog.heard.clear();
    }

    fn registered(&self) -> usize {
        self.0.lock().unwrap().heard.len()
    }

    /// How many beats have come too late, or should have come.
    fn missed(&self) -> usize {
        let catalog = self.0.lock().unwrap();
        catalog.missed + catalog.heard.values().filter(|heard| heard.elapsed() > TTL).count()
    }

    fn answer(&self, request: &Request) -> Reply {
        let mut catalog = self.0.lock().unwrap();
        let last = request.path.rsplit('/').next().unwrap_or_default();
        match request.verb() {
            "register" => {
                catalog.register(&request.body);
                Reply::text(200, "")
            }
            "pass" if catalog.beat(last.trim_start_matches("service:")) => Reply::text(200, ""),
            "pass" => Reply::text(404, "Unknown check ID"),
            _ if request.path == "/v1/acl/token/self" => Reply::text(401, "ACL support disabled"),
            _ => catalog.list(last, request.index()),
        }
    }
}

impl Catalog {
    fn register(&mut self, body: &Value) {
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        let (id, name) = (text("ID"), text("Name"));
        let mut listed = entry(&id, u16::try_from(body["Port"].as_u64().unwrap()).unwrap());
        listed["Service"]["Meta"] = body["Meta"].clone();
        listed["Checks"][0]["Notes"] = body["Check"]["Notes"].clone();
        let service = self.services.entry(name).or_insert_with(|| Service {
            entries: BTreeMap::new(),
            index: 0,
            listed: Arc::new(Reply::list(0, &[])),
            news: watch::Sender::new(()),
        });
        // What is registered again as it was is no news.
        if service.entries.get(&id) != Some(&listed) {
            service.entries.insert(id.clone(), listed);
            self.index += 1;
            service.index = self.index;
            let entries: Vec<_> = service.entries.values().cloned().collect();
            service.listed = Arc::new(Reply::list(service.index, &entries));
            service.news.send_replace(());
            self.news.send_replace(());
        }
        self.heard.entry(id.clone()).or_insert_with(Instant::now);
        self.beat(&id);
    }

    /// Whether it is one that is known.
    fn beat(&mut self, id: &str) -> bool {
        let Some(heard) = self.heard.get_mut(id) else { return false };
        self.missed += usize::from(heard.elapsed() > TTL);
        *heard = Instant::now();
        true
    }

    fn list(&self, name: &str, after: Option<u64>) -> Reply {
        let (index, listed, news) = match self.services.get(name) {
            Some(service) => (service.index, Arc::clone(&service.listed), &service.news),
            // The index of what is not there is that of everything.
            None => (self.index, Arc::new(Reply::list(self.index, &[])), &self.news),
        };
        // As Consul: a query is answered when there is news, or after 55 s and up to a sixteenth.
        let wait = Duration::from_secs(55).mul_f64(1.0 + fastrand::f64() / 16.0);
        if after >= Some(index) { Reply::HoldFor(wait, news.subscribe(), listed) } else { (*listed).clone() }
    }
}

/// One of those who ask: registered under a name, and watching some.
struct Member {
    registration: Registration,
    watches: Vec<Watch>,
}

impl Member {
    /// With settings of its own, or it would share watches as the clients of one process do.
    async fn start(url: &str, number: usize, name: &str, watched: &[String]) -> Self {
        let registry = Consul::new(url).unwrap().ttl(TTL).token(format!("token-{number}"));
        let port = 4000 + u16::try_from(number).unwrap();
        let registration = registry.register(instance(name, &format!("{name}-{number}"), port)).await.unwrap();
        Self { registration, watches: watched.iter().map(|name| registry.watch(name)).collect() }
    }

    fn is_well(&self, instances: usize) -> bool {
        let is_complete = |watch: &Watch| {
            let list = watch.current();
            list.freshness == Freshness::Live && list.usable().len() == instances
        };
        self.registration.state() == RegistrationState::Registered && self.watches.iter().all(is_complete)
    }
}

/// The fewest instances that anybody could call, from now on.
struct Fewest {
    seen: Arc<AtomicUsize>,
    _watching: Vec<AbortOnDropHandle<()>>,
}

impl Fewest {
    fn of(members: &[Member]) -> Self {
        let seen = Arc::new(AtomicUsize::new(usize::MAX));
        let watching = members.iter().flat_map(|member| &member.watches).map(|watch| {
            let (mut watch, seen) = (watch.clone(), Arc::clone(&seen));
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    seen.fetch_min(watch.changed().await.usable().len(), Ordering::Relaxed);
                }
            }))
        });
        Self { _watching: watching.collect(), seen }
    }
}

/// The most requests in any second since `from`.
fn peak(requests: &[Request], from: Instant) -> usize {
    let times: Vec<_> = requests.iter().map(|request| request.at).filter(|at| *at >= from).collect();
    let second = Duration::from_secs(1);
    let within = |start: usize| times[start..].iter().take_while(|at| **at - times[start] < second).count();
    (0..times.len()).map(within).max().unwrap_or(0)
}

/// What was asked in each second since `from`, for people.
fn tell(requests: &[Request], from: Instant) {
    let mut seconds = BTreeMap::<u64, BTreeMap<_, usize>>::new();
    for request in requests.iter().filter(|request| request.at >= from) {
        let kind = match (request.verb(), request.query.contains("stale"), request.index()) {
            ("", true, Some(_)) => "waits for news",
            ("", true, None) => "reads",
            ("", false, _) => "looks for itself",
            (verb, ..) => verb,
        };
        *seconds.entry((request.at - from).as_secs()).or_default().entry(kind).or_default() += 1;
    }
    for (second, kinds) in seconds {
        println!("second {second}: {} requests: {kinds:?}", kinds.values().sum::<usize>());
    }
}

/// What 500 members ask of an agent that restarts without memory. Each has a name, and watches some.
async fn restarts_without_memory(
    fault: &str,
    instances: usize,
    name: impl Fn(usize) -> String,
    watched: impl Fn(usize) -> Vec<String>,
) {
    let memory = Memory::new();
    let remembering = memory.clone();
    let script = move |request: &Request| remembering.answer(request);
    let fake = FakeConsul::start(script.clone()).await;
    // They have started at any time.
    let members = join_all((0..HERD).map(async |number| {
        lasts(TTL.mul_f64(number as f64 / HERD as f64)).await;
        Member::start(&fake.url(), number, &name(number), &watched(number)).await
    }))
    .await;
    let well = || members.iter().filter(|member| member.is_well(instances)).count();
    let begun = Instant::now();
    while well() < HERD {
        assert!(begun.elapsed() < AFTERWARDS, "{} of {HERD} are registered and have complete lists", well());
        lasts(Duration::from_millis(200)).await;
    }
    let settled = Instant::now();
    // As long as the longest period of what they do.
    lasts(Duration::from_secs(60)).await;
    let steady = fake.requests().iter().filter(|request| request.at >= settled).count() as f64 / 60.0;
    assert_eq!(well(), HERD, "who is well before it begins");
    let fewest = Fewest::of(&members);
    // Gone for 3 s, and back without memory.
    fake.becomes(|_| Reply::Reset);
    lasts(Duration::from_secs(3)).await;
    let late = memory.missed();
    memory.forget();
    let back = Instant::now();
    fake.becomes(script);
    eventually("all are registered again", async || memory.registered() == HERD).await;
    let again = back.elapsed();
    let mut all_well = None;
    while back.elapsed() < AFTERWARDS {
        lasts(Duration::from_millis(200)).await;
        if all_well.is_none() && well() == HERD {
            all_well = Some(back.elapsed());
        }
    }
    let requests = fake.requests();
    tell(&requests, back);
    let peak = peak(&requests, back);
    let Some(all_well) = all_well else { panic!("{} of {HERD} have their lists and are registered", well()) };
    Row::new(25, fault)
        .at_most("peak of requests a second, in times of the steady rate", peak as f64 / steady, 3.0)
        .at_most("all registered again after (a beat and TTL/6)", again, Duration::from_secs(16))
        .at_most("missed TTLs", late + memory.missed(), 0)
        .at_least("fewest instances that anybody could call", fewest.seen.load(Ordering::Relaxed), instances)
        .also("all have their lists again and have seen themselves listed after", all_well)
        .also("steady rate a second", steady)
        .also("peak", peak)
        .finish();
}

#[tokio::test(start_paused = true)]
#[ignore = "takes about a minute"]
async fn five_hundred_who_beat_and_watch_spread_out_when_their_agent_restarts() {
    let name = |number| format!("herd-{number}");
    let fault = "agent of 500 that beat and watch restarts without memory";
    restarts_without_memory(fault, 1, name, |number| vec![name(number)]).await;
}

/// How many names the members share…
const NAMES: usize = 25;
/// … and how many of them each watches.
const WATCHED: usize = 4;

#[tokio::test(start_paused = true)]
#[ignore = "takes about a minute"]
async fn five_hundred_who_share_names_spread_out_too_and_go_on_calling_all() {
    let name = |number| format!("herd-{}", number % NAMES);
    let watched = |number| (1..=WATCHED).map(|next| name(number + next)).collect();
    let fault = "agent of 500 with 25 names, of which each watches four, restarts without memory";
    restarts_without_memory(fault, HERD / NAMES, name, watched).await;
}
