//! What a stranger may try against registries, and what combined registries may hide.
//!
//! Owns only tests. Look next at `registry_manifest.rs`, `registry_broadcast_hostile.rs` and `registry_wrappers.rs`.
#![cfg(all(feature = "manifest", feature = "broadcast"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use picom::registry::{
    Combine, Details, Endpoint, Endpoints, Freshness, Instance, Manifest, Registration, RegistrationState, Registry,
    RegistryError, Tier, Watch,
};
use picom::{NodeState, NodeStatus};
use support::broadcast::Network;
use support::members::{details, hear, hello, joined, listening, say};
use support::{PATIENCE, eventually, instance, until};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// A frame that says how one member is doing.
fn pulse(beat: [u64; 5]) -> Vec<u8> {
    let mut frame = vec![1, 0x91, 0x95];
    for number in beat {
        frame.push(0xcf);
        frame.extend(number.to_be_bytes());
    }
    frame
}

/// Lets everybody who comes this way through to `address`, from now on.
fn opened(way: TcpListener, address: String) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (mut from, _) = way.accept().await.unwrap();
            let mut to = TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut from, &mut to).await });
        }
    })
}

#[tokio::test]
async fn a_stranger_who_joins_under_a_members_name_does_not_keep_that_member_out() {
    let (hub, address) = listening(Manifest::new()).await;
    // The member's way leads through here, and is blocked until the stranger is in.
    let way = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let member = Manifest::new().join(way.local_addr().unwrap().to_string());
    member.register("service1", details(4000)).unwrap();
    let mut stranger = joined(&address, member.owner().unwrap()).await;
    let passing = opened(way, address);
    let deadline = Instant::now() + Duration::from_secs(10);
    while hub.get("service1").unwrap().is_empty() {
        assert!(Instant::now() < deadline, "a stranger under its name keeps a member out");
        // It goes on speaking, so that it is not cut off.
        let _ = say(&mut stranger, &pulse([7, 1, 1, 0, 0])).await;
        sleep(Duration::from_millis(200)).await;
    }
    passing.abort();
}

#[tokio::test]
async fn a_stranger_who_joins_under_the_name_of_whom_a_member_dials_does_not_keep_the_two_apart() {
    let (upstream, address) = listening(Manifest::new()).await;
    upstream.register("service1", details(4000)).unwrap();
    // The member's way to it leads through here, and is blocked until the stranger is in.
    let way = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (member, own) = listening(Manifest::new().join(way.local_addr().unwrap().to_string())).await;
    let mut stranger = joined(&own, upstream.owner().unwrap()).await;
    let passing = opened(way, address);
    let deadline = Instant::now() + Duration::from_secs(10);
    while member.get("service1").unwrap().is_empty() {
        assert!(Instant::now() < deadline, "a stranger under its name keeps the other member out");
        // It goes on speaking, so that it is not cut off.
        let _ = say(&mut stranger, &pulse([7, 1, 1, 0, 0])).await;
        sleep(Duration::from_millis(200)).await;
    }
    passing.abort();
}

#[tokio::test]
async fn whoever_knows_no_secret_cannot_make_a_member_take_another_name() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap().to_string();
    let member = Manifest::new().join(address).secret("a secret of more than sixteen bytes");
    let name = member.owner().unwrap();
    // That the name is taken, without a proof, with a false one, and with the member's own.
    for answer in 0..3 {
        let (mut stream, _) = timeout(PATIENCE, upstream.accept()).await.unwrap().unwrap();
        let _hello = hear(&mut stream).await.unwrap();
        say(&mut stream, &hello(7, true, None)).await.unwrap();
        let proof = hear(&mut stream).await.unwrap();
        let behind = vec![Vec::new(), vec![7; 32], proof].swap_remove(answer);
        say(&mut stream, &[vec![3], behind].concat()).await.unwrap();
        assert_eq!(hear(&mut stream).await, None, "it ends the connection");
    }
    assert_eq!((member.owner().unwrap(), member.refusals().takeovers), (name, 0));
}

