//! One endpoint and the connection to it.
//!
//! Owns connecting: lazily, one attempt at a time for all who wait, with a pause after failures. It must never choose
//! between endpoints. Look next at [`super::pool`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::pool::Identity;
use crate::balance::{Fault, Member};
use crate::options::CLIENT_IDLE_CLOSE;
use crate::proto::{CloseReason, Config, Error, Load, Side};
use crate::registry::Endpoint;
use crate::transport;
use crate::transport::driver::{self, Handler, Happened};
use crate::transport::link::{Link, Phase};

/// Even if there is no other endpoint, connecting is not tried again sooner.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// One endpoint as the pool keeps it.
#[derive(Debug)]
pub(super) struct Target {
    endpoint: Arc<Endpoint>,
    name: Arc<str>,
    member: Arc<Member>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    /// That the link was lost is already noted.
    is_lost: bool,
    connecting: Option<watch::Receiver<Option<Outcome>>>,
    failed_at: Option<Instant>,
}

type Outcome = Result<Arc<Link>, Arc<Error>>;

impl Target {
    pub(super) fn new(endpoint: Arc<Endpoint>, member: Arc<Member>) -> Self {
        let name = endpoint.addr.to_string().into();
        Self { endpoint, name, member, state: Mutex::default() }
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

    /// What balancing knows of it.
    pub(super) fn member(&self) -> &Arc<Member> {
        &self.member
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

    /// Begins to make a connection if there is none, for whoever comes. Does not wait.
    pub(super) fn begin_connecting(self: &Arc<Self>, identity: &Arc<Identity>) {
        // What comes of it is noted here.
        let _ = self.attempt(identity);
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
                state.is_lost = false;
                state.failed_at = None;
                self.member.connected(Instant::now().into_std());
            }
            Err(_) => self.note_failure(&mut state),
        }
    }

    /// Whether the server has said in its hello that this method is idempotent.
    pub(super) fn says_idempotent(&self, method: &str) -> bool {
        let link = self.lock().link.clone();
        link.is_some_and(|link| link.with_peer(|peer| peer.is_some_and(|peer| peer.idempotent.contains(method))))
    }

    /// The connection of a call was lost; however many calls it had, that is one failure.
    pub(super) fn lost(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        if !state.is_lost && state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            state.is_lost = true;
            self.note_failure(&mut state);
        }
    }

    /// The server says that so many of `capacity` places are taken or waited for.
    fn reported(&self, slot: u16, capacity: u16) {
        self.member.reported(slot.into(), capacity.into(), Instant::now().into_std());
    }

    fn note_failure(&self, state: &mut State) {
        let now = Instant::now();
        state.failed_at = Some(now);
        self.member.failed(Fault::Connection, now.into_std());
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
        wants_load: identity.wants_load(),
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
    use crate::balance::{Fleet, Seat};

    #[test]
    fn what_a_connection_says_of_the_load_is_known_and_may_come_too_late() {
        let endpoint = Arc::new(Endpoint::new(([127, 0, 0, 1], 1).into()));
        let fleet = Arc::new(Fleet::new(Instant::now().into_std()));
        let member = Arc::new(Member::new(endpoint.addr, Arc::clone(&fleet)));
        let target = Arc::new(Target::new(Arc::clone(&endpoint), Arc::clone(&member)));
        let mut reports = Reports(Arc::downgrade(&target));
        let seat = Seat { endpoint, member };
        let known = || seat.state(true, fleet.at(Instant::now().into_std())).reported;
        assert_eq!(known(), None, "nothing was said yet");
        reports.load(Load { slot: 75, capacity: 100 });
        assert!(known().is_some_and(|share| (0.7..=0.75).contains(&share)), "{:?}", known());
        drop(target);
        reports.load(Load { slot: 5, capacity: 100 });
    }
}
