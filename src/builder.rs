//! Options of a node, as users set them.
//!
//! Owns the setters and the choice of the registry. Numbers and reasons are in [`crate::options`]. It must never start
//! anything. Look next at [`crate::node`].

use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use crate::balance::Balancer;
use crate::node::Picom;
use crate::options::{Concurrency, Options};
use crate::registry::{self, Registry, RegistryError};
use crate::status::Status;

/// The variable that chooses the registry of nodes that were given none in code.
const REGISTRY_VARIABLE: &str = "PICOM_REGISTRY";

/// Chooses the options of a node; made by [`Picom::builder`].
#[must_use = "a builder does nothing until `build`"]
#[derive(Debug)]
pub struct Builder {
    name: String,
    options: Options,
    registry: Option<Result<Arc<dyn Registry>, RegistryError>>,
    problem: Option<String>,
}

impl Builder {
    pub(crate) fn new(name: String) -> Self {
        Self { name, options: Options::default(), registry: None, problem: None }
    }

    /// Finds services here; overrides `PICOM_REGISTRY`.
    pub fn registry(mut self, registry: impl Registry) -> Self {
        self.registry = Some(Ok(Arc::new(registry)));
        self
    }

    /// Finds services at a URL such as `consul://127.0.0.1:8500`, `fixed://service1=10.0.0.7:4000` or `memory://name`; see
    /// [`registry::from_url`]. Overrides `PICOM_REGISTRY`.
    pub fn registry_url(mut self, url: &str) -> Self {
        self.registry = Some(registry::from_url(url));
        self
    }

