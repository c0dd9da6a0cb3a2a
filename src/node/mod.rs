//! A node: one process's part in the system. It exposes a service, and calls others.
//!
//! Owns the name, the registration, and the clients by service. It must never handle a call itself. Look next at [`life`] for
//! its state, at [`crate::server`] for what is exposed and at [`crate::client`] for what is called.

mod life;
mod standing;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::builder::Builder;
use crate::client::{Arguments, Call, Channel, First, Identity, Items, Pick, Pool, TypedClient};
use crate::options::Options;
use crate::registry::{
    Endpoints, Instance, RegistrationState, Registry, RegistryError, Snapshots, Versions, Watch, role,
};
use crate::server::Server;
use crate::service::Service;
use crate::state::{NodeState, NodeStatus, TransitionError};
use crate::status::Status;
use life::Life;

/// One process's part in the system. Cheap to clone; all clones are the same node.
///
/// Use it within one runtime, and make another node for another one: its connections, and with them the deadlines of its calls, live
/// in the runtime where they were made first, and stand still when that one does.
///
/// A node that exposes nothing is a client and registers nothing. Dropping the last clone of a node that exposes something
/// takes that back at once and cuts running calls; [`Picom::end`] is the proper way to leave.
#[derive(Clone)]
pub struct Picom {
    inner: Arc<Inner>,
}

/// How long a service that only calls by name have named is watched after the last of them.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// How long `end()` waits for a registry that does not answer: it forgets the instance by itself, running calls matter more,
/// and many supervisors kill after 10 s. Of several registries each has a little less, see `registry/combine.rs`.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

struct Inner {
    name: Arc<str>,
    version: Option<String>,
    incarnation: u64,
    options: Options,
    registry: Result<Arc<dyn Registry>, RegistryError>,
    pools: Mutex<BTreeMap<Arc<str>, Arc<Pool>>>,
    life: Arc<Life>,
    part: tokio::sync::Mutex<Option<Part>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.part.get_mut().is_some() {
            tracing::warn!(service = %self.name, "the node was dropped without `end()`; what it exposed is gone");
        }
    }
}

/// What others find under the node's name.
enum Part {
    Exposing(Exposing),
    Standing(AbortOnDropHandle<()>),
}

struct Exposing {
    server: Server,
    registered: watch::Receiver<RegistrationState>,
}

impl Picom {
    /// A node with this name and every option at its default. `calc@1.2.3` is the node `calc` that exposes version 1.2.3, for
    /// those who [ask for versions](Picom::channel).
    ///
    /// The registry is what `PICOM_REGISTRY` says, else Consul at `CONSUL_HTTP_ADDR`, else Consul at 127.0.0.1:8500. Nothing is
    /// connected yet; what is wrong with the name or the registry's settings is the error of the first use.
    pub fn new(name: impl Into<String>) -> Self {
        Self::builder(name).finish()
    }

