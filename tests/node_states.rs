//! What a node says of itself, and who is called then: in memory and through a real Consul.
//!
//! Owns only tests. Look next at `registry_conformance.rs` for how each registry carries a state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use futures::FutureExt;
use picom::balance::RoundRobin;
use picom::registry::{Memory, Registry};
use picom::{Code, Execution, MAX_REASON, Methods, NodeState, Picom, Signal, Status};
use support::nodes::{SERVICE, builder};

/// A service that says who it is.
fn who(name: &'static str) -> Methods {
    Methods::new().unary("who", move |_cx, (): ()| async move { Ok::<_, Status>(name) })
}

async fn node(registry: &Memory, name: &'static str) -> Picom {
    let node = builder(SERVICE, registry).build().unwrap();
    node.expose(who(name)).await.unwrap();
    node
}

async fn ask(caller: &Picom) -> Result<String, Status> {
    caller.fetch::<String>(SERVICE, "who", ()).await
}

/// Who answers ten calls.
async fn answers(caller: &Picom) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..10 {
        names.push(ask(caller).await.unwrap());
    }
    names.sort();
    names.dedup();
    names
}

/// Brings a node from down to a state.
fn lead(node: &Picom, state: NodeState) {
    match state {
        NodeState::Running => node.start().unwrap(),
        NodeState::Doing => node.doing("a test").unwrap(),
        NodeState::Stopped => node.stop("a test").unwrap(),
        _ => {}
    }
}

#[tokio::test]
async fn every_pair_of_states_is_a_way_or_an_error_that_lists_the_ways() {
    use NodeState::{Doing, Down, Running, Stopped, Up};
    for from in [Up, Running, Doing, Stopped, Down] {
        for to in [Running, Doing, Stopped] {
            let node = builder(SERVICE, &Memory::new()).started(false).build().unwrap();
            if from != Down {
                node.expose(who("one")).await.unwrap();
            }
            lead(&node, from);
            assert_eq!(node.state().state, from);
            let outcome = match to {
                Running => node.start(),
                Doing => node.doing("again"),
                _ => node.stop("again"),
            };
            let may = match from {
                Up => true,
                Running => to != Running,
                Doing => true,
                Stopped => to != Stopped,
                _ => false,
            };
            assert_eq!(outcome.is_ok(), may, "from {from} to {to}: {outcome:?}");
            assert_eq!(node.state().state, if may { to } else { from });
            if let Err(error) = outcome {
                let text = error.to_string();
                assert!(from.next().iter().all(|state| text.contains(state.as_str())), "{text}");
                assert_eq!(Status::from(error).code(), Code::FailedPrecondition);
            }
        }
    }
}

#[tokio::test]
async fn a_node_is_down_before_expose_and_after_end_and_running_in_between() {
    let registry = Memory::new();
    let node = builder(SERVICE, &registry).build().unwrap();
    assert_eq!(node.state().state, NodeState::Down);
    assert!(node.stop("too early").is_err(), "what is not there cannot be stopped");
    node.expose(who("one")).await.unwrap();
    assert_eq!(node.state().state, NodeState::Running);
    assert!(node.state().since.is_some());
    assert_eq!(registry.watch(SERVICE).current().endpoints[0].status, node.state());
    node.end().await.unwrap();
    assert_eq!(node.state().state, NodeState::Down);
    assert!(node.start().is_err(), "what has left cannot be started");
    node.expose(who("one")).await.unwrap();
    assert_eq!(node.state().state, NodeState::Running, "a node may come back");
    node.end().await.unwrap();
}

#[tokio::test]
async fn an_expose_that_fails_leaves_the_node_down() {
    let node = builder(SERVICE, &Memory::new()).bind("192.0.2.1").build().unwrap();
    node.expose(who("one")).await.unwrap_err();
    assert_eq!(node.state().state, NodeState::Down);
}

