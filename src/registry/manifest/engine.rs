//! What keeps one member going.
//!
//! Owns [`Shared`], all that its tasks have in common, and the task that lets the table see the time and readers see the
//! table. It must never decide what is true: that is the table's. Look next at `table/mod.rs` for that, at `place.rs` for the
//! tasks that connect, and at `mod.rs` for who starts all of them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::events::{EVENTS, Event};
use super::join::{NONCE, Refusal};
use super::place;
use super::role::Query;
use super::settings::Settings;
use super::table::Table;
use super::trouble::{self, reasons};
use crate::registry::feed::Publisher;
use crate::registry::{Endpoints, RegistrationState, RegistryError};

/// How long leaving waits until everybody who is connected was told.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// Most connections that are joining at once; when more come, those that have been at it longest are closed.
pub(super) const MAX_JOINING: usize = 32;

/// How often at most the log warns of members that are refused for a wrong secret or version.
const WARNED_EVERY: Duration = Duration::from_secs(60);

/// How it goes with one of the addresses that are listened on or joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Trying,
    Fine,
    /// It is this very member's.
    Myself,
    Trouble(Refusal),
}

/// Whether the table can be relied upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody was reached yet, but not everybody tried either.
    Unknown,
    /// With what is wrong nevertheless.
    Connected(Option<String>),
    Isolated(String),
}

impl Standing {
    pub(super) fn of_registration(&self) -> RegistrationState {
        match self {
            Self::Unknown => RegistrationState::Retrying("no other member was reached yet".to_owned()),
            Self::Connected(None) => RegistrationState::Registered,
            Self::Connected(Some(problem)) | Self::Isolated(problem) => RegistrationState::Retrying(problem.clone()),
        }
    }
}

struct Service {
    query: Query,
    publisher: Publisher,
}

pub(super) struct Shared {
    pub(super) settings: Settings,
    /// The random number of this process, or rather of this member in it.
    pub(super) birth: u64,
    table: Mutex<Table>,
    services: Mutex<HashMap<String, Service>>,
    registrations: Mutex<HashMap<u64, watch::Sender<RegistrationState>>>,
    pub(super) standing: watch::Sender<Standing>,
    /// First those that are listened on, then those that are joined.
    places: Mutex<Vec<Place>>,
    /// Which place told this member's address, if it was one, and what it is.
    seen: Mutex<Option<(Option<usize>, IpAddr)>>,
    /// The random numbers of the hellos with which this member is dialling, and whether they have come back to itself.
    hellos: Mutex<BTreeMap<[u8; NONCE], bool>>,
    pub(super) listening: watch::Sender<BTreeMap<usize, SocketAddr>>,
    pub(super) events: broadcast::Sender<Event>,
    /// A link has said all that it had to say.
    told: Notify,
    /// There is something that readers have not seen, or the time is to be looked at sooner than was said.
    pub(super) look: Notify,
    /// Somebody wants others looked for at once.
    pub(super) refresh: Arc<Notify>,
    pub(super) redial: Notify,
    /// Those that are joining, oldest first, and how to end them.
    joining: Mutex<VecDeque<CancellationToken>>,
    /// When the log was last warned of those who are refused.
    warned: Mutex<Option<Instant>>,
    /// It is to say good-bye; everything is to end.
    pub(super) end: CancellationToken,
    pub(super) stop: CancellationToken,
    running: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Result<Self, RegistryError> {
        settings.validate()?;
        settings.secret()?;
        let now = Instant::now();
        let mut table = Table::new(fastrand::u64(..), settings.heartbeat, settings.lifetime, now);
        table.rooted = settings.local.is_none() && settings.join.is_empty();
        if settings.local.is_some() {
            table.set_address(IpAddr::V4(Ipv4Addr::LOCALHOST), now);
        }
        let places = settings.listen.len() + settings.join.len() + usize::from(settings.local.is_some());
        Ok(Self {
            settings,
            birth: fastrand::u64(..),
            table: Mutex::new(table),
            services: Mutex::default(),
            registrations: Mutex::default(),
            standing: watch::Sender::new(Standing::Unknown),
            places: Mutex::new(vec![Place::Trying; places]),
            seen: Mutex::new(None),
            hellos: Mutex::default(),
            listening: watch::Sender::new(BTreeMap::new()),
            events: broadcast::Sender::new(EVENTS),
            told: Notify::new(),
            look: Notify::new(),
            refresh: Arc::default(),
            redial: Notify::new(),
            joining: Mutex::default(),
            warned: Mutex::default(),
            end: CancellationToken::new(),
            stop: CancellationToken::new(),
            running: Mutex::default(),
        })
    }

