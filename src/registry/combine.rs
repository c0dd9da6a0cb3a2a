//! Several registries as one.
//!
//! Owns [`Combine`], which registers in all of them and makes one list of theirs. It must never decide by anything but what the
//! lists say. Look next at `merge.rs` for how lists become one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use futures::stream::select_all;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::feed::{Feeds, Publisher};
use super::merge::{Rule, merge, settled};
use super::role::{self, Query};
use super::versions::fitting;
use super::{Endpoints, Instance, Registration, RegistrationState, Registry, RegistryError, Snapshots, Watch};

/// How long each registry may take until an instance has left it: less than a node waits for all of them, so that it can say which
/// did not answer. Who takes longer goes on by itself.
const LEAVE_LIMIT: Duration = Duration::from_secs(4);

/// How long, from the first watch of a service on, those after a registry wait for it that neither answers nor says why not: longer
/// than one in reach takes, and far less than a call waits for an instance ([`RESOLVE_WAIT`](crate::options::RESOLVE_WAIT)).
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long the registries are still watched after the last watch is gone.
const LINGER: Duration = Duration::from_secs(10);

/// Several registries as one, for example while a system moves from one to another.
///
/// An instance is registered in all of them, and counts as registered as soon as one has taken it; the others' troubles
/// are in the log, and in the state while none has. What is known is either [the first list](Combine::first) that can be used or
/// [all lists together](Combine::union); troubles of any registry are the problem of the snapshot.
///
/// Leaving takes all of them back at once. Each has 4 s for it, and the error names every one that could not be told.
///
/// ```
/// use picom::registry::{Combine, Fixed, Memory};
/// let fallback = Fixed::new([("service1", ["10.0.0.7:4000"])]);
/// let registry = Combine::first().and(Memory::new()).and(fallback);
/// ```
#[derive(Clone, Debug)]
pub struct Combine {
    rule: Rule,
    registries: Vec<Arc<dyn Registry>>,
    feeds: Arc<Feeds>,
}

impl Combine {
    /// The list of the first registry that has a healthy and running instance. One that has only [doubtful](super::Tier::Doubtful)
    /// or busy ones is joined by those after it, up to the first that needs no other; of all these together, those that are best
    /// [are used](Endpoints::usable), whichever registry they are of. Lists that are only remembered count if there is nothing else.
    ///
    /// A registry that has not answered yet holds up those after it, for 1 s after the first watch of a service at most, and only
    /// as long as it reports no problem: so the first call of a process goes where later ones go, and a registry that is out of
    /// reach costs a second at most. Add registries with [`Combine::and`].
    pub fn first() -> Self {
        Self::with(Rule::First)
    }

    /// The lists of all registries together. Of one address the best tier that any gives counts, and what an instance
    /// says of itself counts more than what stands in a table, and of that what a registry stands by more than what one that
    /// was lost remembers; else the earlier registry's word counts. Add registries with [`Combine::and`].
    pub fn union() -> Self {
        Self::with(Rule::Union)
    }

    fn with(rule: Rule) -> Self {
        Self { rule, registries: Vec::new(), feeds: Arc::default() }
    }

    /// One more registry, after those before it; an `Arc<dyn Registry>` is one too.
    #[must_use]
    pub fn and(mut self, registry: impl Registry) -> Self {
        self.registries.push(Arc::new(registry));
        // Other registries: what the clones of the old ones watch is not shared.
        self.feeds = Arc::default();
        self
    }
}

#[async_trait]
impl Registry for Combine {
    fn describe(&self) -> String {
        let names: Vec<_> = self.registries.iter().map(|registry| registry.describe()).collect();
        match self.rule {
            Rule::First => format!("the first of [{}]", names.join("; ")),
            Rule::Union => format!("the union of [{}]", names.join("; ")),
        }
    }

