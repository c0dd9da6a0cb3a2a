//! Finding each other by datagrams on loopback: who comes, changes and leaves, by every way to send.
//!
//! Owns only tests. Look next at `registry_broadcast_hostile.rs` for what strangers may try, and at
//! `registry_broadcast_processes.rs` for processes that die.
#![cfg(feature = "broadcast")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use picom::registry::broadcast::{Event, Gone, Refusal};
use picom::registry::{Broadcast, Freshness, RegistrationState, Registry, RegistryError};
use picom::{Context, Methods, NodeState, NodeStatus, Picom, Status, args};
use support::broadcast::{Network, Port};
use support::{PATIENCE, eventually, instance, state, until};
use tokio::time::{Instant, timeout};

/// So long that nobody is heard again within a test.
const LONG: Duration = Duration::from_secs(60);

async fn next_event(events: &mut (impl futures::Stream<Item = Event> + Unpin)) -> Event {
    timeout(PATIENCE, events.next()).await.expect("an event comes").expect("events do not end")
}

/// Both find each other, whatever way their datagrams take.
async fn meet(one: &Broadcast, two: &Broadcast) {
    let (mut at_one, mut at_two) = (one.watch("service1"), two.watch("service1"));
    let mut given = instance("service1", "one", 4000);
    given.zone = Some("north".to_owned());
    given.tags = vec!["blue".to_owned()];
    given.meta.insert("version".to_owned(), "1.2.3".to_owned());
    let first = one.register(given.clone()).await.unwrap();
    let _second = two.register(instance("service1", "two", 4001)).await.unwrap();
    assert_eq!(first.state(), RegistrationState::Registered);
    for watch in [&mut at_one, &mut at_two] {
        let found = until(watch, "both are known", |snapshot| snapshot.endpoints.len() == 2).await;
        assert_eq!(found.freshness, Freshness::Live);
        let found = found.endpoints.iter().find(|endpoint| endpoint.id == "one").unwrap();
        assert_eq!(found.incarnation, Some(given.incarnation));
        assert_eq!((found.addr.port(), found.weight), (4000, 1));
        assert_eq!((&found.zone, &found.tags, &found.meta), (&given.zone, &given.tags, &given.meta));
        assert_eq!(found.status, given.status);
    }
    assert_eq!(two.known()["service1"].endpoints.len(), 2);
    first.leave().await.unwrap();
    until(&mut at_two, "the first has left", |snapshot| snapshot.endpoints.len() == 1).await;
}

#[tokio::test]
async fn nodes_find_each_other_by_broadcast() {
    let network = Network::new();
    meet(&network.registry(), &network.registry()).await;
}

#[tokio::test]
async fn nodes_find_each_other_by_multicast() {
    let port = Port::new();
    let group = format!("239.77.1.2:{}", port.number());
    meet(&Broadcast::multicast(&group).unwrap(), &Broadcast::multicast(&group).unwrap()).await;
}

#[tokio::test]
async fn nodes_find_each_other_by_a_list_of_addresses() {
    let port = Port::new();
    let list = [1, 2].map(|host| format!("127.0.0.{host}:{}", port.number()));
    let registry = || Broadcast::unicast(list.iter().map(String::as_str)).unwrap().period(Duration::from_millis(200));
    // Neither is told which of the addresses is its own.
    meet(&registry(), &registry()).await;
}

#[tokio::test]
async fn nodes_find_each_other_under_a_key() {
    let network = Network::new();
    let registry = || network.registry().key([42; 32]).unwrap();
    meet(&registry(), &registry()).await;
}

#[tokio::test]
async fn a_call_finds_its_service_through_datagrams_and_the_url() {
    let network = Network::new();
    let url = format!("broadcast://{}?period=200ms", network.addr);
    let node = |name: &str| Picom::builder(name).registry_url(&url).bind("127.0.0.1").build().unwrap();
    let (server, client) = (node("greeter"), node("caller"));
    let greet = |_cx: Context, (): ()| async move { Ok::<_, Status>("hello".to_owned()) };
    server.expose(Methods::new().unary("greet", greet)).await.unwrap();
    let answer: String = client.fetch("greeter", "greet", args! {}).await.unwrap();
    assert_eq!(answer, "hello");
    server.end().await.unwrap();
    client.end().await.unwrap();
}

