//! The task of a rover.
//!
//! Owns [`Travel`], the order of visits in time. It must never wait for a server: visits are under way side by side. Look next
//! at [`super::route`] for who is next and how soon, and at [`super::probe`] for one visit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::probe::{Limits, probe};
use super::route::{Pace, Route, Visit};
use super::{Event, Pool, RoverError};

/// What a rover and its task share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    route: Mutex<Route>,
    /// Told when servers come or go.
    changed: Notify,
}

impl Shared {
    pub(super) fn route(&self) -> MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The servers are others now.
    pub(super) fn change(&self) {
        self.changed.notify_one();
    }
}

/// The task of a rover that has started.
pub(super) struct Travel {
    shared: Arc<Shared>,
    pace: Pace,
    limits: Limits,
    pool: Option<Pool>,
    events: mpsc::Sender<Event>,
    probes: FuturesUnordered<BoxFuture<'static, (Visit, Event)>>,
}

impl Travel {
    pub(super) fn new(
        shared: Arc<Shared>,
        pace: Pace,
        limits: Limits,
        pool: Option<Pool>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { shared, pace, limits, pool, events, probes: FuturesUnordered::new() }
    }

    pub(super) async fn go(mut self) {
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(next) => {
                    if !self.visit().await {
                        return;
                    }
                    next = Instant::now() + self.pace.pause();
                }
                Some((visit, event)) = self.probes.next() => {
                    if !self.end(&visit, event).await {
                        return;
                    }
                }
                () = something_changed(&self.shared, self.pool.as_ref()) => {
                    self.pace.quicken();
                    next = next.min(Instant::now() + self.pace.pause());
                }
                () = self.events.closed(), if self.pool.is_none() => return,
            }
        }
    }

    /// Begins a visit. Returns whether to go on, as the others below.
    async fn visit(&mut self) -> bool {
        let holds = self.pool.as_ref().map(Pool::holds).unwrap_or_default();
        if self.pool.as_ref().is_none_or(|pool| pool.len() < pool.max_slots()) {
            self.pace.quicken();
        }
        let visit = {
            let mut route = self.shared.route();
            if route.len() > 0 { Ok(route.next(|id| holds.contains_key(id))) } else { Err(RoverError::NoServers) }
        };
        match visit {
            Ok(Some(visit)) => {
                let probe = probe(visit.server.clone(), self.limits);
                self.probes.push(Box::pin(async move { (visit, probe.await) }));
                true
            }
            // All of them are being visited.
            Ok(None) => true,
            Err(error) => self.say(Event::Error(error)).await,
        }
    }

    async fn end(&mut self, visit: &Visit, event: Event) -> bool {
        let servers = {
            let mut route = self.shared.route();
            if !route.end(visit) {
                return true;
            }
            route.len()
        };
        match (event, &self.pool) {
            (Event::Connection { slot, server, stream }, Some(pool)) => {
                if pool.add(slot, &server, stream) {
                    self.pace.quicken();
                } else {
                    self.pace.nothing_better(servers);
                }
                // It may have been dropped between the look above and here.
                if !self.shared.route().knows(visit) {
                    pool.drop_server(server.id());
                }
                true
            }
            (event, _) => {
                self.pace.nothing_better(servers);
                self.say(event).await
            }
        }
    }

    async fn say(&mut self, event: Event) -> bool {
        if self.pool.is_none() {
            return self.events.send(event).await.is_ok();
        }
        tracing::debug!(?event, "a visit brought no connection");
        // Whoever has a pool needs no events, so they may be in nobody's hands.
        let _ = self.events.try_send(event);
        true
    }
}

async fn something_changed(shared: &Shared, pool: Option<&Pool>) {
    let lost = async {
        match pool {
            Some(pool) => pool.lost().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shared.changed.notified() => {}
        () = lost => {}
    }
}
