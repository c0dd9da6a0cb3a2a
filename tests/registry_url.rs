//! Registries chosen by URL.
//!
//! Owns only tests. Look next at the tests of each registry.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use picom::registry::{RegistryError, from_url};
use support::instance;

fn addresses(url: &str, service: &str) -> Vec<String> {
    let found = from_url(url).unwrap().watch(service).current();
    found.endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect()
}

fn refusal(url: &str) -> String {
    match from_url(url) {
        Err(RegistryError::Settings(text)) => text,
        other => panic!("expected {url:?} to be refused, got {other:?}"),
    }
}

#[test]
fn fixed_takes_commas_semicolons_and_repeated_names() {
    for url in [
        "fixed://one=10.0.0.7:4000,10.0.0.8:4000;two=10.0.0.9:4000",
        "fixed://one=10.0.0.7:4000,10.0.0.8:4000,two=10.0.0.9:4000",
        "fixed://one=10.0.0.7:4000;two=10.0.0.9:4000;one=10.0.0.8:4000",
        "fixed:// one = 10.0.0.7:4000 , 10.0.0.8:4000 ; two = 10.0.0.9:4000 ;",
    ] {
        assert_eq!(addresses(url, "one"), ["10.0.0.7:4000", "10.0.0.8:4000"], "{url}");
        assert_eq!(addresses(url, "two"), ["10.0.0.9:4000"], "{url}");
    }
    assert_eq!(addresses("fixed://one=[::1]:4000", "one"), ["[::1]:4000"]);
}

#[test]
fn fixed_refuses_what_it_cannot_read() {
    assert!(refusal("fixed://10.0.0.7:4000").contains("belongs to no service"));
    assert!(refusal("fixed://one=").contains("not an address"));
    assert!(refusal("fixed://one=10.0.0.7").contains("10.0.0.7"));
    assert!(refusal("fixed://o/ne=10.0.0.7:4000").contains("o/ne"));
}

#[tokio::test]
async fn memory_is_shared_by_name() {
    let url = "memory://registry_url";
    let _registration = from_url(url).unwrap().register(instance("service1", "one", 4000)).await.unwrap();
    assert_eq!(addresses(url, "service1"), ["127.0.0.1:4000"]);
    assert!(refusal("memory://").contains("needs a name"));
}

#[test]
fn unknown_schemes_are_told_the_known_ones() {
    for url in ["gossip://", "http://127.0.0.1:8500", "nothing", ""] {
        let text = refusal(url);
        assert!(text.contains("fixed://") && text.contains("memory://") && text.contains("consul://"), "{text}");
    }
    assert!(refusal("carrier-pigeon://loft").contains("carrier-pigeon"));
}

#[cfg(feature = "consul")]
#[test]
fn consul_is_described_with_its_address() {
    let plain = from_url("consul://10.0.0.1:8500").unwrap();
    assert_eq!(plain.describe(), "consul at http://10.0.0.1:8500");
    plain.validate().expect("settings are checked also where there is no runtime");
    let found = plain.watch("service1").current();
    assert!(found.problem.as_deref().is_some_and(|text| text.contains("runtime")), "{found:?}");
    let tls = from_url("consul+https://consul.example:8501?ttl=10s&dc=dc2&ns=team").unwrap();
    assert_eq!(tls.describe(), "consul at https://consul.example:8501");
}

#[cfg(feature = "consul")]
#[test]
fn secrets_in_a_url_are_refused_and_not_repeated() {
    for url in ["consul://u:hush@10.0.0.1:8500", "consul://10.0.0.1:8500?token=hush", "hush", "consul://hush:x"] {
        let text = refusal(url);
        assert!(!text.contains("hush"), "{text}");
    }
    assert!(refusal("consul://10.0.0.1:8500?ttl=0s").contains("TTL"));
    assert!(refusal("consul+https://").contains("address"));
}

