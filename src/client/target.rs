//! One endpoint and the connection to it, or the connections where calls had to wait for a place on one.
//!
//! Owns connecting: lazily, one attempt at a time for all who wait, with a pause after failures. It must never choose
//! between endpoints. Look next at [`super::pool`] and at [`super::dial`], which makes a connection.
//!
//! Calls go to one connection until it has its limit of open calls, then to the one that has fewest. So what is not needed any
//! more has no calls, and closes by itself as every connection without calls does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::select_all;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::dial::dial;
use super::pool::Identity;
use crate::balance::{Fault, Member};
use crate::proto::Error;
use crate::registry::Endpoint;
use crate::transport::link::Link;

/// Even if there is no other endpoint, connecting is not tried again sooner.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Where one more connection could not be made, it is not tried again sooner …
const GROWTH_PAUSE: Duration = Duration::from_secs(1);
/// … nor where the server itself has refused it: it has its limit of connections.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// So many calls look for a place at once, the others behind them in turn: whenever a call ends all that look are woken.
const LOOKING: usize = 64;

/// One endpoint as the pool keeps it.
#[derive(Debug)]
pub(super) struct Target {
    endpoint: Arc<Endpoint>,
    name: Arc<str>,
    member: Arc<Member>,
    state: Mutex<State>,
    /// One more connection is there, or could not be made.
    concluded: Notify,
    turns: Arc<Semaphore>,
}

/// Held by a call while it looks for a place.
pub(super) type Turn = OwnedSemaphorePermit;

#[derive(Debug, Default)]
struct State {
    /// The one that calls take; also one that was lost, for what it had said.
    link: Option<Arc<Link>>,
    /// Those beside it.
    more: Vec<Arc<Link>>,
    /// No one more is made before.
    grows_after: Option<Instant>,
    /// That the link was lost is already noted.
    is_lost: bool,
    connecting: Option<watch::Receiver<Option<Outcome>>>,
    failed_at: Option<Instant>,
}

pub(super) type Outcome = Result<Arc<Link>, Arc<Error>>;

impl State {
    /// The connection that calls take, if there is one that takes calls.
    fn usable(&mut self) -> Option<&Arc<Link>> {
        if !self.more.is_empty() {
            self.more.retain(|link| link.is_usable());
            if !self.link.as_ref().is_some_and(|link| link.is_usable()) && !self.more.is_empty() {
                self.link = Some(self.more.swap_remove(0));
                self.is_lost = false;
            }
        }
        self.link.as_ref().filter(|link| link.is_usable())
    }

    /// All that take calls.
    fn all(&mut self) -> Vec<Arc<Link>> {
        self.usable().cloned().into_iter().chain(self.more.iter().cloned()).collect()
    }
}

impl Target {
    pub(super) fn new(endpoint: Arc<Endpoint>, member: Arc<Member>) -> Self {
        let name = endpoint.addr.to_string().into();
        let turns = Arc::new(Semaphore::new(LOOKING));
        Self { endpoint, name, member, state: Mutex::default(), concluded: Notify::new(), turns }
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
        self.lock().usable().cloned()
    }

    /// How many connections take calls.
    pub(super) fn connections(&self) -> usize {
        self.lock().all().len()
    }

    /// The connection with the fewest calls, if another one can be opened there now. The next calls go to it, too.
    pub(super) fn with_room(&self) -> Option<Arc<Link>> {
        let mut state = self.lock();
        let room = |link: Arc<Link>| Some((link.room()?, link));
        let (_, link) = state.all().into_iter().filter_map(room).min_by_key(|(open, _)| *open)?;
        if let Some(at) = state.more.iter().position(|other| Arc::ptr_eq(other, &link)) {
            let chosen = state.more.swap_remove(at);
            let before = state.link.replace(chosen);
            state.more.extend(before);
        }
        Some(link)
    }

