//! The task of a rover.
//!
//! Owns [`Travel`], the order of visits in time. It must never wait for a server: visits are under way side by side. Look next
//! at [`super::route`] for who is next, at [`super::pace`] for how soon, and at [`super::probe`] for one visit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::pace::Pace;
use super::probe::{Limits, probe};
use super::route::{Among, Met, Route, Visit};
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
    /// When the next visit is.
    next: Instant,
    /// When servers that were not there are asked again, as long as there are such.
    retry: Instant,
    /// Where there is more to be had, and when to go there again.
    again: Option<(Visit, Instant)>,
}

impl Travel {
    pub(super) fn new(
        shared: Arc<Shared>,
        pace: Pace,
        limits: Limits,
        pool: Option<Pool>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (probes, now) = (FuturesUnordered::new(), Instant::now());
        Self { shared, pace, limits, pool, events, probes, next: now, retry: now, again: None }
    }

    pub(super) async fn go(mut self) {
        loop {
            let has_lost = self.pool.is_some() && self.shared.route().has_lost();
            let again = self.again.as_ref().map(|(_, at)| *at);
            tokio::select! {
                () = sleep_until(self.next) => {
                    if !self.visit().await {
                        return;
                    }
                    self.next = Instant::now() + self.pace.pause();
                }
                () = sleep_until(self.retry), if has_lost => {
                    self.retry = Instant::now() + self.pace.steady();
                    let visit = self.shared.route().next(Among::Lost, |_| false);
                    self.begin(visit);
                }
                () = sleep_until(again.unwrap_or(self.next)), if again.is_some() => {
                    let visit = self.again.take().and_then(|(visit, _)| self.shared.route().again(&visit));
                    self.begin(visit);
                }
                Some((visit, event)) = self.probes.next() => {
                    if !self.end(&visit, event).await {
                        return;
                    }
                }
                () = something_changed(&self.shared, self.pool.as_ref()) => self.hurry(),
                () = self.events.closed(), if self.pool.is_none() => return,
            }
        }
    }

    /// Something has changed, or may have: the next visit is not put off any more.
    fn hurry(&mut self) {
        self.pace.quicken();
        self.next = self.next.min(Instant::now() + self.pace.pause());
    }

    /// Begins a visit. Returns whether to go on, as the others below.
    async fn visit(&mut self) -> bool {
        let holds = self.pool.as_ref().map(Pool::holds).unwrap_or_default();
        if self.pool.as_ref().is_none_or(|pool| pool.len() < pool.max_slots()) {
            self.pace.quicken();
        }
        // Whoever keeps his interval asks those that are not there in between.
        let among = if self.pool.is_some() { Among::Reached } else { Among::All };
        let visit = {
            let mut route = self.shared.route();
            if route.len() > 0 {
                Ok(route.next(among, |id| holds.contains_key(id)))
            } else {
                Err(RoverError::NoServers)
            }
        };
        match visit {
            Ok(visit) => {
                self.begin(visit);
                true
            }
            Err(error) => self.say(Event::Error(error)).await,
        }
    }

    /// Goes, unless all of them are being visited.
    fn begin(&mut self, visit: Option<Visit>) {
        if let Some(visit) = visit {
            let probe = probe(visit.server.clone(), self.limits);
            self.probes.push(Box::pin(async move { (visit, probe.await) }));
        }
    }

    async fn end(&mut self, visit: &Visit, event: Event) -> bool {
        let reached = !matches!(event, Event::Unreachable { .. });
        let (met, servers) = {
            let mut route = self.shared.route();
            (route.end(visit, reached), route.len())
        };
        match met {
            Met::Dropped => return true,
            Met::Known => {}
            // Whatever it gives: others may have more to do than it.
            Met::Back => self.hurry(),
            Met::Lost => self.retry = Instant::now() + self.pace.steady(),
        }
        match (event, &self.pool) {
            (Event::Connection { slot, server, stream }, Some(pool)) => {
                let is_kept = pool.add(slot, &server, stream);
                let is_much_better = is_kept && is_much_better(slot, pool.highest());
                // It may have been dropped between the look above and here.
                if !self.shared.route().knows(visit) {
                    pool.drop_server(server.id());
                }
                if is_kept {
                    self.hurry();
                } else {
                    self.pace.nothing_better(servers);
                }
                if is_much_better {
                    self.again = Some((visit.clone(), Instant::now() + self.pace.follow_up()));
                }
                true
            }
            (event, _) => {
                // Those that are not there are asked at a pace of their own.
                if reached && met != Met::Back {
                    self.pace.nothing_better(servers);
                }
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

/// Whether the server that gave this number has so little to do that the next number there is worth a visit at once: it would be
/// at most half of the highest that is held. One that comes back has its share so within seconds, and nobody asks twice in vain.
fn is_much_better(slot: u32, highest: Option<u32>) -> bool {
    highest.is_some_and(|highest| slot < highest / 2)
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