    /// Chooses options.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    pub(crate) fn from_parts(name: &str, options: Options, registry: Result<Arc<dyn Registry>, RegistryError>) -> Self {
        let (name, version) = match name.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (name, None),
        };
        let registry =
            check_name(name).and_then(|()| version.map_or(Ok(()), |of| check_version(name, of))).and(registry);
        // Everybody may ask it for versions.
        let registry = registry.map(|registry| Arc::new(Versions::of(registry)) as Arc<dyn Registry>);
        let inner = Inner {
            name: name.into(),
            version: version.map(str::to_owned),
            incarnation: fastrand::u64(1..),
            options,
            registry,
            pools: Mutex::default(),
            life: Arc::new(Life::new()),
            part: tokio::sync::Mutex::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What is wrong with the name or the settings, if anything is.
    pub(crate) fn problem(&self) -> Option<RegistryError> {
        self.inner.registry.as_ref().err().cloned()
    }

    /// The node's name, which is the name of the service that it exposes, without a version.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Exposes a service: a generated server, a type marked with `#[picom::service]`, or [`Methods`](crate::Methods).
    ///
    /// When it returns, the listener is bound and the instance registered and passing. If the registry cannot be reached,
    /// picom keeps trying, and the handle says so. A second `expose` adds methods to the same instance.
    ///
    /// With the first `expose` the node is [running](NodeState::Running), unless its builder says
    /// [`started(false)`](Builder::started): then it can be found but is not called until [`Picom::start`].
    ///
    /// # Errors
    /// When a method's name is taken, the port is in use, or the service's name or the registry's settings are not
    /// acceptable. Nothing has changed then.
    pub async fn expose<S: Service>(&self, service: S) -> Result<Exposed, Status> {
        let registry = self.registry()?;
        let service: Arc<dyn Service> = Arc::new(service);
        let mut part = self.inner.part.lock().await;
        match &*part {
            Some(Part::Exposing(exposing)) => {
                exposing.server.add(&service)?;
                return Ok(Exposed::new(exposing));
            }
            Some(Part::Standing(_)) => {
                return Err(Status::failed_precondition(format!(
                    "node `{}` stands for a dependency; expose with another node",
                    self.inner.name
                )));
            }
            None => {}
        }
        let Inner { name, incarnation, .. } = &*self.inner;
        let mut options = self.inner.options.clone();
        if registry.is_local() && options.advertise.is_none_or(|address| address.is_loopback()) {
            // Another address of the loopback would not be reached at the usual one.
            options.bind.get_or_insert(options.advertise.unwrap_or(Ipv4Addr::LOCALHOST.into()));
        }
        let (asked, started) = (options.listen_at(), options.started);
        let server = Server::start(name, *incarnation, options).await.map_err(|error| {
            Status::failed_precondition(format!("cannot listen on {asked}: {}", error.kind())).with_source(error)
        })?;
        server.add(&service)?;
        let first = NodeStatus::now(if started { NodeState::Running } else { NodeState::Up }, None);
        let local = server.local_addr();
        let registered = self.register(&registry, first, |status| self.instance(local, status)).await?;
        let exposing = Exposing { server, registered };
        let exposed = Exposed::new(&exposing);
        *part = Some(Part::Exposing(exposing));
        Ok(exposed)
    }

    /// Comes up and registers. When this fails or is dropped, the node is down again.
    async fn register(
        &self,
        registry: &Arc<dyn Registry>,
        first: NodeStatus,
        instance: impl FnOnce(NodeStatus) -> Instance,
    ) -> Result<watch::Receiver<RegistrationState>, Status> {
        let birth = self.inner.life.begin(first.clone());
        let registration = registry.register(instance(first.clone())).await.map_err(refused)?;
        if let RegistrationState::Retrying(reason) | RegistrationState::Denied(reason) = registration.state() {
            tracing::warn!(service = %self.inner.name, "not registered yet, and tried again: {reason}");
        }
        let states = registration.states();
        birth.complete(registration, &first);
        Ok(states)
    }

    fn instance(&self, local: SocketAddr, status: NodeStatus) -> Instance {
        let Inner { name, version, incarnation, options, .. } = &*self.inner;
        let address = options.advertise.or((!local.ip().is_unspecified()).then(|| local.ip()));
        // With a fixed port a process that comes back after a crash takes over the entry that it left; with a random one
        // it would take over somebody else's.
        let place = address.map_or_else(|| "any".to_owned(), |address| address.to_string());
        let id = match options.port {
            0 => format!("{name}-{place}-{}-{incarnation:016x}", local.port()),
            port => format!("{name}-{place}-{port}"),
        };
        Instance {
            service: name.to_string(),
            id,
            incarnation: *incarnation,
            address,
            port: local.port(),
            weight: options.weight,
            zone: options.zone.clone(),
            tags: Vec::new(),
            meta: version.iter().map(|version| (role::VERSION.to_owned(), version.clone())).collect(),
            status,
        }
    }

    /// What the node says of itself: [down](NodeState::Down) before the first [`expose`](Picom::expose) and after
    /// [`end`](Picom::end).
    pub fn state(&self) -> NodeStatus {
        self.inner.life.status()
    }

    /// Runs: from now on the node gets calls. For one that was stopped, that was busy, or that came up without being started.
    ///
    /// Like [`stop`](Picom::stop) and [`doing`](Picom::doing) it tells the registry without waiting for it; others know as soon
    /// as the registry tells them. Of several changes the last one is what they know in the end.
    ///
    /// # Errors
    /// When the node is running already, or down.
    pub fn start(&self) -> Result<(), TransitionError> {
        self.inner.life.become_state(NodeState::Running, None)
    }

    /// Stops: whoever chooses among instances does not choose this one any more, until [`start`](Picom::start). It stays
    /// registered, and calls that reach it all the same are still served: those that run, those that name its address, and those
    /// of callers who have not heard of it yet. The reason is for people, who see it wherever the registry shows it; the first
    /// [`MAX_REASON`](crate::MAX_REASON) bytes of it are kept, and an empty one is none.
    ///
    /// # Errors
    /// When the node is stopped already, or down.
    pub fn stop(&self, reason: &str) -> Result<(), TransitionError> {
        self.inner.life.become_state(NodeState::Stopped, Some(reason))
    }

    /// Is busy with something of its own: others are called first, and this one only where none of them is running. The next
    /// `doing` replaces the reason; [`start`](Picom::start) ends it.
    ///
    /// # Errors
    /// When the node is down.
    pub fn doing(&self, reason: &str) -> Result<(), TransitionError> {
        self.inner.life.become_state(NodeState::Doing, Some(reason))
    }

    /// A typed client of a service. Cheap; connects with the first call; all clients of one service share connections.
    pub fn client<C: TypedClient>(&self, service: &str) -> C {
        C::from_channel(self.channel(service))
    }

    /// Calls a method by name; the answer is a stream of `T`.
    pub fn stream<T>(&self, service: &str, method: &str, args: impl Arguments) -> Call<impl Arguments, Items<T, Status>>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        self.channel(service).call_by_name(method, args)
    }

    /// Calls a method by name; the answer is its first and only item. `.multiple()` collects all items,
    /// `.body(stream)` sends a stream.
    pub fn fetch<T>(&self, service: &str, method: &str, args: impl Arguments) -> Call<impl Arguments, First<T>>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        self.channel(service).call_by_name(method, args)
    }

    /// A way to call one service: `calc`, of whatever version, or only instances that have said to be of [one](Picom::new):
    /// `calc@1.2.3` is exactly that one, `calc@^1.2`, `calc@>=1.4, <3` and `calc@1` are ranges as
    /// [Cargo has them](https://docs.rs/semver/1/semver/struct.VersionReq.html). The same goes wherever a service is named. Whoever asks
    /// in other words has connections of its own.
    pub fn channel(&self, service: &str) -> Channel {
        let mut pools = self.inner.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(service) {
            return Channel::new(Arc::clone(pool));
        }
        // What no client holds and no call has named for long is forgotten, and with it the watch in the registry.
        pools.retain(|_, pool| Arc::strong_count(pool) > 1 || pool.unused() < FORGET_AFTER);
        let service: Arc<str> = service.into();
        let (node, options) = (Arc::clone(&self.inner.name), self.inner.options.clone());
        let identity = Identity::new(Arc::clone(&service), node, self.inner.incarnation, options);
        let registry = check_service(&service).and_then(|()| self.inner.registry.clone());
        let pool = Arc::new(Pool::new(identity, registry));
        pools.insert(service, Arc::clone(&pool));
        Channel::new(pool)
    }

    /// The endpoint that a call of this service would use now: at once if one is known, else as soon as there is one. Nothing is
    /// connected. It is lazy, like a call; `.timeout()` and `.token()` limit the waiting, and so does dropping it. After the last
    /// instance has left a list of `Consul` or `Cached`, it is given until that list forgets it, by default for
    /// 60 s: its [tier](crate::registry::Tier) is then `Unhealthy`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # async fn f(node: picom::Picom) -> Result<(), picom::Status> {
    /// let mongo = node.pick("mongo").timeout(Duration::from_secs(10)).await?;
    /// println!("{} is {}", mongo.addr, mongo.status);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Code::DeadlineExceeded`](crate::Code::DeadlineExceeded) when there was none in time, with the registry's last trouble;
    /// the limit is the node's `pick_wait`, 5 minutes. [`Code::Cancelled`](crate::Code::Cancelled) by the token.
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) for an illegal name or a registry that cannot work.
    pub fn pick(&self, service: &str) -> Pick {
        self.channel(service).pick()
    }

    /// The snapshots of a service as they change, the newest at once. An illegal name, or a registry that cannot work, is the
    /// problem of the only snapshot.
    pub fn watch(&self, service: &str) -> Snapshots {
        let watch = match check_service(service).and_then(|()| self.inner.registry.clone()) {
            Ok(registry) => registry.watch(service),
            Err(error) => Watch::fixed(Endpoints { problem: Some(error.to_string()), ..Endpoints::unknown() }),
        };
        Snapshots::from(watch)
    }

    /// Everything that the registry has told this process, by service: all services where the registry tells every node of
    /// them, else those that are called, picked or watched here. It does not wait: a node that has only begun to listen knows little;
    /// [`watch`](Picom::watch) and [`pick`](Picom::pick) wait.
    pub fn nodes(&self) -> BTreeMap<String, Arc<Endpoints>> {
        self.inner.registry.as_ref().map(|registry| registry.known()).unwrap_or_default()
    }

    /// Leaves: deregisters, tells everyone connected to call elsewhere, finishes what runs, closes. Running calls finish, at
    /// most within `drain_timeout`; what runs longer is cut, which the result says. Without anything exposed it returns at once, and
    /// while another `end` is at work it waits for that.
    ///
    /// # Errors
    /// [`Code::Aborted`](crate::Code::Aborted) when calls had to be cut. Everything is closed all the same.
    pub async fn end(&self) -> Result<(), Status> {
        self.leave(None).await
    }

    /// [`end`](Picom::end) with a reason, such as [`Signal::to_string`](crate::Signal), for registries that tell others why an
    /// instance has left.
    ///
    /// # Errors
    /// As [`end`](Picom::end).
    pub async fn end_with(&self, reason: &str) -> Result<(), Status> {
        self.leave(Some(reason)).await
    }

    async fn leave(&self, reason: Option<&str>) -> Result<(), Status> {
        // Locked to the end: whoever also ends the node, and then the process, must not cut what the first one waits for.
        let mut part = self.inner.part.lock().await;
        let server = match part.take() {
            None => return Ok(()),
            Some(Part::Exposing(Exposing { server, .. })) => Some(server),
            Some(Part::Standing(watching)) => {
                watching.abort();
                None
            }
        };
        if let Some(registration) = self.inner.life.end(reason) {
            let left = tokio::time::timeout(LEAVE_LIMIT, registration.leave()).await;
            let late = |_| {
                let registry = self.inner.registry.as_ref().map(|registry| registry.describe()).unwrap_or_default();
                format!("{registry}: no answer within {LEAVE_LIMIT:?}")
            };
            let left = left.map_err(late).and_then(|left| left.map_err(|error| error.to_string()));
            if let Err(error) = left {
                let service = &self.inner.name;
                tracing::warn!(%service, error, "could not deregister; the registry will find out by itself");
            }
        }
        let Some(server) = server else { return Ok(()) };
        server.drain();
        tokio::time::sleep(self.inner.options.drain_delay).await;
        let cut = server.finish().await.cut_calls;
        if cut > 0 {
            let limit = self.inner.options.drain_timeout;
            return Err(Status::aborted(format!("{cut} calls were still running after {limit:?} and were cut")));
        }
        Ok(())
    }

    fn registry(&self) -> Result<Arc<dyn Registry>, Status> {
        self.inner.registry.clone().map_err(refused)
    }
}