    /// Starts the tasks, unless they run.
    pub(super) fn start(self: &Arc<Self>) -> Result<(), RegistryError> {
        let mut running = lock(&self.running);
        if self.end.is_cancelled() || running.as_ref().is_some_and(|task| !task.is_finished()) {
            return Ok(());
        }
        let Ok(runtime) = Handle::try_current() else {
            return Err(RegistryError::Settings("a manifest needs a tokio runtime, and there is none here".to_owned()));
        };
        *running = Some(runtime.spawn(run(Arc::clone(self))));
        Ok(())
    }

    /// Does something with the table and lets everybody know whom that concerns.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Table, Instant) -> R) -> R {
        let mut table = lock(&self.table);
        table.listened = self.events.receiver_count() > 0;
        let result = act(&mut table, Instant::now());
        for event in table.take_events() {
            // Without a reader nobody misses it.
            let _ = self.events.send(event);
        }
        let (bells, look) = (table.take_bells(), table.wants_a_look());
        // Whoever is woken wants the table at once.
        drop(table);
        bells.iter().for_each(|bell| bell.notify_one());
        if look {
            self.look.notify_one();
        }
        result
    }

    /// Looks at the table, or takes what concerns only the asker.
    pub(super) fn peek<R>(&self, look: impl FnOnce(&mut Table) -> R) -> R {
        look(&mut lock(&self.table))
    }

    pub(super) fn owner(&self) -> u64 {
        self.peek(|table| table.me)
    }

    /// All that there was to say on a link is on its way. Returns whether the other side has been silent for too long.
    pub(super) fn written(&self, link: u64) -> bool {
        let is_dead = self.peek(|table| {
            table.written(link);
            table.is_dead(link, Instant::now())
        });
        self.told.notify_waiters();
        is_dead
    }

    /// Waits until everybody who is connected was told of all of one's own changes.
    pub(super) async fn all_told(&self) {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable();
            if self.peek(|table| table.all_told()) {
                return;
            }
            told.await;
        }
    }

    pub(super) fn set_place(&self, place: usize, now: Place) {
        let mut places = lock(&self.places);
        if let Some(place) = places.get_mut(place) {
            *place = now;
        }
        // Whoever finds only itself where others might be is not cut off from anybody.
        let joined = places.get(self.settings.listen.len()..).unwrap_or_default();
        let alone = joined.iter().all(|place| *place == Place::Myself);
        drop(places);
        if self.settings.local.is_none() {
            self.peek(|table| table.rooted = alone);
        }
        self.look.notify_one();
    }

    pub(super) fn set_rooted(&self, rooted: bool) {
        self.peek(|table| table.rooted = rooted);
        self.look.notify_one();
    }

    pub(super) fn listens(&self, place: usize, address: SocketAddr) {
        self.listening.send_modify(|listening| {
            listening.insert(place, address);
        });
    }

    /// Another connection begins to join; it is to end when what is returned is cancelled, which is also how it tells that it is
    /// done. Of too many the oldest gives way: whoever means it is done in a moment, and whoever sits there keeps nobody out.
    pub(super) fn joins(&self) -> CancellationToken {
        let mut joining = lock(&self.joining);
        joining.retain(|one| !one.is_cancelled());
        if joining.len() >= MAX_JOINING {
            let _cancelled = joining.pop_front().map(CancellationToken::drop_guard);
        }
        let one = CancellationToken::new();
        joining.push_back(one.clone());
        one
    }

    /// A hello has been said to whoever is dialled, until what is returned is dropped.
    pub(super) fn greets(&self, nonce: [u8; NONCE]) -> Greeting<'_> {
        lock(&self.hellos).insert(nonce, false);
        Greeting { shared: self, nonce }
    }

    /// A hello has come, and it was proved, from one with this member's own name.
    pub(super) fn greeted_itself(&self, nonce: [u8; NONCE]) {
        if let Some(came_back) = lock(&self.hellos).get_mut(&nonce) {
            *came_back = true;
        }
    }

    pub(super) fn reached(&self, place: usize) {
        self.set_place(place, Place::Fine);
    }

    /// Where this member is, as a place that is listened on or dialled says, or else as it was dialled itself. What one place
    /// says stays until that one says otherwise; but an address that others can reach is better than one of this machine alone,
    /// and only without the word of a place it counts how this member was dialled, by anybody, the first time.
    pub(super) fn seen_as(&self, place: Option<usize>, address: IpAddr) {
        let mut seen = lock(&self.seen);
        let better = match *seen {
            None => true,
            Some((_, before)) if before.is_loopback() != address.is_loopback() => before.is_loopback(),
            Some((by, _)) => place.is_some() && (by == place || by.is_none()),
        };
        if better {
            *seen = Some((place, address));
            self.with(|table, now| table.set_address(address, now));
        }
    }

    /// A record's registration is to be told how it goes.
    pub(super) fn follow(&self, number: u64) -> watch::Receiver<RegistrationState> {
        // Under the lock, or a change in between would be told to nobody.
        let mut registrations = lock(&self.registrations);
        let (state, states) = watch::channel(self.standing.borrow().of_registration());
        registrations.insert(number, state);
        states
    }

    pub(super) fn unfollow(&self, number: u64) {
        if let Some(state) = lock(&self.registrations).remove(&number) {
            state.send_replace(RegistrationState::Left);
        }
    }

    /// Whether it is time to warn of others who are refused; whoever asks has to.
    pub(super) fn may_warn_of_refusals(&self) -> bool {
        let (mut warned, now) = (lock(&self.warned), Instant::now());
        let may = warned.is_none_or(|at| at + WARNED_EVERY <= now);
        if may {
            *warned = Some(now);
        }
        may
    }

    fn judge(&self) -> Standing {
        let places = lock(&self.places);
        let problem = not_listening(&places, self.settings.listen.len());
        if self.peek(|table| table.is_connected(Instant::now())) {
            return Standing::Connected(problem);
        }
        // Whoever has joined is about to hear everything; whoever is still trying may.
        let joined = places.get(self.settings.listen.len()..).unwrap_or_default();
        if *self.standing.borrow() == Standing::Unknown
            && joined.iter().any(|p| matches!(p, Place::Trying | Place::Fine))
        {
            return Standing::Unknown;
        }
        let why = reasons(&places).unwrap_or_else(|| "the connection is silent".to_owned());
        let alone =
            if self.settings.listen.is_empty() { "; nor can anybody join this one: it does not listen" } else { "" };
        Standing::Isolated(format!("{} has no other member connected: {why}{alone}", self.settings.describe()))
    }

    /// Lets readers see what they have not seen.
    pub(super) fn publish(&self) {
        let standing = self.judge();
        let registrations = lock(&self.registrations);
        let changed = *self.standing.borrow() != standing;
        if changed {
            // Before those who wait for the standing: they look at their registration next.
            for state in registrations.values() {
                state.send_replace(standing.of_registration());
            }
            tracing::debug!(registry = self.settings.describe(), ?standing, "the standing has changed");
            self.standing.send_replace(standing.clone());
        }
        drop(registrations);
        let touched = self.peek(Table::take_touched);
        let mut services = lock(&self.services);
        services.retain(|_, service| service.publisher.is_watched());
        for service in services.values() {
            if changed || touched.contains(&service.query.name) || touched.contains(&service.query.text) {
                self.fill(&service.publisher, &service.query, &standing);
            }
        }
    }

    fn fill(&self, publisher: &Publisher, query: &Query, standing: &Standing) {
        let list = self.peek(|table| table.endpoints(query));
        match standing {
            Standing::Unknown => {}
            Standing::Connected(problem) => publisher.live(list, problem.clone()),
            Standing::Isolated(problem) => publisher.stale(list, problem.clone()),
        }
    }

    /// The snapshots of a role.
    pub(super) fn subscribe(&self, query: Query) -> watch::Receiver<Arc<Endpoints>> {
        let mut services = lock(&self.services);
        let service = services.entry(query.text.clone()).or_insert_with(|| {
            let service = Service { query, publisher: Publisher::new() };
            self.fill(&service.publisher, &service.query, &self.standing.borrow());
            service
        });
        service.publisher.subscribe()
    }

    /// Every service that there is, and those that are looked for.
    pub(super) fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let standing = self.standing.borrow().clone();
        let services = lock(&self.services);
        let mut known: BTreeMap<_, _> =
            services.iter().map(|(name, service)| (name.clone(), service.publisher.current())).collect();
        for name in self.peek(|table| table.services()) {
            let Ok(query) = Query::parse(&name) else { continue };
            known.entry(name).or_insert_with(|| {
                let publisher = Publisher::new();
                self.fill(&publisher, &query, &standing);
                publisher.current()
            });
        }
        known
    }
}

