//! One endpoint and the connection to it, or the connections where calls had to wait for a place on one.
//!
//! Owns connecting: lazily, one attempt at a time for all who wait, with a pause after failures. It must never choose
//! between endpoints. Look next at [`super::pool`] and at [`super::dial`], which makes a connection.
//!
//! Calls go to one connection until it has its limit of open calls, then to the one that has fewest, or are spread over several where
//! threads wait for each other. What is not needed any more has no calls, and closes by itself as every connection without calls does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::select_all;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::dial::dial;
use super::pool::Identity;
use super::route::Route;
use super::strain::are_few;
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
    /// Over how many of them calls are spread, if over more than one.
    spread: usize,
    /// How calls find them.
    route: Weak<Route>,
    /// When one of them last had few calls, and how many all had had until then.
    calm: Option<(std::time::Instant, u64)>,
    /// No one more is made before.
    grows_after: Option<Instant>,
    /// That the link was lost is already noted.
    is_lost: bool,
    /// The registry does not list it any more.
    has_left: bool,
    connecting: Option<watch::Receiver<Option<Outcome>>>,
    failed_at: Option<Instant>,
}

pub(super) type Outcome = Result<Arc<Link>, Arc<Error>>;

impl State {
    /// The connection that calls take, if there is one that takes calls.
    fn usable(&mut self) -> Option<&Arc<Link>> {
        let is_usable = |link: &Arc<Link>| link.is_usable();
        if !self.more.is_empty() {
            self.more.retain(is_usable);
            if !self.link.as_ref().is_some_and(is_usable) && !self.more.is_empty() {
                self.link = Some(self.more.swap_remove(0));
                self.is_lost = false;
            }
        }
        // Those that come after them are not among those that calls find.
        self.spread = self.spread.min(self.more.len() + 1);
        self.link.as_ref().filter(|link| link.is_usable())
    }