#[tokio::test]
async fn an_instance_without_an_address_is_found_at_the_one_that_it_sends_from() {
    for key in [None, Some([7; 32])] {
        let network = Network::new();
        let registry = || match key {
            Some(key) => network.registry().key(key).unwrap(),
            None => network.registry(),
        };
        let (mut watch, _kept) = (registry().watch("service1"), ());
        let _one = registry().register(instance("service1", "one", 4000)).await.unwrap();
        let found = until(&mut watch, "it is known", |snapshot| !snapshot.endpoints.is_empty()).await;
        assert_eq!(found.endpoints[0].addr.to_string(), "127.0.0.1:4000");
    }
}

#[tokio::test]
async fn a_change_of_state_is_seen_by_others_long_before_the_next_period() {
    let network = Network::new();
    let registry = network.registry().period(LONG);
    let mut watch = network.registry().watch("service1");
    // Subscribed and listening before anything is sent.
    let mut events = network.registry().events();
    listening(&network, &mut watch).await;
    let began = Instant::now();
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    until(&mut watch, "it is known", |snapshot| !snapshot.endpoints.is_empty()).await;
    for (to, reason) in [(NodeState::Doing, "backup"), (NodeState::Stopped, "maintenance"), (NodeState::Running, "")] {
        let status = NodeStatus::now(to, Some(reason));
        registration.set_status(status.clone());
        until(&mut watch, "the state has changed", |snapshot| {
            snapshot.endpoints.first().is_some_and(|endpoint| endpoint.status == status)
        })
        .await;
    }
    registration.leave().await.unwrap();
    until(&mut watch, "it has left", |snapshot| snapshot.endpoints.is_empty()).await;
    assert!(began.elapsed() < LONG / 3, "three changes took {:?}, so they were not told at once", began.elapsed());
    loop {
        match next_event(&mut events).await {
            Event::Removed { service, endpoint, reason } if service == "service1" => {
                assert_eq!((&*endpoint.id, reason), ("one", Gone::Left));
                break;
            }
            Event::Refused { why, .. } => panic!("a datagram was refused: {why:?}"),
            _ => {}
        }
    }
}

/// Waits until this watch's registry hears.
async fn listening(network: &Network, watch: &mut picom::registry::Watch) {
    let service = "listening";
    let probe = network.registry().period(Duration::from_millis(100));
    let _probe = probe.register(instance(service, "probe", 4999)).await.unwrap();
    // A snapshot that is live, because a whole period was listened to.
    until(watch, "the registry has listened for a period", |snapshot| snapshot.freshness == Freshness::Live).await;
}

#[tokio::test]
async fn nothing_is_believed_to_be_empty_before_a_period_was_listened_to() {
    let network = Network::new();
    let mut watch = network.registry().period(Duration::from_millis(200)).watch("service1");
    let first = watch.changed().now_or_never().expect("the first snapshot comes without waiting");
    assert_eq!(first.freshness, Freshness::Never);
    let empty = until(&mut watch, "nobody is there", |snapshot| snapshot.freshness == Freshness::Live).await;
    assert!(empty.endpoints.is_empty());
}

#[tokio::test]
async fn ones_own_instances_are_known_at_once_and_also_without_a_network() {
    let network = Network::new();
    let registry = network.registry();
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    let watch = registry.watch("service1");
    assert_eq!(watch.current().freshness, Freshness::Live);
    assert_eq!(watch.current().endpoints[0].addr.to_string(), "127.0.0.1:4000");
    drop(registration);
    assert!(watch.current().endpoints.is_empty(), "dropping the handle takes the registration back");
}