    /// The port to listen on; 0, the default, takes a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.options.port = port;
        self
    }

    /// Listens within this process only, without a socket, and on a port of its own kind. For tests: with
    /// [`registry::Memory`] and tokio's paused time, nothing depends on the machine.
    pub fn in_memory(mut self) -> Self {
        self.options.in_memory = true;
        self
    }

    /// The address to listen on; the default is every interface, or 127.0.0.1 with a registry through which only processes of
    /// this machine can find each other (`manifest://local`, `broadcast://`; see [`Registry::is_local`](registry::Registry::is_local)).
    /// There an address that [`Builder::advertise`] names counts instead, if it is one of the loopback, and else every interface.
    pub fn bind(mut self, address: &str) -> Self {
        match address.parse() {
            Ok(address) => self.options.bind = Some(address),
            Err(_) => self.note(format!("bind: \"{}\" is not an IP address", address.escape_default())),
        }
        self
    }

    /// The address at which others shall call; the default is the address of `bind`, or if that is every interface, what the
    /// registry knows of this machine.
    pub fn advertise(mut self, address: &str) -> Self {
        match address.parse::<IpAddr>() {
            Ok(address) if !address.is_unspecified() => self.options.advertise = Some(address),
            _ => self.note(format!("advertise: \"{}\" is not an address to call", address.escape_default())),
        }
        self
    }

    /// Whether the node runs as soon as it has exposed something, which is the default. If not, it can be found but gets no calls
    /// until [`Picom::start`].
    pub fn started(mut self, started: bool) -> Self {
        self.options.started = started;
        self
    }

    fn note(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    /// How endpoints are chosen, for the calls of all clients of this node; the default is
    /// [`PeakEwma`](crate::balance::PeakEwma). See [`balance`](crate::balance).
    pub fn balance(mut self, policy: impl Balancer) -> Self {
        self.options.balance = Arc::new(policy);
        self
    }

    /// Where the node runs, such as the name of a data centre: what it exposes is registered with it, and
    /// [`ZoneFirst`](crate::balance::ZoneFirst) prefers endpoints that were. The default is none.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.options.zone = Some(zone.into());
        self
    }

    /// The share of the calls that what it exposes should get, relative to other instances, as far as balancers look at it;
    /// the default is 1, and 0 is not allowed.
    pub fn weight(mut self, weight: u16) -> Self {
        if weight == 0 {
            self.note("weight: it must be 1 or more; `stop` keeps calls away".to_owned());
        }
        self.options.weight = weight;
        self
    }

    /// How often a call is tried again, on other hosts as far as there are, where that is safe; the default is 3. There are never
    /// more than five attempts in all.
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// Deadline of calls that name none and do not stream; the default is 30 seconds. `None` is for ever.
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.options.deadline = deadline.into();
        self
    }

    /// How long a streaming call may wait for its peer without anything moving; the default is 60 seconds. `None` is for ever.
    pub fn stream_idle(mut self, idle: impl Into<Option<Duration>>) -> Self {
        self.options.stream_idle = idle.into();
        self
    }

    /// How long a first call waits for a first instance; the default is 4.5 seconds. Then it fails, and says why nobody is known.
    /// It waits that long for a registry that cannot be reached, too: one that is just starting looks the same.
    pub fn resolve_wait(mut self, wait: Duration) -> Self {
        self.options.resolve_wait = wait;
        self
    }

    /// How long [`Picom::pick`] waits for an endpoint; the default is 5 minutes.
    pub fn pick_wait(mut self, wait: Duration) -> Self {
        self.options.pick_wait = wait;
        self
    }

    /// How long connecting to one endpoint may take; the default is 1 second.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.connect_timeout = timeout;
        self
    }

    /// Most connections to one endpoint; the default is 4. There is one as long as that does: one more is made where all of them have
    /// the server's limit of open calls ([`max_calls`](Self::max_calls)), so that a call would have to wait, and no other endpoint
    /// has room; and where the threads of the runtime wait for each other because all use the same one, up to one for each of them. It closes when it had no call for 240 seconds. Where there are so many already, or the server takes no more, calls wait.
    pub fn max_connections_per_endpoint(mut self, connections: usize) -> Self {
        self.options.max_connections_per_endpoint = connections.max(1);
        self
    }

    /// How long one who connects may take until hello is through; the default is 5 seconds.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.options.handshake_timeout = timeout;
        self
    }

    /// Longest message in bytes that is accepted, sent here or answered; the default is 4 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.options.max_message = bytes;
        self
    }

    /// Most items that `multiple()` collects; the default is 100,000.
    pub fn collect_limit(mut self, items: usize) -> Self {
        self.options.collect_limit = items;
        self
    }

    /// Most calls that one connection may have open at this server; the default is 1,024. The caller takes another endpoint, else one
    /// more connection ([`max_connections_per_endpoint`](Self::max_connections_per_endpoint)), else it waits for a place.
    pub fn max_calls(mut self, calls: u16) -> Self {
        self.options.max_calls = calls.max(1);
        self
    }

    /// Most calls that this server runs at once, over all connections; the default is 65,536. One more waits for its turn, at
    /// most 100 ms, or is refused as busy, and its caller tries another host.
    pub fn max_running(mut self, calls: usize) -> Self {
        self.options.max_running = calls;
        self
    }

    /// How this server limits the calls that it runs at once, below `max_running`; the default is [`Concurrency::Adaptive`].
    pub fn concurrency(mut self, concurrency: Concurrency) -> Self {
        self.options.concurrency = match concurrency {
            Concurrency::Fixed(calls) => Concurrency::Fixed(calls.max(1)),
            other => other,
        };
        self
    }

    /// After what time, a tenth more or less at random, this server asks a client to leave a connection, so that connections
    /// spread anew over servers that came later; the default is never. Running calls finish on it, and the client makes the next
    /// ones on a new connection.
    pub fn max_connection_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.options.max_connection_age = age.into();
        self
    }

    /// Most bytes of one connection in arguments that are still being put together; the default is 64 MiB. A call beyond it is
    /// refused as busy. Of a streamed body at most one item of `max_message` is put together at a time.
    pub fn max_assembly(mut self, bytes: usize) -> Self {
        self.options.max_assembly = bytes;
        self
    }

    /// First credit of each stream in bytes: what an unread stream holds in memory; the default is 512 KiB. While a reader
    /// keeps up on a path with a long round trip, it grows to half of the connection's, which is 4 MiB by default; from there
    /// on, or with a `stream_window` as large, it does not.
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.options.stream_window = bytes;
        self
    }

    /// First credit of each connection in bytes: what all its unread streams hold together, however much their
    /// windows grow; the default is 8 MiB.
    pub fn connection_window(mut self, bytes: u32) -> Self {
        self.options.connection_window = bytes;
        self
    }

    /// Most connections that this server accepts; the default is 10,000. Those that it asked to leave for their
    /// [age](Self::max_connection_age) leave their places to others, up to as many again.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.options.max_connections = connections;
        self
    }

    /// Most connections that this server accepts from one address; the default is 1,000. The same holds for their age.
    pub fn max_connections_per_peer(mut self, connections: usize) -> Self {
        self.options.max_connections_per_peer = connections;
        self
    }

    /// Most connections that have not said hello yet; the default is 256. One more ends the oldest.
    pub fn max_handshakes(mut self, connections: usize) -> Self {
        self.options.max_handshakes = connections.max(1);
        self
    }

    /// How long `end()` goes on accepting after it has deregistered, while lists elsewhere turn over.
    pub fn drain_delay(mut self, delay: Duration) -> Self {
        self.options.drain_delay = delay;
        self
    }

    /// How long `end()` lets running calls finish; the default is 30 seconds.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.options.drain_timeout = timeout;
        self
    }

    /// Makes the node. Nothing is connected or bound yet.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument), naming the option, for a name, an address or a registry's setting
    /// that cannot work.
    pub fn build(self) -> Result<Picom, Status> {
        if let Some(problem) = self.problem {
            return Err(Status::invalid_argument(problem));
        }
        let node = self.finish();
        match node.problem() {
            Some(problem) => Err(Status::invalid_argument(problem.to_string()).with_source(problem)),
            None => Ok(node),
        }
    }

    /// Makes the node; what is wrong becomes the error of its first use.
    pub(crate) fn finish(self) -> Picom {
        let registry = match (self.problem, self.registry) {
            (Some(problem), _) => Err(RegistryError::Settings(problem)),
            (None, Some(registry)) => registry,
            (None, None) => default_registry(),
        };
        let registry = registry.and_then(|registry| registry.validate().map(|()| registry));
        Picom::from_parts(&self.name, self.options, registry)
    }
}