    fn validate(&self) -> Result<(), RegistryError> {
        if self.registries.is_empty() {
            return Err(RegistryError::Settings("a combination of no registries finds nothing; add some".to_owned()));
        }
        self.registries.iter().try_for_each(|registry| registry.validate())
    }

    fn is_local(&self) -> bool {
        self.registries.iter().all(|registry| registry.is_local())
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        instance.check()?;
        self.validate()?;
        // One that refuses for good would never be heard of otherwise; those that have taken it are told by the drop.
        let taken = self.registries.iter().map(|registry| registry.register(instance.clone()));
        Ok(joined(&instance.service, &self.registries, try_join_all(taken).await?))
    }

    fn knows_versions(&self) -> bool {
        true
    }

    fn watch(&self, service: &str) -> Watch {
        let query = match Query::parse(service).and_then(|query| self.validate().map(|()| query)) {
            Ok(query) => query,
            Err(error) => {
                let publisher = Publisher::new();
                publisher.trouble(error.to_string());
                return Watch::new(publisher.subscribe(), Arc::default(), Some(Arc::new(publisher)));
            }
        };
        self.feeds.watch(service, LINGER, |publisher, refresh| {
            let name = if query.is_of_versions() { &query.name } else { service };
            let watches: Vec<_> = self.registries.iter().map(|registry| registry.watch(name)).collect();
            publish(self.rule, &query, &watches, &publisher, true);
            follow(self.rule, query, watches, publisher, refresh)
        })
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let all: Vec<_> = self.registries.iter().map(|registry| registry.known()).collect();
        let names = all.iter().flat_map(BTreeMap::keys);
        let mut known: BTreeMap<_, _> = names
            .map(|name| {
                let lists: Vec<_> = all.iter().filter_map(|known| known.get(name)).cloned().collect();
                let publisher = Publisher::new();
                publisher.copy(&merge(self.rule, &lists));
                (name.clone(), publisher.current())
            })
            .collect();
        known.extend(self.feeds.known().into_iter().filter(|(asked, _)| !role::names_versions(asked)));
        known
    }
}

/// `waits`: those that have not answered yet may still do so in time.
fn publish(rule: Rule, query: &Query, watches: &[Watch], publisher: &Publisher, waits: bool) {
    let snapshots: Vec<_> = watches.iter().map(Watch::current).collect();
    let lists = if waits && rule == Rule::First { settled(&snapshots) } else { &snapshots };
    publisher.copy(&chosen(rule, query, lists));
}

/// One list out of several, of the versions that are wanted. A registry that has only others has nothing to offer.
fn chosen(rule: Rule, query: &Query, lists: &[Arc<Endpoints>]) -> Endpoints {
    if !query.is_of_versions() {
        return merge(rule, lists);
    }
    let fit = |list: &Arc<Endpoints>| Endpoints { problem: list.problem.clone(), ..fitting(query, list) };
    let fit: Vec<_> = lists.iter().map(|list| Arc::new(fit(list))).collect();
    let merged = merge(rule, &fit);
    if !merged.endpoints.is_empty() {
        return merged;
    }
    // Which versions there are instead is said of all of them.
    Endpoints { problem: fitting(query, &merge(Rule::Union, lists)).problem, ..merged }
}

/// Makes one list of all, whenever one changes.
async fn follow(rule: Rule, query: Query, watches: Vec<Watch>, publisher: Publisher, refresh: Arc<Notify>) {
    let mut changes = select_all(watches.iter().cloned().map(Snapshots::from));
    let mut limit = pin!(sleep(ANSWER_LIMIT));
    let mut waits = true;
    loop {
        tokio::select! {
            // The streams do not end.
            _ = changes.next() => publish(rule, &query, &watches, &publisher, waits),
            () = &mut limit, if waits => {
                waits = false;
                publish(rule, &query, &watches, &publisher, waits);
            }
            () = refresh.notified() => watches.iter().for_each(Watch::refresh),
        }
    }
}

