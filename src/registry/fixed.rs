//! A table of services and addresses that somebody wrote down.
//!
//! Owns [`Fixed`] and the grammar of its table. It must never publish anything: registering is accepted and leaves
//! the table as it is. Look next at `feed.rs` for how snapshots reach their readers.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::feed::{Feeds, Publisher};
use super::{
    Endpoint, Endpoints, Instance, Registration, RegistrationState, Registry, RegistryError, Watch, check_service_name,
};

/// How often host names are looked up again: twice a minute follows a changed name without burdening a name server.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(30);

/// How long one lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long lookups go on after the last watch is gone.
const LINGER: Duration = Duration::from_secs(10);

/// A fixed table of services and addresses, for places where addresses do not change.
///
/// An address is `ip:port`, `[ipv6]:port` or `host:port`. Host names are looked up when a watch starts and again
/// every 30 s; all their addresses are used, and a failed lookup keeps those of the last one.
///
/// Registering is accepted and changes nothing: the state is [`RegistrationState::Registered`], and a line in the log
/// says that nobody will find the instance unless it stands in their table.
///
/// ```
/// # use picom::registry::Fixed;
/// let registry = Fixed::new([("service1", ["10.0.0.7:4000", "10.0.0.8:4000"])]).service("service2", ["db:4000"]);
/// ```
#[derive(Clone, Debug)]
pub struct Fixed {
    table: BTreeMap<String, Vec<String>>,
    feeds: Arc<Feeds>,
}

impl Fixed {
    /// A table of these services. A wrong name or address is reported by [`Registry::validate`], which the node asks.
    pub fn new<S, A>(services: impl IntoIterator<Item = (S, A)>) -> Self
    where
        S: Into<String>,
        A: IntoIterator,
        A::Item: Into<String>,
    {
        let empty = Self { table: BTreeMap::new(), feeds: Arc::default() };
        services.into_iter().fold(empty, |fixed, (name, addresses)| fixed.service(name, addresses))
    }

    /// Adds addresses to a service.
    #[must_use]
    pub fn service<A>(mut self, name: impl Into<String>, addresses: A) -> Self
    where
        A: IntoIterator,
        A::Item: Into<String>,
    {
        self.table.entry(name.into()).or_default().extend(addresses.into_iter().map(Into::into));
        // Another table: what the clones of the old one look up is not shared.
        self.feeds = Arc::default();
        self
    }

    /// Reads `name=address,address;name=address`: entries are separated by `,` or `;`, and an entry without `name=`
    /// belongs to the name before it.
    pub(super) fn parse(text: &str) -> Result<Self, RegistryError> {
        let mut fixed = Self::new::<String, [String; 0]>([]);
        let mut name = None;
        for entry in text.split([',', ';']).map(str::trim).filter(|entry| !entry.is_empty()) {
            let address = match entry.split_once('=') {
                Some((new, address)) => {
                    name = Some(new.trim());
                    address.trim()
                }
                None => entry,
            };
            let Some(name) = name else {
                return Err(RegistryError::Settings(format!(
                    "fixed registry: {entry:?} belongs to no service; write service=address"
                )));
            };
            fixed = fixed.service(name, [address]);
        }
        fixed.validate()?;
        Ok(fixed)
    }
}

/// Where one line of the table leads.
enum Target {
    Addr(SocketAddr),
    Host(String),
}

fn target(address: &str) -> Result<Target, RegistryError> {
    if let Ok(addr) = address.parse::<SocketAddr>() {
        if addr.port() != 0 && !addr.ip().is_unspecified() {
            return Ok(Target::Addr(addr));
        }
    } else if let Some((host, port)) = address.rsplit_once(':') {
        // Colons and brackets belong to IPv6 addresses, and a whole one would have parsed.
        let named = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if named && port.parse::<u16>().is_ok_and(|port| port != 0) {
            return Ok(Target::Host(address.to_owned()));
        }
    }
    Err(RegistryError::Settings(format!("fixed registry: {address:?} is not an address such as 10.0.0.7:4000")))
}