    /// Spreads calls over so many connections from now on.
    fn spread_over(&mut self, connections: usize) {
        self.spread = connections;
        if let Some(route) = self.route.upgrade() {
            route.outdate();
        }
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

    /// How calls find this connection, and those beside it over which they are spread.
    pub(super) fn route(self: &Arc<Self>, link: Arc<Link>) -> Arc<Route> {
        let mut state = self.lock();
        let beside = state.all().into_iter().filter(|other| !Arc::ptr_eq(other, &link));
        let beside = beside.take(state.spread.saturating_sub(1)).collect();
        let route = Arc::new(Route::new(Arc::clone(self), link, beside));
        state.route = Arc::downgrade(&route);
        route
    }

    /// Those who call wait for each other: spreads calls over one connection more, which is made if there is none, but never over more
    /// than `most`.
    pub(super) fn spread(self: &Arc<Self>, identity: &Arc<Identity>, most: usize) {
        let mut state = self.lock();
        let there = state.all().len();
        let spread = state.spread.clamp(1, there.max(1));
        if spread >= most.min(identity.options.max_connections_per_endpoint) || state.has_left || there == 0 {
            return;
        }
        if there > spread {
            return state.spread_over(spread + 1);
        }
        // If it is too soon for that, there will be another reason to ask.
        let _ = self.grow(state, identity);
    }

    /// A connection has few calls. If all of them together have had few since one last said so, one is enough; those that nobody uses
    /// then close by themselves.
    pub(super) fn gather(&self, now: std::time::Instant) {
        let mut state = self.lock();
        if state.spread < 2 {
            return;
        }
        let calls = state.all().iter().map(|link| link.crowd().0).sum();
        let before = state.calm.replace((now, calls));
        if before.is_some_and(|(since, before)| are_few(calls.saturating_sub(before), now - since)) {
            state.calm = None;
            state.spread_over(1);
        }
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
        let is_full = links.iter().all(|link| link.is_at_limit());
        let again = if is_full { self.grow(self.lock(), identity) } else { None };
        let free = select_all(links.iter().map(|link| Box::pin(link.slot_free())));
        tokio::select! {
            () = concluded => {}
            _ = free => {}
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
    }

    /// The registry does not list it any more: calls that wait go on waiting for those that are open there, on no new connection.
    pub(super) fn left(&self) {
        self.lock().has_left = true;
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

    /// Begins to make one more connection if there may be one, or says when it is time for that.
    fn grow(self: &Arc<Self>, mut state: MutexGuard<'_, State>, identity: &Arc<Identity>) -> Option<Instant> {
        // Under the same lock, or one that came a moment ago would not be counted.
        if state.has_left || state.all().len() >= identity.options.max_connections_per_endpoint {
            return None;
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::balance::Fleet;
    use crate::options::Options;
    use crate::proto::{Config, Side};
    use crate::transport::driver::{NoCalls, connection};
    use crate::transport::memory;

    /// A target whose server accepts every connection, and who calls it with at most so many.
    fn target(most: usize) -> (Arc<Target>, Arc<Identity>) {
        let (target, identity, _) = served(most);
        (target, identity)
    }

    /// The same with the server's ends of its connections.
    fn served(most: usize) -> (Arc<Target>, Arc<Identity>, UnboundedReceiver<Arc<Link>>) {
        let mut listener = memory::Listener::bind(0).unwrap();
        let endpoint = Arc::new(Endpoint::new(listener.addr()));
        let (served, ends) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok(io) = listener.accept().await {
                let config = Config { service: "service1".to_owned(), ..Config::new(Side::Server) };
                let (link, driver) = connection(io, None, Arc::new(config), NoCalls);
                let _ = served.send(link);
                tokio::spawn(driver.run());
            }
        });
        let fleet = Arc::new(Fleet::new("service1".into(), Instant::now().into_std()));
        let member = Arc::new(Member::new(endpoint.addr, fleet));
        let options = Options { max_connections_per_endpoint: most, ..Options::default() };
        let identity = Identity::new("service1".into(), "caller".into(), 1, options);
        (Arc::new(Target::new(endpoint, member)), Arc::new(identity), ends)
    }

    /// In time that passes only while everybody waits: a connection that is to be made has been made after a second.
    async fn soon() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_spread_over_one_connection_more_at_a_time_by_threads_and_gathered_again() {
        let (target, identity) = target(4);
        let first = target.connect(&identity).await.unwrap();
        let alone = target.route(Arc::clone(&first));
        assert!(alone.usable().is_some_and(|route| Arc::ptr_eq(route.link(), &first)));
        target.spread(&identity, 2);
        soon().await;
        assert_eq!(target.connections(), 2);
        assert!(alone.usable().is_some(), "it was only made");
        target.spread(&identity, 2);
        assert!(alone.usable().is_none(), "whoever calls next asks the target");
        let both = target.route(Arc::clone(&first));
        let of_thread = || Arc::as_ptr(both.usable().unwrap().link()).addr();
        let others = std::thread::scope(|scope| [(); 8].map(|()| scope.spawn(of_thread).join().unwrap()));
        assert!(others.iter().any(|other| *other != others[0]), "threads take different ones");
        assert_eq!(of_thread(), of_thread(), "and each its own");
        target.spread(&identity, 2);
        soon().await;
        assert_eq!(target.connections(), 2, "more than threads bring nothing");
        let now = std::time::Instant::now();
        target.gather(now);
        assert!(both.usable().is_some(), "one with few calls says nothing of the others");
        target.gather(now + Duration::from_secs(10));
        assert!(both.usable().is_none());
        let gathered = target.route(Arc::clone(&first));
        let all = std::thread::scope(|scope| {
            [(); 8].map(|()| scope.spawn(|| Arc::ptr_eq(gathered.usable().unwrap().link(), &first)).join().unwrap())
        });
        assert_eq!(all, [true; 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_spread_again_over_the_connections_that_come_after_those_that_ended() {
        for ended in 1..=2 {
            let (target, identity, mut ends) = served(4);
            target.connect(&identity).await.unwrap();
            for _ in 0..2 {
                target.spread(&identity, 2);
                soon().await;
            }
            for _ in 0..ended {
                ends.recv().await.unwrap().drain();
            }
            soon().await;
            let link = target.connect(&identity).await.unwrap();
            let alone = target.route(link);
            target.spread(&identity, 2);
            soon().await;
            assert_eq!(target.connections(), 2, "{ended} of two ended");
            assert!(alone.usable().is_some(), "it was only made");
            target.spread(&identity, 2);
            assert!(alone.usable().is_none(), "{ended} of two ended, and calls stay on one of those after them");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_came_after_somebody_looked_and_before_they_asked_for_one_more_is_counted() {
        let (target, identity) = target(2);
        target.connect(&identity).await.unwrap();
        // Two threads that found one: what the second asks for is the one that the first asked for, or nothing.
        for _ in 0..2 {
            assert_eq!(target.grow(target.lock(), &identity), None);
            soon().await;
            assert_eq!(target.connections(), 2, "where there may be two");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_connections_are_made_for_a_crowd_than_there_may_be_nor_to_one_that_has_left() {
        for (most, threads, leaves, connections) in
            [(1, 4, false, 1), (4, 1, false, 1), (4, 4, true, 1), (3, 8, false, 3)]
        {
            let (target, identity) = target(most);
            target.connect(&identity).await.unwrap();
            if leaves {
                target.left();
            }
            for _ in 0..20 {
                target.spread(&identity, threads);
                soon().await;
            }
            assert_eq!(target.connections(), connections, "at most {most}, {threads} threads, leaves: {leaves}");
        }
    }
}
