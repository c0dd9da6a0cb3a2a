//! Which endpoint gets a call: slow ones, failing ones, and what the user chooses.
//!
//! Owns only tests, with real servers on loopback. Bounds over many servers and clients are in `src/balance/tests/`, in virtual
//! time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use futures::{FutureExt, StreamExt, stream};
use picom::balance::{
    Balancer, Boxcar, Candidate, Candidates, Circuit, ConsistentHash, EndpointState, LeastOutstanding, PeakEwma,
    Random, RoundRobin, Weighted, ZoneFirst,
};
use picom::registry::{Fixed, Memory};
use picom::{Builder, Code, Context, Methods, Picom, Status, Streaming};
use support::PATIENCE;
use support::nodes::{SERVICE, builder};
use support::peer::{CALL, Hello, Scripted};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// A server that can be made slow or sick.
struct Server {
    node: Picom,
    addr: SocketAddr,
    calls: Arc<AtomicUsize>,
    is_sick: Arc<AtomicBool>,
    /// One permit for each call of `wait` that may end.
    may_end: Arc<Semaphore>,
}

impl Server {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn server(registry: &Memory, pause: Duration, options: impl FnOnce(Builder) -> Builder) -> Server {
    let (calls, is_sick, may_end) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default(), Arc::new(Semaphore::new(0)));
    let (count, sick, waiting, sick_too) =
        (Arc::clone(&calls), Arc::clone(&is_sick), Arc::clone(&may_end), Arc::clone(&is_sick));
    let methods = Methods::new()
        .unary("work", move |_cx: Context, (): ()| {
            count.fetch_add(1, Ordering::SeqCst);
            let is_sick = sick.load(Ordering::SeqCst);
            async move {
                if is_sick {
                    return Err(Status::unavailable("out of order"));
                }
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                Ok(7u64)
            }
        })
        .unary("wait", move |_cx: Context, (): ()| {
            let waiting = Arc::clone(&waiting);
            async move {
                waiting.acquire().await.map(|permit| permit.forget()).map_err(|_| Status::internal("gone"))?;
                Ok::<_, Status>(7u64)
            }
        })
        .unary("refuse", move |_cx: Context, (): ()| {
            let is_sick = sick_too.load(Ordering::SeqCst);
            async move { if is_sick { Err(Status::invalid_argument("no")) } else { Ok(7u64) } }
        })
        .server_streaming("endless", |_cx: Context, (): ()| async move {
            Ok(stream::iter(0u64..).then(|n| async move {
                tokio::task::yield_now().await;
                n
            }))
        })
        .server_streaming("three", |_cx: Context, (): ()| async move { Ok(stream::iter(0u64..3)) })
        .client_streaming("sum", |_cx: Context, (): (), mut body: Streaming<u64>| async move {
            let mut sum = 0;
            while let Some(item) = body.message().await? {
                sum += item;
            }
            Ok::<_, Status>(sum)
        });
    let node = options(builder(SERVICE, registry)).build().unwrap();
    let addr = node.expose(methods).await.unwrap().local_addr();
    Server { node, addr, calls, is_sick, may_end }
}

async fn servers(count: usize) -> (Memory, Vec<Server>) {
    let registry = Memory::new();
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(server(&registry, Duration::ZERO, |builder| builder).await);
    }
    (registry, servers)
}

fn client(registry: &Memory) -> Picom {
    builder("caller", registry).build().unwrap()
}

fn states(client: &Picom) -> Vec<EndpointState> {
    client.channel(SERVICE).endpoints()
}

fn state(client: &Picom, addr: SocketAddr) -> EndpointState {
    states(client).into_iter().find(|state| state.endpoint.addr == addr).expect("it is listed")
}

async fn work(client: &Picom) -> Result<u64, Status> {
    client.fetch::<u64>(SERVICE, "work", ()).await
}

