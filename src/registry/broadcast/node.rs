//! What a broadcast registry knows, and who is told of it.
//!
//! Owns the table and one's own instances behind one lock, the snapshots, the events and the counters. It must never do I/O or
//! wait. Look next at `task.rs` for what comes and goes on the network, and at `mod.rs` for who asks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::announce::{Announcer, Left, Meeting, Outgoing};
use super::datagram::{Datagram, Sender};
use super::events::{Counters, Event, Refusal, Refused};
use super::settings::Settings;
use super::table::{DUPLICATES_EVERY, Table};
use super::task;
use crate::registry::feed::Publisher;
use crate::registry::{Endpoints, Freshness, Instance, RegistrationState};
use crate::state::NodeStatus;

/// Events that wait for a slow reader; past it the oldest are dropped, and the reader is told how many.
const MAX_EVENTS: usize = 1024;

/// How often the log says that others may be set up differently.
const WARNED_EVERY: Duration = Duration::from_secs(60);
/// How often a refusal is an event; the counters have all of them.
const REFUSALS_EVERY: Duration = Duration::from_secs(1);

/// By how much longer than one period a newcomer listens before it believes that nobody is there.
const LISTEN: f64 = 1.25;

/// Random number of this process.
static PROCESS: OnceLock<u64> = OnceLock::new();
/// The registries that this process has made.
static REGISTRIES: AtomicU32 = AtomicU32::new(0);

pub(super) struct Node {
    pub(super) settings: Settings,
    /// Told when something is due that was not before.
    pub(super) wake: Notify,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
    refused: Counters,
    reopened: AtomicU64,
}

struct State {
    table: Table,
    own: Announcer,
    publishers: HashMap<String, Publisher>,
    /// Why nothing can be heard, while that is so.
    problem: Option<String>,
    /// When a whole period will have been listened to; `None` once it has.
    ripe_at: Option<Instant>,
    ripe: bool,
    refusal_told: Option<Instant>,
    /// When the log last said that others may be set up differently.
    warned: Option<Instant>,
    duplicate_logged: Option<Instant>,
    /// Where one's own instances without an address are found in this process.
    home: IpAddr,
    task: Option<JoinHandle<()>>,
}

impl Node {
    pub(super) fn new(settings: Settings) -> Self {
        let process = *PROCESS.get_or_init(|| fastrand::u64(..));
        let me = Sender { process, registry: REGISTRIES.fetch_add(1, Ordering::Relaxed) };
        let state = State {
            table: Table::new(me, settings.ignore_process, settings.key.is_some()),
            own: Announcer::new(me, settings.period, settings.replica, settings.listen_only),
            publishers: HashMap::new(),
            problem: None,
            ripe_at: None,
            ripe: false,
            refusal_told: None,
            warned: None,
            duplicate_logged: None,
            home: Ipv4Addr::LOCALHOST.into(),
            task: None,
        };
        Self {
            settings,
            wake: Notify::new(),
            state: Mutex::new(state),
            events: broadcast::channel(MAX_EVENTS).0,
            refused: Counters::default(),
            reopened: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that the task runs; false if there is no runtime to run it on.
    pub(super) fn run(self: &Arc<Self>, stop: &CancellationToken) -> bool {
        let mut state = self.lock();
        // Its runtime may have ended.
        if state.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return true;
        }
        let Ok(runtime) = Handle::try_current() else { return false };
        // If there is still trouble, the task will say so.
        state.problem = None;
        state.task = Some(runtime.spawn(task::run(Arc::clone(self), stop.clone())));
        true
    }

    pub(super) fn register(&self, instance: Instance) -> (u64, watch::Receiver<RegistrationState>) {
        let mut state = self.lock();
        let service = instance.service.clone();
        let registered = state.own.add(Instant::now(), instance);
        if let (Some(problem), false) = (state.problem.clone(), self.settings.listen_only) {
            state.own.trouble(&problem);
        }
        state.publish(&service);
        self.wake.notify_one();
        registered
    }

    pub(super) fn set_status(&self, key: u64, status: NodeStatus) {
        let mut state = self.lock();
        // What was taken back has nothing to say any more.
        if let Some(service) = state.own.set_status(Instant::now(), key, status) {
            state.publish(&service);
            self.wake.notify_one();
        }
    }

    /// Takes an instance back; `None` if that was done before.
    pub(super) fn leave(&self, key: u64) -> Option<Left> {
        let mut state = self.lock();
        let (service, left) = state.own.leave(Instant::now(), key)?;
        if let Some(problem) = state.problem.clone() {
            state.own.trouble(&problem);
        }
        state.publish(&service);
        self.wake.notify_one();
        Some(left)
    }

    /// A view of a service; `alone` says why nobody feeds it, if so.
    pub(super) fn watch(&self, service: &str, alone: Option<&str>) -> watch::Receiver<Arc<Endpoints>> {
        let mut state = self.lock();
        state.publishers.retain(|_, publisher| publisher.is_watched() || !publisher.current().endpoints.is_empty());
        if let Some(why) = alone {
            state.problem = Some(why.to_owned());
        }
        let publisher = state.publishers.entry(service.to_owned()).or_insert_with(Publisher::new);
        // Subscribed before it is published, else it would be taken for one that nobody looks at.
        let snapshots = publisher.subscribe();
        state.publish(service);
        snapshots
    }

    pub(super) fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let state = self.lock();
        let snapshots = state.publishers.iter().map(|(name, publisher)| (name.clone(), publisher.current()));
        snapshots.filter(|(_, snapshot)| !snapshot.endpoints.is_empty()).collect()
    }

    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(super) fn refused(&self) -> Refused {
        self.refused.read()
    }

