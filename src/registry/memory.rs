//! A registry inside one process: for tests, examples and nodes that live together.
//!
//! Owns [`Memory`]. It must never do I/O nor wait: what is registered is visible when `register` returns. Look next
//! at `feed.rs` for how snapshots reach their readers.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use tokio::sync::{Notify, watch};

use super::feed::Publisher;
use super::{Endpoint, Endpoints, Instance, Registration, RegistrationState, Registry, RegistryError, Tier, Watch};
use crate::state::NodeStatus;

/// The named registries that somebody still uses.
static NAMED: Mutex<BTreeMap<String, Weak<Shared>>> = Mutex::new(BTreeMap::new());

/// A registry inside one process. Clones are the same registry.
///
/// Snapshots are live from the start. An instance without an address is reached at 127.0.0.1. Of two instances with
/// one id the newer one counts, and the older one's registration says that it is over.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    name: Option<String>,
    services: Mutex<HashMap<String, Service>>,
}

struct Service {
    /// Never used again for another registration, so that a late `leave` takes back only what is its own.
    next: u64,
    entries: BTreeMap<u64, Entry>,
    publisher: Publisher,
}

struct Entry {
    instance: Instance,
    state: watch::Sender<RegistrationState>,
}

impl Memory {
    /// A registry of its own, shared only through clones.
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared::new(None)) }
    }

    /// The registry of this name, the same one everywhere in the process. It lives as long as anybody uses it.
    pub fn named(name: impl Into<String>) -> Self {
        let name = name.into();
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        named.retain(|_, shared| shared.strong_count() > 0);
        if let Some(shared) = named.get(&name).and_then(Weak::upgrade) {
            return Self { shared };
        }
        let shared = Arc::new(Shared::new(Some(name.clone())));
        named.insert(name, Arc::downgrade(&shared));
        Self { shared }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Registry for Memory {
    fn describe(&self) -> String {
        match &self.shared.name {
            Some(name) => format!("memory registry {name:?}"),
            None => "memory registry".to_owned(),
        }
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        instance.check()?;
        let service = instance.service.clone();
        let (state, states) = watch::channel(RegistrationState::Registered);
        let key = self.shared.add(instance, state);
        let entry = Owned { shared: Arc::clone(&self.shared), service: service.clone(), key };
        let shared = Arc::clone(&self.shared);
        let registration = Registration::new(states, move || {
            drop(entry);
            Box::pin(std::future::ready(Ok(())))
        });
        Ok(registration.with_status(move |status| shared.set_status(&service, key, status)))
    }

    fn watch(&self, service: &str) -> Watch {
        let snapshots = Shared::service(&mut self.shared.lock(), service).publisher.subscribe();
        // There is nothing to look up again, so nobody listens to the wish.
        Watch::new(snapshots, Arc::new(Notify::new()), Some(Arc::clone(&self.shared) as _))
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let services = self.shared.lock();
        let snapshots = services.iter().map(|(name, service)| (name.clone(), service.publisher.current()));
        snapshots.filter(|(_, snapshot)| !snapshot.endpoints.is_empty()).collect()
    }
}

impl Shared {
    fn new(name: Option<String>) -> Self {
        Self { name, services: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Service>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn service<'a>(services: &'a mut HashMap<String, Service>, name: &str) -> &'a mut Service {
        services.entry(name.to_owned()).or_insert_with(|| {
            let service = Service { next: 0, entries: BTreeMap::new(), publisher: Publisher::new() };
            service.publish();
            service
        })
    }

    fn add(&self, instance: Instance, state: watch::Sender<RegistrationState>) -> u64 {
        let mut services = self.lock();
        let service = Self::service(&mut services, &instance.service);
        service.entries.retain(|_, old| {
            let stays = old.instance.id != instance.id;
            if !stays {
                old.state.send_replace(RegistrationState::Left);
            }
            stays
        });
        let key = service.next;
        service.next += 1;
        service.entries.insert(key, Entry { instance, state });
        service.publish();
        key
    }

    fn set_status(&self, service: &str, key: u64, status: NodeStatus) {
        let mut services = self.lock();
        let service = Self::service(&mut services, service);
        // What was taken back has nothing to say any more.
        if let Some(entry) = service.entries.get_mut(&key) {
            entry.instance.status = status;
            service.publish();
        }
    }

    fn remove(&self, service: &str, key: u64) {
        let mut services = self.lock();
        let service = Self::service(&mut services, service);
        if let Some(entry) = service.entries.remove(&key) {
            entry.state.send_replace(RegistrationState::Left);
            service.publish();
        }
    }
}

impl Service {
    fn publish(&self) {
        // Oldest first: of two instances at one address the publisher keeps the last.
        self.publisher.live(self.entries.values().map(|entry| endpoint(&entry.instance)).collect(), None);
    }
}

fn endpoint(instance: &Instance) -> Endpoint {
    let ip = instance.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Endpoint {
        addr: SocketAddr::new(ip, instance.port),
        incarnation: Some(instance.incarnation),
        id: instance.id.clone(),
        tier: Tier::Healthy,
        weight: instance.weight,
        zone: instance.zone.clone(),
        tags: instance.tags.clone(),
        meta: instance.meta.clone(),
        status: instance.status.clone(),
    }
}

/// Takes its registration back when dropped.
struct Owned {
    shared: Arc<Shared>,
    service: String,
    key: u64,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.shared.remove(&self.service, self.key);
    }
}
