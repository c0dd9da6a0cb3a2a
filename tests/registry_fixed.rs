//! The fixed table: addresses, host names, and registering that publishes nothing.
//!
//! Owns only tests. Look next at `registry_url.rs` for the same table written as a URL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use futures::FutureExt;
use picom::registry::{Fixed, Freshness, RegistrationState, Registry, Tier};
use support::{instance, until};

#[test]
fn addresses_are_there_at_once_and_need_no_runtime() {
    let registry = Fixed::new([("service1", ["10.0.0.8:4000", "10.0.0.7:4000"])]).service("service1", ["[::1]:1"]);
    registry.validate().unwrap();
    let mut watch = registry.watch("service1");
    let found = watch.changed().now_or_never().expect("the table is known without waiting");
    assert_eq!(found.freshness, Freshness::Live);
    let addresses: Vec<_> = found.endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.7:4000", "10.0.0.8:4000", "[::1]:1"]);
    assert!(found.endpoints.iter().all(|e| e.tier == Tier::Healthy && e.incarnation.is_none()));
    assert!(watch.changed().now_or_never().is_none());
}

#[test]
fn a_service_that_is_not_in_the_table_is_said_to_be_missing() {
    let found = Fixed::new([("service1", ["10.0.0.7:4000"])]).watch("service2").current();
    assert_eq!(found.freshness, Freshness::Live);
    assert!(found.endpoints.is_empty());
    assert!(found.problem.as_deref().unwrap().contains("service2"), "{found:?}");
}

#[tokio::test]
async fn host_names_are_looked_up() {
    let registry = Fixed::new([("service1", ["localhost:4000", "10.0.0.7:4000"])]);
    let found = until(&mut registry.watch("service1"), "both", |e| e.endpoints.len() >= 2).await;
    assert!(found.endpoints.iter().any(|e| e.addr.ip().is_loopback() && e.addr.port() == 4000), "{found:?}");
    assert!(found.endpoints.iter().any(|e| e.addr.to_string() == "10.0.0.7:4000"), "{found:?}");
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_is_named() {
    let registry = Fixed::new([("service1", ["no-such-host.invalid:4000"])]);
    let found = until(&mut registry.watch("service1"), "the problem", |e| e.problem.is_some()).await;
    assert_eq!(found.freshness, Freshness::Never);
    assert!(found.problem.as_deref().unwrap().contains("no-such-host.invalid"), "{found:?}");
}

#[test]
fn a_watch_that_needs_a_runtime_says_so_instead_of_panicking() {
    let found = Fixed::new([("service1", ["localhost:4000"])]).watch("service1").current();
    assert!(found.problem.as_deref().unwrap().contains("runtime"), "{found:?}");
}

#[tokio::test]
async fn registering_is_accepted_and_publishes_nothing() {
    let registry = Fixed::new([("service1", ["10.0.0.7:4000"])]);
    let registration = registry.register(instance("service1", "one", 4001)).await.unwrap();
    assert_eq!(registration.state(), RegistrationState::Registered);
    assert_eq!(registry.watch("service1").current().endpoints.len(), 1);
    let states = registration.states();
    registration.leave().await.unwrap();
    assert_eq!(*states.borrow(), RegistrationState::Left);
}

#[test]
fn wrong_addresses_are_refused_by_name() {
    for wrong in ["10.0.0.7", "10.0.0.7:0", "10.0.0.7:70000", "0.0.0.0:80", ":4000", "a b:1", "http://a:1", "::1:1:"] {
        let refused = Fixed::new([("service1", [wrong])]).validate();
        let text = refused.map_or_else(|error| error.to_string(), |()| panic!("{wrong:?} was accepted"));
        assert!(text.contains(wrong), "{text}");
    }
}
