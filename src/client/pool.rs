//! The endpoints of one service as a node sees them.
//!
//! Owns the watch of the service, the targets and the waiting for a first one. It must never make a call. Look next at
//! [`super::attempts`], which asks for targets, and [`super::balance`], which chooses.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::call::at;
use super::hedge::Hedging;
use super::retry::Budget;
use super::route::{Place, Route};
use super::rover::Rover;
use super::target::Target;
use super::throttle::Throttle;
use super::ticket::Ticket;
use crate::balance::{Balancer, Choice, EndpointState, Fleet, Group, Member, Request, Seat};
use crate::options::Options;
use crate::registry::{Endpoint, Endpoints, Freshness, Registry, RegistryError, Watch};
use crate::state::NodeState;
use crate::status::{Execution, Status};
use crate::transport::link::Link;

/// Who calls whom, with which options.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) service: Arc<str>,
    /// The same as it was asked for, perhaps with a version: `calc@^1.2`.
    pub(crate) asked: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) incarnation: u64,
    pub(crate) options: Options,
    wants_load: AtomicBool,
    /// Nanoseconds from one question of the rover to the next; 0 is none.
    roving: AtomicU64,
}

impl Identity {
    pub(crate) fn new(asked: Arc<str>, node: Arc<str>, incarnation: u64, options: Options) -> Self {
        let policy = Arc::clone(&options.balance);
        let service = asked.split_once('@').map_or_else(|| Arc::clone(&asked), |(name, _)| name.into());
        let (wants_load, roving) = (AtomicBool::new(false), AtomicU64::new(0));
        let identity = Self { service, asked, node, incarnation, options, wants_load, roving };
        identity.ask_for_load(&policy);
        identity
    }

    /// Lets connections that are made from now on ask servers for their load, and a rover ask for more, if a policy wants that.
    pub(super) fn ask_for_load(&self, policy: &impl Balancer) {
        if policy.wants_load() {
            self.wants_load.store(true, Ordering::Relaxed);
        }
        if let Some(interval) = policy.roving() {
            let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
            let shorter = |known: u64| Some(interval).filter(|interval| known == 0 || *interval < known);
            // That nothing is shorter is no error.
            let _ = self.roving.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shorter);
        }
    }

    /// How often servers are asked for it where no calls are made.
    pub(super) fn roving(&self) -> Option<Duration> {
        let interval = self.roving.load(Ordering::Relaxed);
        (interval > 0).then(|| Duration::from_nanos(interval))
    }

    /// Whether servers are asked how busy they are.
    pub(super) fn wants_load(&self) -> bool {
        self.wants_load.load(Ordering::Relaxed)
    }
}

/// How one call, or one client, wants endpoints to be chosen.
#[derive(Clone, Debug, Default)]
pub(super) struct Preference {
    /// Another policy than the node's.
    pub(super) policy: Option<Arc<dyn Balancer>>,
    /// The hash of what calls that belong together share.
    pub(super) key: Option<u64>,
}

/// Most endpoints outside the registry's list whose connections are kept.
const MAX_UNLISTED: usize = 64;

/// The endpoints of one service, with a connection each.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) identity: Arc<Identity>,
    pub(super) budget: Budget,
    pub(super) throttle: Throttle,
    pub(super) rover: Rover,
    pub(super) hedging: Hedging,
    registry: Result<Arc<dyn Registry>, RegistryError>,
    /// With when it began, which is with the first call.
    watch: OnceLock<(Watch, Instant)>,
    set: RwLock<Set>,
    /// Where calls were tied to that the registry does not list, the newest last.
    unlisted: Mutex<VecDeque<Arc<Target>>>,
}

/// The targets made from one snapshot.
#[derive(Debug)]
pub(super) struct Set {
    snapshot: Arc<Endpoints>,
    /// The view that has seen the snapshot; none before the first.
    view: Option<Watch>,
    usable: Vec<Arc<Target>>,
    /// Of each of them the connection that calls found last, so that the next ones need not ask the target.
    routes: Vec<Option<Arc<Route>>>,
    /// The same endpoints, in the same order, as balancing knows them.
    group: Group,
    /// What balancing knows of every endpoint that is listed, also of those that are not usable now.
    members: Members,
    /// Since when there has been nothing usable.
    empty_since: Instant,
}

/// A target that was chosen and counted.
#[derive(Debug)]
pub(super) enum Chosen {
    /// With a connection that takes calls.
    Connected(Ticket<Arc<Route>>),
    /// Whether it has one, only the target can say.
    Other(Ticket),
}

/// By what makes an endpoint the same one.
type Members = HashMap<(SocketAddr, Option<u64>), Arc<Member>>;

