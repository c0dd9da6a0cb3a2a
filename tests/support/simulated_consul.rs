//! A Consul without a process: what a real one does as its users see it, in virtual time and at any fault's command.
//!
//! Owns [`Consul`], the catalog, and [`View`], the registry of one process. What it does is held against the real one by
//! `registry_conformance.rs` and `registry_consul_alike.rs`, which ask both the same. The crate's own simulator includes this
//! file. It must never use anything but the public API.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use picom::NodeStatus;
use picom::registry::{
    Endpoint, Endpoints, Freshness, Instance, Registration, RegistrationState, Registry, RegistryError, Tier, Watch,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// How often a view reads its list without a reason, which bounds how long a lost wake goes unnoticed.
const REREAD: Duration = Duration::from_secs(10);
/// The pause after a question that was not answered.
const PAUSE: Duration = Duration::from_millis(200);
/// The shortest time between two readings of one list.
const PACE: Duration = Duration::from_millis(20);

/// The agent that all views talk to. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Consul(Arc<Agent>);

struct Agent {
    /// Without a sign of life for so long an instance is critical…
    ttl: Duration,
    /// … and forgotten after so much more.
    forget: Duration,
    catalog: Mutex<Catalog>,
}

#[derive(Default)]
struct Catalog {
    down: bool,
    next: u64,
    /// How often it has lost its memory.
    restarts: u64,
    services: BTreeMap<String, BTreeMap<String, Entry>>,
    waiting: Vec<(String, Weak<Notify>)>,
}

#[derive(Clone)]
struct Entry {
    owner: u64,
    instance: Instance,
    passes_until: Instant,
}

impl Consul {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self(Arc::new(Agent { ttl, forget: ttl * 10, catalog: Mutex::default() }))
    }

    /// The registry of another process. `grace` is for how long the instances of a list that became empty are remembered; `look`
    /// sees and changes each list of a service before anybody else does.
    pub(crate) fn view(&self, grace: Duration, look: impl Fn(&str, &mut Endpoints) + Send + Sync + 'static) -> View {
        View(Arc::new(Process {
            agent: Arc::clone(&self.0),
            grace,
            look: Box::new(look),
            cut: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            lag_millis: AtomicU64::new(1),
            feeds: Mutex::default(),
        }))
    }

    /// Nobody is answered from now on, or everybody again.
    pub(crate) fn set_down(&self, down: bool) {
        let mut catalog = self.0.lock();
        catalog.down = down;
        catalog.wake(None);
    }

    /// Starts anew with nothing, as an agent in development mode does.
    pub(crate) fn restart(&self) {
        let mut catalog = self.0.lock();
        catalog.services.clear();
        catalog.restarts += 1;
        catalog.wake(None);
    }
}

impl Agent {
    fn lock(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap()
    }
}

impl Catalog {
    /// Wakes those who wait for this service, or all.
    fn wake(&mut self, service: Option<&str>) {
        self.waiting.retain(|(_, waiting)| waiting.strong_count() > 0);
        for (watched, waiting) in &self.waiting {
            if service.is_none_or(|service| service == watched) {
                if let Some(waiting) = waiting.upgrade() {
                    waiting.notify_one();
                }
            }
        }
    }
}

/// One process's registry. Clones are the same one.
#[derive(Clone)]
pub(crate) struct View(Arc<Process>);

type Look = dyn Fn(&str, &mut Endpoints) + Send + Sync;

struct Process {
    agent: Arc<Agent>,
    grace: Duration,
    look: Box<Look>,
    cut: AtomicBool,
    deaf: AtomicBool,
    lag_millis: AtomicU64,
    feeds: Mutex<BTreeMap<String, Feed>>,
}

struct Feed {
    publisher: Weak<watch::Sender<Arc<Endpoints>>>,
    refresh: Arc<Notify>,
}

impl View {
    /// This process cannot reach the agent from now on, or can again.
    pub(crate) fn set_cut(&self, cut: bool) {
        self.0.cut.store(cut, Ordering::Relaxed);
        self.0.agent.lock().wake(None);
    }

