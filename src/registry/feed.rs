//! Shared watching: one task per service feeds every [`Watch`] of it.
//!
//! Owns [`Publisher`], which turns lists into snapshots and wakes readers only for a difference, and [`Feeds`], which
//! shares one feeding task per service and stops it when nobody has looked for a while. It must never know where the
//! lists come from. Look next at `consul/watch.rs` and `fixed.rs` for the tasks that run here.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Endpoint, Endpoints, Freshness, Watch};

/// The writing end of one service's snapshots.
#[derive(Debug)]
pub(super) struct Publisher(watch::Sender<Arc<Endpoints>>);

impl Publisher {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Arc::new(Endpoints::unknown())))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Endpoints>> {
        self.0.subscribe()
    }

    /// Whether anybody looks.
    #[cfg(any(feature = "broadcast", feature = "manifest"))]
    pub(super) fn is_watched(&self) -> bool {
        self.0.receiver_count() > 0
    }

    pub(super) fn current(&self) -> Arc<Endpoints> {
        Arc::clone(&self.0.borrow())
    }

    /// The registry stands by this list. Of several endpoints with one address the last one counts.
    pub(super) fn live(&self, endpoints: Vec<Endpoint>, problem: Option<String>) {
        self.publish(Freshness::Live, Some(endpoints.into_iter().map(Arc::new).collect()), problem);
    }

    /// The same for endpoints that somebody else keeps too.
    #[cfg(feature = "broadcast")]
    pub(super) fn live_shared(&self, endpoints: Vec<Arc<Endpoint>>) {
        self.publish(Freshness::Live, Some(endpoints), None);
    }

    /// This list is the best there is, but the registry does not stand by it.
    #[cfg(any(feature = "consul", feature = "manifest"))]
    pub(super) fn stale(&self, endpoints: Vec<Endpoint>, problem: String) {
        self.stale_shared(endpoints.into_iter().map(Arc::new).collect(), problem);
    }

    /// The same for endpoints that somebody else keeps too.
    #[cfg(any(feature = "consul", feature = "manifest", feature = "broadcast"))]
    pub(super) fn stale_shared(&self, endpoints: Vec<Arc<Endpoint>>, problem: String) {
        let since = match self.0.borrow().freshness {
            Freshness::Stale(since) => since,
            Freshness::Never | Freshness::Live => Instant::now(),
        };
        self.publish(Freshness::Stale(since), Some(endpoints), Some(problem));
    }

    /// The registry cannot be asked: what is known stays, with the reason why it may be old.
    pub(super) fn trouble(&self, problem: String) {
        let freshness = match self.0.borrow().freshness {
            Freshness::Live => Freshness::Stale(Instant::now()),
            old @ (Freshness::Never | Freshness::Stale(_)) => old,
        };
        self.publish(freshness, None, Some(problem));
    }

    /// Nothing is in the way any more, but nothing more is known either.
    #[cfg(feature = "broadcast")]
    pub(super) fn waiting(&self) {
        let freshness = self.0.borrow().freshness;
        self.publish(freshness, None, None);
    }

    /// The same as another publisher's snapshot, with a generation of one's own.
    pub(super) fn copy(&self, snapshot: &Endpoints) {
        self.publish(snapshot.freshness, Some(snapshot.endpoints.clone()), snapshot.problem.clone());
    }

    fn publish(&self, freshness: Freshness, endpoints: Option<Vec<Arc<Endpoint>>>, problem: Option<String>) {
        self.0.send_if_modified(|current| {
            let list = match endpoints {
                Some(endpoints) => normalise(endpoints, &current.endpoints),
                None => current.endpoints.clone(),
            };
            let answers = current.freshness == Freshness::Never && freshness != Freshness::Never;
            let grows = answers || list != current.endpoints;
            if !grows && current.freshness == freshness && current.problem == problem {
                return false;
            }
            let generation = current.generation + u64::from(grows);
            *current = Arc::new(Endpoints { generation, freshness, endpoints: list, problem });
            true
        });
    }
}

/// Ordered by address, one per address; what did not change keeps its allocation.
fn normalise(endpoints: Vec<Arc<Endpoint>>, old: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    let by_addr: BTreeMap<SocketAddr, Arc<Endpoint>> = endpoints.into_iter().map(|e| (e.addr, e)).collect();
    let reuse = |endpoint: Arc<Endpoint>| match old.binary_search_by_key(&endpoint.addr, |e| e.addr) {
        Ok(at) if Arc::ptr_eq(&old[at], &endpoint) || old[at] == endpoint => Arc::clone(&old[at]),
        _ => endpoint,
    };
    by_addr.into_values().map(reuse).collect()
}

/// The running tasks, by service.
#[derive(Debug, Default)]
pub(super) struct Feeds(Mutex<HashMap<String, Feed>>);

#[derive(Debug)]
struct Feed {
    snapshots: watch::Receiver<Arc<Endpoints>>,
    refresh: Arc<Notify>,
    users: watch::Sender<usize>,
}

