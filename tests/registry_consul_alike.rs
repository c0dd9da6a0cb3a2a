//! The real Consul and the simulated one, asked the same while they fail: what the simulator believes of Consul is true.
//!
//! Owns only tests, each written once and run against both. What every registry promises in good health is asked of both in
//! `registry_conformance.rs`. Look next at `support/simulated_consul.rs` for the simulated one.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use picom::registry::{Endpoints, Freshness, RegistrationState, Registry, Tier};
use support::{PATIENCE, instance, state, until};
use tokio::time::{Instant, timeout};

/// After which time without a sign of life an instance is critical.
const TTL: Duration = Duration::from_secs(2);
/// How long the instances of a list that became empty are remembered.
const GRACE: Duration = Duration::from_millis(1500);

/// An agent that fails as it is told.
#[allow(async_fn_in_trait, reason = "only the tests below use it")]
trait Agent: Sized {
    /// `None`, after saying so, where it cannot run.
    async fn start() -> Option<Self>;
    /// The registry of a process.
    fn view(&self) -> Arc<dyn Registry>;
    /// It answers nobody.
    fn kill(&mut self);
    /// It answers again, and has forgotten everything.
    async fn restart_empty(&mut self);
}

struct Real(support::consul::Agent);

impl Agent for Real {
    async fn start() -> Option<Self> {
        support::consul::Agent::start().await.map(Self)
    }

    fn view(&self) -> Arc<dyn Registry> {
        Arc::new(picom::registry::Consul::new(&self.0.url()).unwrap().ttl(TTL).stale_grace(GRACE))
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn restart_empty(&mut self) {
        self.0.restart_empty().await;
    }
}

struct Simulated(support::simulated_consul::Consul);

impl Agent for Simulated {
    async fn start() -> Option<Self> {
        Some(Self(support::simulated_consul::Consul::new(TTL)))
    }

    fn view(&self) -> Arc<dyn Registry> {
        Arc::new(self.0.view(GRACE, |_, _| {}))
    }

    fn kill(&mut self) {
        self.0.set_down(true);
    }

    async fn restart_empty(&mut self) {
        self.0.restart();
        self.0.set_down(false);
    }
}

fn healthy(endpoints: &Endpoints) -> usize {
    endpoints.endpoints.iter().filter(|endpoint| endpoint.tier == Tier::Healthy).count()
}

fn is_live(endpoints: &Endpoints) -> bool {
    endpoints.freshness == Freshness::Live && endpoints.problem.is_none()
}

fn is_stale(endpoints: &Endpoints) -> bool {
    matches!(endpoints.freshness, Freshness::Stale(_)) && endpoints.problem.is_some()
}

async fn one_of_two_is_gone_at_once_and_the_last_is_remembered_for_a_while(agent: impl Agent) {
    let registry = agent.view();
    let one = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let two = registry.register(instance("service1", "two", 4001)).await.unwrap();
    let mut watch = registry.watch("service1");
    until(&mut watch, "both", |e| healthy(e) == 2 && is_live(e)).await;
    one.leave().await.unwrap();
    let rest = until(&mut watch, "the second alone", |e| e.endpoints.len() == 1).await;
    assert!(is_live(&rest) && rest.endpoints[0].id == "two", "{rest:?}");
    two.leave().await.unwrap();
    let began = Instant::now();
    let kept = until(&mut watch, "the last one unhealthy", |e| healthy(e) == 0).await;
    assert!(is_stale(&kept) && kept.endpoints.len() == 1 && kept.usable().len() == 1, "{kept:?}");
    let empty = until(&mut watch, "nobody after the grace", |e| e.endpoints.is_empty()).await;
    assert_eq!(empty.freshness, Freshness::Live, "{empty:?}");
    assert!(began.elapsed() > GRACE / 2, "forgotten after {:?}", began.elapsed());
}

async fn one_that_falls_silent_is_unhealthy_after_its_ttl(agent: impl Agent) {
    let registry = agent.view();
    let elsewhere = agent.view();
    let silent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // What would take it back must not run: the process is gone.
        std::mem::forget(runtime.block_on(elsewhere.register(instance("service1", "one", 4000))).unwrap());
        Instant::now()
    });
    let began = tokio::task::spawn_blocking(|| silent.join().unwrap()).await.unwrap();
    let mut watch = registry.watch("service1");
    until(&mut watch, "the instance", |e| healthy(e) == 1).await;
    let late = until(&mut watch, "the instance unhealthy", |e| healthy(e) == 0).await;
    assert!(began.elapsed() > TTL / 2, "unhealthy after {:?}", began.elapsed());
    assert!(is_live(&late) && late.endpoints.len() == 1 && late.usable().is_empty(), "{late:?}");
}

