//! Registries around registries: what is remembered, and what several amount to.
//!
//! Owns only tests. Look next at `registry_conformance.rs` for what they promise as any registry does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use picom::registry::{
    Cached, Combine, Endpoint, Endpoints, Fixed, Freshness, Instance, Memory, Registration, RegistrationState,
    Registry, RegistryError, Tier, Watch,
};
use picom::{NodeState, NodeStatus, Picom};
use support::{instance, state, until};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

/// A registry that says what a test tells it to.
#[derive(Clone, Debug)]
struct Told(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: &'static str,
    snapshots: watch::Sender<Arc<Endpoints>>,
    registration: watch::Sender<RegistrationState>,
    refusal: Option<RegistryError>,
    refresh: Arc<Notify>,
    watches: AtomicUsize,
    left: AtomicUsize,
    said: Mutex<Vec<String>>,
}

impl Told {
    fn new(name: &'static str) -> Self {
        Self::refusing(name, None)
    }

    fn refusing(name: &'static str, refusal: Option<RegistryError>) -> Self {
        Self(Arc::new(Inner {
            name,
            snapshots: watch::Sender::new(Arc::new(Endpoints::unknown())),
            registration: watch::Sender::new(RegistrationState::Retrying("no answer".to_owned())),
            refusal,
            refresh: Arc::default(),
            watches: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            said: Mutex::default(),
        }))
    }

    fn says(&self, freshness: Freshness, ports: &[u16], problem: Option<&str>) {
        let endpoint = |port: &u16| Arc::new(Endpoint::new(([127, 0, 0, 1], *port).into()));
        self.0.snapshots.send_modify(|snapshot| {
            *snapshot = Arc::new(Endpoints {
                generation: snapshot.generation + 1,
                freshness,
                endpoints: ports.iter().map(endpoint).collect(),
                problem: problem.map(str::to_owned),
            });
        });
    }

    fn watches(&self) -> usize {
        self.0.watches.load(Ordering::SeqCst)
    }
}