#[tokio::test]
async fn who_only_listens_is_not_heard() {
    let network = Network::new();
    let (silent, stranger) = (network.registry().listen_only(true), network.stranger());
    let mut watch = silent.watch("service1");
    let registration = silent.register(instance("service1", "silent", 4000)).await.unwrap();
    assert_eq!(registration.state(), RegistrationState::Registered);
    let _other = network.registry().register(instance("service1", "loud", 4001)).await.unwrap();
    until(&mut watch, "it hears and knows itself", |snapshot| snapshot.endpoints.len() == 2).await;
    registration.set_status(NodeStatus::now(NodeState::Stopped, None));
    registration.leave().await.unwrap();
    let mut heard = Vec::new();
    while let Some(datagram) = stranger.hear_within(Duration::from_millis(200)).await {
        heard.push(datagram);
    }
    assert!(!heard.is_empty(), "the other one is heard");
    let names_it = |datagram: &Vec<u8>| datagram.windows(6).any(|part| part == b"silent");
    assert!(!heard.iter().any(names_it), "it said something");
}

#[tokio::test]
async fn registries_of_ones_own_process_can_be_ignored() {
    let network = Network::new();
    let deaf = network.registry().ignore_process(true).period(Duration::from_millis(100));
    let mut events = network.registry().events();
    let mut watch = deaf.watch("service1");
    until(&mut watch, "it listens", |snapshot| snapshot.freshness == Freshness::Live).await;
    let one = network.registry().register(instance("service1", "one", 4000)).await.unwrap();
    assert!(matches!(next_event(&mut events).await, Event::Added { .. }), "others hear it");
    one.leave().await.unwrap();
    assert!(watch.current().endpoints.is_empty());
    assert_eq!(deaf.refused().total(), 0, "to be ignored is no refusal");
}

#[tokio::test]
async fn two_that_use_one_id_notice_each_other_and_a_third_keeps_the_first() {
    let network = Network::new();
    let (one, two, third) = (network.registry(), network.registry(), network.registry());
    let mut watch = third.watch("service1");
    let (mut at_one, mut at_two, mut at_third) = (one.events(), two.events(), third.events());
    let first = one.register(instance("service1", "same", 4000)).await.unwrap();
    until(&mut watch, "the first is known", |snapshot| snapshot.endpoints.len() == 1).await;
    let second = two.register(instance("service1", "same", 4001)).await.unwrap();
    for (events, kept) in [(&mut at_one, 4000), (&mut at_two, 4001), (&mut at_third, 4000)] {
        loop {
            if let Event::DuplicateId { service, id, kept: by, .. } = next_event(events).await {
                assert_eq!((&*service, &*id, by.port()), ("service1", "same", kept));
                break;
            }
        }
    }
    assert_eq!(watch.current().endpoints.len(), 1);
    assert_eq!(watch.current().endpoints[0].addr.port(), 4000);
    assert!(third.refused().of(Refusal::DuplicateId) > 0);
    for registration in [&first, &second] {
        state(
            registration,
            "it shows the other",
            |state| matches!(state, RegistrationState::Retrying(why) if why.contains("uses the id \"same\" too")),
        )
        .await;
    }
    // When one of them leaves, the other is the only one for everybody.
    first.leave().await.unwrap();
    until(&mut watch, "the second is known", |snapshot| {
        snapshot.endpoints.first().is_some_and(|endpoint| endpoint.addr.port() == 4001)
    })
    .await;
    state(&second, "nobody disputes the id", |state| *state == RegistrationState::Registered).await;
}

#[tokio::test]
async fn replicas_share_an_id_under_the_plain_name_of_the_service() {
    let network = Network::new();
    let replica = || network.registry().replica(true);
    let mut watch = network.registry().watch("service1");
    let _one = replica().register(instance("service1", "same", 4000)).await.unwrap();
    let _two = replica().register(instance("service1", "same", 4001)).await.unwrap();
    let both = until(&mut watch, "both are known", |snapshot| snapshot.endpoints.len() == 2).await;
    let ids: Vec<_> = both.endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect();
    assert_eq!(ids, ["same:00000000feed0fa0", "same:00000000feed0fa1"]);
}