    pub(super) fn reopened(&self) -> u64 {
        self.reopened.load(Ordering::Relaxed)
    }

    /// The socket is opened again now.
    pub(super) fn reopens(&self) {
        self.reopened.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing can be sent or heard.
    pub(super) fn trouble(&self, why: String) {
        let mut state = self.lock();
        if state.problem.is_none() {
            tracing::warn!(why, "discovery by datagrams stands still, and is tried again");
        } else {
            tracing::debug!(why, "discovery by datagrams still stands still");
        }
        state.own.trouble(&why);
        state.problem = Some(why);
        state.publish_all();
    }

    /// The socket is open. `home` is what this machine is reached at from there.
    pub(super) fn opened(&self, home: Option<IpAddr>) {
        let mut state = self.lock();
        let now = Instant::now();
        // Others do not take a sealed announcement without an address.
        if self.settings.key.is_some() {
            state.own.set_address(home);
        }
        if self.settings.is_loopback() {
            state.home = home.unwrap_or(state.home);
        }
        if state.problem.take().is_some() {
            tracing::info!("discovery by datagrams works");
        }
        state.table.forgive(now);
        state.own.resume(now);
        if !state.ripe {
            state.ripe_at = Some(now + self.settings.period.mul_f64(LISTEN));
        }
        state.publish_all();
    }

    /// Takes what came from the network.
    pub(super) fn heard(&self, batch: Vec<(SocketAddr, Result<Datagram, Refusal>)>) {
        let mut state = self.lock();
        let now = Instant::now();
        let mut news = Vec::new();
        for (source, datagram) in batch {
            let heard = datagram.and_then(|datagram| self.sealed_address(datagram));
            if let Err(why) = heard.and_then(|datagram| state.hear(now, source, datagram, &mut news)) {
                self.refused.count(why);
                let is_our_own_mistake =
                    matches!(why, Refusal::WrongKey | Refusal::Sealed | Refusal::Unsealed | Refusal::OtherVersion);
                if is_our_own_mistake && state.warned.is_none_or(|at| at + WARNED_EVERY <= now) {
                    state.warned = Some(now);
                    let refused = self.refused.read().total();
                    tracing::warn!(from = %source, ?why, refused, "datagrams of others are refused: do all have the same key?");
                }
                if state.refusal_told.is_none_or(|told| told + REFUSALS_EVERY <= now) {
                    state.refusal_told = Some(now);
                    news.push(Event::Refused { from: source, why });
                }
            }
        }
        self.tell(state, news);
    }

    /// Under a key nothing may be left to the datagram's source address, which no seal covers: whoever sent a copy of it from
    /// elsewhere would be called.
    fn sealed_address(&self, datagram: Datagram) -> Result<Datagram, Refusal> {
        if self.settings.key.is_some() && datagram.instance.address.is_none() {
            return Err(Refusal::Malformed);
        }
        Ok(datagram)
    }

    /// Looks who is gone, and returns what is to be sent now.
    pub(super) fn due(&self) -> Vec<Outgoing> {
        let mut state = self.lock();
        let now = Instant::now();
        let mut news = Vec::new();
        state.table.sweep(now, &mut news);
        if state.ripe_at.is_some_and(|at| at <= now) {
            (state.ripe, state.ripe_at) = (true, None);
            state.publish_all();
        }
        let outgoing = state.own.due(now);
        self.tell(state, news);
        outgoing
    }

    pub(super) fn sent(&self, key: u64, outcome: Result<(), String>) {
        self.lock().own.sent(Instant::now(), key, outcome);
    }

    /// When [`Self::due`] has something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        let state = self.lock();
        [state.table.look_at(), state.own.next(), state.ripe_at].into_iter().flatten().min()
    }

    /// Whether everybody has been told of who left.
    pub(super) fn is_done(&self) -> bool {
        self.lock().own.is_done()
    }

