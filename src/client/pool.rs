//! The endpoints of one service as a node sees them.
//!
//! Owns the watch of the service, the targets and the waiting for a first one. It must never make a call. Look next at
//! [`super::attempts`], which asks for targets, and [`super::balance`], which chooses.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::call::at;
use super::retry::Budget;
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
}

impl Identity {
    pub(crate) fn new(asked: Arc<str>, node: Arc<str>, incarnation: u64, options: Options) -> Self {
        let wants_load = AtomicBool::new(options.balance.wants_load());
        let service = asked.split_once('@').map_or_else(|| Arc::clone(&asked), |(name, _)| name.into());
        Self { service, asked, node, incarnation, options, wants_load }
    }

    /// Lets connections that are made from now on ask servers for their load, if a policy wants that.
    pub(super) fn ask_for_load(&self, policy: &impl Balancer) {
        if policy.wants_load() {
            self.wants_load.store(true, Ordering::Relaxed);
        }
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
    /// The same endpoints, in the same order, as balancing knows them.
    group: Group,
    /// What balancing knows of every endpoint that is listed, also of those that are not usable now.
    members: Members,
    /// Since when there has been nothing usable.
    empty_since: Instant,
}

/// By what makes an endpoint the same one.
type Members = HashMap<(SocketAddr, Option<u64>), Arc<Member>>;

impl Pool {
    pub(crate) fn new(identity: Identity, registry: Result<Arc<dyn Registry>, RegistryError>) -> Self {
        let now = Instant::now();
        let fleet = Arc::new(Fleet::new(now.into_std()));
        let group = Group::new(Vec::new(), fleet, identity.incarnation, now.into_std());
        let nothing = Set {
            snapshot: Arc::new(Endpoints::unknown()),
            view: None,
            usable: Vec::new(),
            group,
            members: HashMap::new(),
            empty_since: now,
        };
        Self {
            identity: Arc::new(identity),
            budget: Budget::new(),
            throttle: Throttle::new(),
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
    pub(super) fn choose_now(&self, preference: Option<&Preference>, now: Instant) -> Option<Ticket> {
        self.look(|set| self.choose(set, preference, &[], now))
    }

    /// Chooses a target; waits until there is one, at most until `deadline` or as long as the options say.
    pub(super) async fn pick(
        &self,
        preference: Option<&Preference>,
        tried: &[Arc<Member>],
        deadline: Option<Instant>,
    ) -> Result<Ticket, Status> {
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

    fn prefer(
        &self,
        set: &Set,
        preference: Option<&Preference>,
        tried: &[Arc<Member>],
        now: Instant,
        is_call: bool,
    ) -> Option<Choice> {
        let options = &self.identity.options;
        let policy = preference.and_then(|preference| preference.policy.as_deref()).unwrap_or(&*options.balance);
        let request = Request {
            key: preference.and_then(|preference| preference.key),
            zone: options.zone.as_deref(),
            is_call,
            now: now.into_std(),
        };
        set.group.choose(policy, request, tried)
    }

    /// What is known of each usable endpoint.
    pub(super) fn states(&self) -> Vec<EndpointState> {
        self.look(|set| set.group.states(Instant::now().into_std()))
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
        let member = Member::new(addr, Arc::new(Fleet::new(now.into_std())));
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
                let link = target.connected().filter(|link| link.has_room())?;
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
    fn ticket(&self, target: &Arc<Target>, is_probe: bool, now: Instant) -> Ticket {
        Ticket::new(Arc::clone(target), (self.group.len() > 1).then_some(now), is_probe)
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
        let stays_empty = self.usable.is_empty() && usable.is_empty();
        let empty_since = if stays_empty { self.empty_since } else { now };
        let group = Group::new(seats, Arc::clone(fleet), seed, now.into_std());
        Self { snapshot, view: None, usable, group, members, empty_since }
    }
}
