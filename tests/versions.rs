//! Nodes that say their version, and those who ask for some versions only.
//!
//! Owns only tests. Look next at `pick.rs` for waiting, and at `registry_conformance.rs` for what every registry carries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use picom::registry::{Cached, Combine, Endpoints, Fixed, Memory, Registry};
use picom::{Code, Methods, Picom, Status};
use support::eventually;

fn node(name: &str, registry: &Arc<dyn Registry>) -> Picom {
    Picom::builder(name).registry(Arc::clone(registry)).bind("127.0.0.1").build().unwrap()
}

/// A node that answers with its own version.
async fn exposed(role: &str, registry: &Arc<dyn Registry>) -> Picom {
    let node = node(role, registry);
    let version = role.split_once('@').map_or("none", |(_, version)| version).to_owned();
    let methods = Methods::new().unary("version", move |_cx, (): ()| {
        let version = version.clone();
        async move { Ok::<_, Status>(version) }
    });
    node.expose(methods).await.unwrap();
    node
}

/// The versions that answer.
async fn answers(caller: &Picom, service: &str) -> BTreeSet<String> {
    let mut versions = BTreeSet::new();
    for _ in 0..60 {
        versions.insert(caller.fetch::<String>(service, "version", ()).await.unwrap());
    }
    versions
}

fn versions(endpoints: &Endpoints) -> BTreeSet<&str> {
    endpoints.endpoints.iter().map(|one| one.meta.get("version").map_or("none", String::as_str)).collect()
}

