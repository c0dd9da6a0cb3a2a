//! Instances of some versions only: whoever asks for `calc@^1.2` sees those of `calc` that say such a version of themselves.
//!
//! Owns [`Versions`], through which every node sees its registry. It must never change what is registered or what is said of a
//! service that was asked for without a version. Look next at `role.rs` for what fits, and at `feed.rs` for how watches are shared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::feed::{Feeds, Publisher};
use super::role::{Query, VERSION};
use super::{Endpoint, Endpoints, Instance, Registration, Registry, RegistryError, Watch};

/// How long the registry is still watched after the last watch is gone.
const LINGER: Duration = Duration::from_secs(10);

/// Most versions that a problem names.
const SHOWN: usize = 8;
/// Most characters of each of them: anybody may say anything.
const LONGEST: usize = 32;

/// A registry that also knows `name@version` and `name@range`.
#[derive(Clone, Debug)]
pub(crate) struct Versions {
    inner: Arc<dyn Registry>,
    feeds: Arc<Feeds>,
}

impl Versions {
    pub(crate) fn of(inner: Arc<dyn Registry>) -> Self {
        Self { inner, feeds: Arc::default() }
    }
}

#[async_trait]
impl Registry for Versions {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn validate(&self) -> Result<(), RegistryError> {
        self.inner.validate()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn knows_versions(&self) -> bool {
        true
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        self.inner.register(instance).await
    }

    fn watch(&self, service: &str) -> Watch {
        let query = match Query::parse_version(service) {
            Ok(query) if !query.is_any() && !self.inner.knows_versions() => query,
            // What is no name either is the registry's to refuse.
            _ => return self.inner.watch(service),
        };
        self.feeds.watch(service, LINGER, |publisher, refresh| {
            let watch = self.inner.watch(&query.name);
            // What is known already must not wait for the task.
            publisher.copy(&fitting(&query, &watch.current()));
            follow(watch, query, publisher, refresh)
        })
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        self.inner.known()
    }
}

async fn follow(mut watch: Watch, query: Query, publisher: Publisher, refresh: Arc<Notify>) {
    loop {
        tokio::select! {
            snapshot = watch.changed() => publisher.copy(&fitting(&query, &snapshot)),
            () = refresh.notified() => watch.refresh(),
        }
    }
}

/// The snapshot with what fits only; if nothing does, its problem says which versions there are.
pub(super) fn fitting(query: &Query, all: &Endpoints) -> Endpoints {
    let fits = |endpoint: &&Arc<Endpoint>| query.matches(&query.name, version(endpoint));
    let endpoints: Vec<_> = all.endpoints.iter().filter(fits).cloned().collect();
    let nobody_fits = endpoints.is_empty() && !all.endpoints.is_empty();
    let others = nobody_fits.then(|| {
        let versions: BTreeSet<_> = all.endpoints.iter().map(|one| version(one).unwrap_or("none")).collect();
        let more = if versions.len() > SHOWN { " and others" } else { "" };
        let harmless = |version: &str| version.chars().take(LONGEST).flat_map(char::escape_debug).collect::<String>();
        let shown: Vec<_> = versions.into_iter().take(SHOWN).map(harmless).collect();
        let (number, name) = (all.endpoints.len(), &query.name);
        format!("none of the {number} instances of `{name}` fits; their versions: {}{more}", shown.join(", "))
    });
    let problems: Vec<_> = all.problem.clone().into_iter().chain(others).collect();
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    Endpoints { endpoints, problem, ..*all }
}

fn version(endpoint: &Endpoint) -> Option<&str> {
    endpoint.meta.get(VERSION).map(String::as_str)
}