#[cfg(feature = "broadcast")]
#[test]
fn broadcast_without_an_address_is_loopback_and_guesses_no_network() {
    let of = |url: &str| from_url(url).unwrap().describe();
    assert_eq!(of("broadcast://"), "broadcast to 127.255.255.255:5000");
    assert_eq!(of("broadcast://10.1.255.255:6000?period=1s"), "broadcast to 10.1.255.255:6000");
    assert_eq!(of("broadcast://239.1.2.3"), "multicast to 239.1.2.3:5000 at interface 127.0.0.1");
    assert_eq!(of("broadcast://127.0.0.1,127.0.0.2:6000"), "datagrams to 127.0.0.1:5000 and 1 more");
    assert!(refusal("broadcast://255.255.255.255").contains("the network's own broadcast address"));
    assert!(refusal("broadcast://0.0.0.0").contains("names no network"));
    for url in ["broadcast://hush", "broadcast://?key=hush", "broadcast://?hush-hush=1&key=hush"] {
        let text = refusal(url);
        assert!(!text.contains("=hush") && !text.contains("//hush"), "{text}");
    }
}

#[cfg(all(feature = "broadcast", feature = "manifest", feature = "consul"))]
#[tokio::test]
async fn a_node_that_only_its_own_machine_can_find_listens_only_there() {
    use std::time::Duration;

    use picom::registry::{Cached, Combine, Manifest, Memory, Registry};
    use picom::{Builder, Methods, Picom};

    let (file, secret) =
        (std::env::temp_dir().join(format!("picom-url-{}", std::process::id())), "a secret of 24 bytes or so");
    std::fs::write(&file, secret).unwrap();
    let with = |rest: &str| format!("manifest://{rest}secret-file={}", file.display());
    for url in [
        "manifest://local".to_owned(),
        "manifest://127.0.0.1:3100,localhost?listen=[::1]:3101".to_owned(),
        with("local?"),
        "broadcast://".to_owned(),
        "broadcast://127.0.0.1,127.0.0.2".to_owned(),
    ] {
        assert!(from_url(&url).unwrap().is_local(), "{url}");
    }
    for url in [
        with("10.0.0.1?"),
        // It may be the near end of a tunnel.
        with("127.0.0.1?listen=127.0.0.1:3102&"),
        with("registry.example?"),
        with("local?listen=0.0.0.0:3102&"),
        "manifest://127.0.0.1?allow-remote&listen=10.0.0.1:3102".to_owned(),
        "broadcast://10.1.255.255".to_owned(),
        "broadcast://127.0.0.1,10.0.0.1".to_owned(),
        "consul://127.0.0.1:8500".to_owned(),
        "memory://of-this-process".to_owned(),
    ] {
        assert!(!from_url(&url).unwrap().is_local(), "{url}");
    }
    std::fs::remove_file(&file).unwrap();
    let local = || Manifest::new().listen("127.0.0.1:0");
    let union = Combine::union().and(local()).and(Memory::named("of-this-process"));
    assert!(Cached::new(local()).is_local() && !union.is_local());

    let listens = async |builder: Builder| {
        let node = builder.build().unwrap();
        let exposed = node.expose(Methods::new()).await.unwrap();
        let known = node.nodes()["service1"].endpoints[0].addr;
        node.end().await.unwrap();
        (exposed.local_addr().ip().to_string(), known.ip().to_string())
    };
    let builder = |local| Picom::builder("service1").registry(local).drain_delay(Duration::ZERO);
    let same = |ip: &str| (ip.to_owned(), ip.to_owned());
    assert_eq!(listens(builder(local())).await, same("127.0.0.1"));
    assert_eq!(listens(builder(local()).bind("127.0.0.2")).await, same("127.0.0.2"), "who says where is believed");
    assert_eq!(listens(builder(local()).advertise("127.0.0.3")).await, same("127.0.0.3"), "where it says that it is");
}