#[tokio::test]
async fn why_a_connection_fails_is_told_also_when_it_is_closed_only_after_joining() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let member = Manifest::new().join(upstream.local_addr().unwrap().to_string());
    let mut watch = member.watch("service1");
    let (attempt, mut attempts) = tokio::sync::watch::channel(0);
    let closing = tokio::spawn(async move {
        loop {
            let (mut stream, _) = upstream.accept().await.unwrap();
            attempt.send_modify(|count| *count += 1);
            let Some(_hello) = hear(&mut stream).await else { continue };
            let _ = say(&mut stream, &hello(7, false, None)).await;
            let Some(_proof) = hear(&mut stream).await else { continue };
            let _ = say(&mut stream, &[]).await;
            // It has joined, and says something that is no frame.
            let _ = say(&mut stream, &[3, 0xc1]).await;
            while hear(&mut stream).await.is_some() {}
        }
    });
    let mut problems = Vec::new();
    loop {
        tokio::select! {
            list = watch.changed() => problems.extend(list.problem.clone()),
            all = attempts.wait_for(|count| *count > 6) => {
                all.unwrap();
                break;
            }
        }
    }
    assert!(!problems.is_empty());
    for problem in problems {
        assert!(problem.contains("it sent what is no frame"), "{problem}");
    }
    closing.abort();
}

#[tokio::test]
async fn a_registration_can_be_taken_back_however_often_its_owner_had_to_take_another_name() {
    // A name is changed once per heartbeat at most.
    let hub = Manifest::new().heartbeat(Duration::from_millis(50)).lifetime(Duration::from_secs(1));
    let (hub, address) = listening(hub).await;
    let registration = Registry::register(&hub, instance("service1", "one", 4000)).await.unwrap();
    let watch = hub.watch("service1");
    assert_eq!(watch.current().endpoints.len(), 1);
    for round in 0..40 {
        let owner = hub.owner().unwrap();
        let mut stranger = joined(&address, 7 + round).await;
        // The last but one incarnation: the next one is past the limit.
        eventually("another name", async || {
            let _ = say(&mut stranger, &pulse([owner, (1 << 48) - 1, 1, 1, 0])).await;
            hub.owner().unwrap() != owner
        })
        .await;
    }
    drop(registration);
    eventually("it is taken back", async || hub.get("service1").unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_stranger_cannot_make_a_member_take_names_without_end() {
    let (hub, address) = listening(Manifest::new()).await;
    let mut stranger = joined(&address, 7).await;
    let mut names = vec![hub.owner().unwrap()];
    let began = Instant::now();
    // Half a heartbeat.
    while began.elapsed() < Duration::from_secs(1) {
        let owner = hub.owner().unwrap();
        if names.last() != Some(&owner) {
            names.push(owner);
        }
        let _ = say(&mut stranger, &pulse([owner, u64::MAX, 1, 1, 0])).await;
        tokio::task::yield_now().await;
    }
    assert!(hub.refusals().takeovers > 1, "{:?}", hub.refusals());
    assert_eq!(names.len(), 2, "every name fills a place in the tables of others for a lifetime");
}

#[tokio::test]
async fn whoever_holds_the_port_of_a_machine_cannot_move_the_others_elsewhere() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let member = Manifest::local_on(holder.local_addr().unwrap().port());
    member.register("service1", details(4000)).unwrap();
    let (mut stream, _) = timeout(PATIENCE, holder.accept()).await.unwrap().unwrap();
    assert!(hear(&mut stream).await.unwrap().starts_with(b"picom-m"));
    say(&mut stream, &hello(7, false, Some([203, 0, 113, 9]))).await.unwrap();
    assert_eq!(hear(&mut stream).await.unwrap(), [0u8; 0]);
    say(&mut stream, &[]).await.unwrap();
    eventually("it has joined", async || member.connected() == [7]).await;
    let address = member.get("service1").unwrap()[0].details.address;
    assert_eq!(address, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), "all of `local()` is on this machine");
}

#[derive(serde::Serialize)]
struct Change {
    o: u64,
    i: u64,
    b: u64,
    f: u64,
    t: u64,
    g: bool,
    p: Vec<(u64, u64, bytes::Bytes)>,
    x: Vec<u64>,
}

