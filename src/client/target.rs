//! One endpoint and the connection to it.
//!
//! Owns connecting: lazily, one attempt at a time for all who wait, with a growing pause after failures. It must never choose
//! between endpoints. Look next at [`super::pool`].

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::pool::Identity;
use crate::options::CLIENT_IDLE_CLOSE;
use crate::proto::{CloseReason, Config, Error, Load, Side};
use crate::registry::Endpoint;
use crate::transport;
use crate::transport::driver::{self, Handler, Happened};
use crate::transport::link::{Link, Phase};

/// After a failure the endpoint is left alone, as far as there are others, for a time that doubles from this…
const REST: Duration = Duration::from_millis(50);
/// … up to this.
const MAX_REST: Duration = Duration::from_secs(5);
/// How long one that refused a call is left alone if it does not say itself.
const REFUSED_REST: Duration = Duration::from_secs(1);
/// Even if there is no other endpoint, connecting is not tried again sooner.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// One endpoint as the pool keeps it.
#[derive(Debug)]
pub(super) struct Target {
    endpoint: Arc<Endpoint>,
    name: Arc<str>,
    /// `rest_until` may be in the future.
    rests: AtomicBool,
    /// Its slot and, in the upper half, its capacity, as it said last; 0 if it never has.
    load: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    connecting: Option<watch::Receiver<Option<Outcome>>>,
    failures: u32,
    failed_at: Option<Instant>,
    rest_until: Option<Instant>,
}

type Outcome = Result<Arc<Link>, Arc<Error>>;

impl Target {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        let name = endpoint.addr.to_string().into();
        Self { endpoint, name, rests: AtomicBool::new(false), load: AtomicU32::new(0), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the registry says of it.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// How errors name it.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether it failed so recently that others are better.
    pub(super) fn is_resting(&self) -> bool {
        if !self.rests.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.lock();
        let rests = state.rest_until.is_some_and(|until| Instant::now() < until);
        self.rests.store(rests, Ordering::Relaxed);
        rests
    }

    /// The connection, if there is one that takes calls.
    pub(super) fn connected(&self) -> Option<Arc<Link>> {
        self.lock().link.as_ref().filter(|link| link.is_usable()).cloned()
    }

    /// The connection; makes it if there is none. All who wait share one attempt, which goes on when they stop waiting.
    /// Cancel safe.
    pub(super) async fn connect(self: &Arc<Self>, identity: &Arc<Identity>) -> Outcome {
        let mut outcome = match self.attempt(identity) {
            Ok(link) => return Ok(link),
            Err(outcome) => outcome,
        };
        // The attempt always ends with an outcome; should its task be gone, the runtime is.
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Arc::new(Error::Closed)),
        }
    }

    /// The connection, or where the outcome of the attempt that runs will be told.
    fn attempt(self: &Arc<Self>, identity: &Arc<Identity>) -> Result<Arc<Link>, watch::Receiver<Option<Outcome>>> {
        let mut state = self.lock();
        // Under the same lock, or an attempt that ends in between would be followed by a second one.
        if let Some(link) = state.link.as_ref().filter(|link| link.is_usable()) {
            return Ok(Arc::clone(link));
        }
        if let Some(connecting) = state.connecting.as_ref().filter(|c| c.has_changed().is_ok() || c.borrow().is_some())
        {
            return Err(connecting.clone());
        }
        let (publish, outcome) = watch::channel(None);
        state.connecting = Some(outcome.clone());
        let pause = state.failed_at.map(|at| at + MIN_PAUSE);
        drop(state);
        let (target, identity) = (Arc::clone(self), Arc::clone(identity));
        tokio::spawn(async move {
            if let Some(pause) = pause {
                tokio::time::sleep_until(pause).await;
            }
            let result = dial(&target, &identity).await;
            target.concluded(&result);
            publish.send_replace(Some(result));
        });
        Err(outcome)
    }

    fn concluded(&self, result: &Outcome) {
        let mut state = self.lock();
        state.connecting = None;
        match result {
            Ok(link) => {
                state.link = Some(Arc::clone(link));
                state.failures = 0;
                state.failed_at = None;
                state.rest_until = None;
            }
            Err(_) => self.note_failure(&mut state),
        }
    }

    /// Whether the server has said in its hello that this method is idempotent.
    pub(super) fn says_idempotent(&self, method: &str) -> bool {
        let link = self.lock().link.clone();
        link.is_some_and(|link| link.with_peer(|peer| peer.is_some_and(|peer| peer.idempotent.contains(method))))
    }

    /// The server has said that its lowest free slot is this one, and that it runs so many calls at once.
    pub(super) fn reported(&self, slot: u16, capacity: u16) {
        self.load.store(u32::from(capacity) << 16 | u32::from(slot), Ordering::Relaxed);
    }

    /// A call failed for a reason that speaks against the endpoint.
    pub(super) fn failed(&self) {
        self.note_failure(&mut self.lock());
    }

    /// The endpoint refused a call, and may have said for how long it is of no use to ask again.
    pub(super) fn refused(&self, asked: Option<Duration>) {
        let until = Instant::now() + asked.unwrap_or(REFUSED_REST).min(MAX_REST);
        let mut state = self.lock();
        state.rest_until = Some(state.rest_until.map_or(until, |before| before.max(until)));
        self.rests.store(true, Ordering::Relaxed);
    }

    fn note_failure(&self, state: &mut State) {
        let rest = REST.saturating_mul(1 << state.failures.min(10)).min(MAX_REST);
        state.failures += 1;
        let now = Instant::now();
        state.failed_at = Some(now);
        // Half of it is random, so that a crowd of clients does not come back at one moment.
        state.rest_until = Some(now + rest.mul_f64(0.5 + fastrand::f64() / 2.0));
        self.rests.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn failed_for_test(&self) {
        self.refused(Some(MAX_REST));
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(link) = self.lock().link.take() {
            link.close_when_idle();
        }
    }
}