impl Feeds {
    /// A watch of `service`, fed by the running task or else by a new one made with `start`, which gets the writing
    /// end and the wish to look again. The task ends `linger` after the last watch is gone, so that a client dropped
    /// and made anew does not cost the registry anything.
    ///
    /// The task runs on the runtime of whoever watched first. In a process with several runtimes the watches of the
    /// others stand still when that one ends.
    pub(super) fn watch<F>(
        self: &Arc<Self>,
        service: &str,
        linger: Duration,
        start: impl FnOnce(Publisher, Arc<Notify>) -> F,
    ) -> Watch
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut feeds = self.lock();
        if let Some(feed) = feeds.get(service) {
            // A closed channel is what a task leaves behind whose runtime has ended.
            if feed.snapshots.has_changed().is_ok() {
                return feed.watch();
            }
        }
        let publisher = Publisher::new();
        let feed =
            Feed { snapshots: publisher.subscribe(), refresh: Arc::new(Notify::new()), users: watch::Sender::new(0) };
        let watch = feed.watch();
        let Ok(runtime) = Handle::try_current() else {
            publisher.trouble("a watch needs a tokio runtime, and there is none here".to_owned());
            return watch;
        };
        let work = start(publisher, Arc::clone(&feed.refresh));
        let idle = Arc::clone(self).idle(service.to_owned(), feed.users.subscribe(), linger);
        runtime.spawn(async move {
            tokio::select! {
                () = work => {}
                () = idle => {}
            }
        });
        feeds.insert(service.to_owned(), feed);
        watch
    }

    /// The newest snapshots of what is watched.
    pub(super) fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let newest = |(service, feed): (&String, &Feed)| (service.clone(), Arc::clone(&feed.snapshots.borrow()));
        self.lock().iter().map(newest).collect()
    }

    /// Waits until nobody has watched for `linger`, and forgets the feed.
    async fn idle(self: Arc<Self>, service: String, mut users: watch::Receiver<usize>, linger: Duration) {
        loop {
            // An error means that the feed was replaced: nobody can come back to this task.
            if users.wait_for(|&n| n == 0).await.is_err() {
                return;
            }
            tokio::select! {
                _ = users.wait_for(|&n| n > 0) => continue,
                () = tokio::time::sleep(linger) => {}
            }
            let mut feeds = self.lock();
            // Watches are made under this lock, so nobody can come back between the look and the removal.
            if *users.borrow() == 0 {
                feeds.remove(&service);
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Feed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    fn watch(&self) -> Watch {
        Watch::new(self.snapshots.clone(), Arc::clone(&self.refresh), Some(Arc::new(User::new(&self.users))))
    }
}

/// Counts as one user for as long as it lives.
struct User(watch::Sender<usize>);

impl User {
    fn new(users: &watch::Sender<usize>) -> Self {
        users.send_modify(|n| *n += 1);
        Self(users.clone())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LINGER: Duration = Duration::from_secs(10);

    /// Counts how often a feed is started and how often one has ended.
    #[derive(Default)]
    struct Counts {
        started: AtomicUsize,
        ended: AtomicUsize,
    }

    struct End(Arc<Counts>);

    impl Drop for End {
        fn drop(&mut self) {
            self.0.ended.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn watch(feeds: &Arc<Feeds>, counts: &Arc<Counts>) -> Watch {
        feeds.watch("service1", LINGER, |publisher, _| {
            counts.started.fetch_add(1, Ordering::SeqCst);
            let end = End(Arc::clone(counts));
            async move {
                publisher.live(Vec::new(), None);
                std::future::pending::<()>().await;
                drop(end);
            }
        })
    }

    fn numbers(counts: &Counts) -> (usize, usize) {
        (counts.started.load(Ordering::SeqCst), counts.ended.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn a_feed_outlives_a_short_absence_but_not_a_long_one() {
        let (feeds, counts) = (Arc::new(Feeds::default()), Arc::new(Counts::default()));
        for _ in 0..3 {
            let first = watch(&feeds, &counts);
            let second = watch(&feeds, &counts).clone();
            drop(first);
            tokio::time::sleep(LINGER * 2).await;
            drop(second);
            tokio::time::sleep(LINGER / 2).await;
        }
        assert_eq!(numbers(&counts), (1, 0));
        tokio::time::sleep(LINGER).await;
        assert_eq!(numbers(&counts), (1, 1), "nobody looked for longer than the linger");
        assert!(feeds.lock().is_empty(), "the ended feed is forgotten");
        let _again = watch(&feeds, &counts);
        assert_eq!(numbers(&counts), (2, 1));
    }

    #[test]
    fn a_feed_whose_runtime_has_ended_is_replaced() {
        let (feeds, counts) = (Arc::new(Feeds::default()), Arc::new(Counts::default()));
        for round in 1..=2 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let mut watch = runtime.block_on(async { watch(&feeds, &counts) });
            runtime.block_on(async { while watch.changed().await.freshness != Freshness::Live {} });
            assert_eq!(numbers(&counts).0, round);
        }
    }

    #[test]
    fn trouble_keeps_the_list_and_equal_news_wakes_nobody() {
        let publisher = Publisher::new();
        let mut snapshots = publisher.subscribe();
        publisher.trouble("no answer".to_owned());
        assert_eq!(publisher.current().freshness, Freshness::Never);
        let endpoint = Endpoint::new(SocketAddr::from(([10, 0, 0, 7], 4000)));
        publisher.live(vec![endpoint.clone()], None);
        let good = publisher.current();
        assert_eq!((good.generation, good.problem.as_deref()), (1, None));
        publisher.trouble("no answer".to_owned());
        let old = publisher.current();
        assert!(matches!(old.freshness, Freshness::Stale(_)));
        assert_eq!((old.generation, old.problem.as_deref()), (1, Some("no answer")));
        assert_eq!(old.endpoints, good.endpoints);
        snapshots.mark_unchanged();
        publisher.trouble("no answer".to_owned());
        assert!(!snapshots.has_changed().unwrap(), "the same trouble again is no news");
        publisher.live(vec![endpoint], None);
        assert_eq!(publisher.current().generation, 1, "the list never changed");
    }
}