impl Pool {
    pub(crate) fn new(identity: Identity, registry: Result<Arc<dyn Registry>, RegistryError>) -> Self {
        let now = Instant::now();
        let fleet = Arc::new(Fleet::new(Arc::clone(&identity.service), now.into_std()));
        let group = Group::new(Vec::new(), fleet, identity.incarnation, now.into_std());
        let nothing = Set {
            snapshot: Arc::new(Endpoints::unknown()),
            view: None,
            usable: Vec::new(),
            routes: Vec::new(),
            group,
            members: HashMap::new(),
            empty_since: now,
        };
        Self {
            identity: Arc::new(identity),
            budget: Budget::new(),
            throttle: Throttle::new(),
            rover: Rover::default(),
            hedging: Hedging::default(),
            registry,
            watch: OnceLock::new(),
            set: RwLock::new(nothing),
            unlisted: Mutex::default(),
        }
    }

    /// For how long it has made no call.
    pub(crate) fn unused(&self) -> Duration {
        self.budget.unused(Instant::now())
    }

    /// What is called, as it was asked for.
    pub(crate) fn asked(&self) -> &str {
        &self.identity.asked
    }

    fn watch(&self) -> &Watch {
        // Made with the first call, because watching needs a runtime and making a client does not.
        &self.watched().0
    }

    fn watched(&self) -> &(Watch, Instant) {
        self.watch.get_or_init(|| {
            let watch = match &self.registry {
                Ok(registry) => registry.watch(&self.identity.asked),
                Err(_) => Watch::fixed(Endpoints::unknown()),
            };
            (watch, Instant::now())
        })
    }

    /// Looks at the targets of the newest snapshot. `look` must not come back here.
    fn look<T>(&self, look: impl FnOnce(&Set) -> T) -> T {
        {
            let set = self.set.read().unwrap_or_else(PoisonError::into_inner);
            if set.view.as_ref().is_some_and(|view| view.has_seen(&set.snapshot)) {
                return look(&set);
            }
        }
        let watch = self.watch();
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        let mut view = set.view.take().unwrap_or_else(|| watch.clone());
        // Asked for here, or one who was held up on the way would bring back an older list.
        let snapshot = view.see();
        if !Arc::ptr_eq(&set.snapshot, &snapshot) {
            *set = set.renewed(snapshot, self.identity.incarnation);
        }
        set.view = Some(view);
        look(&set)
    }

    /// Chooses a target for a first attempt, if there is one now.
    pub(super) fn choose_now(self: &Arc<Self>, preference: Option<&Preference>, now: Instant) -> Option<Chosen> {
        self.rove();
        self.look(|set| {
            let choice = self.prefer(set, preference, &[], now, true)?;
            let route = set.routes.get(choice.position).and_then(Option::as_ref);
            match route.and_then(Route::usable) {
                Some(route) => Some(Chosen::Connected(set.ticket(route, choice.is_probe, now))),
                None => {
                    let target = set.usable.get(choice.position)?;
                    Some(Chosen::Other(set.ticket(target, choice.is_probe, now)))
                }
            }
        })
    }

    /// Lets the next calls that choose this target find its connection at once.
    pub(super) fn keep_route(&self, target: &Arc<Target>, link: Arc<Link>) -> Arc<Route> {
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        // Under this lock, or the one that is kept might not be the one that the target knows of.
        let route = target.route(link);
        let Set { usable, routes, .. } = &mut *set;
        let place = usable.iter().zip(routes).find(|(other, _)| Arc::ptr_eq(other, target));
        if let Some((_, place)) = place {
            *place = Some(Arc::clone(&route));
        }
        route
    }

    /// Chooses a target; waits until there is one, at most until `deadline` or as long as the options say.
    pub(super) async fn pick(
        self: &Arc<Self>,
        preference: Option<&Preference>,
        tried: &[Arc<Member>],
        deadline: Option<Instant>,
    ) -> Result<Ticket, Status> {
        self.rove();
        let choose = |set: &Set| self.choose(set, preference, tried, Instant::now());
        if let Some(ticket) = self.look(choose) {
            return Ok(ticket);
        }
        let patience = at(self.look(|set| set.empty_since).max(self.watched().1), self.identity.options.resolve_wait);
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        self.wait(choose, until).await?.map_err(|why| Status::unavailable(why).with_execution(Execution::Never))
    }

    /// The endpoint that a call would use; waits for one until then. Does not connect. Inside is why there is none.
    pub(super) async fn pick_endpoint(
        &self,
        preference: Option<&Preference>,
        until: Instant,
    ) -> Result<Result<Arc<Endpoint>, String>, Status> {
        let choose = |set: &Set| {
            let choice = self.prefer(set, preference, &[], Instant::now(), false)?;
            set.group.seat(choice.position).map(|seat| Arc::clone(&seat.endpoint))
        };
        self.wait(choose, until).await
    }