/// Who answered so many calls, made one after the other.
async fn answered(client: &Picom, calls: usize, policy: impl Balancer + Clone) -> BTreeMap<SocketAddr, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..calls {
        let call = client.fetch::<u64>(SERVICE, "work", ()).balance(policy.clone()).with_info();
        *counts.entry(call.await.unwrap().1.endpoint()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn a_slow_replica_gets_few_calls() {
    for (policy, bounds) in [(Arc::new(PeakEwma) as Arc<dyn Balancer>, 0..25), (Arc::new(RoundRobin), 90..110)] {
        let registry = Memory::new();
        let slow = server(&registry, Duration::from_millis(50), |builder| builder).await;
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(server(&registry, Duration::from_millis(2), |builder| builder).await);
        }
        let client = builder("caller", &registry).balance(Arc::clone(&policy)).build().unwrap();
        let callers = (0..8).map(|_| async {
            for _ in 0..50 {
                work(&client).await.unwrap();
            }
        });
        join_all(callers).await;
        let calls = slow.calls();
        assert!(bounds.contains(&calls), "{policy:?} gave the slow one of four {calls} of 400 calls");
        let (slow, other) = (state(&client, slow.addr), state(&client, others[0].addr));
        assert!(slow.latency > other.latency && slow.latency.is_some(), "{slow:?} {other:?}");
    }
}

/// Calls until this endpoint is open, as long as it takes.
async fn until_open(client: &Picom, addr: SocketAddr) -> Duration {
    for _ in 0..1000 {
        let _ = client.fetch::<u64>(SERVICE, "work", ()).balance(RoundRobin).await;
        if let Circuit::Open(left) = state(client, addr).circuit {
            return left;
        }
    }
    panic!("1000 calls did not eject it: {:?}", states(client));
}

#[tokio::test]
async fn a_failing_replica_is_ejected_and_comes_back_by_one_call() {
    let (registry, servers) = servers(3).await;
    let (sick, client) = (&servers[0], client(&registry));
    sick.is_sick.store(true, Ordering::SeqCst);
    let left = until_open(&client, sick.addr).await;
    assert!(left <= Duration::from_secs(5), "ejected for {left:?}");
    assert_eq!(sick.calls(), 5, "so many failures in a row, and no call more");
    for _ in 0..50 {
        work(&client).await.expect("the others are well");
    }
    assert_eq!(sick.calls(), 5, "it was called although it is ejected");
    sick.is_sick.store(false, Ordering::SeqCst);
    sleep(left).await;
    assert_eq!(state(&client, sick.addr).circuit, Circuit::Open(Duration::ZERO));
    // One of many calls at once finds out; the others do not wait for it.
    let wait = |_| client.fetch::<u64>(SERVICE, "wait", ()).balance(RoundRobin).with_info().into_future();
    let mut calls: Vec<_> = (0..30).map(wait).collect();
    for call in &mut calls {
        assert!(call.now_or_never().is_none());
    }
    assert_eq!(state(&client, sick.addr).circuit, Circuit::HalfOpen);
    assert_eq!(state(&client, sick.addr).outstanding, 1);
    servers.iter().for_each(|server| server.may_end.add_permits(30));
    let answers = timeout(PATIENCE, join_all(calls)).await.expect("some calls never ended");
    let of_it = answers.iter().filter(|answer| answer.as_ref().unwrap().1.endpoint() == sick.addr).count();
    assert_eq!(of_it, 1);
    assert_eq!(state(&client, sick.addr).circuit, Circuit::Closed);
    let before = sick.calls();
    for _ in 0..300 {
        work(&client).await.unwrap();
    }
    assert!(sick.calls() > before, "it is called again");
}

#[tokio::test]
async fn what_the_application_says_and_what_callers_do_ejects_nobody() {
    let (registry, servers) = servers(2).await;
    let client = client(&registry);
    servers[0].is_sick.store(true, Ordering::SeqCst);
    for _ in 0..40 {
        let _ = client.fetch::<u64>(SERVICE, "refuse", ()).balance(RoundRobin).await;
        let error = client.fetch::<u64>(SERVICE, "missing", ()).balance(RoundRobin).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented);
        let given_up = client.fetch::<u64>(SERVICE, "wait", ()).balance(RoundRobin).into_future();
        assert!(timeout(Duration::from_millis(1), given_up).await.is_err());
    }
    for state in states(&client) {
        assert_eq!(state.circuit, Circuit::Closed, "{state:?}");
    }
}

