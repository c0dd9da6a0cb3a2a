//! A real Consul agent: registering, beating, finding, leaving, and what happens when the agent fails.
//!
//! Owns only tests; each starts an agent of its own. Look next at `support/consul.rs`, and at
//! `registry_consul_faults.rs` for what a real agent cannot be made to do.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::registry::{Consul, Endpoints, Freshness, Registration, RegistrationState, Registry, Tier};
use serde_json::{Value, json};
use support::consul::Agent;
use support::{eventually, instance, state, until};

fn consul(agent: &Agent) -> Consul {
    Consul::new(&agent.url()).unwrap().ttl(Duration::from_secs(2))
}

async fn checks_of(agent: &Agent, id: &str) -> Vec<String> {
    let list = agent.get("/v1/health/service/service1").await;
    let Some(entry) = list.as_array().unwrap().iter().find(|entry| entry["Service"]["ID"] == id) else {
        return Vec::new();
    };
    let own = entry["Checks"].as_array().unwrap().iter().filter(|check| check["ServiceID"] == id);
    own.map(|check| check["Status"].as_str().unwrap().to_owned()).collect()
}

fn healthy(endpoints: &Endpoints) -> usize {
    endpoints.endpoints.iter().filter(|endpoint| endpoint.tier == Tier::Healthy).count()
}

async fn registered(registration: &Registration) {
    state(registration, "Registered", |state| *state == RegistrationState::Registered).await;
}

#[tokio::test]
async fn an_instance_is_listed_and_passing_when_register_returns() {
    let Some(agent) = Agent::start().await else { return };
    let mut given = instance("service1", "one", 4000);
    given.address = Some("10.0.0.7".parse().unwrap());
    given.zone = Some("north".to_owned());
    given.weight = 3;
    given.tags = vec!["blue".to_owned()];
    given.meta = [("colour".to_owned(), "red".to_owned())].into();
    let registration = consul(&agent).register(given.clone()).await.unwrap();

    assert_eq!(registration.state(), RegistrationState::Registered);
    assert_eq!(checks_of(&agent, "one").await, ["passing"]);
    let mut watch = consul(&agent).watch("service1");
    let found = until(&mut watch, "the instance", |e| healthy(e) == 1).await;
    assert_eq!(found.freshness, Freshness::Live);
    assert_eq!(found.problem, None);
    let endpoint = &found.endpoints[0];
    assert_eq!(endpoint.addr, "10.0.0.7:4000".parse().unwrap());
    assert_eq!(endpoint.id, "one");
    assert_eq!(endpoint.incarnation, Some(given.incarnation));
    assert_eq!(endpoint.zone, given.zone);
    assert_eq!(endpoint.weight, 3);
    assert_eq!(endpoint.tags, given.tags);
    assert_eq!(endpoint.meta, given.meta);
}

#[tokio::test]
async fn an_instance_without_an_address_is_found_at_the_agents() {
    let Some(agent) = Agent::start().await else { return };
    let _registration = consul(&agent).register(instance("service1", "one", 4000)).await.unwrap();
    let mut watch = consul(&agent).watch("service1");
    let found = until(&mut watch, "the instance", |e| healthy(e) == 1).await;
    assert_eq!(found.endpoints[0].addr, "127.0.0.1:4000".parse().unwrap());
}

#[tokio::test]
async fn the_first_snapshot_comes_also_when_nobody_is_there() {
    let Some(agent) = Agent::start().await else { return };
    let mut watch = consul(&agent).watch("nobody");
    let found = until(&mut watch, "an answer", |e| e.freshness == Freshness::Live).await;
    assert!(found.endpoints.is_empty() && found.problem.is_none(), "{found:?}");
}

#[tokio::test]
async fn beats_keep_an_instance_passing_beyond_its_ttl() {
    let Some(agent) = Agent::start().await else { return };
    let registry = consul(&agent).ttl(Duration::from_secs(1));
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let mut watch = registry.watch("service1");
    until(&mut watch, "the instance", |e| healthy(e) == 1).await;
    // Without beats the list would change after 1 s.
    let unhealthy = tokio::time::timeout(Duration::from_millis(2500), async {
        loop {
            let now = watch.changed().await;
            if healthy(&now) == 0 {
                return now;
            }
        }
    });
    assert!(unhealthy.await.is_err(), "the instance did not stay healthy for two and a half TTLs");
    assert_eq!(registration.state(), RegistrationState::Registered);
}

