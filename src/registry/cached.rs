//! A registry whose answers are remembered for a while.
//!
//! Owns [`Cached`]. It must never invent an instance, nor hide a change from one list to another. Look next at `feed.rs` for how
//! watches are shared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::feed::{Feeds, Publisher};
use super::role;
use super::{Endpoints, Freshness, Instance, Registration, Registry, RegistryError, Watch};

/// How long the last instances of a list that became empty are believed to be there: what a registry takes to come back, and
/// everybody to register again.
const GRACE: Duration = Duration::from_secs(60);

/// How long the inner registry is still watched after the last watch is gone.
const LINGER: Duration = Duration::from_secs(10);

/// Remembers the last good list of another registry.
///
/// When the list of a service becomes empty, or the registry does not know any more, the last instances stay for the
/// [grace](Cached::grace), [`Stale`](Freshness::Stale) and with the reason as the problem. Calls then find out for themselves
/// whether they are there. The price is that the last instance of a service that leaves is still tried for that long.
///
/// However many watch a service, the inner registry is watched once, and who watches is woken only by differences.
///
/// ```
/// # use std::time::Duration;
/// use picom::registry::{Cached, Memory};
/// let registry = Cached::new(Memory::new()).grace(Duration::from_secs(10));
/// ```
#[derive(Clone, Debug)]
pub struct Cached<R> {
    inner: R,
    grace: Duration,
    feeds: Arc<Feeds>,
}

impl<R: Registry> Cached<R> {
    /// Remembers what this registry says; an `Arc<dyn Registry>` is one too.
    pub fn new(inner: R) -> Self {
        Self { inner, grace: GRACE, feeds: Arc::default() }
    }

    /// How long the instances of a list that became empty stay; default 60 s.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        // Another grace: what the clones of the old one watch is not shared.
        Self { grace, feeds: Arc::default(), ..self }
    }
}

#[async_trait]
impl<R: Registry> Registry for Cached<R> {
    fn describe(&self) -> String {
        format!("{}, cached", self.inner.describe())
    }

    fn validate(&self) -> Result<(), RegistryError> {
        self.inner.validate()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn knows_versions(&self) -> bool {
        self.inner.knows_versions()
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        self.inner.register(instance).await
    }

    fn watch(&self, service: &str) -> Watch {
        self.feeds.watch(service, LINGER, |publisher, refresh| {
            let watch = self.inner.watch(service);
            // What is known already must not wait for the task.
            publisher.copy(&watch.current());
            remember(watch, publisher, refresh, self.grace, self.describe())
        })
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let mut known = self.inner.known();
        known.extend(self.feeds.known().into_iter().filter(|(asked, _)| !role::names_versions(asked)));
        known
    }
}

/// Publishes what the watch sees, and keeps instances for as long as it is to be doubted that they are gone.
async fn remember(mut watch: Watch, publisher: Publisher, refresh: Arc<Notify>, grace: Duration, name: String) {
    // Set while instances are kept.
    let mut until = None;
    loop {
        let forget = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let snapshot = tokio::select! {
            snapshot = watch.changed() => snapshot,
            () = refresh.notified() => {
                watch.refresh();
                continue;
            }
            () = forget => watch.current(),
        };
        let known = publisher.current();
        if !snapshot.endpoints.is_empty() || known.endpoints.is_empty() {
            until = None;
            publisher.copy(&snapshot);
            continue;
        }
        let now = Instant::now();
        // Beyond what timers can hold is for ever.
        let end = *until.get_or_insert_with(|| now.checked_add(grace).unwrap_or(now + GRACE * 500_000));
        if end <= now {
            until = None;
            publisher.copy(&snapshot);
            continue;
        }
        let why = match (&snapshot.problem, snapshot.freshness) {
            (Some(problem), _) => problem.clone(),
            (None, Freshness::Never) => "it does not know".to_owned(),
            (None, _) => "it lists no instance any more".to_owned(),
        };
        let number = known.endpoints.len();
        publisher.trouble(format!("{name}: {why}; the {number} known before are remembered for {grace:?}"));
    }
}