    /// Publishes what changed, then tells of it.
    fn tell(&self, mut state: MutexGuard<'_, State>, news: Vec<Event>) {
        let changed: BTreeSet<&str> = news.iter().filter_map(changed_service).collect();
        changed.into_iter().for_each(|service| state.publish(service));
        let now = Instant::now();
        let mut duplicates = news.iter().filter(|event| matches!(event, Event::DuplicateId { .. }));
        let logged = match duplicates.next() {
            Some(event) if state.duplicate_logged.is_none_or(|at| at + DUPLICATES_EVERY <= now) => Some(event),
            _ => None,
        };
        if let Some(Event::DuplicateId { service, id, kept, other }) = logged {
            state.duplicate_logged = Some(now);
            tracing::warn!(service, id, %kept, %other, "two living instances use one id; the other one is ignored");
        }
        drop(state);
        for event in news {
            // Nobody has to listen.
            let _ = self.events.send(event);
        }
    }
}

fn changed_service(event: &Event) -> Option<&str> {
    match event {
        Event::Added { service, .. } | Event::Changed { service, .. } | Event::Removed { service, .. } => Some(service),
        _ => None,
    }
}

impl State {
    fn hear(
        &mut self,
        now: Instant,
        source: SocketAddr,
        datagram: Datagram,
        news: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        if !self.table.admit(now, &datagram)? {
            return Ok(());
        }
        match self.own.meet(now, source.ip(), &datagram, self.home) {
            None => self.table.hear(now, source, datagram, news),
            Some(Meeting::Same) => Ok(()),
            Some(Meeting::Rival { kept, other, tell }) => {
                if tell {
                    let service = datagram.instance.service.clone();
                    let id = datagram.known_as().into_owned();
                    news.push(Event::DuplicateId { service, id, kept, other });
                }
                Err(Refusal::DuplicateId)
            }
        }
    }

    fn publish_all(&mut self) {
        let services: Vec<String> = self.publishers.keys().cloned().collect();
        services.iter().for_each(|service| self.publish(service));
    }

    fn publish(&mut self, service: &str) {
        // One's own last: of two at one address the other one has died.
        let mut endpoints = self.table.list(service);
        endpoints.extend(self.own.list(service, self.home).map(Arc::new));
        let is_empty = endpoints.is_empty();
        let publisher = self.publishers.entry(service.to_owned()).or_insert_with(Publisher::new);
        let current = publisher.current();
        let was_told = current.freshness != Freshness::Never;
        match &self.problem {
            Some(problem) if was_told || !is_empty => publisher.stale_shared(endpoints, problem.clone()),
            Some(problem) => publisher.trouble(problem.clone()),
            None if self.ripe || was_told || !is_empty => publisher.live_shared(endpoints),
            None if current.problem.is_some() => publisher.waiting(),
            None => {}
        }
        if is_empty && !publisher.is_watched() {
            self.publishers.remove(service);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::datagram::Kind;
    use super::super::datagram::tests::usual;
    use super::super::settings::key;
    use super::*;

    const STRANGER: [u8; 4] = [127, 0, 0, 66];

    fn heard(keyed: bool, datagram: Datagram) -> (usize, Refused) {
        let settings = Settings { key: keyed.then(|| key(&[1; 32]).unwrap()), ..Settings::loopback() };
        let node = Node::new(settings);
        node.heard(vec![(SocketAddr::from((STRANGER, 5000)), Ok(datagram))]);
        (node.known().len(), node.refused())
    }

    #[test]
    fn a_sealed_announcement_must_say_its_address_itself() {
        let mut nowhere = usual();
        Arc::make_mut(&mut nowhere.instance).address = None;
        assert_eq!(heard(false, nowhere.clone()).0, 1);
        let (known, refused) = heard(true, nowhere);
        assert_eq!((known, refused.of(Refusal::Malformed)), (0, 1));
        assert_eq!(heard(true, usual()).0, 1);
    }

    #[test]
    fn services_of_which_nothing_is_left_and_that_nobody_watches_are_forgotten() {
        let node = Node::new(Settings::loopback());
        for sequence in 1..=100 {
            let mut datagram = usual();
            datagram.sequence = sequence * 2;
            Arc::make_mut(&mut datagram.instance).service = format!("service{sequence}");
            let leave = Datagram { kind: Kind::Leave, sequence: sequence * 2 + 1, ..datagram.clone() };
            let from = SocketAddr::from((STRANGER, 5000));
            node.heard(vec![(from, Ok(datagram)), (from, Ok(leave))]);
        }
        assert!(node.lock().publishers.is_empty());
        drop(node.watch("service1", None));
        let _watched = node.watch("service2", None);
        assert_eq!(node.lock().publishers.len(), 1, "what nobody watches any more goes when another is watched");
    }
}
