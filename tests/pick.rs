//! Picking an endpoint, watching a service, and seeing everything that is known.
//!
//! Owns only tests. Look next at `node_states.rs` for which endpoints are chosen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use picom::balance::RoundRobin;
use picom::registry::{Endpoint, Endpoints, Freshness, Instance, Memory, Registration, Registry, RegistryError, Watch};
use picom::{CancellationToken, Code, NodeState, Picom};
use support::instance;
use support::nodes::builder;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

fn node(registry: &Memory) -> Picom {
    builder("picker", registry).build().unwrap()
}

#[tokio::test]
async fn what_is_known_is_picked_at_once_and_each_in_turn() {
    let registry = Memory::new();
    let mut given = instance("mongo", "one", 4000);
    given.meta = [("set".to_owned(), "rs0".to_owned())].into();
    let _one = registry.register(given.clone()).await.unwrap();
    let _two = registry.register(instance("mongo", "two", 4001)).await.unwrap();
    let node = node(&registry);
    let pick =
        || node.pick("mongo").balance(RoundRobin).into_future().now_or_never().expect("without waiting").unwrap();
    let picked: BTreeSet<_> = (0..2).map(|_| pick().id.clone()).collect();
    assert_eq!(picked, BTreeSet::from(["one".to_owned(), "two".to_owned()]));
    let one = [pick(), pick()].into_iter().find(|endpoint| endpoint.id == "one").unwrap();
    assert_eq!((one.addr, one.incarnation), ("127.0.0.1:4000".parse().unwrap(), Some(given.incarnation)));
    assert_eq!((&one.meta, &one.status), (&given.meta, &given.status));
}

#[tokio::test]
async fn what_is_picked_says_what_it_says_now() {
    let registry = Memory::new();
    let registration = registry.register(instance("mongo", "one", 4000)).await.unwrap();
    let node = node(&registry);
    for state in [NodeState::Running, NodeState::Doing, NodeState::Running] {
        let status = picom::NodeStatus::now(state, Some("a test"));
        registration.set_status(status.clone());
        assert_eq!(node.pick("mongo").await.unwrap().status, status);
    }
}

#[tokio::test]
async fn a_pick_waits_for_an_instance_that_runs() {
    let registry = Memory::new();
    let node = node(&registry);
    let mut pick = node.pick("mongo").into_future();
    assert!((&mut pick).now_or_never().is_none());
    let mut given = instance("mongo", "one", 4000);
    given.status.state = NodeState::Up;
    let registration = registry.register(given).await.unwrap();
    tokio::task::yield_now().await;
    assert!((&mut pick).now_or_never().is_none(), "it is there, but not started");
    registration.set_status(picom::NodeStatus::now(NodeState::Running, None));
    assert_eq!(pick.await.unwrap().id, "one");
}

#[tokio::test(start_paused = true)]
async fn a_pick_gives_up_after_five_minutes_and_says_what_was_missing() {
    let registry = Memory::new();
    let begun = Instant::now();
    let error = node(&registry).pick("mongo").await.unwrap_err();
    assert_eq!((error.code(), begun.elapsed().as_secs()), (Code::DeadlineExceeded, 300), "{error}");
    let text = error.to_string();
    assert!(text.contains("`mongo`") && text.contains(&registry.describe()) && text.contains("300s"), "{text}");

    let mut given = instance("mongo", "one", 4000);
    given.status = picom::NodeStatus::now(NodeState::Stopped, Some("disk full"));
    let _stopped = registry.register(given).await.unwrap();
    let begun = Instant::now();
    let error = node(&registry).pick("mongo").timeout(Duration::from_secs(7)).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 7);
    assert!(error.to_string().contains("127.0.0.1:4000 is stopped: disk full"), "{error}");

    let impatient = builder("picker", &registry).pick_wait(Duration::from_secs(2)).build().unwrap();
    let begun = Instant::now();
    impatient.pick("mongo").await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 2, "the option of the node");
    let at_once = node(&registry).pick("mongo").timeout(Duration::ZERO).await.unwrap_err();
    assert_eq!((at_once.code(), begun.elapsed().as_secs()), (Code::DeadlineExceeded, 2));
    let for_ever = node(&registry).pick("mongo").timeout(Duration::MAX).into_future();
    assert!(tokio::time::timeout(Duration::from_secs(1_000_000), for_ever).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_registrys_trouble_is_told_when_nothing_could_be_picked() {
    let registry = Counting::new();
    let problem = Some("no answer from 127.0.0.1:8500".to_owned());
    registry.snapshots.send_replace(Arc::new(Endpoints { problem, ..Endpoints::unknown() }));
    let node = Picom::builder("picker").registry(registry).build().unwrap();
    let error = node.pick("mongo").await.unwrap_err();
    assert!(error.to_string().contains("no answer from 127.0.0.1:8500"), "{error}");
}

#[tokio::test]
async fn a_token_ends_the_waiting() {
    let node = node(&Memory::new());
    let token = CancellationToken::new();
    let mut pick = node.pick("mongo").token(token.clone()).into_future();
    assert!((&mut pick).now_or_never().is_none());
    token.cancel();
    let error = pick.await.unwrap_err();
    assert_eq!(error.code(), Code::Cancelled);
    assert!(error.to_string().contains("`mongo`"), "{error}");
    let late = node.pick("mongo").token(token).await.unwrap_err();
    assert_eq!(late.code(), Code::Cancelled, "also one that was cancelled before");
}

#[tokio::test]
async fn an_illegal_name_is_an_error_at_once() {
    let node = node(&Memory::new());
    let error = node.pick("no such/name").into_future().now_or_never().expect("without waiting").unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let snapshot = node.watch("no such/name").next().await.unwrap();
    assert_eq!(snapshot.freshness, Freshness::Never);
    assert!(snapshot.problem.as_deref().unwrap().contains("no such/name"), "{snapshot:?}");
}

#[tokio::test]
async fn a_pick_that_is_dropped_leaves_nothing_behind() {
    let registry = Counting::new();
    let (keep, snapshots) = (Arc::clone(&registry.keep), registry.snapshots.clone());
    let node = Picom::builder("picker").registry(registry).build().unwrap();
    drop(node.pick("mongo"));
    assert_eq!(snapshots.receiver_count(), 0, "nothing is watched until it is awaited");
    assert!(node.pick("mongo").into_future().now_or_never().is_none());
    let before = (Arc::strong_count(&keep), snapshots.receiver_count());
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut picks: Vec<_> = (0..100).map(|_| node.pick("mongo").into_future()).collect();
    assert!(picks.iter_mut().all(|pick| pick.now_or_never().is_none()));
    assert_eq!(Arc::strong_count(&keep), before.0 + 100);
    drop(picks);
    assert_eq!((Arc::strong_count(&keep), snapshots.receiver_count()), before);
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), tasks);
}