impl fmt::Debug for Picom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picom").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl From<TransitionError> for Status {
    fn from(error: TransitionError) -> Self {
        Self::failed_precondition(error.to_string()).with_source(error)
    }
}

fn refused(error: RegistryError) -> Status {
    Status::invalid_argument(error.to_string()).with_source(error)
}

/// A name, or one with a version or a range.
fn check_service(service: &str) -> Result<(), RegistryError> {
    check_name(service.split_once('@').map_or(service, |(name, _)| name))?;
    role::Query::parse_version(service).map(drop)
}

/// A node is of one version.
fn check_version(name: &str, version: &str) -> Result<(), RegistryError> {
    /// In bytes. With the longest name and an @ before it, it can still be asked for, and every registry carries it.
    const MAX_VERSION: usize = 128;
    if version.len() <= MAX_VERSION && semver::Version::parse(version).is_ok() {
        return Ok(());
    }
    let shown: String = version.chars().take(64).flat_map(char::escape_default).collect();
    Err(RegistryError::Invalid(format!(
        "illegal version \"{shown}\" of a node: write one such as {name}@1.2.3, of at most {MAX_VERSION} bytes"
    )))
}

/// Consul and DNS take letters, digits and dashes, at most 63 of them; a name that only some registries take is no name.
fn check_name(name: &str) -> Result<(), RegistryError> {
    const MAX_NAME: usize = 63;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let inner = !name.starts_with('-') && !name.ends_with('-');
    if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(legal) && inner {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME).flat_map(char::escape_default).collect();
    Err(RegistryError::Invalid(format!(
        "illegal service name \"{shown}\": a name is 1 to {MAX_NAME} ASCII letters, digits and dashes, with no dash at either end"
    )))
}

