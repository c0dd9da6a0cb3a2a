//! What a stranger on the network may try against a registry that listens: it goes on, and what it knows stays right.
//!
//! Owns only tests; all of it happens at live sockets on loopback. Look next at `registry_broadcast.rs` for the usual ways.
#![cfg(feature = "broadcast")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::registry::broadcast::{Refusal, Refused};
use picom::registry::{Broadcast, Registration, Registry, Watch};
use support::broadcast::{Network, Stranger};
use support::{eventually, instance, until};

const KEY: [u8; 32] = [42; 32];

/// A registry that knows one instance of another, and a stranger who has heard its announcement.
struct Scene {
    observer: Broadcast,
    watch: Watch,
    registration: Option<Registration>,
    stranger: Stranger,
    announcement: Vec<u8>,
    network: Network,
}

impl Scene {
    async fn new(key: Option<[u8; 32]>) -> Self {
        let network = Network::new();
        let with_key = |registry: Broadcast| match key {
            Some(key) => registry.key(key).unwrap(),
            None => registry,
        };
        let (observer, stranger) = (with_key(network.registry()), network.stranger());
        let mut watch = observer.watch("service1");
        // It is not to be heard again by itself while the test looks.
        let honest = with_key(network.registry()).period(Duration::from_secs(60));
        let registration = Some(honest.register(instance("service1", "one", 4000)).await.unwrap());
        let announcement = stranger.hear().await;
        let mut scene = Self { observer, watch: watch.clone(), registration, stranger, announcement, network };
        until(&mut watch, "the honest one is known", |snapshot| snapshot.endpoints.len() == 1).await;
        // The second copy of the first announcement.
        scene.announcement = scene.stranger.hear().await;
        scene
    }

    /// Waits until so many datagrams have been refused for this reason.
    async fn refused(&self, why: Refusal, at_least: u64) -> Refused {
        let what = format!("{at_least} datagrams are refused as {why:?}");
        eventually(&what, async || self.observer.refused().of(why) >= at_least).await;
        self.observer.refused()
    }

    /// Only the honest one is known, and it still counts when it leaves.
    async fn stays_right(mut self) {
        let services: Vec<_> = self.observer.known().into_keys().collect();
        assert_eq!(services, ["service1"]);
        let ids: Vec<_> = self.watch.current().endpoints.iter().map(|endpoint| endpoint.id.clone()).collect();
        assert_eq!(ids, ["one"]);
        self.registration.take().unwrap().leave().await.unwrap();
        until(&mut self.watch, "the honest one has left", |snapshot| snapshot.endpoints.is_empty()).await;
    }
}

#[tokio::test]
async fn bytes_at_random_are_counted_and_change_nothing() {
    for key in [None, Some(KEY)] {
        let scene = Scene::new(key).await;
        let mut random = fastrand_like(7);
        for round in 0..500 {
            let len = usize::from(random() % 300);
            let mut datagram: Vec<u8> = (0..len).map(|_| random() as u8).collect();
            if round % 2 == 0 {
                // Behind a proper header, plain or sealed.
                datagram.splice(0..0, [&scene.announcement[..3], &[(round / 2 % 3) as u8]].concat());
            }
            scene.stranger.send(&datagram).await;
            if round % 50 == 49 {
                // The kernel's buffer is small, and what it drops was not tried.
                let so_far = scene.observer.refused().total();
                eventually("some are refused", async || scene.observer.refused().total() > so_far || so_far > 0).await;
            }
        }
        // What was known to kill its ancestor: one byte.
        scene.stranger.send(&[1]).await;
        scene.stranger.send(&[]).await;
        eventually("most are refused", async || scene.observer.refused().total() >= 300).await;
        println!("refused: {:?}", scene.observer.refused());
        scene.stays_right().await;
    }
}

/// A small generator, the same numbers each time.
fn fastrand_like(seed: u32) -> impl FnMut() -> u16 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u16
    }
}

#[tokio::test]
async fn changed_announcements_are_refused_under_a_key_and_harmless_without() {
    for key in [None, Some(KEY)] {
        let scene = Scene::new(key).await;
        let mut sent = 0;
        for at in 0..scene.announcement.len() {
            let mut forged = scene.announcement.clone();
            forged[at] ^= 0x55;
            scene.stranger.send(&forged).await;
            sent += 1;
            if at % 20 == 0 {
                tokio::task::yield_now().await;
            }
        }
        if key.is_none() {
            // Anybody can say anything there; it only must not break.
            let before = scene.observer.refused().total();
            scene.stranger.send(b"?").await;
            eventually("it still listens", async || scene.observer.refused().total() > before).await;
            continue;
        }
        eventually("all are refused", async || scene.observer.refused().total() >= sent).await;
        let refused = scene.observer.refused();
        assert!(refused.of(Refusal::WrongKey) >= sent - 4, "{refused:?}");
        scene.stays_right().await;
    }
}

#[tokio::test]
async fn a_recorded_announcement_does_not_bring_back_who_has_left() {
    for key in [None, Some(KEY)] {
        let mut scene = Scene::new(key).await;
        scene.stranger.send(&scene.announcement).await;
        scene.refused(Refusal::Replayed, 1).await;
        scene.registration.take().unwrap().leave().await.unwrap();
        until(&mut scene.watch, "it has left", |snapshot| snapshot.endpoints.is_empty()).await;
        let notice = scene.stranger.hear().await;
        let before = scene.observer.refused().of(Refusal::Replayed);
        scene.stranger.send(&scene.announcement).await;
        scene.stranger.send(&notice).await;
        scene.refused(Refusal::Replayed, before + 2).await;
        assert!(scene.watch.current().endpoints.is_empty(), "a replay brought it back");
    }
}

