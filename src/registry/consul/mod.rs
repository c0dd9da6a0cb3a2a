//! Consul as the registry.
//!
//! Owns [`Consul`], its options, and what all registries with the same settings share in one process. It must never
//! know what a service does. Look next at `register.rs` for how an instance is kept alive, at `watch.rs` for how a
//! list is kept up to date, and at `http.rs` for the calls themselves.

mod entries;
mod http;
mod note;
mod pace;
mod register;
mod settings;
mod tls;
mod trouble;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;

use self::http::Api;
use self::settings::Settings;
use super::feed::{Feeds, Publisher};
use super::settings::Hidden;
use super::{Endpoints, Instance, Registration, Registry, RegistryError, Watch, check_service_name};

/// How long a service is still watched after the last watch is gone. An abandoned query occupies one of Consul's 200
/// places per client until its wait ends, so a client that is dropped and made anew must not leave any behind.
const LINGER: Duration = Duration::from_secs(10);

/// Consul, spoken to through the agent at one address.
///
/// That agent should be the one on the same machine: it is what notices when the machine dies, and an instance must
/// be registered, kept alive and taken back through one and the same agent.
///
/// Clones and other values with equal settings share connections and watches.
///
/// Leaving waits for the request that is under way, then tries three times, so that it takes up to half a minute with
/// a Consul that hangs; whoever has less time may give up on it, and Consul drops the instance after its TTL. One that has never
/// answered this process is told once, for at most a second.
///
/// ```no_run
/// # use std::time::Duration;
/// # use picom::registry::Consul;
/// let registry = Consul::new("http://127.0.0.1:8500")?.ttl(Duration::from_secs(10)).token_file("/run/secrets/consul");
/// # Ok::<_, picom::registry::RegistryError>(())
/// ```
#[derive(Clone)]
pub struct Consul {
    settings: Settings,
    group: OnceLock<Result<Arc<Group>, RegistryError>>,
}

/// What all registries with the same settings share.
struct Group {
    api: Api,
    feeds: Arc<Feeds>,
    rejected: AtomicU64,
}

/// The groups that somebody still uses. A handful at most, so a list will do.
static GROUPS: Mutex<Vec<Weak<Group>>> = Mutex::new(Vec::new());

impl Consul {
    /// Consul at `http://host:port` or `https://host:port`; `host:port` alone means http.
    ///
    /// # Errors
    /// [`RegistryError::Settings`] for an address that cannot work.
    pub fn new(address: &str) -> Result<Self, RegistryError> {
        Settings::new(address).map(Self::with)
    }

    /// Consul as its own variables say: `CONSUL_HTTP_ADDR` (else 127.0.0.1:8500), `CONSUL_HTTP_TOKEN`,
    /// `CONSUL_HTTP_TOKEN_FILE`, `CONSUL_HTTP_SSL`, `CONSUL_CACERT`, `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY` and
    /// `CONSUL_NAMESPACE`.
    ///
    /// # Errors
    /// [`RegistryError::Settings`] for an address that cannot work.
    pub fn from_env() -> Result<Self, RegistryError> {
        Settings::from_variables(|name| std::env::var(name).ok()).map(Self::with)
    }

    /// What `consul://…` names, on top of the environment.
    pub(super) fn from_url_parts(scheme: &str, rest: &str) -> Result<Self, RegistryError> {
        let mut settings = Settings::from_variables(|name| std::env::var(name).ok())?;
        settings.apply_url(scheme, rest)?;
        Ok(Self::with(settings))
    }

    fn with(settings: Settings) -> Self {
        Self { settings, group: OnceLock::new() }
    }

