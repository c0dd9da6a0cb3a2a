//! What every registry promises, asked of each of them.
//!
//! Owns only tests: each case is written once and runs against every kit. A registry joins with a [`Kit`] and a line in the
//! list at the end. Look next at the `registry_*.rs` files for what is special about one of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use picom::registry::{
    Cached, Combine, Endpoint, Endpoints, Fixed, Freshness, Instance, Memory, Registration, RegistrationState,
    Registry, RegistryError, Tier,
};
use picom::{NodeState, NodeStatus};
use support::{eventually, instance, state, until};

/// A world of its own for one test.
#[allow(async_fn_in_trait, reason = "only the tests below use it")]
trait Kit: Sized {
    /// `None`, after saying so, where it cannot run.
    async fn start() -> Option<Self>;

    /// A view of that world that shares nothing with the views before it, as another process would have.
    async fn view(&self) -> Arc<dyn Registry>;

    /// What of an instance its endpoints show elsewhere; the default is all of it.
    fn shows(&self, _: &mut Instance) {}
}

fn ids(endpoints: &Endpoints) -> Vec<&str> {
    endpoints.endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect()
}

async fn registered(registry: &Arc<dyn Registry>, instance: Instance) -> Registration {
    let registration = registry.register(instance).await.unwrap();
    state(&registration, "Registered", |state| *state == RegistrationState::Registered).await;
    registration
}

async fn what_is_registered_is_seen_elsewhere_with_all_that_it_says(kit: impl Kit) {
    let mut given = instance("service1", "one", 4000);
    given.address = Some("127.0.0.7".parse().unwrap());
    given.weight = 3;
    given.zone = Some("north".to_owned());
    given.tags = vec!["blue".to_owned(), "new".to_owned()];
    given.meta = [("colour".to_owned(), "red".to_owned()), ("version".to_owned(), "1.2.3".to_owned())].into();
    given.status = NodeStatus::now(NodeState::Doing, Some("a backup: all of it"));
    let _registration = registered(&kit.view().await, given.clone()).await;
    let mut watch = kit.view().await.watch("service1");
    let found = until(&mut watch, "the instance", |e| e.endpoints.len() == 1 && e.freshness == Freshness::Live).await;
    kit.shows(&mut given);
    let expected = Endpoint {
        addr: "127.0.0.7:4000".parse().unwrap(),
        incarnation: Some(given.incarnation),
        id: given.id,
        tier: Tier::Healthy,
        weight: given.weight,
        zone: given.zone,
        tags: given.tags,
        meta: given.meta,
        status: given.status,
    };
    assert_eq!(*found.endpoints[0], expected);
    assert_eq!(found.problem, None);
}

async fn one_that_leaves_is_gone_elsewhere(kit: impl Kit) {
    let registration = registered(&kit.view().await, instance("service1", "one", 4000)).await;
    let states = registration.states();
    let mut watch = kit.view().await.watch("service1");
    until(&mut watch, "the instance", |e| ids(e) == ["one"]).await;
    registration.leave().await.unwrap();
    assert_eq!(*states.borrow(), RegistrationState::Left);
    until(&mut watch, "nobody", |e| e.endpoints.is_empty()).await;
}

async fn one_whose_handle_is_dropped_is_gone_elsewhere(kit: impl Kit) {
    let registration = registered(&kit.view().await, instance("service1", "one", 4000)).await;
    let mut watch = kit.view().await.watch("service1");
    until(&mut watch, "the instance", |e| ids(e) == ["one"]).await;
    drop(registration);
    until(&mut watch, "nobody", |e| e.endpoints.is_empty()).await;
}

async fn changes_of_state_are_seen_elsewhere_and_decide_who_is_used(kit: impl Kit) {
    let mut given = instance("service1", "one", 4000);
    given.status = NodeStatus::now(NodeState::Up, None);
    let registration = registered(&kit.view().await, given.clone()).await;
    let mut watch = kit.view().await.watch("service1");
    let seen = until(&mut watch, "the instance", |e| ids(e) == ["one"]).await;
    assert_eq!((&seen.endpoints[0].status, seen.usable().len()), (&given.status, 0));
    for (state, reason, usable) in [
        (NodeState::Running, None, 1),
        (NodeState::Stopped, Some("disk full"), 0),
        (NodeState::Doing, Some("a backup"), 1),
        (NodeState::Doing, Some("another one"), 1),
        (NodeState::Running, None, 1),
    ] {
        let status = NodeStatus::now(state, reason);
        registration.set_status(status.clone());
        let says = |e: &Endpoints| e.endpoints.first().is_some_and(|e| e.status == status);
        let counts = |e: &Endpoints| e.freshness == Freshness::Live && e.usable().len() == usable;
        until(&mut watch, &format!("{status}, and {usable} to use"), |e| says(e) && counts(e)).await;
    }
    assert_eq!(registration.state(), RegistrationState::Registered);
}