#[tokio::test]
async fn a_recorded_notice_does_not_remove_who_came_back() {
    let mut scene = Scene::new(Some(KEY)).await;
    let again = scene.network.registry().key(KEY).unwrap();
    let first = again.register(instance("service1", "two", 4001)).await.unwrap();
    until(&mut scene.watch, "two are known", |snapshot| snapshot.endpoints.len() == 2).await;
    first.leave().await.unwrap();
    until(&mut scene.watch, "one is known", |snapshot| snapshot.endpoints.len() == 1).await;
    let mut recorded = Vec::new();
    while let Some(datagram) = scene.stranger.hear_within(Duration::from_millis(100)).await {
        recorded.push(datagram);
    }
    let _second = again.register(instance("service1", "two", 4001)).await.unwrap();
    until(&mut scene.watch, "two are known again", |snapshot| snapshot.endpoints.len() == 2).await;
    for datagram in &recorded {
        scene.stranger.send(datagram).await;
    }
    scene.refused(Refusal::Replayed, recorded.len() as u64).await;
    // A second copy of the announcement is not sent any more when it has left.
    assert!(recorded.len() >= 3, "an announcement and two notices, and not {}", recorded.len());
    assert_eq!(scene.watch.current().endpoints.len(), 2);
}

#[tokio::test]
async fn who_has_another_key_or_none_is_not_heard_and_hears_nothing() {
    let scene = Scene::new(Some(KEY)).await;
    let other = scene.network.registry().key([43; 32]).unwrap();
    let none = scene.network.registry();
    let (other_watch, none_watch) = (other.watch("service1"), none.watch("service1"));
    let _forged = other.register(instance("service1", "forged", 4001)).await.unwrap();
    let _plain = none.register(instance("service1", "plain", 4002)).await.unwrap();
    scene.refused(Refusal::WrongKey, 1).await;
    scene.refused(Refusal::Unsealed, 1).await;
    eventually("those without the key refuse too", async || none.refused().of(Refusal::Sealed) > 0).await;
    eventually("those with another key refuse too", async || other.refused().of(Refusal::Unsealed) > 0).await;
    assert_eq!(other_watch.current().endpoints.len(), 1, "only itself");
    assert_eq!(none_watch.current().endpoints.len(), 1, "only itself");
    // They take their leave as well, and are heard as little.
    drop((_forged, _plain));
    scene.refused(Refusal::Unsealed, 3).await;
    scene.stays_right().await;
}

#[tokio::test]
async fn what_is_too_long_is_refused_whatever_is_in_it() {
    let scene = Scene::new(None).await;
    scene.stranger.send(&vec![0; 1201]).await;
    scene.stranger.send(&vec![b'p'; 9000]).await;
    scene.stranger.send(&[&scene.announcement[..], &vec![0xc0; 60_000]].concat()).await;
    let refused = scene.refused(Refusal::TooLong, 3).await;
    assert_eq!(refused.total(), 3, "{refused:?}");
    scene.stranger.send(&vec![0; 1200]).await;
    let refused = scene.refused(Refusal::Malformed, 1).await;
    assert_eq!(refused.of(Refusal::TooLong), 3, "1,200 bytes are not too long: {refused:?}");
    scene.stays_right().await;
}

#[tokio::test]
async fn lengths_that_promise_a_gigabyte_cost_nothing() {
    let scene = Scene::new(None).await;
    // An array, a string, bytes and a map whose heads claim four thousand million elements.
    for head in [0xdd, 0xdb, 0xc6, 0xdf_u8] {
        let huge = [&scene.announcement[..4], &[head, 0xff, 0xff, 0xff, 0xff]].concat();
        scene.stranger.send(&huge).await;
        // The same in the place of each field.
        let body_at = 4;
        for at in body_at..scene.announcement.len() {
            let nested = [&scene.announcement[..at], &[head, 0xff, 0xff, 0xff, 0xff]].concat();
            scene.stranger.send(&nested).await;
            tokio::task::yield_now().await;
        }
    }
    eventually("they are refused", async || scene.observer.refused().of(Refusal::Malformed) >= 100).await;
    let deep = [&scene.announcement[..4], &[0x91; 1100]].concat();
    scene.stranger.send(&deep).await;
    scene.stays_right().await;
}

#[tokio::test]
async fn another_version_of_the_format_is_refused_as_such() {
    let scene = Scene::new(None).await;
    let mut newer = scene.announcement.clone();
    newer[2] += 1;
    scene.stranger.send(&newer).await;
    scene.refused(Refusal::OtherVersion, 1).await;
    scene.stays_right().await;
}

#[tokio::test]
async fn nothing_is_sent_in_answer_to_a_datagram() {
    let network = Network::new();
    let (observer, stranger) = (network.registry().period(Duration::from_secs(60)), network.stranger());
    let _registration = observer.register(instance("service1", "one", 4000)).await.unwrap();
    let newcomer = network.registry().period(Duration::from_secs(60));
    let _newcomer = newcomer.register(instance("service1", "two", 4001)).await.unwrap();
    let mut recorded = Vec::new();
    while let Some(datagram) = stranger.hear_within(Duration::from_millis(300)).await {
        recorded.push(datagram);
    }
    assert_eq!(recorded.len(), 4, "each announces itself twice, and nobody answers");
    for datagram in &recorded {
        stranger.send(datagram).await;
    }
    stranger.send(b"who is there?").await;
    // It hears itself.
    for _ in 0..=recorded.len() {
        stranger.hear().await;
    }
    assert_eq!(stranger.hear_within(Duration::from_millis(300)).await, None);
}