#[tokio::test]
async fn calls_that_are_not_answered_in_time_eject() {
    let (registry, servers) = servers(2).await;
    let client = client(&registry);
    // The second one answers.
    let answering = tokio::spawn({
        let may_end = Arc::clone(&servers[1].may_end);
        async move { may_end.add_permits(1000) }
    });
    answering.await.unwrap();
    for _ in 0..5 {
        let call = client.fetch::<u64>(SERVICE, "wait", ()).on(servers[0].addr);
        let error = call.timeout(Duration::from_millis(5)).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    }
    assert!(matches!(state(&client, servers[0].addr).circuit, Circuit::Open(_)), "{:?}", states(&client));
    for _ in 0..20 {
        client.fetch::<u64>(SERVICE, "wait", ()).await.expect("calls go to the one that answers");
    }
}

#[tokio::test]
async fn a_lost_connection_is_one_failure_however_many_calls_it_had() {
    let (registry, servers) = servers(1).await;
    let dying = Scripted::start(|mut peer, _| async move {
        peer.greet(&Hello::server(SERVICE)).await;
        for _ in 0..20 {
            peer.next(CALL).await;
        }
    })
    .await;
    drop(registry);
    let addrs = [servers[0].addr, dying.addr].map(|addr| addr.to_string());
    let client = Picom::builder("caller").registry(Fixed::new([(SERVICE, addrs)])).build().unwrap();
    let lost = |_| client.fetch::<u64>(SERVICE, "work", ()).on(dying.addr).retries(0).into_future();
    for result in join_all((0..20).map(lost)).await {
        assert_eq!(result.unwrap_err().code(), Code::Unavailable);
    }
    let state = state(&client, dying.addr);
    assert!(matches!(state.circuit, Circuit::Resting(left) if left <= Duration::from_millis(50)), "{state:?}");
    assert_eq!(state.outstanding, 0);
}

#[tokio::test]
async fn what_is_known_of_an_endpoint_survives_changes_of_the_list() {
    let (registry, mut servers) = servers(3).await;
    let client = client(&registry);
    let (sick, waited_for) = (servers[0].addr, servers[1].addr);
    servers[0].is_sick.store(true, Ordering::SeqCst);
    until_open(&client, sick).await;
    let mut waiting = client.fetch::<u64>(SERVICE, "wait", ()).on(waited_for).into_future();
    assert!((&mut waiting).now_or_never().is_none());
    let before = states(&client);
    let gone = servers.pop().unwrap();
    gone.node.end().await.unwrap();
    let new = server(&registry, Duration::ZERO, |builder| builder).await;
    let after = states(&client);
    assert!(after.iter().any(|state| state.endpoint.addr == new.addr), "{after:?}");
    assert!(after.iter().all(|state| state.endpoint.addr != gone.addr), "{after:?}");
    assert!(matches!(state(&client, sick).circuit, Circuit::Open(_)), "before {before:?}, after {after:?}");
    assert_eq!(state(&client, waited_for).outstanding, 1, "before {before:?}, after {after:?}");
    assert!(state(&client, waited_for).latency.is_some(), "before {before:?}, after {after:?}");
    servers[1].may_end.add_permits(1);
    waiting.await.unwrap();
    assert_eq!(state(&client, waited_for).outstanding, 0);
    // The process that comes back at an address is another one.
    let port = sick.port();
    servers.remove(0).node.end().await.unwrap();
    let _again = server(&registry, Duration::ZERO, |builder| builder.port(port)).await;
    assert_eq!(state(&client, sick).circuit, Circuit::Closed);
}