/// A hello whose answer is waited for.
pub(super) struct Greeting<'a> {
    shared: &'a Shared,
    nonce: [u8; NONCE],
}

impl Greeting<'_> {
    /// Whether it was said to this very member.
    pub(super) fn came_back(&self) -> bool {
        lock(&self.shared.hellos).get(&self.nonce).copied().unwrap_or_default()
    }
}

impl Drop for Greeting<'_> {
    fn drop(&mut self) {
        lock(&self.shared.hellos).remove(&self.nonce);
    }
}

/// What is wrong with those that are listened on.
fn not_listening(places: &[Place], listen: usize) -> Option<String> {
    places.iter().take(listen).find_map(Place::trouble).map(|refusal| refusal.why.clone())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the member is to end, and says good-bye.
async fn run(shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let settings = &shared.settings;
    tasks.spawn(trouble::log(Arc::clone(&shared)));
    // Before anybody is dialled: it may be this very member.
    for (place, address) in settings.listen.iter().enumerate() {
        let bound = place::bind(&shared, place, address).await;
        tasks.spawn(place::listen(Arc::clone(&shared), place, address.clone(), bound));
    }
    for (place, address) in settings.join.iter().enumerate() {
        tasks.spawn(place::dial(Arc::clone(&shared), settings.listen.len() + place, address.clone()));
    }
    if let Some(port) = settings.local {
        tasks.spawn(place::local(Arc::clone(&shared), settings.listen.len() + settings.join.len(), port));
    }
    loop {
        let due = shared.peek(|table| table.due());
        tokio::select! {
            () = sleep_until(due) => shared.with(Table::tick),
            () = shared.look.notified() => {}
            () = shared.refresh.notified() => {
                shared.redial.notify_waiters();
                continue;
            }
            () = shared.end.cancelled() => break,
        }
        shared.publish();
    }
    shared.with(Table::leave);
    shared.publish();
    let _ = timeout(FAREWELL, shared.all_told()).await;
    shared.stop.cancel();
    for (_, state) in lock(&shared.registrations).drain() {
        state.send_replace(RegistrationState::Left);
    }
    let _ = shared.events.send(Event::Closed);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::record::{Content, Details};
    use super::*;

    #[tokio::test]
    async fn the_best_word_of_where_a_member_is_stays() {
        let shared = Shared::new(Settings::new()).unwrap();
        shared.with(|table, now| table.add(Content::of_details("role", Details::default()), now)).unwrap();
        let known = || shared.peek(|table| table.find(|_| true)[0].details.address.map(|address| address.to_string()));
        assert_eq!(known(), None);
        for (by, address, then) in [
            (None, "127.0.0.1", "127.0.0.1"),
            // As other machines reach it is better than as this one does, whoever says so.
            (None, "10.0.0.1", "10.0.0.1"),
            (Some(0), "127.0.0.1", "10.0.0.1"),
            // It has several addresses, and is dialled at any.
            (None, "10.0.0.2", "10.0.0.1"),
            (Some(0), "10.0.0.3", "10.0.0.3"),
            (Some(1), "10.0.0.4", "10.0.0.3"),
            (None, "10.0.0.4", "10.0.0.3"),
            // The machine has another address by now.
            (Some(0), "10.0.0.5", "10.0.0.5"),
        ] {
            shared.seen_as(by, address.parse().unwrap());
            assert_eq!(known().as_deref(), Some(then), "after {by:?} said {address}");
        }
    }
}