async fn what_it_forgot_is_registered_again_and_nobody_is_lost_over_it(mut agent: impl Agent) {
    let registry = agent.view();
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let mut watch = registry.watch("service1");
    until(&mut watch, "the instance", |e| healthy(e) == 1).await;
    let mut callers = watch.clone();
    let callers = tokio::spawn(async move { while callers.changed().await.usable().len() == 1 {} });
    agent.restart_empty().await;
    until(&mut watch, "a doubt", is_stale).await;
    until(&mut watch, "the instance again", |e| healthy(e) == 1 && is_live(e)).await;
    state(&registration, "Registered", |state| *state == RegistrationState::Registered).await;
    assert!(!callers.is_finished(), "for a moment there was nobody to call");
}

async fn whoever_does_not_come_back_after_it_forgot_is_remembered_beside_those_who_do(mut agent: impl Agent) {
    let registry = agent.view();
    let _one = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let two = registry.register(instance("service1", "two", 4001)).await.unwrap();
    let mut watch = registry.watch("service1");
    until(&mut watch, "both", |e| healthy(e) == 2).await;
    agent.kill();
    until(&mut watch, "the loss", is_stale).await;
    // It cannot be taken back, and does not come back.
    assert!(two.leave().await.is_err());
    let mut callers = watch.clone();
    let callers = tokio::spawn(async move {
        loop {
            let list = callers.changed().await;
            if list.usable().len() < 2 {
                return list;
            }
        }
    });
    agent.restart_empty().await;
    let back = until(&mut watch, "one that is back", |e| is_live(e) && e.endpoints.len() == 1).await;
    assert_eq!(back.endpoints[0].id, "one");
    assert_eq!(*callers.await.unwrap(), *back, "both are called until then");
}

async fn while_it_is_away_the_list_stays_and_is_said_to_be_old(mut agent: impl Agent) {
    let registry = agent.view();
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let mut watch = registry.watch("service1");
    let before = until(&mut watch, "the instance", |e| healthy(e) == 1).await;
    agent.kill();
    let after = until(&mut watch, "the loss", is_stale).await;
    assert_eq!((&after.endpoints, after.generation), (&before.endpoints, before.generation));
    state(&registration, "Retrying", |state| matches!(state, RegistrationState::Retrying(_))).await;
    agent.restart_empty().await;
    state(&registration, "Registered", |state| *state == RegistrationState::Registered).await;
    until(&mut watch, "the instance again", |e| healthy(e) == 1 && is_live(e)).await;
}

async fn one_that_comes_while_it_is_away_is_found_later(mut agent: impl Agent) {
    agent.kill();
    let registry = agent.view();
    let registration = timeout(PATIENCE, registry.register(instance("service1", "one", 4000))).await.unwrap().unwrap();
    assert!(matches!(registration.state(), RegistrationState::Retrying(_)), "{registration:?}");
    let mut watch = registry.watch("service1");
    let never = until(&mut watch, "the problem", |e| e.problem.is_some()).await;
    assert_eq!((never.freshness, never.endpoints.len()), (Freshness::Never, 0));
    agent.restart_empty().await;
    state(&registration, "Registered", |state| *state == RegistrationState::Registered).await;
    until(&mut watch, "the instance", |e| healthy(e) == 1 && is_live(e)).await;
}

/// Runs every case against an agent.
macro_rules! ask {
    ($agent:ty: $($case:ident),+ $(,)?) => { $(
        #[tokio::test]
        async fn $case() {
            if let Some(agent) = <$agent as Agent>::start().await {
                super::$case(agent).await;
            }
        }
    )+ };
}

macro_rules! all {
    ($agent:ty) => {
        use super::*;
        ask!($agent:
            one_of_two_is_gone_at_once_and_the_last_is_remembered_for_a_while,
            one_that_falls_silent_is_unhealthy_after_its_ttl,
            what_it_forgot_is_registered_again_and_nobody_is_lost_over_it,
            whoever_does_not_come_back_after_it_forgot_is_remembered_beside_those_who_do,
            while_it_is_away_the_list_stays_and_is_said_to_be_old,
            one_that_comes_while_it_is_away_is_found_later,
        );
    };
}

#[rustfmt::skip]
mod real { all!(Real); }
#[rustfmt::skip]
mod simulated { all!(Simulated); }