#[tokio::test]
async fn what_does_not_fit_into_a_datagram_is_refused_with_its_size() {
    let network = Network::new();
    let registry = network.registry();
    let with = |len: usize| {
        let mut given = instance("service1", "one", 4000);
        given.meta.insert("note".to_owned(), "x".repeat(len));
        given
    };
    let refusal = |outcome: Result<_, RegistryError>| match outcome {
        Err(RegistryError::Invalid(text)) => Some(text),
        Ok(_) => None,
        Err(other) => panic!("expected a refusal of the instance, got {other:?}"),
    };
    let text = refusal(registry.register(with(1200)).await).expect("it is refused");
    assert!(text.contains("can become 1") && text.contains("room for 1200"), "{text}");
    let mut most = 0;
    for len in 256..1200 {
        if refusal(registry.register(with(len)).await).is_some() {
            break;
        }
        most = len;
    }
    let _registration = registry.register(with(most)).await.expect("the longest that fits");
    assert!((900..1200).contains(&most), "{most}");
    let mut watch = network.registry().watch("service1");
    until(&mut watch, "the longest arrives", |snapshot| {
        snapshot.endpoints.first().is_some_and(|endpoint| endpoint.meta["note"].len() == most)
    })
    .await;
    let id = instance("service1", &"x".repeat(1 << 20), 4000);
    assert!(registry.register(id).await.is_err(), "an id of one MiB");
}

#[tokio::test]
async fn a_port_that_cannot_be_had_is_named_and_tried_again() {
    let port = Port::new();
    let addr = format!("127.0.0.1:{}", port.number());
    let occupied = tokio::net::UdpSocket::bind(&addr).await.unwrap();
    let registry = Broadcast::unicast([addr.as_str()]).unwrap();
    let mut watch = registry.watch("service1");
    let trouble = until(&mut watch, "the trouble is told", |snapshot| snapshot.problem.is_some()).await;
    assert!(trouble.problem.as_ref().unwrap().contains(&addr), "{trouble:?}");
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    assert!(
        matches!(registration.state(), RegistrationState::Retrying(why) if why.contains(&addr)),
        "{registration:?}"
    );
    drop(occupied);
    state(&registration, "it heals", |state| *state == RegistrationState::Registered).await;
    let found = until(&mut watch, "the snapshot heals", |snapshot| snapshot.problem.is_none()).await;
    assert_eq!((found.freshness, found.endpoints.len()), (Freshness::Live, 1));
}

#[tokio::test]
async fn the_port_is_free_again_when_the_last_handle_is_gone() {
    let port = Port::new();
    let addr = format!("127.0.0.1:{}", port.number());
    let registry = Broadcast::unicast([addr.as_str()]).unwrap();
    let watch = registry.watch("service1");
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    drop(registry);
    drop(registration);
    assert!(tokio::net::UdpSocket::bind(&addr).await.is_err(), "a watch is left");
    drop(watch);
    eventually("the socket is closed", async || tokio::net::UdpSocket::bind(&addr).await.is_ok()).await;
}

#[tokio::test]
async fn dropping_everything_still_says_good_bye() {
    let network = Network::new();
    let mut watch = network.registry().watch("service1");
    let registration = network.registry().period(LONG).register(instance("service1", "one", 4000)).await.unwrap();
    until(&mut watch, "it is known", |snapshot| !snapshot.endpoints.is_empty()).await;
    drop(registration);
    until(&mut watch, "it has left", |snapshot| snapshot.endpoints.is_empty()).await;
}

#[test]
fn a_registry_outlives_the_runtime_that_used_it_first() {
    let network = Network::new();
    let registry = network.registry();
    let found = registry.watch("service1").current();
    assert!(found.problem.as_deref().is_some_and(|text| text.contains("runtime")), "{found:?}");
    for round in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut watch = registry.watch("service1");
            let _one = network.registry().register(instance("service1", &format!("{round}"), 4000)).await.unwrap();
            until(&mut watch, "it is known", |snapshot| snapshot.problem.is_none() && !snapshot.endpoints.is_empty())
                .await;
        });
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let registry = Broadcast::new().period(Duration::from_millis(99));
    assert!(registry.validate().is_err());
    assert!(registry.watch("service1").current().problem.is_some());
    assert!(Broadcast::new().key([1; 31]).is_err());
    assert_eq!(Broadcast::new().describe(), "broadcast to 127.255.255.255:5000");
    let shown = format!("{:?}", Broadcast::new().key([42; 32]).unwrap());
    assert!(shown.contains("hidden") && !shown.contains("42"), "{shown}");
}
