//! Who is where: the [`Registry`] trait, the snapshot it publishes, and the handle of a registration.
//!
//! Owns the vocabulary between nodes and the systems that know where services are. It must never see the client
//! or the server. Look next at `memory.rs`, `fixed.rs`, `broadcast/` and `consul/` for the systems themselves, at `feed.rs` for how
//! many watches share one task, and at `url.rs` for choosing a registry by URL.

#[cfg(any(feature = "consul", feature = "manifest"))]
mod address;
#[cfg(feature = "broadcast")]
pub mod broadcast;
mod cached;
mod combine;
#[cfg(feature = "consul")]
mod consul;
mod feed;
mod fixed;
#[cfg(feature = "manifest")]
mod manifest;
mod memory;
mod merge;
pub(crate) mod role;
#[cfg(any(feature = "broadcast", feature = "consul", feature = "manifest"))]
mod settings;
mod snapshots;
mod url;
mod versions;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

#[cfg(feature = "broadcast")]
pub use broadcast::Broadcast;
pub use cached::Cached;
pub use combine::Combine;
#[cfg(feature = "consul")]
pub use consul::Consul;
pub use fixed::Fixed;
#[cfg(feature = "manifest")]
pub use manifest::{Details, Event, Events, MAX_DATA, Manifest, Record, RecordId, Refusals};
pub use memory::Memory;
pub use snapshots::Snapshots;
pub use url::from_url;
pub(crate) use versions::Versions;

use crate::state::{NodeState, NodeStatus};

/// Finds the instances of services and makes one's own findable.
///
/// Implementations are cheap to share; every method is cancel safe.
#[async_trait]
pub trait Registry: fmt::Debug + Send + Sync + 'static {
    /// What errors call it, with its address: `consul at http://127.0.0.1:8500`. Never contains a secret.
    fn describe(&self) -> String;

    /// Whether the registry's own settings can work; asked once by whoever builds a node. Does no network I/O.
    ///
    /// # Errors
    /// [`RegistryError::Settings`] with the setting that cannot work.
    fn validate(&self) -> Result<(), RegistryError> {
        Ok(())
    }

    /// Whether only processes of this machine can find each other through it. A node then listens on loopback only, unless its
    /// builder says where: what nobody else can find, nobody else shall reach. Default false.
    fn is_local(&self) -> bool {
        false
    }

    /// Whether [`Registry::watch`] understands `calc@1.2.3` and `calc@^1.2`. Others are asked for `calc` by a node that wants some
    /// versions only, which then leaves out the rest; who chooses among lists must know what is wanted before. Default false.
    fn knows_versions(&self) -> bool {
        false
    }

    /// Makes `instance` findable and keeps it so until the handle is left or dropped.
    ///
    /// Returns as soon as the first attempt has an outcome: a registry that cannot be reached is not an error but a
    /// [`Registration`] in the state [`RegistrationState::Retrying`].
    ///
    /// # Errors
    /// When no later attempt could succeed, for example because of an illegal service name.
    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError>;

    /// Watches one service. All watches of one service in one process share the work.
    fn watch(&self, service: &str) -> Watch;

    /// Every service that it knows of now, by name, as far as this process was told: all of them where every node is told
    /// everything, those that are watched elsewhere. It does not wait: who was told nothing yet, as after the first use of a
    /// registry, knows nobody or only itself. [`Registry::watch`] says when it is so: [`Freshness::Never`].
    fn known(&self) -> BTreeMap<String, Arc<Endpoints>>;
}

/// A shared registry is a registry.
#[async_trait]
impl<R: Registry + ?Sized> Registry for Arc<R> {
    fn describe(&self) -> String {
        (**self).describe()
    }

    fn validate(&self) -> Result<(), RegistryError> {
        (**self).validate()
    }

    fn is_local(&self) -> bool {
        (**self).is_local()
    }

    fn knows_versions(&self) -> bool {
        (**self).knows_versions()
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        (**self).register(instance).await
    }

    fn watch(&self, service: &str) -> Watch {
        (**self).watch(service)
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        (**self).known()
    }
}

/// Why a registry refuses for good.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The instance or the service's name is not acceptable; the text says what is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The registry's own settings are not acceptable; the text says which.
    #[error("{0}")]
    Settings(String),
    /// The registry did not answer, or not sensibly; the text says which and how.
    #[error("{0}")]
    Unreachable(String),
}

/// One node exposing one service, as it registers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The service's name.
    pub service: String,
    /// The node's own unique id, also on one machine and after a restart.
    pub id: String,
    /// Random number of this process; a restarted process on the same port has another one.
    pub incarnation: u64,
    /// The address to be called at; `None` leaves it to the registry (the address of the machine's agent).
    pub address: Option<IpAddr>,
    /// The port to be called at.
    pub port: u16,
    /// Share of the calls relative to other instances; 1 is normal.
    pub weight: u16,
    /// Where it runs, for balancers that prefer what is near.
    pub zone: Option<String>,
    /// Free labels.
    pub tags: Vec<String>,
    /// Small extra data.
    pub meta: BTreeMap<String, String>,
    /// What it is ready for when it is registered; [`Registration::set_status`] tells of changes.
    pub status: NodeStatus,
}