    /// This process is not told of changes from now on, or is again; what it reads of its own accord is true.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.0.deaf.store(deaf, Ordering::Relaxed);
    }

    /// How long an answer is on its way, in which it may become untrue.
    pub(crate) fn set_lag(&self, lag: Duration) {
        self.0.lag_millis.store(u64::try_from(lag.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Process {
    fn catalog(&self) -> Result<MutexGuard<'_, Catalog>, String> {
        let catalog = self.agent.lock();
        if catalog.down || self.cut.load(Ordering::Relaxed) {
            return Err("the simulated consul does not answer".to_owned());
        }
        Ok(catalog)
    }

    /// Registers an instance, over whatever has its id.
    fn register(&self, owner: u64, instance: &Instance) -> Result<(), String> {
        let mut catalog = self.catalog()?;
        let entry = Entry { owner, instance: instance.clone(), passes_until: Instant::now() + self.agent.ttl };
        catalog.services.entry(instance.service.clone()).or_default().insert(instance.id.clone(), entry);
        catalog.wake(Some(&instance.service));
        Ok(())
    }

    /// Says that an instance lives, and what it is ready for.
    fn beat(&self, owner: u64, instance: &Instance) -> Result<(), String> {
        let mut catalog = self.catalog()?;
        let known = catalog.services.get_mut(&instance.service).and_then(|entries| entries.get_mut(&instance.id));
        let Some(entry) = known else {
            drop(catalog);
            return self.register(owner, instance);
        };
        let now = Instant::now();
        let mut news = entry.passes_until <= now;
        entry.passes_until = now + self.agent.ttl;
        if entry.owner == owner && entry.instance.status != instance.status {
            entry.instance.status = instance.status.clone();
            news = true;
        }
        if news {
            catalog.wake(Some(&instance.service));
        }
        Ok(())
    }

    fn deregister(&self, owner: u64, instance: &Instance) -> Result<(), String> {
        let mut catalog = self.catalog()?;
        let Some(entries) = catalog.services.get_mut(&instance.service) else { return Ok(()) };
        if entries.get(&instance.id).is_some_and(|entry| entry.owner == owner) {
            entries.remove(&instance.id);
            catalog.wake(Some(&instance.service));
        }
        Ok(())
    }

    /// The list as it is now, when time alone will change it, and how often everything was forgotten before.
    fn read(&self, service: &str) -> Result<(Vec<Endpoint>, Option<Instant>, u64), String> {
        let mut catalog = self.catalog()?;
        let (now, restarts) = (Instant::now(), catalog.restarts);
        let Some(entries) = catalog.services.get_mut(service) else { return Ok((Vec::new(), None, restarts)) };
        entries.retain(|_, entry| now < entry.passes_until + self.agent.forget);
        let next = entries.values().map(|entry| {
            if entry.passes_until > now { entry.passes_until } else { entry.passes_until + self.agent.forget }
        });
        Ok((entries.values().map(|entry| endpoint(entry, now)).collect(), next.min(), restarts))
    }

    /// Keeps an instance registered until it is dropped.
    async fn keep(
        self: Arc<Self>,
        owner: u64,
        kept: Arc<Mutex<Instance>>,
        state: watch::Sender<RegistrationState>,
        news: Arc<Notify>,
    ) {
        // An entry with the same id may be a predecessor's: the first thing said is a registration.
        let mut is_known = *state.borrow() == RegistrationState::Registered;
        loop {
            let instance = kept.lock().unwrap().clone();
            let outcome = if is_known { self.beat(owner, &instance) } else { self.register(owner, &instance) };
            is_known |= outcome.is_ok();
            let pause = if outcome.is_ok() { self.agent.ttl / 3 } else { PAUSE };
            let now = outcome.map_or_else(RegistrationState::Retrying, |()| RegistrationState::Registered);
            state.send_if_modified(|state| {
                let changed = *state != now && *state != RegistrationState::Left;
                if changed {
                    *state = now;
                }
                changed
            });
            tokio::select! {
                biased;
                () = news.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Feeds all watches of a service until there is none.
    async fn feed(
        self: Arc<Self>,
        service: String,
        publisher: Arc<watch::Sender<Arc<Endpoints>>>,
        refresh: Arc<Notify>,
    ) {
        let waiting = Arc::new(Notify::new());
        self.agent.lock().waiting.push((service.clone(), Arc::downgrade(&waiting)));
        let mut memory = Remembered::default();
        loop {
            let read = self.read(&service);
            sleep(Duration::from_millis(self.lag_millis.load(Ordering::Relaxed))).await;
            let now = Instant::now();
            let mut next = now + REREAD;
            match read {
                Ok((list, changes, restarts)) => {
                    next = changes.map_or(next, |changes| changes.min(next));
                    let (list, until) = memory.add(list, restarts, now, self.grace);
                    next = until.map_or(next, |until| until.min(next));
                    let problem = until.map(|_| "some who were known before are not listed".to_owned());
                    self.publish(&service, &publisher, Some(&list), problem);
                }
                Err(problem) => {
                    memory.away = true;
                    next = now + PAUSE;
                    self.publish(&service, &publisher, None, Some(problem));
                }
            }
            sleep(PACE).await;
            let deaf = self.deaf.load(Ordering::Relaxed);
            tokio::select! {
                biased;
                () = publisher.closed() => {
                    let mut feeds = self.feeds.lock().unwrap();
                    // Watches are made under this lock.
                    if publisher.receiver_count() == 0 {
                        feeds.remove(&service);
                        return;
                    }
                }
                () = refresh.notified() => {}
                () = waiting.notified(), if !deaf => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// Tells the watches, if there is anything new: a list, or why there is none.
    fn publish(
        &self,
        service: &str,
        publisher: &watch::Sender<Arc<Endpoints>>,
        list: Option<&[Endpoint]>,
        problem: Option<String>,
    ) {
        let current = Arc::clone(&publisher.borrow());
        let freshness = match (&problem, current.freshness) {
            (None, _) => Freshness::Live,
            (Some(_), Freshness::Live) => Freshness::Stale(Instant::now()),
            (Some(_), old) => old,
        };
        let mut next = Endpoints { freshness, problem, ..(*current).clone() };
        if let Some(list) = list {
            let by_addr: BTreeMap<_, _> = list.iter().map(|endpoint| (endpoint.addr, endpoint.clone())).collect();
            next.endpoints = by_addr.into_values().map(Arc::new).collect();
        }
        (self.look)(service, &mut next);
        let answers = current.freshness == Freshness::Never && freshness != Freshness::Never;
        next.generation += u64::from(answers || next.endpoints != current.endpoints);
        if next != *current {
            publisher.send_replace(Arc::new(next));
        }
    }
}

/// Who was known before lists that are not to be believed yet: empty ones, and all after the agent was away or forgot.
#[derive(Default)]
struct Remembered {
    known: Vec<Endpoint>,
    missing: Vec<Endpoint>,
    until: Option<Instant>,
    away: bool,
    forgotten: bool,
    restarts: u64,
}

impl Remembered {
    /// What to make of this list: with those who are missing in it, until then.
    fn add(
        &mut self,
        list: Vec<Endpoint>,
        restarts: u64,
        now: Instant,
        grace: Duration,
    ) -> (Vec<Endpoint>, Option<Instant>) {
        let away = std::mem::take(&mut self.away) || std::mem::replace(&mut self.restarts, restarts) != restarts;
        let is_over = self.until.is_some_and(|until| until <= now);
        if self.until.is_none() {
            self.missing = if away { self.known.clone() } else { Vec::new() };
            self.forgotten = false;
        }
        self.forgotten |= away;
        if list.is_empty() {
            let more = self.known.iter().filter(|known| self.missing.iter().all(|e| e.addr != known.addr)).cloned();
            self.missing.extend(more.collect::<Vec<_>>());
        }
        self.missing.retain(|missing| list.iter().all(|endpoint| endpoint.addr != missing.addr));
        if is_over || self.missing.is_empty() || !(self.forgotten || list.is_empty()) || grace.is_zero() {
            self.until = None;
            self.known = list;
            return (self.known.clone(), None);
        }
        self.until.get_or_insert(now + grace);
        let missing = self.missing.iter().cloned().map(|mut endpoint| {
            if list.is_empty() {
                endpoint.tier = Tier::Unhealthy;
            }
            endpoint
        });
        self.known = list.iter().cloned().chain(missing).collect();
        (self.known.clone(), self.until)
    }
}

fn endpoint(entry: &Entry, now: Instant) -> Endpoint {
    let Instance { id, incarnation, address, port, weight, zone, tags, meta, status, .. } = entry.instance.clone();
    let ip = address.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
    Endpoint {
        addr: (ip, port).into(),
        incarnation: Some(incarnation),
        id,
        tier: if entry.passes_until > now { Tier::Healthy } else { Tier::Unhealthy },
        weight,
        zone,
        tags,
        meta,
        status,
    }
}

fn check(instance: &Instance) -> Result<(), RegistryError> {
    let bad_id = instance.id.is_empty() || instance.id.len() > 128 || instance.id.chars().any(char::is_control);
    if !legal(&instance.service) || bad_id || instance.port == 0 || instance.weight == 0 {
        return Err(RegistryError::Invalid(format!("no registry could hold {instance:?}")));
    }
    Ok(())
}

fn legal(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@+".contains(c))
}

/// Takes an instance back when it is dropped, if the agent answers.
struct Held {
    process: Arc<Process>,
    owner: u64,
    kept: Arc<Mutex<Instance>>,
    state: watch::Sender<RegistrationState>,
    keeper: tokio::task::AbortHandle,
}

impl Held {
    fn leave(&self) -> Result<(), RegistryError> {
        self.keeper.abort();
        self.state.send_replace(RegistrationState::Left);
        let instance = self.kept.lock().unwrap().clone();
        self.process.deregister(self.owner, &instance).map_err(RegistryError::Unreachable)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // What could not be taken back is forgotten when its time is over.
        let _ = self.leave();
    }
}

#[async_trait]
impl Registry for View {
    fn describe(&self) -> String {
        "simulated consul".to_owned()
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        check(&instance)?;
        let process = Arc::clone(&self.0);
        let owner = {
            let mut catalog = process.agent.lock();
            catalog.next += 1;
            catalog.next
        };
        let first = match process.register(owner, &instance) {
            Ok(()) => RegistrationState::Registered,
            Err(problem) => RegistrationState::Retrying(problem),
        };
        let (state, states) = watch::channel(first);
        let (kept, news) = (Arc::new(Mutex::new(instance)), Arc::new(Notify::new()));
        let keeping = Arc::clone(&process).keep(owner, Arc::clone(&kept), state.clone(), Arc::clone(&news));
        let keeper = tokio::spawn(keeping).abort_handle();
        let held = Held { process, owner, kept: Arc::clone(&kept), state, keeper };
        let registration = Registration::new(states, move || {
            let left = held.leave();
            Box::pin(std::future::ready(left))
        });
        Ok(registration.with_status(move |status: NodeStatus| {
            kept.lock().unwrap().status = status;
            news.notify_one();
        }))
    }

    fn watch(&self, service: &str) -> Watch {
        if !legal(service) {
            return Watch::fixed(Endpoints { problem: Some("an illegal name".to_owned()), ..Endpoints::unknown() });
        }
        let mut feeds = self.0.feeds.lock().unwrap();
        if let Some((publisher, feed)) = feeds.get(service).and_then(|feed| Some((feed.publisher.upgrade()?, feed))) {
            return Watch::new(publisher.subscribe(), Arc::clone(&feed.refresh), None);
        }
        let publisher = Arc::new(watch::Sender::new(Arc::new(Endpoints::unknown())));
        let refresh = Arc::new(Notify::new());
        let watch = Watch::new(publisher.subscribe(), Arc::clone(&refresh), None);
        let feed = Feed { publisher: Arc::downgrade(&publisher), refresh: Arc::clone(&refresh) };
        feeds.insert(service.to_owned(), feed);
        tokio::spawn(Arc::clone(&self.0).feed(service.to_owned(), publisher, refresh));
        watch
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let feeds = self.0.feeds.lock().unwrap();
        let current = |feed: &Feed| feed.publisher.upgrade().map(|publisher| Arc::clone(&publisher.borrow()));
        feeds.iter().filter_map(|(service, feed)| Some((service.clone(), current(feed)?))).collect()
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("View")
    }
}
