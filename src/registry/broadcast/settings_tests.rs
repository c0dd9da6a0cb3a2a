//! What settings are taken and which are refused, with a text that helps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use super::*;

fn refusal(outcome: Result<Settings, RegistryError>) -> String {
    match outcome {
        Err(RegistryError::Settings(text)) => text,
        other => panic!("expected a refusal of settings, got {other:?}"),
    }
}

fn url(rest: &str) -> Settings {
    Settings::from_url(rest).unwrap_or_else(|error| panic!("{rest:?} was refused: {error}"))
}

#[test]
fn nothing_means_loopback_and_a_network_is_asked_for_by_name() {
    let settings = url("");
    assert_eq!(settings, Settings::loopback());
    assert_eq!(settings.to_string(), "broadcast to 127.255.255.255:5000");
    assert!(settings.is_loopback());
    let network = url("10.1.255.255");
    assert_eq!(network.to_string(), "broadcast to 10.1.255.255:5000");
    assert!(!network.is_loopback());
    assert!(refusal(Settings::broadcast("255.255.255.255:5000")).contains("the network's own broadcast address"));
    assert!(refusal(Settings::broadcast("0.0.0.0")).contains("names no network"));
    assert!(refusal(Settings::broadcast("127.0.0.1")).contains("127.255.255.255"));
    assert!(refusal(Settings::broadcast("239.1.2.3")).contains("multicast group"));
    assert!(refusal(Settings::broadcast("[::1]:5000")).contains("IPv6"));
    assert!(refusal(Settings::broadcast("10.1.255.255:0")).contains("port"));
    assert!(refusal(Settings::broadcast("somewhere")).contains("written like"));
}

#[test]
fn multicast_is_on_loopback_unless_an_interface_is_named() {
    let settings = url("239.1.2.3:6000");
    assert_eq!(settings.to_string(), "multicast to 239.1.2.3:6000 at interface 127.0.0.1");
    assert!(settings.is_loopback());
    assert!(!url("239.1.2.3?interface=10.1.0.5").is_loopback());
    assert!(refusal(Settings::from_url("239.1.2.3?interface=0.0.0.0")).contains("leaves it to the machine"));
    assert!(refusal(Settings::from_url("10.1.255.255?interface=10.1.0.5")).contains("only multicast"));
    assert!(refusal(Settings::multicast("10.1.255.255")).contains("224.0.0.0"));
}

#[test]
fn a_list_has_addresses_of_single_machines_of_one_kind() {
    let settings = url("127.0.0.1:6000,127.0.0.2,127.0.0.1:6000");
    assert_eq!(settings.to_string(), "datagrams to 127.0.0.1:6000 and 1 more");
    assert!(settings.is_loopback());
    assert!(refusal(Settings::unicast([])).contains("has 0"));
    assert!(refusal(Settings::unicast(["127.0.0.1", "::1"])).contains("all IPv4"));
    assert!(refusal(Settings::unicast(["127.0.0.1", "239.1.2.3"])).contains("one machine"));
    let many: Vec<String> = (0..=MAX_UNICAST).map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect();
    let of = |many: &[String]| Settings::unicast(many.iter().map(String::as_str));
    assert!(of(&many[..MAX_UNICAST]).is_ok());
    assert!(refusal(of(&many)).contains("has 257"));
}

#[test]
fn periods_have_two_limits() {
    for (period, taken) in [("99ms", false), ("100ms", true), ("60s", true), ("1m", true), ("61s", false), ("2", false)]
    {
        assert_eq!(Settings::from_url(&format!("?period={period}")).is_ok(), taken, "{period}");
    }
}

#[test]
fn a_key_has_32_bytes_and_stays_out_of_urls_and_logs() {
    for len in [0, 31, 33] {
        let error = key(&vec![1; len]).unwrap_err();
        assert!(error.to_string().contains(&format!("32 bytes, and this one has {len}")), "{error}");
    }
    assert!(key(&[1; 32]).is_ok());
    let text = refusal(Settings::from_url("?key=hush"));
    assert!(text.contains("key-file") && !text.contains("hush"), "{text}");

    let path = std::env::temp_dir().join(format!("picom-broadcast-key-{}", std::process::id()));
    let of_file = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        Settings::from_url(&format!("?key-file={}", path.display()))
    };
    let digits = "2a".repeat(32);
    let raw = of_file(&[42; 32]).unwrap();
    assert_eq!(of_file(format!("{digits}\n").as_bytes()).unwrap(), raw);
    assert!(!format!("{raw:?}").contains("42"), "{raw:?}");
    assert!(refusal(of_file(&[42; 31])).contains("64 hexadecimal digits"));
    assert!(refusal(of_file(&digits.as_bytes()[1..])).contains("64 hexadecimal digits"));
    std::fs::remove_file(&path).unwrap();
    assert!(refusal(Settings::from_url("?key-file=/nowhere/at/all")).contains("cannot be read"));
}

#[test]
fn switches_and_unknown_options() {
    let settings = url("?listen-only&replica=true&ignore-process=false");
    assert!(settings.listen_only && settings.replica && !settings.ignore_process);
    assert!(refusal(Settings::from_url("?replica=perhaps")).contains("true or false"));
    assert!(refusal(Settings::from_url("?secret=hush")).contains("unknown option \"secret\""));
}
