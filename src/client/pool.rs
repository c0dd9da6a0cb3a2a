//! The endpoints of one service as a node sees them.
//!
//! Owns the watch of the service, the targets and the waiting for a first one. It must never make a call. Look next at
//! [`super::attempts`], which asks for targets, and [`super::balance`], which chooses.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::balance::{Balance, RoundRobin};
use super::call::at;
use super::retry::Budget;
use super::target::Target;
use super::throttle::Throttle;
use crate::options::Options;
use crate::registry::{Endpoint, Endpoints, Freshness, Registry, RegistryError, Watch};
use crate::state::NodeState;
use crate::status::{Execution, Status};
use crate::transport::link::Link;

/// Who calls whom, with which options.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) service: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) incarnation: u64,
    pub(crate) options: Options,
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
    balance: Box<dyn Balance>,
    /// Where calls were tied to that the registry does not list, the newest last.
    unlisted: Mutex<VecDeque<Arc<Target>>>,
}

/// The targets made from one snapshot.
#[derive(Debug)]
pub(super) struct Set {
    snapshot: Arc<Endpoints>,
    usable: Vec<Arc<Target>>,
    /// Since when there has been nothing usable.
    empty_since: Instant,
}

impl Pool {
    pub(crate) fn new(identity: Identity, registry: Result<Arc<dyn Registry>, RegistryError>) -> Self {
        let nothing = Set { snapshot: Arc::new(Endpoints::unknown()), usable: Vec::new(), empty_since: Instant::now() };
        Self {
            identity: Arc::new(identity),
            budget: Budget::new(),
            throttle: Throttle::new(),
            registry,
            watch: OnceLock::new(),
            set: RwLock::new(nothing),
            balance: Box::new(RoundRobin::new()),
            unlisted: Mutex::default(),
        }
    }

    /// For how long it has made no call.
    pub(crate) fn unused(&self) -> Duration {
        self.budget.unused(Instant::now())
    }

    pub(crate) fn service(&self) -> &str {
        &self.identity.service
    }

    fn watch(&self) -> &Watch {
        // Made with the first call, because watching needs a runtime and making a client does not.
        &self.watched().0
    }

    fn watched(&self) -> &(Watch, Instant) {
        self.watch.get_or_init(|| {
            let watch = match &self.registry {
                Ok(registry) => registry.watch(&self.identity.service),
                Err(_) => Watch::fixed(Endpoints::unknown()),
            };
            (watch, Instant::now())
        })
    }

    /// Looks at the targets of the newest snapshot. `look` must not come back here.
    fn look<T>(&self, look: impl FnOnce(&Set) -> T) -> T {
        let watch = self.watch();
        {
            let set = self.set.read().unwrap_or_else(PoisonError::into_inner);
            if watch.is_current(&set.snapshot) {
                return look(&set);
            }
        }
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        // Asked for here, or one who was held up on the way would bring back an older list.
        let snapshot = watch.current();
        if !Arc::ptr_eq(&set.snapshot, &snapshot) {
            *set = set.renewed(snapshot);
        }
        look(&set)
    }

    /// Chooses a target for a first attempt, if there is one now.
    pub(super) fn choose_now(&self) -> Option<Arc<Target>> {
        self.look(|set| self.choose(set, &[]).cloned())
    }

    /// Chooses a target; waits until there is one, at most until `deadline` or as long as the options say.
    pub(super) async fn pick(&self, tried: &[Arc<Target>], deadline: Option<Instant>) -> Result<Arc<Target>, Status> {
        let choose = |set: &Set| self.choose(set, tried).cloned();
        if let Some(target) = self.look(choose) {
            return Ok(target);
        }
        let patience = at(self.look(|set| set.empty_since).max(self.watched().1), self.identity.options.resolve_wait);
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        self.wait(choose, until).await?.map_err(|why| Status::unavailable(why).with_execution(Execution::Never))
    }

    /// The endpoint that a call would use; waits for one until then. Does not connect. Inside is why there is none.
    pub(super) async fn pick_endpoint(&self, until: Instant) -> Result<Result<Arc<Endpoint>, String>, Status> {
        self.wait(|set| self.choose(set, &[]).map(|target| set.newest(target)), until).await
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

    fn choose<'a>(&self, set: &'a Set, tried: &[Arc<Target>]) -> Option<&'a Arc<Target>> {
        self.balance.pick(&set.usable, tried).and_then(|index| set.usable.get(index))
    }

    /// The target with this address, whether the registry lists it or not.
    pub(super) fn at(&self, addr: SocketAddr) -> Arc<Target> {
        let is_it = |target: &&Arc<Target>| target.endpoint().addr == addr;
        if let Some(target) = self.look(|set| set.usable.iter().find(is_it).cloned()) {
            return target;
        }
        let mut unlisted = self.unlisted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = unlisted.iter().find(is_it) {
            return Arc::clone(target);
        }
        if unlisted.len() == MAX_UNLISTED {
            unlisted.pop_front();
        }
        let target = Arc::new(Target::new(Arc::new(Endpoint::new(addr))));
        unlisted.push_back(Arc::clone(&target));
        target
    }

    /// Whether there is an endpoint beside `target` that the call has not tried.
    pub(super) fn has_another(&self, target: &Arc<Target>, tried: &[Arc<Target>]) -> bool {
        let known =
            |other: &Arc<Target>| Arc::ptr_eq(other, target) || tried.iter().any(|tried| Arc::ptr_eq(tried, other));
        self.look(|set| set.usable.iter().any(|other| !known(other)))
    }

    /// A connection on which another call can be opened now, if there is one.
    pub(super) fn with_room(&self) -> Option<(Arc<Target>, Arc<Link>)> {
        self.look(|set| {
            set.usable.iter().find_map(|target| {
                let link = target.connected().filter(|link| link.has_room())?;
                Some((Arc::clone(target), link))
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
            &self.identity.service,
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
    /// What the registry says of a target now; the target itself remembers what it was made from.
    fn newest(&self, target: &Target) -> Arc<Endpoint> {
        let endpoint = target.endpoint();
        let same = |other: &&Arc<Endpoint>| (other.addr, other.incarnation) == (endpoint.addr, endpoint.incarnation);
        Arc::clone(self.snapshot.endpoints.iter().find(same).unwrap_or(endpoint))
    }

    /// The set for the next snapshot; targets that stay keep their connections.
    fn renewed(&self, snapshot: Arc<Endpoints>) -> Self {
        let known: HashMap<_, _> = self
            .usable
            .iter()
            .map(|target| ((target.endpoint().addr, target.endpoint().incarnation), target))
            .collect();
        let usable: Vec<_> = snapshot
            .usable()
            .into_iter()
            .map(|endpoint| {
                known
                    .get(&(endpoint.addr, endpoint.incarnation))
                    .map_or_else(|| Arc::new(Target::new(endpoint)), |target| Arc::clone(target))
            })
            .collect();
        let stays_empty = self.usable.is_empty() && usable.is_empty();
        let empty_since = if stays_empty { self.empty_since } else { Instant::now() };
        Self { snapshot, usable, empty_since }
    }
}