#[tokio::test]
async fn many_picks_of_one_service_share_one_watch() {
    let registry = Counting::new();
    let (keep, snapshots) = (Arc::clone(&registry.keep), registry.snapshots.clone());
    let node = Picom::builder("picker").registry(registry).build().unwrap();
    let picks: Vec<_> = (0..100).map(|_| tokio::spawn(node.pick("mongo").into_future())).collect();
    while Arc::strong_count(&keep) < 100 {
        tokio::task::yield_now().await;
    }
    let endpoint = Endpoint::new("127.0.0.1:4000".parse().unwrap());
    let endpoints = vec![Arc::new(endpoint)];
    snapshots.send_replace(Arc::new(Endpoints { generation: 1, freshness: Freshness::Live, endpoints, problem: None }));
    for pick in picks {
        pick.await.unwrap().unwrap();
    }
    assert_eq!(node.nodes().keys().collect::<Vec<_>>(), ["watched once"]);
}

#[tokio::test]
async fn a_watch_is_a_stream_of_snapshots_with_the_newest_at_hand() {
    let registry = Memory::new();
    let node = node(&registry);
    let mut snapshots = node.watch("mongo");
    let first = snapshots.next().await.unwrap();
    assert!(first.endpoints.is_empty() && first.freshness == Freshness::Live);
    assert!(snapshots.next().now_or_never().is_none(), "nothing has changed since");
    let next = tokio::spawn(async move {
        let snapshot = snapshots.next().await.unwrap();
        (snapshot, snapshots)
    });
    tokio::task::yield_now().await;
    let _one = registry.register(instance("mongo", "one", 4000)).await.unwrap();
    let (second, mut snapshots) = next.await.unwrap();
    assert_eq!(second.endpoints[0].id, "one");
    let _two = registry.register(instance("mongo", "two", 4001)).await.unwrap();
    let _three = registry.register(instance("mongo", "three", 4002)).await.unwrap();
    assert_eq!(snapshots.current().endpoints.len(), 3);
    assert_eq!(snapshots.next().await.unwrap().endpoints.len(), 3, "only the newest counts");
    assert!(snapshots.next().now_or_never().is_none());
}

#[tokio::test]
async fn nodes_are_all_that_the_registry_knows() {
    let registry = Memory::new();
    let _mongo = registry.register(instance("mongo", "one", 4000)).await.unwrap();
    let _redis = registry.register(instance("redis", "one", 5000)).await.unwrap();
    let node = node(&registry);
    let known = node.nodes();
    assert_eq!(known.keys().collect::<Vec<_>>(), ["mongo", "redis"]);
    assert_eq!(known["redis"].endpoints[0].addr.port(), 5000);
    let broken = Picom::builder("picker").registry(Memory::new());
    assert!(broken.build().unwrap().nodes().is_empty());
}

/// A registry with one snapshot that a test changes, which counts who looks.
#[derive(Debug)]
struct Counting {
    snapshots: watch::Sender<Arc<Endpoints>>,
    keep: Arc<()>,
    watches: std::sync::atomic::AtomicUsize,
}

impl Counting {
    fn new() -> Self {
        let snapshots = watch::Sender::new(Arc::new(Endpoints::unknown()));
        Self { snapshots, keep: Arc::new(()), watches: Default::default() }
    }
}

#[async_trait::async_trait]
impl Registry for Counting {
    fn describe(&self) -> String {
        "counting registry".to_owned()
    }

    async fn register(&self, _: Instance) -> Result<Registration, RegistryError> {
        Err(RegistryError::Invalid("nothing can be registered here".to_owned()))
    }

    fn watch(&self, _: &str) -> Watch {
        self.watches.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Watch::new(self.snapshots.subscribe(), Arc::new(Notify::new()), Some(Arc::clone(&self.keep) as _))
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        let name = match self.watches.load(std::sync::atomic::Ordering::SeqCst) {
            1 => "watched once",
            _ => "watched more than once",
        };
        [(name.to_owned(), Arc::clone(&self.snapshots.borrow()))].into()
    }
}
