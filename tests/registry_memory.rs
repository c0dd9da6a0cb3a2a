//! The registry inside one process: visible at once, gone at once, shared by name.
//!
//! Owns only tests. Look next at `registry_consul.rs` for the same promises across machines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use futures::FutureExt;
use picom::registry::{Freshness, Memory, RegistrationState, Registry};
use support::instance;

#[tokio::test]
async fn a_snapshot_is_live_from_the_start() {
    let mut watch = Memory::new().watch("service1");
    let first = watch.changed().now_or_never().expect("the first snapshot comes without waiting");
    assert_eq!(first.freshness, Freshness::Live);
    assert!(first.endpoints.is_empty());
    assert!(watch.changed().now_or_never().is_none(), "nothing has changed since");
    assert!(watch.clone().changed().now_or_never().is_some(), "a clone has seen nothing yet");
}

#[tokio::test]
async fn registering_and_leaving_are_visible_at_once() {
    let registry = Memory::new();
    let mut watch = registry.watch("service1");
    let empty = watch.current().generation;
    let mut given = instance("service1", "one", 4000);
    given.zone = Some("north".to_owned());
    let registration = registry.register(given.clone()).await.unwrap();
    assert_eq!(registration.state(), RegistrationState::Registered);
    let found = watch.current();
    assert!(found.generation > empty);
    assert_eq!(found.endpoints.len(), 1);
    assert_eq!(found.endpoints[0].addr, "127.0.0.1:4000".parse().unwrap());
    assert_eq!(found.endpoints[0].incarnation, Some(given.incarnation));
    assert_eq!(found.endpoints[0].zone, given.zone);
    assert!(watch.changed().now_or_never().is_some());

    let states = registration.states();
    registration.leave().await.unwrap();
    assert_eq!(*states.borrow(), RegistrationState::Left);
    assert!(watch.changed().now_or_never().unwrap().endpoints.is_empty());
}

#[tokio::test]
async fn dropping_the_handle_takes_the_registration_back() {
    let registry = Memory::new();
    let watch = registry.watch("service1");
    drop(registry.register(instance("service1", "one", 4000)).await.unwrap());
    assert!(watch.current().endpoints.is_empty());
}

#[tokio::test]
async fn of_two_instances_with_one_id_the_newer_counts() {
    let registry = Memory::new();
    let watch = registry.watch("service1");
    let older = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let _newer = registry.register(instance("service1", "one", 4001)).await.unwrap();
    assert_eq!(older.state(), RegistrationState::Left);
    assert_eq!(watch.current().endpoints.len(), 1);
    older.leave().await.unwrap();
    let left = watch.current();
    assert_eq!(left.endpoints.len(), 1, "the older one's leaving must not take the newer one back");
    assert_eq!(left.endpoints[0].addr.port(), 4001);
}

#[tokio::test]
async fn instances_are_ordered_by_address_with_one_per_address() {
    let registry = Memory::new();
    let mut kept = Vec::new();
    for (id, port) in [("c", 4002), ("a", 4000), ("b", 4001), ("d", 4000)] {
        kept.push(registry.register(instance("service1", id, port)).await.unwrap());
    }
    let found = registry.watch("service1").current();
    let ids: Vec<_> = found.endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect();
    assert_eq!(ids, ["d", "b", "c"], "the newest of two at one address");
}

#[tokio::test]
async fn what_did_not_change_keeps_its_allocation() {
    let registry = Memory::new();
    let watch = registry.watch("service1");
    let _one = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let before = watch.current();
    let _two = registry.register(instance("service1", "two", 4001)).await.unwrap();
    let after = watch.current();
    assert!(std::sync::Arc::ptr_eq(&before.endpoints[0], &after.endpoints[0]));
}

#[tokio::test]
async fn services_do_not_see_each_other() {
    let registry = Memory::new();
    let _one = registry.register(instance("service1", "one", 4000)).await.unwrap();
    assert!(registry.watch("service2").current().endpoints.is_empty());
}

#[tokio::test]
async fn a_name_means_the_same_registry_everywhere_for_as_long_as_it_is_used() {
    let name = "registry_memory/shared";
    let registration = Memory::named(name).register(instance("service1", "one", 4000)).await.unwrap();
    assert_eq!(Memory::named(name).watch("service1").current().endpoints.len(), 1);
    assert!(Memory::new().watch("service1").current().endpoints.is_empty(), "a private one is another");
    drop(registration);
    assert!(Memory::named(name).watch("service1").current().endpoints.is_empty());
}

#[tokio::test]
async fn instances_that_no_registry_could_hold_are_refused() {
    let registry = Memory::new();
    let long = "x".repeat(129);
    let mut refused = vec![
        instance("", "one", 4000),
        instance("a/b", "one", 4000),
        instance("a b", "one", 4000),
        instance(&long, "one", 4000),
        instance("service1", "", 4000),
        instance("service1", "line\nbreak", 4000),
        instance("service1", "one", 0),
    ];
    let mut weightless = instance("service1", "one", 4000);
    weightless.weight = 0;
    refused.push(weightless);
    for given in refused {
        let shown = format!("{given:?}");
        assert!(registry.register(given).await.is_err(), "accepted {shown}");
    }
}
