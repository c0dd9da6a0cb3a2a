//! Three real Consul servers that lose their leader.
//!
//! Owns only tests. Look next at `support/consul.rs`, and at `registry_consul.rs` for one agent alone.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::registry::{Consul, Freshness, RegistrationState, Registry};
use support::consul::Agent;
use support::{eventually, instance, state, until};

#[tokio::test]
async fn losing_the_leader_loses_no_instance_and_new_ones_are_found_after_the_election() {
    let Some(mut agents) = Agent::start_three().await else { return };
    let leader = Agent::leader(&agents).await.expect("three servers have a leader");
    let follower = (leader + 1) % 3;
    let registry = Consul::new(&agents[follower].url()).unwrap().ttl(Duration::from_secs(10));
    let one = registry.register(instance("service1", "one", 4000)).await.unwrap();
    state(&one, "Registered", |state| *state == RegistrationState::Registered).await;
    let mut watch = registry.watch("service1");
    let before = until(&mut watch, "the instance", |e| e.usable().len() == 1).await;

    agents[leader].kill();
    // Without a leader the agent takes the instance, but nobody can learn of it.
    let two = registry.register(instance("service1", "two", 4001)).await.unwrap();
    let during = watch.current();
    assert!(during.usable().iter().any(|endpoint| endpoint.id == "one"), "{during:?}");
    if two.state() != RegistrationState::Registered {
        assert_eq!(during.endpoints, before.endpoints, "the list stays as it was while nobody leads");
    }

    eventually("another server leads", async || Agent::leader(&agents).await.is_some_and(|elected| elected != leader))
        .await;
    let elected = tokio::time::Instant::now();
    let both = until(&mut watch, "both instances", |e| e.usable().len() == 2 && e.freshness == Freshness::Live).await;
    assert_eq!(both.problem, None);
    assert!(elected.elapsed() < Duration::from_secs(5), "found {:?} after the election", elected.elapsed());
    state(&two, "Registered", |state| *state == RegistrationState::Registered).await;
    // Its beats may have waited behind the registration that the agent could not pass on.
    state(&one, "Registered", |state| *state == RegistrationState::Registered).await;
}
