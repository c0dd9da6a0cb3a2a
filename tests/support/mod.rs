//! What tests share.
//!
//! Owns nothing itself. A test binary takes only what it needs, so unused parts are normal here. Look next at the
//! modules.
#![allow(dead_code, reason = "every test binary uses another part")]

#[cfg(feature = "broadcast")]
pub(crate) mod broadcast;
#[cfg(unix)]
pub(crate) mod clock;
pub(crate) mod consul;
pub(crate) mod fake_consul;
pub(crate) mod fault;
pub(crate) mod held;
#[cfg(unix)]
pub(crate) mod hosts;
#[cfg(all(feature = "consul", feature = "macros"))]
pub(crate) mod load;
pub(crate) mod logged;
#[cfg(feature = "manifest")]
pub(crate) mod members;
pub(crate) mod nodes;
pub(crate) mod peer;
pub(crate) mod pressure;
#[cfg(all(feature = "consul", feature = "macros"))]
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod replicas;
#[cfg(all(feature = "consul", feature = "macros"))]
pub(crate) mod scene;
pub(crate) mod simulated_consul;
pub(crate) mod tap;
#[cfg(all(feature = "consul", feature = "macros"))]
pub(crate) mod work;

use std::time::Duration;

use picom::registry::{Endpoints, Instance, Registration, RegistrationState, Watch};
use picom::{NodeState, NodeStatus};
use std::sync::Arc;
use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for what must happen. Long, because a passing test never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An instance with nothing special about it.
pub(crate) fn instance(service: &str, id: &str, port: u16) -> Instance {
    Instance {
        service: service.to_owned(),
        id: id.to_owned(),
        incarnation: 0xfeed_0000 + u64::from(port),
        address: None,
        port,
        weight: 1,
        zone: None,
        tags: Vec::new(),
        meta: Default::default(),
        status: NodeStatus::now(NodeState::Running, None),
    }
}

/// The first snapshot that fits; panics with the last one when none does in time.
pub(crate) async fn until(watch: &mut Watch, what: &str, fits: impl Fn(&Endpoints) -> bool) -> Arc<Endpoints> {
    let now = watch.current();
    if fits(&now) {
        return now;
    }
    let fitting = timeout(PATIENCE, async {
        loop {
            let snapshot = watch.changed().await;
            if fits(&snapshot) {
                return snapshot;
            }
        }
    });
    match fitting.await {
        Ok(snapshot) => snapshot,
        Err(_) => panic!("waited for {what}, but the snapshot is {:#?}", watch.current()),
    }
}

/// Waits until the registration is in a state that fits.
pub(crate) async fn state(registration: &Registration, what: &str, fits: impl Fn(&RegistrationState) -> bool) {
    let mut states = registration.states();
    let reached = timeout(PATIENCE, states.wait_for(|state| fits(state))).await;
    assert!(matches!(reached, Ok(Ok(_))), "waited for {what}, but the registration is {:?}", registration.state());
}

/// Asks again and again until the answer is yes.
pub(crate) async fn eventually(what: &str, mut yes: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !yes().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A node that only calls, and finds others through this agent.
#[cfg(feature = "consul")]
pub(crate) fn client(agent: &consul::Agent) -> picom::Picom {
    let registry = picom::registry::Consul::new(&agent.url()).expect("the agent's address is one");
    picom::Picom::builder("caller").registry(registry).build().expect("a node")
}

/// Waits until Consul lists exactly so many instances of the processes' service as passing, and returns their ports.
#[cfg(all(feature = "consul", feature = "macros"))]
pub(crate) async fn passing(agent: &consul::Agent, count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    eventually(&format!("{count} instances pass"), async || {
        let list = agent.get(&format!("/v1/health/service/{}?passing", process::SERVICE)).await;
        let entries = list.as_array().expect("a list");
        ports = entries.iter().filter_map(|entry| u16::try_from(entry["Service"]["Port"].as_u64()?).ok()).collect();
        ports.len() == count
    })
    .await;
    ports
}