    /// What `choose` finds, as soon as it finds anything; or why nobody is there when the time is over. Cancel safe.
    async fn wait<T>(&self, choose: impl Fn(&Set) -> Option<T>, until: Instant) -> Result<Result<T, String>, Status> {
        if let Err(error) = &self.registry {
            return Err(Status::invalid_argument(error.to_string()).with_execution(Execution::Never));
        }
        if let Some(found) = self.look(&choose) {
            return Ok(Ok(found));
        }
        let mut watch = self.watch().clone();
        watch.refresh();
        loop {
            let changed = tokio::time::timeout_at(until, watch.changed()).await;
            if let Some(found) = self.look(&choose) {
                return Ok(Ok(found));
            }
            if changed.is_err() {
                return Ok(Err(self.look(|set| self.nobody(set))));
            }
        }
    }

    /// Chooses an attempt's target and counts it.
    fn choose(
        &self,
        set: &Set,
        preference: Option<&Preference>,
        tried: &[Arc<Member>],
        now: Instant,
    ) -> Option<Ticket> {
        let choice = self.prefer(set, preference, tried, now, true)?;
        set.usable.get(choice.position).map(|target| set.ticket(target, choice.is_probe, now))
    }

    /// Chooses a target for an attempt beside or after others of the same call, if there is one that is well. One that is `added` to what the
    /// service has to do needs more of them.
    pub(super) fn choose_beside(
        &self,
        preference: Option<&Preference>,
        used: &[Arc<Member>],
        now: Instant,
        added: bool,
    ) -> Option<Ticket> {
        let (policy, request) = self.wanted(preference, now, true);
        self.look(|set| {
            if added && set.group.is_in_panic(used, now.into_std()) {
                return None;
            }
            let position = set.group.choose_beside(policy, request, used)?;
            set.usable.get(position).map(|target| set.ticket(target, false, now))
        })
    }

    fn prefer(
        &self,
        set: &Set,
        preference: Option<&Preference>,
        tried: &[Arc<Member>],
        now: Instant,
        is_call: bool,
    ) -> Option<Choice> {
        let (policy, request) = self.wanted(preference, now, is_call);
        set.group.choose(policy, request, tried)
    }

    /// By which policy to choose, and for what.
    fn wanted<'a>(
        &'a self,
        preference: Option<&'a Preference>,
        now: Instant,
        is_call: bool,
    ) -> (&'a dyn Balancer, Request<'a>) {
        let options = &self.identity.options;
        let policy = preference.and_then(|preference| preference.policy.as_deref()).unwrap_or(&*options.balance);
        let request = Request {
            key: preference.and_then(|preference| preference.key),
            zone: options.zone.as_deref(),
            is_call,
            now: now.into_std(),
        };
        (policy, request)
    }

    /// What is known of each usable endpoint.
    pub(super) fn states(&self) -> Vec<EndpointState> {
        let seats = self.seats().into_iter();
        seats.map(|(state, target)| EndpointState { connections: target.connections(), ..state }).collect()
    }

    /// The same, each with its target.
    pub(super) fn seats(&self) -> Vec<(EndpointState, Arc<Target>)> {
        let seats = |set: &Set| {
            let states = set.group.states(Instant::now().into_std());
            states.into_iter().zip(set.usable.iter().map(Arc::clone)).collect()
        };
        self.look(seats)
    }

    /// Sees to it that endpoints are asked how busy they are, if a policy wants that.
    fn rove(self: &Arc<Self>) {
        if self.identity.roving().is_some() {
            self.rover.start(self);
        }
    }

    /// The target with this address, whether the registry lists it or not.
    pub(super) fn at(&self, addr: SocketAddr) -> Ticket {
        let is_it = |target: &&Arc<Target>| target.endpoint().addr == addr;
        let now = Instant::now();
        let listed = |set: &Set| set.usable.iter().find(is_it).map(|target| set.ticket(target, false, now));
        if let Some(ticket) = self.look(listed) {
            return ticket;
        }
        let mut unlisted = self.unlisted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = unlisted.iter().find(is_it) {
            return Ticket::new(Arc::clone(target), None, false);
        }
        if unlisted.len() == MAX_UNLISTED {
            unlisted.pop_front();
        }
        // In a fleet of its own: it is no alternative to anybody.
        let member = Member::new(addr, Arc::new(Fleet::new(Arc::clone(&self.identity.service), now.into_std())));
        let target = Arc::new(Target::new(Arc::new(Endpoint::new(addr)), Arc::new(member)));
        unlisted.push_back(Arc::clone(&target));
        Ticket::new(target, None, false)
    }

    /// Whether there is an endpoint beside `target` that the call has not tried.
    pub(super) fn has_another(&self, target: &Arc<Target>, tried: &[Arc<Member>]) -> bool {
        let known = |other: &Arc<Target>| {
            Arc::ptr_eq(other, target) || tried.iter().any(|tried| Arc::ptr_eq(tried, other.member()))
        };
        self.look(|set| set.usable.iter().any(|other| !known(other)))
    }

    /// A connection on which another call can be opened now, if there is one.
    pub(super) fn with_room(&self) -> Option<(Ticket, Arc<Link>)> {
        self.look(|set| {
            set.usable.iter().find_map(|target| {
                let link = target.with_room()?;
                Some((set.ticket(target, false, Instant::now()), link))
            })
        })
    }

    /// Asks the registry to look again.
    pub(super) fn refresh(&self) {
        self.watch().refresh();
    }

    /// Why there is nobody to call.
    fn nobody(&self, set: &Set) -> String {
        let Endpoints { freshness, endpoints, problem, .. } = &*set.snapshot;
        let (service, registry) = (
            &self.identity.asked,
            self.registry.as_ref().map_or_else(ToString::to_string, |registry| registry.describe()),
        );
        match (freshness, endpoints.len(), problem) {
            (Freshness::Never, _, Some(problem)) => format!("registry unreachable: {problem}"),
            (Freshness::Never, _, None) => format!("registry unreachable: {registry} has not answered"),
            (_, 0, None) => format!("unknown service: {registry} knows no instance of `{service}`"),
            (_, 0, Some(problem)) => {
                format!("unknown service: {registry} knew no instance of `{service}`, and now: {problem}")
            }
            (_, known, _) => {
                let calm =
                    |endpoint: &&Arc<Endpoint>| !matches!(endpoint.status.state, NodeState::Running | NodeState::Doing);
                match endpoints.iter().find(calm).map(|endpoint| &**endpoint) {
                    Some(Endpoint { addr, status, .. }) => format!(
                        "no running instance: {registry} knows {known} of `{service}`, of which {addr} is {status}"
                    ),
                    None => format!(
                        "no healthy instance: {registry} knows {known} of `{service}`, none of which passes its check"
                    ),
                }
            }
        }
    }
}