#[tokio::test]
async fn leaving_takes_the_instance_back_before_it_returns() {
    let Some(agent) = Agent::start().await else { return };
    let registry = consul(&agent);
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let states = registration.states();
    registration.leave().await.unwrap();
    assert_eq!(*states.borrow(), RegistrationState::Left);
    assert_eq!(agent.get("/v1/health/service/service1").await, json!([]));
    assert_eq!(agent.get("/v1/agent/services").await, json!({}));
}

#[tokio::test]
async fn dropping_the_handle_takes_the_instance_back_too() {
    let Some(agent) = Agent::start().await else { return };
    drop(consul(&agent).register(instance("service1", "one", 4000)).await.unwrap());
    eventually("the agent forgets the instance", async || agent.get("/v1/agent/services").await == json!({})).await;
}

#[tokio::test]
async fn one_of_two_instances_disappears_at_once_and_the_last_is_remembered_as_unhealthy() {
    let Some(agent) = Agent::start().await else { return };
    let registry = consul(&agent).stale_grace(Duration::from_millis(1500));
    let one = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let two = registry.register(instance("service1", "two", 4001)).await.unwrap();
    let mut watch = registry.watch("service1");
    until(&mut watch, "two instances", |e| healthy(e) == 2).await;
    one.leave().await.unwrap();
    let rest = until(&mut watch, "only the second", |e| e.endpoints.len() == 1).await;
    assert_eq!(rest.endpoints[0].id, "two");
    two.leave().await.unwrap();
    let remembered = until(&mut watch, "the last one unhealthy", |e| healthy(e) == 0).await;
    assert_eq!(remembered.endpoints.len(), 1, "{remembered:?}");
    assert!(matches!(remembered.freshness, Freshness::Stale(_)), "{remembered:?}");
    assert_eq!(remembered.usable().len(), 1, "for want of others");
    assert!(remembered.problem.as_deref().unwrap().contains("remembered"), "{remembered:?}");
    let empty = until(&mut watch, "nobody after the grace", |e| e.endpoints.is_empty()).await;
    assert_eq!(empty.freshness, Freshness::Live);
}

#[tokio::test]
async fn an_agent_that_lost_its_memory_is_told_again_and_nobody_is_lost_over_it() {
    let Some(mut agent) = Agent::start().await else { return };
    let registry = consul(&agent);
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let mut watch = registry.watch("service1");
    until(&mut watch, "the instance", |e| healthy(e) == 1).await;
    let mut callers = watch.clone();
    let callers = tokio::spawn(async move { while callers.changed().await.usable().len() == 1 {} });
    agent.restart_empty().await;
    let listed = async || checks_of(&agent, "one").await == ["passing"];
    eventually("the instance is listed and passing again", listed).await;
    registered(&registration).await;
    let again = until(&mut watch, "the instance again", |e| healthy(e) == 1 && e.freshness == Freshness::Live).await;
    assert_eq!(again.endpoints[0].id, "one");
    assert!(!callers.is_finished(), "for a moment there was nobody to call");
}

#[tokio::test]
async fn an_instance_that_somebody_removed_comes_back() {
    let Some(agent) = Agent::start().await else { return };
    let registration = consul(&agent).register(instance("service1", "one", 4000)).await.unwrap();
    agent.put("/v1/agent/service/deregister/one", &Value::Null).await;
    eventually("the instance is back", async || checks_of(&agent, "one").await == ["passing"]).await;
    registered(&registration).await;
}

#[tokio::test]
async fn losing_consul_keeps_the_list_and_says_so() {
    let Some(mut agent) = Agent::start().await else { return };
    let registry = consul(&agent);
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let mut watch = registry.watch("service1");
    let before = until(&mut watch, "the instance", |e| healthy(e) == 1).await;
    agent.kill();
    let after = until(&mut watch, "the loss", |e| matches!(e.freshness, Freshness::Stale(_))).await;
    assert_eq!(after.endpoints, before.endpoints, "the last good list stays");
    assert_eq!(after.generation, before.generation);
    // What was under way when the agent died fails differently from what comes later.
    let refused = |e: &Endpoints| e.problem.as_deref().is_some_and(|text| text.contains("refused"));
    let after = until(&mut watch, "a refused connection", refused).await;
    let problem = after.problem.as_deref().unwrap();
    assert!(problem.contains(&agent.url()), "{problem}");
    state(&registration, "Retrying", |state| matches!(state, RegistrationState::Retrying(_))).await;

    agent.restart_empty().await;
    registered(&registration).await;
    until(&mut watch, "the instance again", |e| healthy(e) == 1 && e.freshness == Freshness::Live).await;
}