impl Instance {
    /// Whether every registry could take it.
    fn check(&self) -> Result<(), RegistryError> {
        check_service_name(&self.service)?;
        let problem = if self.id.is_empty() || self.id.len() > MAX_NAME_LEN || self.id.chars().any(char::is_control) {
            "its id must be 1 to 128 bytes without control characters"
        } else if self.port == 0 {
            "its port must not be 0: bind first, then register"
        } else if self.weight == 0 {
            "its weight must be 1 or more"
        } else {
            return Ok(());
        };
        Err(RegistryError::Invalid(format!("instance of service {:?}: {problem}", self.service)))
    }
}

/// Longest service name and longest id, in bytes.
const MAX_NAME_LEN: usize = 128;

/// The names that every registry can hold, also in a URL.
fn check_service_name(name: &str) -> Result<(), RegistryError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.:@+".contains(c);
    if (1..=MAX_NAME_LEN).contains(&name.len()) && name.chars().all(legal) {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    Err(RegistryError::Invalid(format!(
        "service name {shown:?}: must be 1 to {MAX_NAME_LEN} letters, digits and -_.:@+"
    )))
}

/// How far an endpoint can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Everything passes: used.
    Healthy,
    /// A warning, or only the machine's own check fails: used when nothing is healthy.
    Doubtful,
    /// Its own check fails, or it is only remembered: not used unless nothing else is known.
    Unhealthy,
}

/// An instance as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect to.
    pub addr: SocketAddr,
    /// Which process must answer there, if the registry knows; the handshake refuses another one.
    pub incarnation: Option<u64>,
    /// The registry's id of the instance.
    pub id: String,
    /// How far it can be trusted.
    pub tier: Tier,
    /// Share of the calls relative to others.
    pub weight: u16,
    /// Where it runs.
    pub zone: Option<String>,
    /// Free labels.
    pub tags: Vec<String>,
    /// Small extra data.
    pub meta: BTreeMap<String, String>,
    /// What it says that it is ready for.
    pub status: NodeStatus,
}

impl Endpoint {
    /// A healthy and running endpoint of which nothing but the address is known.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            incarnation: None,
            id: addr.to_string(),
            tier: Tier::Healthy,
            weight: 1,
            zone: None,
            tags: Vec::new(),
            meta: BTreeMap::new(),
            status: NodeStatus::only(NodeState::Running),
        }
    }
}

/// How old a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The registry has not answered yet.
    Never,
    /// The registry stands by it.
    Live,
    /// The registry has not confirmed it since then; it is the last good one.
    Stale(Instant),
}

/// Every known instance of one service at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Grows with every change of the list.
    pub generation: u64,
    /// Whether the registry stands by it.
    pub freshness: Freshness,
    /// The instances, ordered by address, one per address.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The registry's last trouble in words, while there is one.
    pub problem: Option<String>,
}

impl Endpoints {
    /// What is known before the registry has answered.
    pub const fn unknown() -> Self {
        Self { generation: 0, freshness: Freshness::Never, endpoints: Vec::new(), problem: None }
    }

    /// The instances to use: the best tier that has any that run, else the best one that has any that are busy with something
    /// of their own. [`Tier::Unhealthy`] ones are among them only while the registry does not stand by the list and nothing
    /// else is known: then the calls themselves must find out. Others than those that run or are busy are never among them.
    pub fn usable(&self) -> Vec<Arc<Endpoint>> {
        let of = |tier, state| {
            let matching = |endpoint: &&Arc<Endpoint>| endpoint.tier == tier && endpoint.status.state == state;
            self.endpoints.iter().filter(matching).cloned().collect::<Vec<_>>()
        };
        let trusted = [NodeState::Running, NodeState::Doing]
            .into_iter()
            .flat_map(|state| [(Tier::Healthy, state), (Tier::Doubtful, state)]);
        let remembered = [(Tier::Unhealthy, NodeState::Running), (Tier::Unhealthy, NodeState::Doing)];
        let is_stale = matches!(self.freshness, Freshness::Stale(_));
        trusted
            .chain(remembered.into_iter().filter(|_| is_stale))
            .map(|(tier, state)| of(tier, state))
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }
}

/// A view of one service that keeps itself up to date. Cheap to clone; a clone is a view of its own, which has seen
/// nothing yet.
pub struct Watch {
    snapshots: watch::Receiver<Arc<Endpoints>>,
    refresh: Arc<Notify>,
    _keep: Option<Arc<dyn std::any::Any + Send + Sync>>,
}