#[derive(serde::Serialize)]
struct Content {
    s: &'static str,
    p: u16,
    w: u16,
    n: &'static str,
    l: bool,
    m: BTreeMap<&'static str, String>,
}

/// One frame: what a member left that is gone, so many records of so many bytes.
fn left_behind(owner: u64, records: u64, bytes: usize) -> Vec<u8> {
    let m = BTreeMap::from([("fill", "x".repeat(bytes))]);
    let content = Content { s: "junk", p: 1, w: 1, n: "running", l: true, m };
    let body = bytes::Bytes::from(rmp_serde::to_vec_named(&content).unwrap());
    let p = (1..=records).map(|number| (number, number, body.clone())).collect();
    let change = Change { o: owner, i: 1, b: 1, f: 0, t: records, g: true, p, x: Vec::new() };
    [vec![3], rmp_serde::to_vec_named(&change).unwrap()].concat()
}

#[tokio::test]
async fn what_a_stranger_leaves_behind_does_not_keep_others_out_for_ever() {
    // As many members as there may be, and as many bytes.
    for (members, records, bytes) in [(1100, 1, 10), (140, 31, 8000)] {
        let (hub, address) = listening(Manifest::new()).await;
        let mut stranger = joined(&address, 7).await;
        for owner in 1000..1000 + members {
            if say(&mut stranger, &left_behind(owner, records, bytes)).await.is_err() {
                break;
            }
        }
        eventually("the table is full", async || hub.refusals().owners > 0).await;
        drop(stranger);
        eventually("the stranger is gone", async || hub.connected().is_empty()).await;
        let friend = Manifest::new().join(&address);
        let meta = [("size".to_owned(), "x".repeat(4000))].into();
        friend.register("good", Details { meta, ..details(4000) }).unwrap();
        let what = format!("a friend is known after {members} strangers left something");
        eventually(&what, async || hub.get("good").unwrap().len() == 1).await;
        eventually("a free is known", async || friend.services().unwrap().len() > 100).await;
        let late = friend.register("late", details(4001)).unwrap();
        eventually("news are known", async || hub.get("late").unwrap().len() == 1).await;
        friend.free(late.id).unwrap();
        eventually("a free is known", async || hub.get("late").unwrap().is_empty()).await;
    }
}

#[tokio::test]
async fn whoever_claims_to_be_this_very_member_is_not_believed() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let member =
        Manifest::new().join(upstream.local_addr().unwrap().to_string()).secret("a secret of more than sixteen bytes");
    let claiming = tokio::spawn(async move {
        loop {
            let (mut stream, _) = upstream.accept().await.unwrap();
            let Some(_hello) = hear(&mut stream).await else { continue };
            let _ = say(&mut stream, &hello(7, true, None)).await;
            let Some(_proof) = hear(&mut stream).await else { continue };
            let _ = say(&mut stream, &[2]).await;
        }
    });
    let registration = Registry::register(&member, instance("service1", "one", 4000)).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    let state = registration.state();
    assert!(matches!(state, RegistrationState::Retrying(_)), "nobody was reached, but it is {state:?}");
    let seen = member.watch("service2").current();
    assert_ne!(seen.freshness, Freshness::Live, "who is cut off cannot know that nobody is there");
    claiming.abort();
}

/// A registry that says one thing.
#[derive(Debug)]
struct Says(Endpoints);

#[async_trait::async_trait]
impl Registry for Says {
    fn describe(&self) -> String {
        "told".to_owned()
    }
    async fn register(&self, _: Instance) -> Result<Registration, RegistryError> {
        Err(RegistryError::Invalid("nothing is registered here".to_owned()))
    }
    fn watch(&self, _: &str) -> Watch {
        Watch::fixed(self.0.clone())
    }
    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        BTreeMap::new()
    }
}