#[tokio::test]
async fn a_consul_that_is_not_there_is_named_at_once_and_used_when_it_comes() {
    let Some(mut agent) = Agent::start().await else { return };
    agent.kill();
    let registry = consul(&agent);
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    match registration.state() {
        RegistrationState::Retrying(why) => assert!(why.contains(&agent.url()) && why.contains("refused"), "{why}"),
        other => panic!("expected Retrying, got {other:?}"),
    }
    let mut watch = registry.watch("service1");
    let never = until(&mut watch, "the problem", |e| e.problem.is_some()).await;
    assert_eq!(never.freshness, Freshness::Never);
    assert!(never.problem.as_deref().unwrap().contains(&agent.url()), "{never:?}");
    agent.restart_empty().await;
    registered(&registration).await;
    until(&mut watch, "the instance", |e| healthy(e) == 1).await;
}

#[tokio::test]
async fn a_frozen_agent_makes_register_return_in_time_and_recovers() {
    let Some(agent) = Agent::start().await else { return };
    let registry = consul(&agent);
    agent.stop();
    let began = std::time::Instant::now();
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "register took {:?}", began.elapsed());
    assert!(matches!(registration.state(), RegistrationState::Retrying(_)), "{:?}", registration.state());
    agent.cont();
    registered(&registration).await;
}

#[tokio::test]
async fn failing_checks_put_an_instance_into_a_lower_tier() {
    let Some(agent) = Agent::start().await else { return };
    for (id, port, status) in [("good", 1, "passing"), ("odd", 2, "warning"), ("bad", 3, "critical")] {
        let check = json!({"CheckID": format!("service:{id}"), "TTL": "10m", "Status": status});
        let body = json!({"ID": id, "Name": "service1", "Address": "10.0.0.1", "Port": port, "Check": check});
        agent.put("/v1/agent/service/register", &body).await;
    }
    let mut watch = consul(&agent).watch("service1");
    let found = until(&mut watch, "three instances", |e| e.endpoints.len() == 3).await;
    let tiers: Vec<_> = found.endpoints.iter().map(|e| (e.id.as_str(), e.tier)).collect();
    assert_eq!(tiers, [("good", Tier::Healthy), ("odd", Tier::Doubtful), ("bad", Tier::Unhealthy)]);

    // Only the machine's own check fails: doubtful.
    agent.put("/v1/agent/check/register", &json!({"ID": "disk", "Name": "disk", "TTL": "10m"})).await;
    let found = until(&mut watch, "no healthy one", |e| healthy(e) == 0).await;
    assert_eq!(found.endpoints[0].tier, Tier::Doubtful);
    let used: Vec<_> = found.usable().iter().map(|e| e.id.clone()).collect();
    assert_eq!(used, ["good", "odd"], "who fails its own check is not called");
}

#[tokio::test]
async fn nonsense_in_the_catalog_is_left_out_and_counted() {
    let Some(agent) = Agent::start().await else { return };
    for (id, address, port) in [
        ("good", "10.0.0.1", 80),
        ("high", "10.0.0.2", 70_000),
        ("low", "10.0.0.3", -5),
        ("meta", "169.254.169.254", 80),
    ] {
        let body = json!({"ID": id, "Name": "service1", "Address": address, "Port": port});
        agent.put("/v1/agent/service/register", &body).await;
    }
    let registry = consul(&agent);
    let mut watch = registry.watch("service1");
    let found = until(&mut watch, "the good one", |e| !e.endpoints.is_empty()).await;
    let ids: Vec<_> = found.endpoints.iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids, ["good"]);
    assert_eq!(registry.rejected_entries(), 3);
}

#[tokio::test]
async fn what_consul_refuses_for_good_is_an_error() {
    let Some(agent) = Agent::start().await else { return };
    let mut given = instance("service1", "one", 4000);
    given.meta = (0..70).map(|n| (format!("key{n}"), String::new())).collect();
    let error = consul(&agent).register(given).await.unwrap_err();
    assert!(error.to_string().contains("meta"), "{error}");
    let error = consul(&agent).register(instance("no such/name", "one", 4000)).await.unwrap_err();
    assert!(error.to_string().contains("no such/name"), "{error}");
}