/// What a connection has to say to its target: nobody calls a client.
struct Reports(Weak<Target>);

impl Handler for Reports {
    fn ready(&mut self, _link: &Arc<Link>) {}
    fn event(&mut self, _link: &Arc<Link>, _happened: Happened) {}
    fn rest(&mut self) {}

    fn load(&mut self, load: Load) {
        if let Some(target) = self.0.upgrade() {
            target.reported(load.slot, load.capacity);
        }
    }
}

async fn dial(target: &Arc<Target>, identity: &Identity) -> Outcome {
    let limit = identity.options.connect_timeout;
    match tokio::time::timeout(limit, shake_hands(target, identity)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Arc::new(Error::Io {
            kind: std::io::ErrorKind::TimedOut,
            text: format!("no connection within {limit:?}"),
        })),
    }
}

async fn shake_hands(target: &Arc<Target>, identity: &Identity) -> Outcome {
    let endpoint = &target.endpoint;
    let io = transport::connect(endpoint.addr).await.map_err(|error| Arc::new(Error::from(error)))?;
    let options = &identity.options;
    let config = Config {
        node: identity.node.to_string(),
        service: identity.service.to_string(),
        incarnation: identity.incarnation,
        expect: endpoint.incarnation,
        stream_window: options.stream_window,
        connection_window: options.connection_window,
        max_message: options.max_message,
        handshake_timeout: options.connect_timeout,
        idle_close: Some(CLIENT_IDLE_CLOSE),
        wants_load: options.wants_load,
        ..Config::new(Side::Client)
    };
    let (link, driver) = driver::connection(io, Some(endpoint.addr), Arc::new(config), Reports(Arc::downgrade(target)));
    let mut phase = link.phase();
    // If this is cancelled, by the limit above, the connection must go too; once hello is through it lives by itself.
    let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move { driver.run().await }));
    let reached = phase.wait_for(|phase| !matches!(phase, Phase::Handshaking)).await.map(|phase| phase.clone());
    match reached {
        Ok(Phase::Closed(error)) => Err(error),
        Ok(Phase::Draining) => {
            let text = "it takes no more calls".to_owned();
            Err(Arc::new(Error::PeerClosed { reason: CloseReason::ShuttingDown, text }))
        }
        Ok(_) => {
            task.detach();
            Ok(link)
        }
        Err(_) => Err(Arc::new(Error::Closed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_remembers_what_its_connection_says_of_the_load_and_may_be_gone() {
        let target = Arc::new(Target::new(Arc::new(Endpoint::new(([127, 0, 0, 1], 1).into()))));
        let mut reports = Reports(Arc::downgrade(&target));
        assert_eq!(target.load.load(Ordering::Relaxed), 0, "nothing was said yet");
        reports.load(Load { slot: 3, capacity: 100 });
        reports.load(Load { slot: 4, capacity: 99 });
        assert_eq!(target.load.load(Ordering::Relaxed), 99 << 16 | 4);
        drop(target);
        reports.load(Load { slot: 5, capacity: 100 });
    }
}