/// One handle for all registrations of an instance.
fn joined(service: &str, registries: &[Arc<dyn Registry>], registrations: Vec<Registration>) -> Registration {
    let names: Vec<_> = registries.iter().map(|registry| registry.describe()).collect();
    let all: Vec<_> = registrations.iter().map(Registration::states).collect();
    let current = |all: &[watch::Receiver<RegistrationState>]| {
        let states: Vec<_> = all.iter().map(|state| state.borrow().clone()).collect();
        sum(&names, &states)
    };
    let parts: Vec<_> = names.iter().cloned().zip(registrations).collect();
    let (state, states) = watch::channel(current(&all));
    let state = Arc::new(state);
    let following =
        AbortOnDropHandle::new(tokio::spawn(follow_states(service.to_owned(), names, all, Arc::clone(&state))));
    let shared = Arc::new(Mutex::new(parts));
    let own = Arc::clone(&shared);
    let registration = Registration::new(states, move || {
        drop(following);
        let parts = std::mem::take(&mut *own.lock().unwrap_or_else(PoisonError::into_inner));
        Box::pin(async move {
            let troubles: Vec<_> = join_all(parts.into_iter().map(leave)).await.into_iter().flatten().collect();
            state.send_replace(RegistrationState::Left);
            if troubles.is_empty() { Ok(()) } else { Err(RegistryError::Unreachable(troubles.join("; "))) }
        })
    });
    registration.with_status(move |status| {
        let parts = shared.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().for_each(|(_, registration)| registration.set_status(status.clone()));
    })
}

/// Takes an instance back from one registry; if that fails, why.
async fn leave((name, registration): (String, Registration)) -> Option<String> {
    let why = match timeout(LEAVE_LIMIT, registration.leave()).await {
        Ok(left) => left.err()?.to_string(),
        Err(_) => format!("no answer within {LEAVE_LIMIT:?}"),
    };
    Some(of(&name, &why))
}

/// What a registry says, with its name.
fn of(name: &str, why: &str) -> String {
    // Some begin with it.
    if why.starts_with(name) { why.to_owned() } else { format!("{name}: {why}") }
}

async fn follow_states(
    service: String,
    names: Vec<String>,
    all: Vec<watch::Receiver<RegistrationState>>,
    state: Arc<watch::Sender<RegistrationState>>,
) {
    let changes = all.iter().cloned().enumerate().map(|(at, mut states)| {
        states.mark_changed();
        Box::pin(futures::stream::unfold(states, move |mut states| async move {
            states.changed().await.ok()?;
            let now = states.borrow_and_update().clone();
            Some(((at, now), states))
        }))
    });
    let mut changes = select_all(changes);
    while let Some((at, now)) = changes.next().await {
        if let RegistrationState::Retrying(why) | RegistrationState::Denied(why) = &now {
            tracing::warn!(service, registry = names[at], why, "one of the combined registries does not have it");
        }
        let states: Vec<_> = all.iter().map(|state| state.borrow().clone()).collect();
        let sum = sum(&names, &states);
        state.send_if_modified(|current| {
            let changed = *current != sum;
            *current = sum;
            changed
        });
    }
}

/// What several registrations amount to.
fn sum(names: &[String], states: &[RegistrationState]) -> RegistrationState {
    if states.contains(&RegistrationState::Registered) {
        return RegistrationState::Registered;
    }
    let mut reasons = Vec::new();
    let mut denied = true;
    for (name, state) in names.iter().zip(states) {
        match state {
            RegistrationState::Retrying(why) => {
                denied = false;
                reasons.push(of(name, why));
            }
            RegistrationState::Denied(why) => reasons.push(of(name, why)),
            RegistrationState::Registered | RegistrationState::Left => {}
        }
    }
    match (reasons.is_empty(), denied) {
        (true, _) => RegistrationState::Left,
        (false, true) => RegistrationState::Denied(reasons.join("; ")),
        (false, false) => RegistrationState::Retrying(reasons.join("; ")),
    }
}