impl Set {
    /// Counts an attempt at this target.
    fn ticket<P: Place>(&self, place: &P, is_probe: bool, now: Instant) -> Ticket<P> {
        Ticket::new(place.clone(), (self.group.len() > 1).then_some(now), is_probe)
    }

    /// The set for the next snapshot; targets that stay keep their connections, and whoever is listed what is known of it.
    fn renewed(&self, snapshot: Arc<Endpoints>, seed: u64) -> Self {
        let key = |endpoint: &Endpoint| (endpoint.addr, endpoint.incarnation);
        let known: HashMap<_, _> = self.usable.iter().map(|target| (key(target.endpoint()), target)).collect();
        let now = Instant::now();
        let fleet = self.group.fleet();
        let member = |endpoint: &Endpoint| {
            let member = Member::new(endpoint.addr, Arc::clone(fleet));
            // If all are new, none is ahead of the others.
            if !self.members.is_empty() {
                member.warm_up(now.into_std());
            }
            Arc::new(member)
        };
        let members: Members = snapshot
            .endpoints
            .iter()
            .map(|endpoint| {
                (key(endpoint), self.members.get(&key(endpoint)).cloned().unwrap_or_else(|| member(endpoint)))
            })
            .collect();
        let (usable, seats) = snapshot
            .usable()
            .into_iter()
            .map(|endpoint| {
                let member = members.get(&key(&endpoint)).cloned().unwrap_or_else(|| member(&endpoint));
                let target = known.get(&key(&endpoint)).map_or_else(
                    || Arc::new(Target::new(Arc::clone(&endpoint), Arc::clone(&member))),
                    |target| Arc::clone(target),
                );
                (target, Seat { endpoint, member })
            })
            .unzip::<_, _, Vec<_>, Vec<_>>();
        // Who is not called can show nothing, and must not keep others from being left alone.
        let called: HashSet<_> = seats.iter().map(|seat: &Seat| Arc::as_ptr(&seat.member)).collect();
        members
            .values()
            .filter(|member| !called.contains(&Arc::as_ptr(member)))
            .for_each(|member| member.pardon(now.into_std()));
        let stays: HashSet<_> = usable.iter().map(Arc::as_ptr).collect();
        self.usable.iter().filter(|target| !stays.contains(&Arc::as_ptr(target))).for_each(|target| target.left());
        let stays_empty = self.usable.is_empty() && usable.is_empty();
        let empty_since = if stays_empty { self.empty_since } else { now };
        let group = Group::new(seats, Arc::clone(fleet), seed, now.into_std());
        // Found again by the first calls; a route must not outlive the place of its target in the list.
        let routes = vec![None; usable.len()];
        Self { snapshot, view: None, usable, routes, group, members, empty_since }
    }
}