fn says(freshness: Freshness, tier: Tier, incarnation: u64, state: NodeState) -> Says {
    let endpoint = Endpoint {
        incarnation: Some(incarnation),
        tier,
        status: NodeStatus::only(state),
        ..Endpoint::new(([127, 0, 0, 1], 4000).into())
    };
    Says(Endpoints { generation: 1, freshness, endpoints: vec![Arc::new(endpoint)], problem: None })
}

#[tokio::test]
async fn in_a_union_who_remembers_does_not_overrule_who_knows() {
    let remembered = || says(Freshness::Stale(Instant::now()), Tier::Unhealthy, 7, NodeState::Running);
    let known = |incarnation, state| says(Freshness::Live, Tier::Healthy, incarnation, state);
    // It was stopped since the first registry was lost.
    let union = Combine::union().and(remembered()).and(known(7, NodeState::Stopped));
    let mut watch = union.watch("service1");
    let list = until(&mut watch, "one", |list| list.endpoints.len() == 1).await;
    assert_eq!(list.endpoints[0].status.state, NodeState::Stopped, "a stopped instance gets calls: {list:?}");
    assert!(list.usable().is_empty());
    // It was restarted since.
    let union = Combine::union().and(remembered()).and(known(8, NodeState::Running));
    let mut watch = union.watch("service1");
    let list = until(&mut watch, "one", |list| list.endpoints.len() == 1).await;
    assert_eq!(list.endpoints[0].incarnation, Some(8), "calls go to a process that is not there: {list:?}");
}

#[tokio::test]
async fn a_recording_of_a_dead_process_does_not_displace_the_living_one_at_its_address() {
    const KEY: [u8; 32] = [42; 32];
    let network = Network::new();
    let registry = || network.registry().key(KEY).unwrap().period(Duration::from_millis(500));
    let stranger = network.stranger();
    let of = |incarnation| Instance { incarnation, ..instance("service1", "one", 4000) };
    // The first process is recorded, and dies.
    let mut recorded = Vec::new();
    {
        let first = registry();
        let _registration = first.register(of(1)).await.unwrap();
        for _ in 0..4 {
            recorded.push(stranger.hear().await);
        }
    }
    let later = recorded.split_off(2);
    sleep(Duration::from_millis(300)).await;
    // Another takes its place, and an observer comes that never heard of the first.
    let second = registry();
    let _registration = second.register(of(2)).await.unwrap();
    let observer = registry();
    let mut watch = observer.watch("service1");
    until(&mut watch, "the living one", |list| list.endpoints.len() == 1).await;
    assert_eq!(watch.current().endpoints[0].incarnation, Some(2));
    for datagram in &recorded {
        stranger.send(datagram).await;
        sleep(Duration::from_millis(20)).await;
    }
    // It lasts no longer than two periods of the living one, and the same recording does it once only.
    let is = |list: &Endpoints| list.endpoints.first().and_then(|endpoint| endpoint.incarnation) == Some(2);
    let back = timeout(Duration::from_millis(2500), until(&mut watch, "the living one is back", is)).await;
    assert!(back.is_ok(), "a recording displaced the living one; refused: {:?}", observer.refused());
    for datagram in &later {
        stranger.send(datagram).await;
        sleep(Duration::from_millis(20)).await;
    }
    assert!(is(&watch.current()), "the rest of the recording displaced the living one again");
}

#[tokio::test]
async fn idle_connections_of_a_stranger_do_not_keep_members_out() {
    let (hub, address) = listening(Manifest::new().secret("a secret of more than sixteen bytes")).await;
    // It knows no secret, says nothing, and comes again whenever it is cut off.
    let crowd: Vec<_> = (0..64)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move {
                loop {
                    let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
                    let _ = stream.read_u8().await;
                    sleep(Duration::from_millis(20)).await;
                }
            })
        })
        .collect();
    eventually("the crowd is there", async || hub.refusals().joins > 32).await;
    let friend = Manifest::new().join(&address).secret("a secret of more than sixteen bytes");
    friend.register("good", details(4000)).unwrap();
    eventually("a member joins in spite of them", async || hub.get("good").unwrap().len() == 1).await;
    crowd.iter().for_each(|stranger| stranger.abort());
}