    /// Waits until another call can be opened, perhaps, where none could: on a connection of which a call has ended, or on one
    /// more, which is made unless there are as many as there may be. Who came first looks first: `turn` is kept until a place is
    /// found. May return early. Cancel safe.
    pub(super) async fn place(self: &Arc<Self>, identity: &Arc<Identity>, turn: &mut Option<Turn>) {
        if turn.is_none() {
            // It is never closed.
            *turn = Arc::clone(&self.turns).acquire_owned().await.ok();
        }
        let concluded = self.concluded.notified();
        tokio::pin!(concluded);
        // Before looking, or what comes in between would be missed.
        concluded.as_mut().enable();
        let links = self.lock().all();
        if links.is_empty() {
            return;
        }
        // Where it is the peer that takes nothing, one more connection would only hold more for it.
        let may_grow =
            links.len() < identity.options.max_connections_per_endpoint && links.iter().all(|link| link.is_at_limit());
        let again = if may_grow { self.grow(identity) } else { None };
        let free = select_all(links.iter().map(|link| Box::pin(link.slot_free())));
        tokio::select! {
            () = concluded => {}
            _ = free => {}
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
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
        if let Some(link) = state.usable() {
            return Ok(Arc::clone(link));
        }
        Err(self.dialled(state, identity))
    }

    /// Begins to make one more connection, or says when it is time for that.
    fn grow(self: &Arc<Self>, identity: &Arc<Identity>) -> Option<Instant> {
        let state = self.lock();
        if let Some(after) = state.grows_after.filter(|after| *after > Instant::now()) {
            return Some(after);
        }
        // What comes of it is told to all who wait.
        let _ = self.dialled(state, identity);
        None
    }

    /// Where the outcome of the attempt that runs will be told; begins one if none does.
    fn dialled(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        identity: &Arc<Identity>,
    ) -> watch::Receiver<Option<Outcome>> {
        if let Some(connecting) = state.connecting.as_ref().filter(|c| c.has_changed().is_ok() || c.borrow().is_some())
        {
            return connecting.clone();
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
            target.concluded.notify_waiters();
        });
        outcome
    }

    fn concluded(&self, result: &Outcome) {
        let mut state = self.lock();
        state.connecting = None;
        match (result, state.usable().is_some()) {
            (Ok(link), false) => {
                state.link = Some(Arc::clone(link));
                state.is_lost = false;
                state.failed_at = None;
                self.member.connected(Instant::now().into_std());
            }
            (Ok(link), true) => {
                state.more.push(Arc::clone(link));
                state.grows_after = None;
            }
            // That there is no more than what works says nothing against that.
            (Err(error), true) => {
                tracing::debug!(endpoint = %self.name, %error, "one more connection could not be made");
                let refused = matches!(**error, Error::PeerClosed { .. });
                state.grows_after = Some(Instant::now() + if refused { REFUSED_PAUSE } else { GROWTH_PAUSE });
            }
            (Err(_), false) => self.note_failure(state),
        }
    }

    /// Whether the server has said in its hello that this method is idempotent.
    pub(super) fn says_idempotent(&self, method: &str) -> bool {
        let link = self.lock().link.clone();
        link.is_some_and(|link| link.with_peer(|peer| peer.is_some_and(|peer| peer.idempotent.contains(method))))
    }

    /// The connection of a call was lost; however many calls it had, that is one failure, and none while others are left.
    pub(super) fn lost(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        let has_others = state.all().iter().any(|other| !Arc::ptr_eq(other, link));
        if !has_others && !state.is_lost && state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            state.is_lost = true;
            self.note_failure(state);
        }
    }

    /// The server says that so many of `capacity` places are taken or waited for.
    pub(super) fn reported(&self, slot: u16, capacity: u16) {
        self.member.reported(slot.into(), capacity.into(), Instant::now().into_std());
    }

    fn note_failure(&self, mut state: MutexGuard<'_, State>) {
        let now = Instant::now();
        state.failed_at = Some(now);
        // Whoever writes the log may make calls.
        drop(state);
        self.member.failed(Fault::Connection, now.into_std());
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let mut state = self.lock();
        state.link.iter().chain(&state.more).for_each(|link| link.close_when_idle());
        state.link = None;
    }
}