#[async_trait]
impl Registry for Fixed {
    fn describe(&self) -> String {
        "fixed registry".to_owned()
    }

    fn validate(&self) -> Result<(), RegistryError> {
        for (name, addresses) in &self.table {
            check_service_name(name).map_err(|error| RegistryError::Settings(format!("fixed registry: {error}")))?;
            addresses.iter().try_for_each(|address| target(address).map(drop))?;
        }
        Ok(())
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        instance.check()?;
        tracing::info!(
            service = instance.service,
            "the fixed registry does not publish: callers find this instance only if it stands in their own table"
        );
        let (state, states) = watch::channel(RegistrationState::Registered);
        Ok(Registration::new(states, move || {
            state.send_replace(RegistrationState::Left);
            Box::pin(std::future::ready(Ok(())))
        }))
    }

    fn watch(&self, service: &str) -> Watch {
        let (known, hosts, problem) = self.written(service);
        if hosts.is_empty() {
            let publisher = Publisher::new();
            publisher.live(known, problem);
            // The publisher is kept, because a closed channel would mean that the registry is gone.
            return Watch::new(publisher.subscribe(), Arc::new(Notify::new()), Some(Arc::new(publisher)));
        }
        self.feeds.watch(service, LINGER, |publisher, refresh| resolve(publisher, refresh, known, hosts))
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let looked_up = self.feeds.known();
        // Host names are looked up only for those who watch.
        let snapshot = |name: &String| {
            looked_up.get(name).cloned().unwrap_or_else(|| {
                let (known, _, problem) = self.written(name);
                let publisher = Publisher::new();
                publisher.live(known, problem);
                publisher.current()
            })
        };
        self.table.keys().map(|name| (name.clone(), snapshot(name))).collect()
    }
}

impl Fixed {
    /// What the table says of a service: addresses, host names, and what is wrong with it.
    fn written(&self, service: &str) -> (Vec<Endpoint>, Vec<String>, Option<String>) {
        let mut known = Vec::new();
        let mut hosts = Vec::new();
        let mut problem = None;
        match self.table.get(service) {
            None => problem = Some(format!("the fixed registry has no service {service:?}")),
            Some(addresses) => {
                for address in addresses {
                    match target(address) {
                        Ok(Target::Addr(addr)) => known.push(Endpoint::new(addr)),
                        Ok(Target::Host(host)) => hosts.push(host),
                        Err(error) => problem = Some(error.to_string()),
                    }
                }
            }
        }
        (known, hosts, problem)
    }
}

/// Looks the hosts up for as long as somebody watches.
async fn resolve(publisher: Publisher, refresh: Arc<Notify>, known: Vec<Endpoint>, hosts: Vec<String>) {
    let mut found: HashMap<String, Vec<SocketAddr>> = HashMap::new();
    loop {
        let mut problem = None;
        for (host, answer) in join_all(hosts.iter().map(|host| lookup(host))).await {
            match answer {
                Ok(addresses) => {
                    found.insert(host.to_owned(), addresses);
                }
                Err(error) => problem = Some(format!("fixed registry: cannot look up {host:?}: {error}")),
            }
        }
        let resolved = found.values().flatten().map(|addr| Endpoint::new(*addr));
        let endpoints: Vec<_> = known.iter().cloned().chain(resolved).collect();
        match problem {
            Some(problem) if endpoints.is_empty() => publisher.trouble(problem),
            problem => publisher.live(endpoints, problem),
        }
        // A wish to look again right after a lookup must not become a loop as fast as the name server.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = timeout(LOOKUP_INTERVAL, refresh.notified()).await;
    }
}

async fn lookup(host: &str) -> (&str, std::io::Result<Vec<SocketAddr>>) {
    let answer = match timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(host)).await {
        Ok(answer) => answer.map(Iterator::collect),
        Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 5 s")),
    };
    (host, answer)
}