async fn of_two_that_change_states_at_once_the_last_word_counts(kit: impl Kit) {
    let (here, there) = (kit.view().await, kit.view().await);
    let one = registered(&here, instance("service1", "one", 4000)).await;
    let two = registered(&there, instance("service1", "two", 4001)).await;
    let mut watch = kit.view().await.watch("service1");
    for turn in 0..20 {
        one.set_status(NodeStatus::now(NodeState::Stopped, Some(&turn.to_string())));
        two.set_status(NodeStatus::now(NodeState::Doing, Some(&turn.to_string())));
        one.set_status(NodeStatus::now(NodeState::Running, None));
    }
    let last = |e: &Endpoints| {
        let said: Vec<_> = e.endpoints.iter().map(|e| e.status.to_string()).collect();
        said == ["running", "doing: 19"]
    };
    until(&mut watch, "what each said last", last).await;
}

async fn two_instances_are_both_seen_and_leave_alone(kit: impl Kit) {
    let (here, there) = (kit.view().await, kit.view().await);
    let _one = registered(&here, instance("service1", "one", 4000)).await;
    let two = registered(&there, instance("service1", "two", 4001)).await;
    let _other = registered(&there, instance("service2", "three", 4002)).await;
    for view in [&here, &there, &kit.view().await] {
        let mut watch = view.watch("service1");
        let both = until(&mut watch, "both", |e| e.endpoints.len() == 2).await;
        assert_eq!(ids(&both), ["one", "two"], "ordered by address, and of this service only");
    }
    two.leave().await.unwrap();
    let mut watch = kit.view().await.watch("service1");
    until(&mut watch, "the one that stayed", |e| ids(e) == ["one"]).await;
}

async fn the_same_id_again_replaces_what_was_there(kit: impl Kit) {
    let registry = kit.view().await;
    let mut watch = kit.view().await.watch("service1");
    let _older = registered(&registry, instance("service1", "one", 4000)).await;
    until(&mut watch, "the older", |e| ids(e) == ["one"]).await;
    let newer = instance("service1", "one", 4001);
    let incarnation = newer.incarnation;
    let _newer = registered(&registry, newer).await;
    let replaced = |e: &Endpoints| ids(e) == ["one"] && e.endpoints[0].addr.port() == 4001;
    let seen = until(&mut watch, "only the newer", replaced).await;
    assert_eq!(seen.endpoints[0].incarnation, Some(incarnation));
}

async fn everything_known_is_listed_by_service(kit: impl Kit) {
    let registry = kit.view().await;
    let _one = registered(&registry, instance("service1", "one", 4000)).await;
    let _two = registered(&registry, instance("service2", "two", 4001)).await;
    let view = kit.view().await;
    // Some registries know only what is watched.
    let _watches = [view.watch("service1"), view.watch("service2")];
    eventually("both services are known", async || {
        let known = view.known();
        let of = |name: &str| known.get(name).map(|e| ids(e).join(",")).unwrap_or_default();
        of("service1") == "one" && of("service2") == "two"
    })
    .await;
}

async fn an_unknown_service_is_an_empty_list_or_a_problem(kit: impl Kit) {
    let registry = kit.view().await;
    let mut watch = registry.watch("nobody");
    let seen = until(&mut watch, "an answer", |e| e.freshness == Freshness::Live || e.problem.is_some()).await;
    assert!(seen.endpoints.is_empty() && seen.usable().is_empty(), "{seen:?}");
}

async fn watches_of_one_service_are_shared(kit: impl Kit) {
    let registry = kit.view().await;
    let (mut one, two) = (registry.watch("service1"), registry.watch("service1"));
    until(&mut one, "an answer", |e| e.freshness == Freshness::Live).await;
    assert!(Arc::ptr_eq(&one.current(), &two.current()));
}