/// What the environment says, else Consul.
fn default_registry() -> Result<Arc<dyn Registry>, RegistryError> {
    static SAID: Once = Once::new();
    match std::env::var(REGISTRY_VARIABLE) {
        Ok(url) if !url.is_empty() => {
            let registry = registry::from_url(&url)
                .map_err(|error| RegistryError::Settings(format!("{REGISTRY_VARIABLE}: {error}")))?;
            SAID.call_once(|| {
                tracing::info!(registry = registry.describe(), "{REGISTRY_VARIABLE} chooses the registry")
            });
            Ok(registry)
        }
        Ok(_) | Err(std::env::VarError::NotPresent) => consul(),
        Err(error) => Err(RegistryError::Settings(format!("{REGISTRY_VARIABLE}: {error}"))),
    }
}

#[cfg(feature = "consul")]
fn consul() -> Result<Arc<dyn Registry>, RegistryError> {
    let consul = registry::Consul::from_env().map_err(|error| {
        RegistryError::Settings(format!("{error} (from the environment, see CONSUL_HTTP_ADDR and its like)"))
    })?;
    Ok(Arc::new(consul))
}

#[cfg(not(feature = "consul"))]
fn consul() -> Result<Arc<dyn Registry>, RegistryError> {
    Err(RegistryError::Settings(format!(
        "no registry was chosen: give one in code or in {REGISTRY_VARIABLE}; this build has no feature `consul`"
    )))
}