#[tokio::test]
async fn whatever_becomes_of_calls_none_of_them_is_counted_for_ever() {
    let (registry, servers) = servers(2).await;
    let client = client(&registry);
    let mut open = Vec::new();
    for _ in 0..3 {
        // Answered, wrong, refused by the application, and late.
        work(&client).await.unwrap();
        client.fetch::<u64>(SERVICE, "missing", ()).await.unwrap_err();
        client.fetch::<String>(SERVICE, "work", ()).await.unwrap_err();
        client.fetch::<u64>(SERVICE, "wait", ()).timeout(Duration::from_millis(1)).await.unwrap_err();
        client.fetch::<u64>(SERVICE, "wait", ()).timeout(Duration::ZERO).await.unwrap_err();
        // Dropped, before and after it was sent.
        drop(client.fetch::<u64>(SERVICE, "work", ()).into_future());
        let mut dropped = client.fetch::<u64>(SERVICE, "wait", ()).into_future();
        assert!((&mut dropped).now_or_never().is_none());
        drop(dropped);
        // Streams: read to the end, cut, refused, collected, sent; and two that stay.
        let mut whole = client.stream::<u64>(SERVICE, "three", ()).await.unwrap();
        while whole.message().await.unwrap().is_some() {}
        let mut cut = client.stream::<u64>(SERVICE, "endless", ()).await.unwrap();
        assert_eq!(cut.message().await.unwrap(), Some(0));
        drop(cut);
        drop(client.stream::<u64>(SERVICE, "endless", ()).await.unwrap());
        client.fetch::<u64>(SERVICE, "three", ()).multiple().limit(2).await.unwrap_err();
        let sum = client.fetch::<u64>(SERVICE, "sum", ()).body(stream::iter([1u64, 2])).await;
        assert_eq!(sum.unwrap(), 3);
        let mut stays = client.stream::<u64>(SERVICE, "endless", ()).await.unwrap();
        stays.message().await.unwrap();
        open.push(tokio::spawn(async move { while let Ok(Some(_)) = stays.message().await {} }));
        let mut waits = client.fetch::<u64>(SERVICE, "wait", ()).into_future();
        assert!((&mut waits).now_or_never().is_none());
        open.push(tokio::spawn(async move { drop(waits.await) }));
    }
    let outstanding = |client: &Picom| states(client).iter().map(|state| state.outstanding).sum::<u32>();
    assert_eq!(outstanding(&client), 6, "{:?}", states(&client));
    // Lost with their connections, and tried elsewhere.
    drop(servers);
    for call in open {
        timeout(PATIENCE, call).await.expect("a call never ended").unwrap();
    }
    assert_eq!(outstanding(&client), 0, "{:?}", states(&client));
}

#[tokio::test]
async fn of_a_lone_endpoint_nothing_is_counted_until_there_is_another() {
    let (registry, servers) = servers(1).await;
    let client = client(&registry);
    let mut waiting = client.fetch::<u64>(SERVICE, "wait", ()).into_future();
    assert!((&mut waiting).now_or_never().is_none());
    work(&client).await.unwrap();
    let alone = state(&client, servers[0].addr);
    assert_eq!((alone.outstanding, alone.latency, alone.circuit), (0, None, Circuit::Closed));
    let second = server(&registry, Duration::ZERO, |builder| builder).await;
    servers[0].may_end.add_permits(1);
    waiting.await.unwrap();
    assert_eq!(state(&client, servers[0].addr).outstanding, 0, "one that was not counted is not taken back");
    for addr in [servers[0].addr, second.addr] {
        client.fetch::<u64>(SERVICE, "work", ()).on(addr).await.unwrap();
        assert_eq!(state(&client, addr).latency, None, "the first answer pays for what is made once");
        client.fetch::<u64>(SERVICE, "work", ()).on(addr).await.unwrap();
        assert!(state(&client, addr).latency.is_some(), "{:?}", states(&client));
    }
}

#[tokio::test]
async fn a_policy_is_chosen_for_a_node_a_client_or_a_call() {
    /// The one with the highest address.
    #[derive(Clone, Copy, Debug)]
    struct Last;
    impl Balancer for Last {
        fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
            among.iter().max_by_key(|candidate| candidate.endpoint().addr)
        }
    }
    let (registry, servers) = servers(3).await;
    let last = servers.iter().map(|server| server.addr).max().unwrap();
    let default = client(&registry);
    assert_eq!(answered(&default, 20, Last).await, [(last, 20)].into(), "for a call");
    assert_eq!(answered(&default, 30, RoundRobin).await.into_values().collect::<Vec<_>>(), [10; 3]);
    assert!(answered(&default, 200, Random).await.len() == 3 && answered(&default, 200, Weighted).await.len() == 3);
    assert_eq!(answered(&default, 100, LeastOutstanding).await.len(), 3);
    assert_eq!(default.pick(SERVICE).balance(Last).await.unwrap().addr, last, "for a pick");
    let node = builder("caller", &registry).balance(Last).build().unwrap();
    for _ in 0..20 {
        assert_eq!(node.pick(SERVICE).await.unwrap().addr, last, "for a node");
        let call = node.fetch::<u64>(SERVICE, "work", ()).with_info();
        assert_eq!(call.await.unwrap().1.endpoint(), last, "for a node");
    }
    // For a client, in the way in which typed ones are made.
    let before: Vec<_> = servers.iter().map(Server::calls).collect();
    let channel = default.channel(SERVICE).balance(Last);
    let worker: typed::WorkClient = channel.client();
    for _ in 0..20 {
        assert_eq!(worker.work().await.unwrap(), 7);
    }
    for (server, before) in servers.iter().zip(before) {
        let expected = if server.addr == last { 20 } else { 0 };
        assert_eq!(server.calls() - before, expected, "for a client");
    }
}