#[tokio::test]
async fn a_node_that_is_not_started_is_found_but_not_called() {
    let registry = Memory::new();
    let late = builder(SERVICE, &registry).started(false).build().unwrap();
    late.expose(who("late")).await.unwrap();
    assert_eq!(late.state().state, NodeState::Up);
    let watch = registry.watch(SERVICE);
    assert_eq!((watch.current().endpoints.len(), watch.current().usable().len()), (1, 0));
    let caller = builder("caller", &registry).balance(RoundRobin).build().unwrap();
    let waiting = ask(&caller);
    futures::pin_mut!(waiting);
    assert!(waiting.as_mut().now_or_never().is_none(), "a first call waits for it");
    late.start().unwrap();
    assert_eq!(waiting.await.unwrap(), "late");
}

#[tokio::test]
async fn a_stopped_node_is_not_called_and_the_last_one_that_stops_says_why() {
    let registry = Memory::new();
    let (one, two) = (node(&registry, "one").await, node(&registry, "two").await);
    let caller =
        builder("caller", &registry).balance(RoundRobin).resolve_wait(Duration::from_millis(100)).build().unwrap();
    assert_eq!(answers(&caller).await, ["one", "two"]);
    one.stop("disk full").unwrap();
    assert_eq!(answers(&caller).await, ["two"], "from the moment on that `stop` returns");
    two.stop("deploy").unwrap();
    let error = ask(&caller).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");
    let text = error.to_string();
    assert!(text.contains("no running instance") && text.contains("stopped: "), "{text}");
    one.start().unwrap();
    assert_eq!(answers(&caller).await, ["one"]);
}

#[tokio::test]
async fn a_stopped_node_serves_what_reaches_it() {
    let registry = Memory::new();
    let stopped = builder(SERVICE, &registry).build().unwrap();
    let addr = stopped.expose(who("stopped")).await.unwrap().local_addr();
    let caller = builder("caller", &registry).balance(RoundRobin).build().unwrap();
    stopped.stop("maintenance").unwrap();
    assert_eq!(caller.fetch::<String>(SERVICE, "who", ()).on(addr).await.unwrap(), "stopped");
}

#[tokio::test]
async fn busy_nodes_are_called_only_when_none_is_running() {
    let registry = Memory::new();
    let (one, two) = (node(&registry, "one").await, node(&registry, "two").await);
    let caller = builder("caller", &registry).balance(RoundRobin).build().unwrap();
    one.doing("a backup").unwrap();
    assert_eq!(answers(&caller).await, ["two"]);
    two.doing("a backup too").unwrap();
    assert_eq!(answers(&caller).await, ["one", "two"], "better than nobody");
    two.stop("").unwrap();
    assert_eq!(answers(&caller).await, ["one"]);
    two.start().unwrap();
    assert_eq!(answers(&caller).await, ["two"]);
}