async fn equal_news_wakes_nobody(kit: impl Kit) {
    let registry = kit.view().await;
    let mut watch = registry.watch("service1");
    until(&mut watch, "an answer", |e| e.freshness == Freshness::Live).await;
    while tokio::time::timeout(Duration::from_millis(300), watch.changed()).await.is_ok() {}
    watch.refresh();
    let again = tokio::time::timeout(Duration::from_millis(300), watch.changed()).await;
    assert!(again.is_err(), "{again:?} is no news");
}

async fn a_runtime_that_ends_takes_nothing_from_another(kit: impl Kit) {
    let (registry, elsewhere) = (kit.view().await, kit.view().await);
    let _one = registered(&elsewhere, instance("service1", "one", 4000)).await;
    let first = Arc::clone(&registry);
    let looked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut watch = first.watch("service1");
            until(&mut watch, "the instance", |e| ids(e) == ["one"]).await;
        });
    });
    tokio::task::spawn_blocking(|| looked.join().unwrap()).await.unwrap();
    let mut watch = registry.watch("service1");
    until(&mut watch, "the instance", |e| ids(e) == ["one"]).await;
    let _two = registered(&elsewhere, instance("service1", "two", 4001)).await;
    until(&mut watch, "another instance", |e| ids(e) == ["one", "two"]).await;
}

async fn names_that_no_registry_could_hold_are_refused(kit: impl Kit) {
    let registry = kit.view().await;
    let long = "x".repeat(129);
    let mut weightless = instance("service1", "one", 4000);
    weightless.weight = 0;
    let refused = [
        instance("", "one", 4000),
        instance("a/b", "one", 4000),
        instance("a b", "one", 4000),
        instance(&long, "one", 4000),
        instance("service1", "", 4000),
        instance("service1", &long, 4000),
        instance("service1", "line\nbreak", 4000),
        instance("service1", "one", 0),
        weightless,
    ];
    for given in refused {
        let shown = format!("{given:?}");
        let error = registry.register(given).await.err();
        assert!(matches!(error, Some(RegistryError::Invalid(_))), "{error:?} for {shown}");
    }
    for name in ["", "a/b", &long] {
        assert!(registry.watch(name).current().endpoints.is_empty(), "{name:?}");
    }
    assert!(registry.validate().is_ok());
    assert!(!registry.describe().is_empty());
}

async fn a_registration_is_taken_and_given_back(kit: impl Kit) {
    let registration = registered(&kit.view().await, instance("service9", "one", 4000)).await;
    registration.set_status(NodeStatus::now(NodeState::Stopped, None));
    let states = registration.states();
    registration.leave().await.unwrap();
    assert_eq!(*states.borrow(), RegistrationState::Left);
}

struct InMemory(Memory);

impl Kit for InMemory {
    async fn start() -> Option<Self> {
        Some(Self(Memory::new()))
    }

    async fn view(&self) -> Arc<dyn Registry> {
        Arc::new(self.0.clone())
    }
}

struct InTable;

impl Kit for InTable {
    async fn start() -> Option<Self> {
        Some(Self)
    }

    async fn view(&self) -> Arc<dyn Registry> {
        Arc::new(Fixed::new([("service1", ["127.0.0.7:4000"])]))
    }
}

struct InCache(Memory);

impl Kit for InCache {
    async fn start() -> Option<Self> {
        Some(Self(Memory::new()))
    }

    async fn view(&self) -> Arc<dyn Registry> {
        // With a grace, one that has left is still there for a while, which is the point of it.
        Arc::new(Cached::new(self.0.clone()).grace(Duration::ZERO))
    }
}

struct InUnion(Memory, Memory);

impl Kit for InUnion {
    async fn start() -> Option<Self> {
        Some(Self(Memory::new(), Memory::new()))
    }

    async fn view(&self) -> Arc<dyn Registry> {
        Arc::new(Combine::union().and(self.0.clone()).and(self.1.clone()))
    }
}

struct InFirst(Memory, Memory);

impl Kit for InFirst {
    async fn start() -> Option<Self> {
        Some(Self(Memory::new(), Memory::new()))
    }

    async fn view(&self) -> Arc<dyn Registry> {
        Arc::new(Combine::first().and(self.0.clone()).and(self.1.clone()))
    }
}