mod typed {
    use picom::Status;

    #[picom::service]
    #[allow(dead_code, reason = "only its client is used")]
    pub(crate) trait Work {
        async fn work(&self) -> Result<u64, Status>;
    }
}

#[tokio::test]
async fn calls_with_one_key_go_to_one_endpoint() {
    let (registry, servers) = servers(4).await;
    let (one, another) = (client(&registry), client(&registry));
    let mut owners = BTreeMap::new();
    for user in 0..40 {
        let key = format!("user {user}");
        for client in [&one, &another, &one] {
            let call = client.fetch::<u64>(SERVICE, "work", ()).balance(ConsistentHash).key(&key).with_info();
            let endpoint = call.await.unwrap().1.endpoint();
            assert_eq!(*owners.entry(user).or_insert(endpoint), endpoint, "{key} moved");
        }
        let picked = one.pick(SERVICE).balance(ConsistentHash).key(&key).await.unwrap();
        assert_eq!(picked.addr, owners[&user], "a pick says where the call would go");
    }
    assert!(servers.iter().all(|server| server.calls() > 0), "{owners:?}");
}

#[tokio::test]
async fn zone_and_weight_are_registered_and_honoured() {
    let registry = Memory::new();
    let near = server(&registry, Duration::ZERO, |builder| builder.zone("near").weight(3)).await;
    let far = server(&registry, Duration::ZERO, |builder| builder.zone("far")).await;
    let client = builder("caller", &registry).zone("near").balance(ZoneFirst::new(PeakEwma)).build().unwrap();
    for _ in 0..50 {
        work(&client).await.unwrap();
    }
    assert_eq!((near.calls(), far.calls()), (50, 0));
    let counts = answered(&client, 400, Weighted).await;
    assert!((250..350).contains(&counts[&near.addr]), "three of four: {counts:?}");
    near.node.end().await.unwrap();
    work(&client).await.expect("the zone is empty, so others are called");
    assert_eq!(Picom::builder("x").weight(0).build().unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn of_more_than_32_endpoints_a_client_uses_32() {
    for (count, used) in [(32, 32), (33, 32), (100, 32)] {
        let addrs: Vec<_> = (0..count).map(|n| format!("127.0.0.1:{}", 20_000 + n)).collect();
        let client = Picom::builder("caller").registry(Fixed::new([(SERVICE, addrs)])).build().unwrap();
        let states = states(&client);
        assert_eq!(states.len(), count);
        assert_eq!(states.iter().filter(|state| state.used).count(), used, "of {count}");
    }
}

#[tokio::test]
async fn servers_say_how_busy_they_are_to_callers_that_ask() {
    let (registry, servers) = servers(2).await;
    let (busy, calm) = (&servers[0], &servers[1]);
    let (holder, asks, does_not_ask) = (client(&registry), client(&registry), client(&registry));
    let held: Vec<_> =
        (0..40).map(|_| tokio::spawn(holder.fetch::<u64>(SERVICE, "wait", ()).on(busy.addr).into_future())).collect();
    let reported = async |client: &Picom, addr| {
        client.fetch::<u64>(SERVICE, "work", ()).on(addr).balance(Boxcar::new()).await.unwrap();
        state(client, addr).reported
    };
    // The calls that are held are on their way.
    let load = timeout(PATIENCE, async {
        loop {
            if let Some(load) = reported(&asks, busy.addr).await.filter(|load| *load > 0.6) {
                return load;
            }
        }
    });
    let load = load.await.expect("40 calls under way are not reported");
    let calm = reported(&asks, calm.addr).await.expect("an idle server reports nothing");
    assert!(calm < 0.1 && load < 0.7, "40 of 64 are {load}, and none are {calm}");
    does_not_ask.fetch::<u64>(SERVICE, "work", ()).on(busy.addr).await.unwrap();
    assert_eq!(state(&does_not_ask, busy.addr).reported, None, "who does not ask is told nothing");
    busy.may_end.add_permits(40);
    for call in held {
        call.await.unwrap().unwrap();
    }
}
