//! Hosts of their own that find and call each other through the registries without a server: their interfaces go and come
//! back, and the network falls into two halves and heals.
//!
//! Owns only tests. Look next at `support/hosts.rs` for what a host is, and where the machine does not allow them.
#![cfg(all(feature = "broadcast", feature = "manifest", unix))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use support::broadcast::Port;
use support::hosts::{Host, Network, main_if_asked};
use tokio::time::sleep;

/// What a machine that builds at the same time may add.
const SLACK: Duration = Duration::from_secs(2);

/// What an instance lives after it was last heard by datagrams: a period of 500 ms and 3 s.
const DATAGRAM_LIFE: Duration = Duration::from_millis(3500);

/// How soon an interface that goes away is noticed also by who only listens, and the longest pause between attempts to use it again.
const LOOK: Duration = Duration::from_secs(2);
const REOPEN: Duration = Duration::from_secs(4);

/// Of the manifests here.
const LIFETIME: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_millis(500);

#[test]
fn a_host_of_its_own() {
    main_if_asked();
}

/// A file that is removed with the test.
struct Secret(PathBuf);

impl Secret {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("picom-hosts-{name}-{}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Everybody knows everybody, by the address that others reach, and calls everybody without a failure.
async fn are_whole(network: &Network, hosts: &mut [Host]) {
    let all: Vec<u8> = hosts.iter().map(|host| host.number).collect();
    for host in &mut *hosts {
        host.knows(&all).await;
        for (other, ip) in host.seen().known {
            // Its own may be known by a shorter way.
            assert!(ip == IpAddr::from(network.ip(other)) || other == host.number, "host {other} is known at {ip}");
        }
        host.until("its registration", |seen| seen.state == "Registered").await;
        host.calls(&all).await;
    }
}

/// Cuts the cable for a moment, then for long, and mends it: nobody misses anybody of the own half for a moment, others for no
/// longer than they have to, and in the end all are whole again.
async fn fall_into_halves_and_heal(network: &Network, hosts: &mut [Host], believed: Duration, heals_within: Duration) {
    let half = |host: u8| if host <= 2 { [1, 2] } else { [3, 4] };
    let whole = network.now();
    network.cut();
    sleep(Duration::from_secs(1)).await;
    network.mend();
    sleep(believed).await;
    for host in &*hosts {
        let lost = host.lost_since(whole);
        assert!(lost.is_empty(), "a cable that was cut for a second cost host {} {lost:?}", host.number);
    }

    let cut = network.now();
    network.cut();
    for host in &mut *hosts {
        host.knows(&half(host.number)).await;
        let took = network.now() - cut;
        println!("host {} knew its half only, {took:.2?} after the cut", host.number);
        assert!(took < believed, "host {} believed for {took:?} in those who could not be reached", host.number);
        host.calls(&half(host.number)).await;
    }
    // So long that connections that still try have given up hope.
    sleep(LIFETIME * 2).await;
    let mended = network.now();
    network.mend();
    for host in &mut *hosts {
        host.knows(&[1, 2, 3, 4]).await;
        let took = network.now() - mended;
        println!("host {} was whole again {took:.2?} after the cable was mended", host.number);
        assert!(took < heals_within, "host {} missed others for {took:?} after the cable was mended", host.number);
        let others: BTreeSet<u8> =
            [1, 2, 3, 4].into_iter().filter(|other| !half(host.number).contains(other)).collect();
        assert_eq!(host.lost_since(whole), others, "whom host {} has lost", host.number);
    }
    are_whole(network, hosts).await;
    for host in &*hosts {
        assert!(host.lost_since(mended).is_empty(), "host {} lost somebody while all healed", host.number);
    }
}

/// Takes the interface of host 2 away for so long that others miss it, and then for a moment only.
async fn lose_an_interface(network: &Network, hosts: &mut [Host]) {
    let began = network.now();
    network.unplug(2);
    hosts[1].until("trouble", |seen| seen.freshness == "Stale" && seen.state.starts_with("Retrying")).await;
    let took = network.now() - began;
    println!("host 2 noticed after {took:.2?}: {}", hosts[1].seen().state);
    assert!(took < LOOK + SLACK, "host 2 noticed only after {took:?} that its interface was gone");
    hosts[0].knows(&[1, 3]).await;
    hosts[2].knows(&[1, 3]).await;
    let took = network.now() - began;
    assert!(took < DATAGRAM_LIFE + SLACK, "host 2 was missed only after {took:?}");
    assert_eq!(hosts[1].seen().known.len(), 3, "host 2 cannot know who is gone");

    let back = network.now();
    network.plug(2);
    hosts[0].knows(&[1, 2, 3]).await;
    hosts[2].knows(&[1, 2, 3]).await;
    let took = network.now() - back;
    println!("host 2 was heard again {took:.2?} after its interface was back");
    assert!(took < REOPEN + SLACK, "host 2 was heard again only after {took:?}");
    hosts[1].until("the others live", |seen| seen.freshness == "Live").await;
    are_whole(network, hosts).await;

    // So quick that no datagram failed, but the interface is another one.
    let quick = network.now();
    network.unplug(2);
    network.plug(2);
    sleep(DATAGRAM_LIFE * 2).await;
    for host in &*hosts {
        let lost = host.lost_since(quick);
        assert!(lost.is_empty(), "host {} lost {lost:?} when host 2 was plugged in anew", host.number);
    }
    are_whole(network, hosts).await;
}

#[tokio::test]
async fn hosts_of_a_subnet_find_each_other_by_broadcast_and_again_when_an_interface_was_away() {
    let (network, port) = (Network::new(3), Port::new());
    let key = Secret::new("broadcast", &"7c".repeat(32));
    let (to, port) = (network.broadcast(), port.number());
    let url = format!("broadcast://{to}:{port}?period=500ms&key-file={}", key.0.display());
    let mut hosts = [1, 2, 3].map(|number| network.host(number, &url));
    are_whole(&network, &mut hosts).await;
    if network.is_real() {
        lose_an_interface(&network, &mut hosts).await;
    }
    let [first, second, third] = &mut hosts;
    let began = network.now();
    third.leave();
    first.knows(&[1, 2]).await;
    second.knows(&[1, 2]).await;
    let took = network.now() - began;
    assert!(took < SLACK, "leaving was noticed only after {took:?}");
}

#[tokio::test]
async fn hosts_find_each_other_by_multicast_and_again_when_an_interface_was_away() {
    let (network, port) = (Network::new(3), Port::new());
    let mut hosts = [1, 2, 3].map(|number| {
        let interface = if network.is_real() { network.ip(number) } else { network.ip(1) };
        let group = format!("239.77.7.7:{}", port.number());
        network.host(number, &format!("broadcast://{group}?period=500ms&interface={interface}"))
    });
    are_whole(&network, &mut hosts).await;
    if network.is_real() {
        lose_an_interface(&network, &mut hosts).await;
    }
}

#[tokio::test]
async fn a_host_that_only_listens_to_a_group_hears_it_again_when_its_interface_was_away() {
    let (network, port) = (Network::new(2), Port::new());
    let url = |number| {
        let interface = if network.is_real() { network.ip(number) } else { network.ip(1) };
        format!("broadcast://239.77.7.8:{}?period=500ms&interface={interface}", port.number())
    };
    let mut speaking = network.host(1, &url(1));
    let mut listening = network.host(2, &format!("{}&listen-only=true", url(2)));
    listening.knows(&[1, 2]).await;
    listening.calls(&[1, 2]).await;
    speaking.knows(&[1]).await;
    if !network.is_real() {
        return;
    }
    for pause in [LOOK * 2, Duration::ZERO] {
        let began = network.now();
        network.unplug(2);
        sleep(pause).await;
        network.plug(2);
        sleep(DATAGRAM_LIFE * 2).await;
        assert!(listening.lost_since(began).is_empty(), "it is deaf after {pause:?} without an interface");
        assert_eq!(listening.seen().freshness, "Live");
        listening.calls(&[1, 2]).await;
    }
    speaking.leave();
    listening.knows(&[2]).await;
}

#[tokio::test]
async fn two_halves_of_a_subnet_find_each_other_by_broadcast_when_the_network_heals() {
    let (network, port) = (Network::new(4), Port::new());
    let url = format!("broadcast://{}:{}?period=500ms", network.broadcast(), port.number());
    let mut hosts = [1, 2, 3, 4].map(|number| network.host(number, &url));
    are_whole(&network, &mut hosts).await;
    if network.is_real() {
        fall_into_halves_and_heal(&network, &mut hosts, DATAGRAM_LIFE + SLACK, SLACK).await;
    }
}

/// A manifest's URL: whom to join, and where to listen.
fn manifest(network: &Network, number: u8, join: &[u8], listen: bool, port: u16, secret: &Secret) -> String {
    let join: Vec<String> = join.iter().map(|host| format!("{}:{port}", network.ip(*host))).collect();
    let own = if network.is_real() { "0.0.0.0".to_owned() } else { network.ip(number).to_string() };
    let listen = if listen { format!("listen={own}:{port}&") } else { String::new() };
    let (beat, life) = (HEARTBEAT.as_millis(), LIFETIME.as_millis());
    let file = secret.0.display();
    format!("manifest://{}?{listen}secret-file={file}&heartbeat={beat}ms&lifetime={life}ms", join.join(","))
}

#[tokio::test]
async fn two_halves_of_a_manifest_with_upstreams_and_a_secret_join_again_when_the_network_heals() {
    let (network, port) = (Network::new(4), Port::new());
    let secret = Secret::new("manifest", "a secret that all four hosts share");
    // One upstream in each half; both are given the same list, with themselves in it.
    let mut hosts = [1, 2, 3, 4].map(|number| {
        let upstream = number % 2 == 1;
        network.host(number, &manifest(&network, number, &[1, 3], upstream, port.number(), &secret))
    });
    are_whole(&network, &mut hosts).await;
    if network.is_real() {
        // A connection that has fallen silent is given two lifetimes, and whom only it spoke of may be known one longer.
        fall_into_halves_and_heal(&network, &mut hosts, LIFETIME * 3 + SLACK, LIFETIME + SLACK).await;
    }
}

#[tokio::test]
async fn a_member_that_listens_everywhere_and_joins_nobody_is_called_where_it_was_dialled() {
    let (network, port) = (Network::new(3), Port::new());
    let secret = Secret::new("listener", "a secret that all three hosts share");
    let mut hosts = [1, 2, 3].map(|number| {
        let join: &[u8] = if number == 1 { &[] } else { &[1] };
        network.host(number, &manifest(&network, number, join, number == 1, port.number(), &secret))
    });
    are_whole(&network, &mut hosts).await;
}