async fn calls_go_to_the_versions_that_were_asked_for(registry: Arc<dyn Registry>) {
    let mut nodes = Vec::new();
    for role in ["calc", "calc@1.2.3", "calc@1.9.0", "calc@2.0.0-beta.1", "calc@2.0.0", "other@1.2.3"] {
        nodes.push(exposed(role, &registry).await);
    }
    assert_eq!(nodes[1].name(), "calc");
    let caller = node("caller", &registry);
    eventually("all are known", async || caller.watch("calc").current().endpoints.len() == 5).await;
    let all = ["none", "1.2.3", "1.9.0", "2.0.0-beta.1", "2.0.0"];
    for (service, expected) in [
        ("calc", &all[..]),
        ("calc@1.2.3", &["1.2.3"]),
        ("calc@=1.2.3", &["1.2.3"]),
        ("calc@^1.2", &["1.2.3", "1.9.0"]),
        ("calc@1", &["1.2.3", "1.9.0"]),
        ("calc@~1.2", &["1.2.3"]),
        ("calc@>=1.9, <3", &["1.9.0", "2.0.0"]),
        ("calc@*", &["1.2.3", "1.9.0", "2.0.0"]),
        ("calc@2.0.0-beta.1", &["2.0.0-beta.1"]),
    ] {
        let expected: BTreeSet<_> = expected.iter().copied().collect();
        let watched = caller.watch(service);
        eventually(service, async || versions(&watched.current()) == expected).await;
        let answers = answers(&caller, service).await;
        assert_eq!(answers.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{service}");
        let picked = caller.pick(service).await.unwrap();
        assert!(expected.contains(picked.meta.get("version").map_or("none", String::as_str)), "{service}: {picked:?}");
    }
}

#[tokio::test]
async fn calls_go_to_the_versions_that_were_asked_for_in_memory() {
    calls_go_to_the_versions_that_were_asked_for(Arc::new(Memory::new())).await;
}

#[tokio::test]
async fn calls_go_to_the_versions_that_were_asked_for_behind_wrappers() {
    let registry = Combine::first().and(Cached::new(Memory::new())).and(Memory::new());
    calls_go_to_the_versions_that_were_asked_for(Arc::new(registry)).await;
}

#[tokio::test]
async fn of_several_registries_the_first_that_has_the_version_is_believed() {
    let (first, second) = (Memory::new(), Memory::new());
    let in_first = exposed("calc@1.0.0", &(Arc::new(first.clone()) as Arc<dyn Registry>)).await;
    let _in_second = exposed("calc@2.0.0", &(Arc::new(second.clone()) as Arc<dyn Registry>)).await;
    let combined = Combine::first().and(first).and(second);
    for registry in [Arc::new(combined.clone()) as Arc<dyn Registry>, Arc::new(Cached::new(combined))] {
        let caller = node("caller", &registry);
        assert_eq!(caller.pick("calc").await.unwrap().meta["version"], "1.0.0");
        let picked = caller.pick("calc@^2").timeout(Duration::from_secs(5)).await.unwrap();
        assert_eq!(picked.meta["version"], "2.0.0", "{}", registry.describe());
        assert_eq!(caller.watch("calc@^2").current().problem, None);
        let error = caller.pick("calc@^3").timeout(Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains("none of the 2 instances of `calc` fits; their versions: 1.0.0, 2.0.0"), "{error}");
        assert_eq!(caller.nodes().keys().collect::<Vec<_>>(), ["calc"], "what was asked for is no service");
    }
    in_first.end().await.unwrap();
}

#[cfg(feature = "manifest")]
#[tokio::test]
async fn calls_go_to_the_versions_that_were_asked_for_in_a_manifest() {
    calls_go_to_the_versions_that_were_asked_for(Arc::new(picom::registry::Manifest::new())).await;
}

#[cfg(feature = "broadcast")]
#[tokio::test]
async fn calls_go_to_the_versions_that_were_asked_for_by_datagrams() {
    let network = support::broadcast::Network::new();
    calls_go_to_the_versions_that_were_asked_for(Arc::new(network.registry())).await;
}

#[cfg(feature = "consul")]
#[tokio::test]
async fn calls_go_to_the_versions_that_were_asked_for_in_consul() {
    let Some(agent) = support::consul::Agent::start().await else { return };
    let consul = picom::registry::Consul::new(&agent.url()).unwrap();
    calls_go_to_the_versions_that_were_asked_for(Arc::new(consul)).await;
}

#[cfg(feature = "manifest")]
#[tokio::test]
async fn a_record_of_a_manifest_is_found_by_the_version_in_its_role() {
    use picom::registry::{Details, Manifest};
    let manifest = Manifest::new();
    let at = |port| Details { address: Some([127, 0, 0, 7].into()), port, ..Details::default() };
    manifest.register("calc@1.2.3", at(4000)).unwrap();
    manifest.register("calc@2.0.0", at(4001)).unwrap();
    let caller = node("caller", &(Arc::new(manifest) as Arc<dyn Registry>));
    assert_eq!(caller.pick("calc@^2").await.unwrap().addr.port(), 4001);
    assert_eq!(caller.pick("calc@1.2.3").await.unwrap().addr.port(), 4000);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_version_gets_it_when_it_comes() {
    let registry: Arc<dyn Registry> = Arc::new(Memory::new());
    let old = exposed("calc@1.0.0", &registry).await;
    let caller = node("caller", &registry);
    let waiting = tokio::spawn(caller.pick("calc@^2").into_future());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished(), "version 1 is not wanted");
    let _new = exposed("calc@2.1.0", &registry).await;
    assert_eq!(waiting.await.unwrap().unwrap().meta["version"], "2.1.0");
    old.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn where_no_version_fits_the_error_says_which_there_are() {
    let registry: Arc<dyn Registry> = Arc::new(Memory::new());
    let _nodes = [exposed("calc@1.2.3", &registry).await, exposed("calc", &registry).await];
    let caller = node("caller", &registry);
    let error = caller.fetch::<String>("calc@^2", "version", ()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let text = error.to_string();
    assert!(text.contains("`calc@^2`") && text.contains("none of the 2 instances of `calc` fits"), "{text}");
    assert!(text.contains("their versions: 1.2.3, none"), "{text}");
    // Somebody wrote down addresses, and nothing of versions.
    let table: Arc<dyn Registry> = Arc::new(Fixed::new([("calc", ["127.0.0.1:4000"])]));
    let error = node("caller", &table).pick("calc@1.0.0").timeout(Duration::ZERO).await.unwrap_err();
    assert!(error.to_string().contains("their versions: none"), "{error}");
}

#[tokio::test]
async fn what_is_no_version_is_refused_with_what_would_be_one() {
    let registry: Arc<dyn Registry> = Arc::new(Memory::new());
    for name in ["calc@", "calc@1", "calc@^1.2", "calc@1.2", "calc@work", "calc@1.2.3@4"] {
        let error = Picom::builder(name).registry(Arc::clone(&registry)).build().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name}");
        assert!(error.to_string().contains("write one such as calc@1.2.3"), "{name}: {error}");
    }
    let caller = node("caller", &registry);
    for service in
        ["calc@", "calc@^", "calc@work", "calc@>>1", "ca/lc@1", "@1.2.3", &format!("calc@{}", "1".repeat(300))]
    {
        let error = caller.fetch::<String>(service, "version", ()).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{service}: {error}");
        let problem = caller.watch(service).current().problem.clone();
        assert!(problem.is_some_and(|text| error.to_string().contains(&text)), "{service}: {error}");
    }
    let error = caller.pick("calc@work").await.unwrap_err();
    assert!(error.to_string().contains("as in calc@1.2.3 or calc@^1.2"), "{error}");
}

#[tokio::test]
async fn a_version_has_a_longest_length_and_can_be_asked_for_at_it() {
    let registry: Arc<dyn Registry> = Arc::new(Memory::new());
    let version = |len: usize| format!("1.2.3-{}", "a".repeat(len - "1.2.3-".len()));
    let name = |len| format!("{}@{}", "c".repeat(63), version(len));
    let _longest = exposed(&name(128), &registry).await;
    assert_eq!(answers(&node("caller", &registry), &name(128)).await, BTreeSet::from([version(128)]));
    let error = Picom::builder(name(129)).registry(registry).build().unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.to_string().contains("at most 128 bytes"), "{error}");
}