#[tokio::test]
async fn reasons_reach_those_who_watch_and_are_cut_at_their_limit() {
    let registry = Memory::new();
    let node = node(&registry, "one").await;
    let mut watch = registry.watch(SERVICE);
    let mut said = async || watch.changed().await.endpoints[0].status.clone();
    said().await;
    node.doing("first").unwrap();
    assert_eq!(said().await.to_string(), "doing: first");
    node.doing(&"x".repeat(MAX_REASON + 1)).unwrap();
    assert_eq!(said().await.reason.unwrap().len(), MAX_REASON);
    node.stop("").unwrap();
    assert_eq!(said().await.to_string(), "stopped");
    assert_eq!(registry.watch(SERVICE).current().endpoints[0].status, node.state());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_the_node_says_last_is_what_others_hear_last() {
    let registry = Memory::new();
    let node = node(&registry, "one").await;
    let watch = registry.watch(SERVICE);
    for _ in 0..20 {
        let sayers = (0..4).map(|number: usize| {
            let node = node.clone();
            tokio::spawn(async move {
                for turn in 0..50 {
                    // Which of them are possible depends on the others.
                    let _ = match (number + turn) % 3 {
                        0 => node.start(),
                        1 => node.stop("one of many"),
                        _ => node.doing("one of many"),
                    };
                }
            })
        });
        futures::future::join_all(sayers).await;
        assert_eq!(watch.current().endpoints[0].status, node.state());
    }
}

#[tokio::test]
async fn the_reason_of_leaving_reaches_those_who_can_be_told() {
    let registry = Memory::new();
    let node = node(&registry, "one").await;
    let mut watch = registry.watch(SERVICE);
    let listener = tokio::spawn(async move {
        let mut last = None;
        loop {
            match watch.changed().await.endpoints.first() {
                Some(endpoint) => last = Some(endpoint.status.to_string()),
                None => return last,
            }
        }
    });
    tokio::task::yield_now().await;
    node.end_with(&Signal::Terminate.to_string()).await.unwrap();
    // In memory nobody waits for the listener, so it may have seen only the end.
    let last = listener.await.unwrap().unwrap();
    assert!(["down: SIGTERM (15)", "running"].contains(&last.as_str()), "{last}");
    assert_eq!(node.state().to_string(), "down: SIGTERM (15)");
}

#[test]
fn signals_have_their_conventional_numbers() {
    let of = |signal: Signal| (signal.name(), signal.number(), signal.code());
    assert_eq!(of(Signal::Interrupt), ("SIGINT", 2, 130));
    assert_eq!(of(Signal::Terminate), ("SIGTERM", 15, 143));
    assert_eq!(Signal::Terminate.to_string(), "SIGTERM (15)");
}

#[cfg(feature = "consul")]
mod consul {
    use picom::registry::{Consul, Tier};
    use serde_json::Value;

    use super::support::consul::Agent;
    use super::support::{eventually, until};
    use super::*;

    const TTL: Duration = Duration::from_secs(2);

    fn at(agent: &Agent) -> Consul {
        Consul::new(&agent.url()).unwrap().ttl(TTL)
    }

    async fn node(agent: &Agent, name: &'static str) -> Picom {
        let node = Picom::builder(SERVICE).registry(at(agent)).bind("127.0.0.1").build().unwrap();
        node.expose(who(name)).await.unwrap();
        node
    }

    /// Status and notes of the checks with which instances show that they live.
    async fn checks(agent: &Agent) -> Vec<(String, String)> {
        let list: Value = agent.get(&format!("/v1/health/service/{SERVICE}")).await;
        let checks = list.as_array().unwrap().iter().flat_map(|entry| entry["Checks"].as_array().unwrap());
        let own = checks.filter(|check| check["CheckID"].as_str().unwrap().starts_with("service:"));
        let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
        own.map(|check| (text(check, "Status"), text(check, "Notes"))).collect()
    }

    async fn listed(agent: &Agent, status: &str, said: &str) {
        eventually(&format!("consul lists it as {status} and {said:?}"), async || {
            let now = checks(agent).await;
            now.len() == 1 && now[0].0 == status && now[0].1.starts_with("picom ") && now[0].1.contains(said)
        })
        .await;
    }

    #[tokio::test]
    async fn a_stopped_node_is_critical_with_its_note_and_is_not_called_until_it_starts() {
        let Some(agent) = Agent::start().await else { return };
        let (one, two) = (node(&agent, "one").await, node(&agent, "two").await);
        let caller = Picom::builder("caller").registry(at(&agent)).balance(RoundRobin).build().unwrap();
        eventually("both are called", async || answers(&caller).await == ["one", "two"]).await;
        one.stop("disk full").unwrap();
        let mut watch = at(&agent).watch(SERVICE);
        let seen = until(&mut watch, "one stopped", |e| e.usable().len() == 1).await;
        let stopped = seen.endpoints.iter().find(|e| e.status.state == NodeState::Stopped).expect("it stays listed");
        assert_eq!(stopped.status, one.state(), "with reason and time");
        eventually("only the other is called", async || answers(&caller).await == ["two"]).await;
        eventually("its check is critical", async || {
            let mut statuses: Vec<_> = checks(&agent).await.into_iter().map(|(status, _)| status).collect();
            statuses.sort();
            statuses == ["critical", "passing"]
        })
        .await;
        one.start().unwrap();
        eventually("both are called again", async || answers(&caller).await == ["one", "two"]).await;
        for node in [one, two] {
            node.end().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_busy_node_passes_with_its_note_and_each_new_reason_is_seen() {
        let Some(agent) = Agent::start().await else { return };
        let busy = node(&agent, "busy").await;
        let mut watch = at(&agent).watch(SERVICE);
        for reason in ["a backup", "another backup"] {
            busy.doing(reason).unwrap();
            listed(&agent, "passing", reason).await;
            let seen = until(&mut watch, reason, |e| e.endpoints[0].status == busy.state()).await;
            assert_eq!((seen.endpoints[0].tier, seen.usable().len()), (Tier::Healthy, 1), "{seen:?}");
        }
        let caller = Picom::builder("caller").registry(at(&agent)).balance(RoundRobin).build().unwrap();
        assert_eq!(answers(&caller).await, ["busy"], "where none is running");
        let _other = node(&agent, "running").await;
        eventually("the running one is preferred", async || answers(&caller).await == ["running"]).await;
    }

    #[tokio::test]
    async fn a_node_that_is_not_started_is_never_seen_as_passing() {
        let Some(agent) = Agent::start().await else { return };
        let late = Picom::builder(SERVICE).registry(at(&agent)).bind("127.0.0.1").started(false).build().unwrap();
        let exposed = late.expose(who("late")).await.unwrap();
        assert_eq!(exposed.state(), picom::registry::RegistrationState::Registered);
        listed(&agent, "critical", "up").await;
        late.start().unwrap();
        listed(&agent, "passing", "running").await;
        late.end().await.unwrap();
    }

    #[tokio::test]
    async fn beats_do_not_start_a_stopped_node_and_neither_does_an_agent_without_memory() {
        let Some(mut agent) = Agent::start().await else { return };
        let stopped = node(&agent, "stopped").await;
        stopped.stop("for good").unwrap();
        listed(&agent, "critical", "stopped").await;
        let mut watch = at(&agent).watch(SERVICE);
        until(&mut watch, "stopped", |e| e.endpoints.first().is_some_and(|e| e.status == stopped.state())).await;
        let mut watcher = watch.clone();
        let usable = tokio::spawn(async move { while watcher.changed().await.usable().is_empty() {} });
        agent.restart_empty().await;
        listed(&agent, "critical", "stopped").await;
        // Several beats.
        tokio::time::sleep(TTL * 2).await;
        listed(&agent, "critical", "stopped").await;
        assert!(!usable.is_finished(), "for a moment it could have been called");
        stopped.start().unwrap();
        listed(&agent, "passing", "running").await;
    }

    /// Consul removes what has been critical for a minute or longer, within 30 s more.
    #[tokio::test]
    #[ignore = "takes 110 s"]
    async fn a_stopped_node_is_not_taken_for_dead() {
        let Some(agent) = Agent::start().await else { return };
        let registry = at(&agent).deregister_after(Duration::from_secs(60));
        let stopped = Picom::builder(SERVICE).registry(registry).bind("127.0.0.1").build().unwrap();
        stopped.expose(who("stopped")).await.unwrap();
        stopped.stop("for long").unwrap();
        listed(&agent, "critical", "stopped").await;
        let until = tokio::time::Instant::now() + Duration::from_secs(110);
        while tokio::time::Instant::now() < until {
            assert_eq!(checks(&agent).await.len(), 1, "consul has removed it");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