struct InSimulation(support::simulated_consul::Consul);

impl Kit for InSimulation {
    async fn start() -> Option<Self> {
        Some(Self(support::simulated_consul::Consul::new(Duration::from_secs(2))))
    }

    async fn view(&self) -> Arc<dyn Registry> {
        Arc::new(self.0.view(Duration::from_millis(100), |_, _| {}))
    }
}

#[cfg(feature = "consul")]
struct InConsul(support::consul::Agent, AtomicU64);

#[cfg(feature = "consul")]
impl Kit for InConsul {
    async fn start() -> Option<Self> {
        support::consul::Agent::start().await.map(|agent| Self(agent, AtomicU64::new(0)))
    }

    async fn view(&self) -> Arc<dyn Registry> {
        // Values with equal settings share everything. The last instance of a list is remembered for so long.
        let grace = Duration::from_millis(100 + self.1.fetch_add(1, Ordering::Relaxed));
        let consul = picom::registry::Consul::new(&self.0.url()).unwrap();
        Arc::new(consul.ttl(Duration::from_secs(2)).stale_grace(grace))
    }
}

#[cfg(feature = "broadcast")]
struct InDatagrams(support::broadcast::Network);

#[cfg(feature = "broadcast")]
impl Kit for InDatagrams {
    async fn start() -> Option<Self> {
        Some(Self(support::broadcast::Network::new()))
    }

    async fn view(&self) -> Arc<dyn Registry> {
        Arc::new(self.0.registry().period(Duration::from_millis(200)))
    }
}

#[cfg(feature = "manifest")]
struct AmongMembers(picom::registry::Manifest, String);

#[cfg(feature = "manifest")]
impl Kit for AmongMembers {
    async fn start() -> Option<Self> {
        let first = picom::registry::Manifest::new().listen("127.0.0.1:0");
        let address = first.listening().await.unwrap()[0].to_string();
        Some(Self(first, address))
    }

    async fn view(&self) -> Arc<dyn Registry> {
        assert!(!self.0.listening().await.unwrap().is_empty(), "the first member is there as long as the others");
        Arc::new(picom::registry::Manifest::new().join(&self.1))
    }
}

/// Runs cases against a kit.
macro_rules! ask {
    ($kit:ty: $($case:ident),+ $(,)?) => { $(
        #[tokio::test]
        async fn $case() {
            if let Some(kit) = <$kit as Kit>::start().await {
                super::$case(kit).await;
            }
        }
    )+ };
}

/// What also a registry keeps to that publishes nothing.
macro_rules! reads {
    ($kit:ty) => {
        use super::*;
        ask!($kit:
            an_unknown_service_is_an_empty_list_or_a_problem,
            equal_news_wakes_nobody,
            names_that_no_registry_could_hold_are_refused,
            a_registration_is_taken_and_given_back,
        );
    };
}

/// All of it.
macro_rules! conforms {
    ($kit:ty) => {
        reads!($kit);
        ask!($kit:
            what_is_registered_is_seen_elsewhere_with_all_that_it_says,
            one_that_leaves_is_gone_elsewhere,
            one_whose_handle_is_dropped_is_gone_elsewhere,
            changes_of_state_are_seen_elsewhere_and_decide_who_is_used,
            of_two_that_change_states_at_once_the_last_word_counts,
            watches_of_one_service_are_shared,
            a_runtime_that_ends_takes_nothing_from_another,
            two_instances_are_both_seen_and_leave_alone,
            the_same_id_again_replaces_what_was_there,
            everything_known_is_listed_by_service,
        );
    };
}

#[rustfmt::skip]
mod memory { conforms!(InMemory); }
#[rustfmt::skip]
mod simulated_consul { conforms!(InSimulation); }
#[rustfmt::skip]
mod fixed { reads!(InTable); }
#[rustfmt::skip]
mod cached { conforms!(InCache); }
#[rustfmt::skip]
mod union { conforms!(InUnion); }
#[rustfmt::skip]
mod first { conforms!(InFirst); }
#[cfg(feature = "consul")]
#[rustfmt::skip]
mod consul { conforms!(InConsul); }
#[cfg(feature = "broadcast")]
#[rustfmt::skip]
mod datagrams { conforms!(InDatagrams); }
#[cfg(feature = "manifest")]
#[rustfmt::skip]
mod members { conforms!(AmongMembers); }