struct Leaves(Arc<Inner>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Registry for Told {
    fn describe(&self) -> String {
        self.0.name.to_owned()
    }

    async fn register(&self, _: Instance) -> Result<Registration, RegistryError> {
        if let Some(refusal) = &self.0.refusal {
            return Err(refusal.clone());
        }
        let (leaves, inner) = (Leaves(Arc::clone(&self.0)), Arc::clone(&self.0));
        let name = self.0.name;
        let leave = move || {
            drop(leaves);
            Box::pin(std::future::ready(Err(RegistryError::Unreachable(format!("{name} was not told"))))) as _
        };
        Ok(Registration::new(self.0.registration.subscribe(), leave)
            .with_status(move |status| inner.said.lock().unwrap().push(status.to_string())))
    }

    fn watch(&self, _: &str) -> Watch {
        self.0.watches.fetch_add(1, Ordering::SeqCst);
        Watch::new(self.0.snapshots.subscribe(), Arc::clone(&self.0.refresh), None)
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        [("service1".to_owned(), Arc::clone(&self.0.snapshots.borrow()))].into()
    }
}

fn ports(endpoints: &Endpoints) -> Vec<u16> {
    endpoints.endpoints.iter().map(|endpoint| endpoint.addr.port()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_list_that_becomes_empty_is_believed_only_after_the_grace() {
    for (told, expected) in [
        ((Freshness::Live, None), "it lists no instance any more"),
        ((Freshness::Never, None), "it does not know"),
        ((Freshness::Never, Some("no leader")), "no leader"),
    ] {
        let inner = Told::new("told");
        inner.says(Freshness::Live, &[4000, 4001], None);
        let mut watch = Cached::new(inner.clone()).watch("service1");
        let good = watch.changed().await;
        assert_eq!((ports(&good), good.freshness), (vec![4000, 4001], Freshness::Live), "known without waiting");
        let begun = Instant::now();
        inner.says(told.0, &[], told.1);
        let kept = watch.changed().await;
        assert_eq!((ports(&kept), kept.usable().len()), (vec![4000, 4001], 2));
        assert!(matches!(kept.freshness, Freshness::Stale(_)), "{kept:?}");
        let problem = kept.problem.as_deref().unwrap();
        assert!(problem.contains(expected) && problem.contains("told") && problem.contains("60s"), "{problem}");
        let empty = watch.changed().await;
        assert_eq!((ports(&empty), empty.freshness, begun.elapsed().as_secs()), (vec![], told.0, 60));
    }
}

#[tokio::test(start_paused = true)]
async fn within_the_grace_a_new_list_counts_at_once_and_the_next_grace_is_a_whole_one() {
    let inner = Told::new("told");
    inner.says(Freshness::Live, &[4000], None);
    let grace = Duration::from_secs(10);
    let mut watch = Cached::new(inner.clone()).grace(grace).watch("service1");
    watch.changed().await;
    for _ in 0..3 {
        inner.says(Freshness::Live, &[], None);
        assert_eq!(ports(&*watch.changed().await), [4000]);
        assert!(timeout(grace * 9 / 10, watch.changed()).await.is_err(), "the grace ended early");
        inner.says(Freshness::Live, &[4000], None);
        let back = watch.changed().await;
        assert_eq!((ports(&back), back.freshness, &back.problem), (vec![4000], Freshness::Live, &None));
    }
    // Some of several that leave are gone at once.
    inner.says(Freshness::Live, &[4000, 4001], None);
    assert_eq!(ports(&*watch.changed().await), [4000, 4001]);
    inner.says(Freshness::Live, &[4001], None);
    assert_eq!(ports(&*watch.changed().await), [4001]);
}

#[tokio::test(start_paused = true)]
async fn one_inner_watch_serves_many_and_is_given_back_when_nobody_looks() {
    let inner = Told::new("told");
    inner.says(Freshness::Live, &[4000], None);
    let cached = Cached::new(inner.clone());
    let mut watches: Vec<_> = (0..100).map(|_| cached.clone().watch("service1")).collect();
    assert_eq!(inner.watches(), 1);
    for watch in &mut watches {
        assert_eq!(ports(&*watch.changed().await), [4000]);
    }
    inner.says(Freshness::Live, &[4000], None);
    assert!(timeout(Duration::from_secs(1), watches[0].changed()).await.is_err(), "an equal list is no news");
    let asked = inner.0.refresh.notified();
    watches[7].refresh();
    timeout(Duration::from_secs(1), asked).await.expect("the wish to look again reaches the registry");
    drop(watches);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(inner.0.snapshots.receiver_count(), 0, "the inner watch is still held");
}

#[tokio::test(start_paused = true)]
async fn the_first_registry_with_somebody_to_call_is_used_and_troubles_before_it_are_seen() {
    let (one, two) = (Told::new("one"), Told::new("two"));
    let mut watch = Combine::first().and(one.clone()).and(two.clone()).watch("service1");
    assert_eq!(watch.changed().await.freshness, Freshness::Never);
    one.says(Freshness::Live, &[], None);
    assert!(timeout(Duration::from_secs(1), watch.changed()).await.is_err(), "the other may still know somebody");
    two.says(Freshness::Live, &[5000], None);
    assert_eq!(ports(&*watch.changed().await), [5000]);
    one.says(Freshness::Live, &[4000], None);
    assert_eq!(ports(&*watch.changed().await), [4000], "as soon as the first one has somebody");
    two.says(Freshness::Live, &[5000, 5001], Some("not of interest"));
    assert!(timeout(Duration::from_secs(1), watch.changed()).await.is_err(), "what is not used is no news");
    one.says(Freshness::Stale(Instant::now()), &[], Some("one is lost"));
    let fallback = watch.changed().await;
    assert_eq!((ports(&fallback), fallback.freshness), (vec![5000, 5001], Freshness::Live));
    assert_eq!(fallback.problem.as_deref(), Some("one is lost; not of interest"));
}

#[tokio::test(start_paused = true)]
async fn the_fallback_waits_until_the_first_registry_has_answered_or_says_why_not() {
    let begin = |fallback: &Told| {
        let first = Told::new("first");
        fallback.says(Freshness::Live, &[5000], None);
        let watch = Combine::first().and(first.clone()).and(fallback.clone()).watch("service1");
        (first, watch)
    };
    let fallback = Told::new("fallback");

    let (first, mut watch) = begin(&fallback);
    let unsettled = watch.changed().await;
    assert_eq!((ports(&unsettled), unsettled.freshness), (vec![], Freshness::Never), "the first may know somebody");
    assert!(timeout(Duration::from_millis(900), watch.changed()).await.is_err(), "nothing was said");
    first.says(Freshness::Live, &[4000], None);
    let settled = watch.changed().await;
    assert_eq!((ports(&settled), settled.freshness), (vec![4000], Freshness::Live));

    for (what, freshness, problem) in
        [("lists nobody", Freshness::Live, None), ("is out of reach", Freshness::Never, Some("no answer"))]
    {
        let (first, mut watch) = begin(&fallback);
        watch.changed().await;
        let begun = Instant::now();
        first.says(freshness, &[], problem);
        let settled = watch.changed().await;
        assert_eq!((ports(&settled), settled.freshness), (vec![5000], Freshness::Live), "a first that {what}");
        assert_eq!((settled.problem.as_deref(), begun.elapsed()), (problem, Duration::ZERO), "a first that {what}");
    }

    let (first, mut watch) = begin(&fallback);
    watch.changed().await;
    let begun = Instant::now();
    assert_eq!(ports(&*watch.changed().await), [5000], "who says nothing holds up nobody for long");
    let waited = begun.elapsed().as_millis();
    assert!((1000..=1001).contains(&waited), "the fallback was used after {waited} ms instead of a second");
    first.says(Freshness::Live, &[4000], None);
    assert_eq!(ports(&*watch.changed().await), [4000], "a late answer counts");
}

#[tokio::test]
async fn the_first_call_of_a_process_goes_where_later_ones_go() {
    let (first, fallback) = (Told::new("first"), Told::new("fallback"));
    fallback.says(Freshness::Live, &[5000], None);
    let registry = Combine::first().and(first.clone()).and(fallback);
    let node = Picom::builder("caller").registry(registry).in_memory().build().unwrap();
    let error = node.pick("service1").timeout(Duration::ZERO).await.unwrap_err();
    assert_eq!(error.code(), picom::Code::DeadlineExceeded, "{error}");
    let (picked, ()) = tokio::join!(node.pick("service1"), async { first.says(Freshness::Live, &[4000], None) });
    assert_eq!(picked.unwrap().addr.port(), 4000);
}

#[tokio::test(start_paused = true)]
async fn a_first_registry_with_only_doubtful_instances_is_joined_by_the_fallback() {
    let (first, fallback) = (Told::new("first"), Told::new("fallback"));
    fallback.says(Freshness::Live, &[5000], None);
    let registry = Combine::first().and(first.clone()).and(fallback.clone());
    let mut watch = registry.watch("service1");
    let tiers = |told: &Told, tier| {
        told.0.snapshots.send_modify(|snapshot| {
            Arc::make_mut(snapshot).endpoints.iter_mut().for_each(|one| Arc::make_mut(one).tier = tier);
        });
    };
    let usable = |snapshot: &Endpoints| snapshot.usable().iter().map(|one| one.addr.port()).collect::<Vec<_>>();
    first.says(Freshness::Live, &[4000], None);
    until(&mut watch, "the healthy one of the first", |e| ports(e) == [4000]).await;
    tiers(&first, Tier::Doubtful);
    until(&mut watch, "the fallback's beside it", |e| ports(e) == [4000, 5000] && usable(e) == [5000]).await;
    tiers(&first, Tier::Unhealthy);
    until(&mut watch, "the fallback's only", |e| usable(e) == [5000]).await;
    tiers(&first, Tier::Doubtful);
    tiers(&fallback, Tier::Doubtful);
    until(&mut watch, "both, of which none is better", |e| usable(e) == [4000, 5000]).await;
    tiers(&first, Tier::Healthy);
    until(&mut watch, "the first alone again", |e| ports(e) == [4000]).await;
}

#[tokio::test]
async fn while_the_first_registry_has_only_busy_instances_those_that_run_elsewhere_get_the_calls() {
    let (one, two) = (Memory::new(), Memory::new());
    let (busy, idle) =
        (one.register(instance("service1", "busy", 4000)), two.register(instance("service1", "idle", 5000)));
    let (busy, idle) = (busy.await.unwrap(), idle.await.unwrap());
    let mut watch = Combine::first().and(one).and(two).watch("service1");
    let usable =
        |endpoints: &Endpoints| endpoints.usable().iter().map(|endpoint| endpoint.addr.port()).collect::<Vec<_>>();
    until(&mut watch, "the first", |e| usable(e) == [4000]).await;
    busy.set_status(NodeStatus::now(NodeState::Doing, Some("a backup")));
    until(&mut watch, "the one that runs", |e| usable(e) == [5000]).await;
    idle.set_status(NodeStatus::now(NodeState::Stopped, None));
    until(&mut watch, "the busy one for want of others", |e| usable(e) == [4000]).await;
    busy.set_status(NodeStatus::now(NodeState::Stopped, None));
    until(&mut watch, "nobody", |e| usable(e).is_empty()).await;
    busy.set_status(NodeStatus::now(NodeState::Running, None));
    until(&mut watch, "the first again", |e| usable(e) == [4000]).await;
}

#[tokio::test]
async fn the_union_has_everybody_once_with_the_best_tier() {
    let (memory, other) = (Memory::new(), Memory::new());
    let table = Fixed::new([("service1", ["127.0.0.1:4000", "127.0.0.9:4009"])]);
    let union = Combine::union().and(table).and(memory.clone()).and(other.clone());
    let mut watch = union.watch("service1");
    let _one = memory.register(instance("service1", "one", 4000)).await.unwrap();
    let two = other.register(instance("service1", "two", 4001)).await.unwrap();
    let all = until(&mut watch, "three", |e| e.endpoints.len() == 3).await;
    let ids: Vec<_> = all.endpoints.iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids, ["one", "two", "127.0.0.9:4009"], "what an instance says of itself counts more than a table");
    assert!(all.endpoints.iter().all(|e| e.tier == Tier::Healthy));
    two.set_status(NodeStatus::now(NodeState::Stopped, None));
    until(&mut watch, "two to use", |e| e.usable().len() == 2).await;
    assert_eq!(union.known()["service1"].endpoints.len(), 3);
}

#[tokio::test]
async fn registering_reaches_all_registries_and_so_do_states_and_leaving() {
    let (one, two) = (Memory::new(), Memory::new());
    let node = Picom::builder("service1").registry(Combine::union().and(one.clone()).and(two.clone()));
    let node = node.in_memory().build().unwrap();
    node.expose(picom::Methods::new()).await.unwrap();
    node.doing("something").unwrap();
    for registry in [&one, &two] {
        assert_eq!(registry.watch("service1").current().endpoints[0].status.to_string(), "doing: something");
    }
    node.end().await.unwrap();
    for registry in [&one, &two] {
        assert!(registry.watch("service1").current().endpoints.is_empty());
    }
}

#[tokio::test]
async fn one_registry_that_takes_it_is_enough_and_while_none_does_each_says_why() {
    let (one, two) = (Told::new("one"), Told::new("two"));
    let combine = Combine::first().and(one.clone()).and(two.clone());
    let registration = combine.register(instance("service1", "one", 4000)).await.unwrap();
    assert_eq!(registration.state(), RegistrationState::Retrying("one: no answer; two: no answer".to_owned()));
    one.0.registration.send_replace(RegistrationState::Denied("no rights".to_owned()));
    let told = RegistrationState::Retrying("one: no rights; two: no answer".to_owned());
    state(&registration, "both reasons", |state| *state == told).await;
    two.0.registration.send_replace(RegistrationState::Denied("no rights".to_owned()));
    state(&registration, "Denied", |state| matches!(state, RegistrationState::Denied(_))).await;
    two.0.registration.send_replace(RegistrationState::Registered);
    state(&registration, "Registered", |state| *state == RegistrationState::Registered).await;

    registration.set_status(NodeStatus::now(NodeState::Stopped, Some("deploy")));
    for told in [&one, &two] {
        assert_eq!(*told.0.said.lock().unwrap(), ["stopped: deploy"]);
    }
    let states = registration.states();
    let error = registration.leave().await.unwrap_err();
    assert_eq!(error.to_string(), "one was not told; two was not told", "everyone that was not told is named");
    assert_eq!(*states.borrow(), RegistrationState::Left);
    assert_eq!((one.0.left.load(Ordering::SeqCst), two.0.left.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_exposed_node_tells_only_changes_of_its_registration_that_were_not_seen() {
    let told = Told::new("told");
    let node = Picom::builder("service1").registry(told.clone()).in_memory().build().unwrap();
    let mut exposed = node.expose(picom::Methods::new()).await.unwrap();
    let first = timeout(Duration::from_secs(60), exposed.clone().changed()).await;
    assert_eq!(first.expect("nobody has been told the first state"), exposed.clone().state());
    for state in [RegistrationState::Registered, RegistrationState::Denied("no rights".to_owned())] {
        let before = exposed.state();
        assert_ne!(before, state);
        let again = timeout(Duration::from_secs(60), exposed.changed()).await;
        assert!(again.is_err(), "{again:?} is no change: state() has just said {before:?}");
        told.0.registration.send_replace(state.clone());
        assert_eq!(exposed.changed().await, state);
        let again = timeout(Duration::from_secs(60), exposed.clone().changed()).await;
        assert!(again.is_err(), "{again:?} is no change: changed() has just said it");
        told.0.registration.send_replace(RegistrationState::Retrying("lost".to_owned()));
    }
    assert_eq!(exposed.changed().await, RegistrationState::Retrying("lost".to_owned()), "a change that was missed");
}

/// Takes what is registered, and never answers when it is to be taken back.
#[derive(Debug)]
struct Hanging;

#[async_trait::async_trait]
impl Registry for Hanging {
    fn describe(&self) -> String {
        "hanging".to_owned()
    }

    async fn register(&self, _: Instance) -> Result<Registration, RegistryError> {
        let (_, states) = watch::channel(RegistrationState::Registered);
        Ok(Registration::new(states, || Box::pin(std::future::pending())))
    }

    fn watch(&self, _: &str) -> Watch {
        Watch::fixed(Endpoints::unknown())
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        BTreeMap::new()
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_answer_when_an_instance_leaves_is_named_beside_those_that_failed() {
    let memory = Memory::new();
    let combine = Combine::union().and(Hanging).and(Told::new("one")).and(memory.clone());
    let registration = combine.register(instance("service1", "one", 4000)).await.unwrap();
    let begun = Instant::now();
    let error = registration.leave().await.unwrap_err();
    assert_eq!(error.to_string(), "hanging: no answer within 4s; one was not told");
    assert_eq!(begun.elapsed().as_secs(), 4, "less than a node waits, which is 5 s");
    assert!(memory.watch("service1").current().endpoints.is_empty(), "the others were told");
}

#[tokio::test]
async fn a_refusal_for_good_by_one_is_told_and_takes_the_others_back() {
    let memory = Memory::new();
    let refusal = RegistryError::Invalid("too much meta".to_owned());
    let combine = Combine::union().and(memory.clone()).and(Told::refusing("picky", Some(refusal)));
    let error = combine.register(instance("service1", "one", 4000)).await.unwrap_err();
    assert!(error.to_string().contains("too much meta"), "{error}");
    assert!(memory.watch("service1").current().endpoints.is_empty());
}

#[tokio::test]
async fn a_combination_of_nothing_is_refused() {
    let error = Picom::builder("service1").registry(Combine::first()).build().unwrap_err();
    assert!(error.to_string().contains("no registries"), "{error}");
}

#[tokio::test]
async fn a_shared_registry_can_be_wrapped() {
    let shared: Arc<dyn Registry> = Arc::new(Memory::new());
    let wrapped = Cached::new(Combine::first().and(Arc::clone(&shared)));
    let _one = wrapped.register(instance("service1", "one", 4000)).await.unwrap();
    let mut watch = wrapped.watch("service1");
    until(&mut watch, "the instance", |e| ports(e) == [4000]).await;
    assert_eq!(ports(&shared.watch("service1").current()), [4000]);
    assert!(wrapped.describe().contains(&shared.describe()), "{}", wrapped.describe());
}