/// What was exposed. Dropping it changes nothing; [`Picom::end`] takes the service back. A clone has seen what it had seen.
#[derive(Debug)]
pub struct Exposed {
    local: SocketAddr,
    /// Knows what was seen; never locked while waiting.
    states: Mutex<watch::Receiver<RegistrationState>>,
}

impl Clone for Exposed {
    fn clone(&self) -> Self {
        Self { local: self.local, states: Mutex::new(self.lock().clone()) }
    }
}

impl Exposed {
    fn new(exposing: &Exposing) -> Self {
        let mut states = exposing.registered.clone();
        // Nobody has been told the first one.
        states.mark_changed();
        Self { local: exposing.server.local_addr(), states: Mutex::new(states) }
    }

    /// Where it listens; the port is the one that callers use.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether the registry has taken the instance, and why not.
    pub fn state(&self) -> RegistrationState {
        self.lock().borrow_and_update().clone()
    }

    /// Waits for a state later than the one that [`Exposed::state`] or this has given last; at once if there was a change since, or
    /// if neither has given any. Cancel safe. Waits for ever once the service was taken back.
    pub async fn changed(&mut self) -> RegistrationState {
        let states = self.states.get_mut().unwrap_or_else(PoisonError::into_inner);
        if states.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        states.borrow_and_update().clone()
    }

    fn lock(&self) -> MutexGuard<'_, watch::Receiver<RegistrationState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