impl Watch {
    /// A view fed through `snapshots`. `refresh` is notified when a user wants the registry asked again at once;
    /// `keep` is dropped with the last clone, which tells the feeder that nobody looks any more.
    pub fn new(
        mut snapshots: watch::Receiver<Arc<Endpoints>>,
        refresh: Arc<Notify>,
        keep: Option<Arc<dyn std::any::Any + Send + Sync>>,
    ) -> Self {
        snapshots.mark_changed();
        Self { snapshots, refresh, _keep: keep }
    }

    /// A view of what never changes.
    pub fn fixed(endpoints: Endpoints) -> Self {
        // The sender is dropped, so nobody ever publishes anything else.
        Self::new(watch::channel(Arc::new(endpoints)).1, Arc::new(Notify::new()), None)
    }

    /// The newest snapshot.
    pub fn current(&self) -> Arc<Endpoints> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// The newest snapshot, which this view has seen now.
    pub(crate) fn see(&mut self) -> Arc<Endpoints> {
        Arc::clone(&self.snapshots.borrow_and_update())
    }

    /// Whether the snapshot that this view has seen last is still the newest. Takes no lock: it is asked for every call.
    pub(crate) fn has_seen(&self, last: &Arc<Endpoints>) -> bool {
        match self.snapshots.has_changed() {
            Ok(changed) => !changed,
            // The registry is gone; it may have said something on the way out.
            Err(_) => Arc::ptr_eq(&self.snapshots.borrow(), last),
        }
    }

    /// The next snapshot that differs from the last one seen through this view; the first call returns at once.
    /// Cancel safe. When the registry is gone it waits for ever.
    pub async fn changed(&mut self) -> Arc<Endpoints> {
        if self.snapshots.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        Arc::clone(&self.snapshots.borrow_and_update())
    }

    /// Asks the registry to look again at once, for example because no endpoint works.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }
}

impl Clone for Watch {
    fn clone(&self) -> Self {
        Self::new(self.snapshots.clone(), Arc::clone(&self.refresh), self._keep.clone())
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("current", &self.current()).finish_non_exhaustive()
    }
}

/// What has become of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Others can find the instance.
    Registered,
    /// The registry has not taken it, or lost it; picom keeps trying. The text says why.
    Retrying(String),
    /// The registry refuses for lack of rights; picom keeps trying, slowly. The text says why.
    Denied(String),
    /// It was taken back.
    Left,
}

/// The handle of a registration. Dropping it takes the registration back without waiting.
pub struct Registration {
    state: watch::Receiver<RegistrationState>,
    status: Option<SetStatus>,
    leave: Option<Leave>,
}

type SetStatus = Box<dyn Fn(NodeStatus) + Send + Sync>;

type Leave = Box<dyn FnOnce() -> BoxFuture<'static, Result<(), RegistryError>> + Send + Sync>;

impl Registration {
    /// A handle whose state is read from `state` and which is taken back by `leave`. What `leave` captures must
    /// take the registration back, as well as it can without waiting, when it is dropped uncalled.
    pub fn new(
        state: watch::Receiver<RegistrationState>,
        leave: impl FnOnce() -> BoxFuture<'static, Result<(), RegistryError>> + Send + Sync + 'static,
    ) -> Self {
        Self { state, status: None, leave: Some(Box::new(leave)) }
    }

    /// The same, with a way to tell others what the instance is ready for. Without one nobody learns of it, which is right
    /// only for a registry that publishes nothing. `set` must not block; the registry tells others as soon as it can.
    #[must_use]
    pub fn with_status(mut self, set: impl Fn(NodeStatus) + Send + Sync + 'static) -> Self {
        self.status = Some(Box::new(set));
        self
    }

    /// Tells others what the instance is ready for now. Does not wait until they know. [`NodeState::Down`] says why the instance
    /// is taken back, which follows at once; a registry that cannot tell anybody ignores it.
    pub fn set_status(&self, status: NodeStatus) {
        if let Some(set) = &self.status {
            set(status);
        }
    }

    /// What has become of it by now.
    pub fn state(&self) -> RegistrationState {
        self.state.borrow().clone()
    }

    /// The states as they change.
    pub fn states(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Takes the registration back and waits until the registry's readers can have seen it.
    ///
    /// # Errors
    /// When the registry could not be told; it then forgets the instance by itself after a while.
    pub async fn leave(mut self) -> Result<(), RegistryError> {
        match self.leave.take() {
            Some(leave) => leave().await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("state", &self.state()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_registry_that_is_gone_is_seen_once() {
        let (publisher, snapshots) = watch::channel(Arc::new(Endpoints::unknown()));
        let mut view = Watch::new(snapshots, Arc::default(), None);
        let first = view.see();
        assert!(view.has_seen(&first));
        let last = Arc::new(Endpoints { generation: 1, freshness: Freshness::Live, ..Endpoints::unknown() });
        publisher.send_replace(Arc::clone(&last));
        assert!(!view.has_seen(&first));
        drop(publisher);
        assert!(!view.has_seen(&first), "what it said on the way out was not looked at");
        assert!(Arc::ptr_eq(&view.see(), &last));
        assert!(view.has_seen(&last) && view.has_seen(&view.current()), "nothing more will come");
    }
}