    /// After which time without a sign of life an instance counts as dead: 1 s to 1 day, default 30 s. A sign is sent
    /// every third of it. Below 3 s a busy machine may look dead. [`Registry::validate`] refuses other values.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.change(|settings| settings.ttl = ttl)
    }

    /// The token that proves one's rights; default none. It is never shown.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        self.change(|settings| settings.token = Some(Hidden(token.into())))
    }

    /// A file that holds the token, read now and whenever Consul refuses the last one. It wins over [`Self::token`].
    #[must_use]
    pub fn token_file(self, path: impl Into<PathBuf>) -> Self {
        self.change(|settings| settings.token_file = Some(path.into()))
    }

    /// The datacenter to find services in; default the agent's own. One's own instances are always registered there.
    #[must_use]
    pub fn datacenter(self, datacenter: impl Into<String>) -> Self {
        self.change(|settings| settings.datacenter = Some(datacenter.into()))
    }

    /// The namespace, which only Consul Enterprise has; default the token's own.
    #[must_use]
    pub fn namespace(self, namespace: impl Into<String>) -> Self {
        self.change(|settings| settings.namespace = Some(namespace.into()))
    }

    /// How long the instances of a list that became empty are remembered; default twice the TTL. A restarted agent
    /// answers with an empty list, and then with a growing one, until everybody has registered again. So those that a list lacks
    /// are remembered as well if Consul was away before it, or has gone back in time; until they come back, they are called like the
    /// others. Meanwhile the snapshot is [`Freshness::Stale`](super::Freshness::Stale); the instances of a list that is empty are
    /// unhealthy, but used for want of others. The same empty list
    /// is there after the last instance has left as it should: until this time is over calls still try it, and fail because nobody
    /// listens there. A short grace ends that sooner; zero believes every empty list.
    #[must_use]
    pub fn stale_grace(self, grace: Duration) -> Self {
        self.change(|settings| settings.stale_grace = Some(grace))
    }

    /// After which time without a sign of life Consul forgets an instance; default ten times the TTL, but at least
    /// 5 minutes. Consul takes anything below 1 minute for 1 minute, and up to 30 s longer.
    #[must_use]
    pub fn deregister_after(self, time: Duration) -> Self {
        self.change(|settings| settings.deregister_after = Some(time))
    }

    /// A PEM file with the authorities to trust instead of the machine's own.
    #[must_use]
    pub fn ca_cert(self, path: impl Into<PathBuf>) -> Self {
        self.change(|settings| settings.ca_cert = Some(path.into()))
    }

    /// PEM files with the certificate, and its private key, to show to Consul.
    #[must_use]
    pub fn client_cert(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.change(|settings| {
            settings.client_cert = Some(certificate.into());
            settings.client_key = Some(key.into());
        })
    }

    /// How many entries have been refused because nothing can be at their address, in this process and with these
    /// settings. An entry counts again when it comes back.
    pub fn rejected_entries(&self) -> u64 {
        self.group().map_or(0, |group| group.rejected.load(Ordering::Relaxed))
    }

    fn change(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        Self::with(self.settings)
    }

    fn group(&self) -> Result<Arc<Group>, RegistryError> {
        self.group.get_or_init(|| Group::of(&self.settings)).clone()
    }
}

impl Group {
    fn of(settings: &Settings) -> Result<Arc<Self>, RegistryError> {
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.strong_count() > 0);
        if let Some(group) = groups.iter().filter_map(Weak::upgrade).find(|group| group.api.settings == *settings) {
            return Ok(group);
        }
        let group =
            Arc::new(Self { api: Api::new(settings.clone())?, feeds: Arc::default(), rejected: AtomicU64::new(0) });
        groups.push(Arc::downgrade(&group));
        Ok(group)
    }
}

impl fmt::Debug for Consul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

#[async_trait]
impl Registry for Consul {
    fn describe(&self) -> String {
        format!("consul at {}", self.settings.address)
    }

    fn validate(&self) -> Result<(), RegistryError> {
        self.group().map(drop)
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        instance.check()?;
        register::start(self.group()?, &instance).await
    }

    fn watch(&self, service: &str) -> Watch {
        let refused = check_service_name(service).and_then(|()| self.group());
        match refused {
            Ok(group) => {
                let feeds = Arc::clone(&group.feeds);
                feeds.watch(service, LINGER, |publisher, refresh| {
                    watch::run(group, service.to_owned(), publisher, refresh)
                })
            }
            Err(error) => {
                let publisher = Publisher::new();
                publisher.trouble(error.to_string());
                Watch::new(publisher.subscribe(), Arc::default(), Some(Arc::new(publisher)))
            }
        }
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        self.group().map(|group| group.feeds.known()).unwrap_or_default()
    }
}
