//! Tests of what picom believes of Consul's lists.
//!
//! Owns only tests. Look next at `entries.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn entry(address: &str, port: i64) -> Value {
    json!({"Node": {"Address": "10.9.9.9"}, "Service": {"ID": "a", "Address": address, "Port": port}, "Checks": []})
}

fn checked(checks: &[(&str, &str, &str)]) -> Tier {
    let checks: Vec<_> = checks
        .iter()
        .map(|(id, status, service)| json!({"CheckID": id, "Status": status, "ServiceID": service}))
        .collect();
    let parsed = parse(vec![json!({"Service": {"ID": "a", "Address": "10.0.0.1", "Port": 1}, "Checks": checks})]);
    parsed.endpoints[0].tier
}

#[test]
fn nonsense_is_rejected_and_the_rest_is_kept() {
    let nonsense = [
        entry("10.0.0.1", 70_000),
        entry("10.0.0.1", -5),
        entry("10.0.0.1", 0),
        entry("10.0.0.1\n", 80),
        entry("169.254.169.254", 80),
        entry("::ffff:169.254.169.254", 80),
        entry("fe80::1", 80),
        entry("0.0.0.0", 80),
        entry("::", 80),
        entry("224.0.0.1", 80),
        entry("255.255.255.255", 80),
        entry("not-an-address", 80),
        json!({"Service": {"ID": "a", "Port": "80"}}),
        json!("text"),
        json!(null),
    ];
    let number = nonsense.len();
    let mut entries = nonsense.to_vec();
    entries.push(entry("10.0.0.7", 4000));
    let parsed = parse(entries);
    assert_eq!(parsed.rejected.len(), number, "{:#?}", parsed.rejected);
    assert_eq!(parsed.endpoints.len(), 1);
    assert_eq!(parsed.endpoints[0].addr, "10.0.0.7:4000".parse().unwrap());
    assert!(parsed.rejected.iter().all(|line| !line.contains('\n')), "{:#?}", parsed.rejected);
}

#[test]
fn an_empty_address_means_the_address_of_the_node() {
    assert_eq!(parse(vec![entry("", 80)]).endpoints[0].addr, "10.9.9.9:80".parse().unwrap());
}

#[test]
fn of_two_entries_at_one_address_the_newest_counts() {
    let at = |id: &str, index: u64| json!({"Service": {"ID": id, "Address": "10.0.0.1", "Port": 1, "ModifyIndex": index}, "Checks": []});
    for entries in [vec![at("old", 3), at("new", 9)], vec![at("new", 9), at("old", 3)]] {
        let endpoints = parse(entries).endpoints;
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].id, "new");
    }
}

#[test]
fn tiers_follow_the_checks() {
    assert_eq!(checked(&[]), Tier::Healthy);
    assert_eq!(checked(&[("serfHealth", "passing", ""), ("service:a", "passing", "a")]), Tier::Healthy);
    assert_eq!(checked(&[("serfHealth", "passing", ""), ("service:a", "warning", "a")]), Tier::Doubtful);
    assert_eq!(checked(&[("serfHealth", "critical", ""), ("service:a", "passing", "a")]), Tier::Doubtful);
    assert_eq!(checked(&[("serfHealth", "passing", ""), ("service:a", "critical", "a")]), Tier::Unhealthy);
    assert_eq!(checked(&[("_node_maintenance", "critical", ""), ("service:a", "passing", "a")]), Tier::Unhealthy);
    assert_eq!(checked(&[("_service_maintenance:a", "critical", "a"), ("service:a", "passing", "a")]), Tier::Unhealthy);
}

#[test]
fn a_state_is_believed_only_from_the_instances_own_check_and_only_as_picom_writes_it() {
    let of = |id: &str, status: &str, notes: &str| {
        let check = json!({"CheckID": id, "Status": status, "ServiceID": "a", "Notes": notes});
        let entry = json!({"Service": {"ID": "a", "Address": "10.0.0.1", "Port": 1}, "Checks": [check]});
        let endpoint = parse(vec![entry]).endpoints.remove(0);
        (endpoint.tier, endpoint.status.to_string())
    };
    assert_eq!(of("service:a", "passing", "picom running @5"), (Tier::Healthy, "running".to_owned()));
    assert_eq!(of("service:a", "passing", "picom doing: backup"), (Tier::Healthy, "doing: backup".to_owned()));
    assert_eq!(of("service:a", "critical", "picom stopped: deploy"), (Tier::Healthy, "stopped: deploy".to_owned()));
    assert_eq!(of("service:a", "critical", "picom up"), (Tier::Healthy, "up".to_owned()));
    // It is about to be told to stop, or about to be told to start.
    assert_eq!(of("service:a", "passing", "picom stopped"), (Tier::Healthy, "stopped".to_owned()));
    assert_eq!(of("service:a", "critical", "picom running"), (Tier::Unhealthy, "running".to_owned()));
    for (id, notes) in [("service:a", "stopped"), ("service:a", "picom stopped: \u{7}"), ("other", "picom stopped")] {
        assert_eq!(of(id, "passing", notes), (Tier::Healthy, "running".to_owned()), "{id} {notes:?}");
        assert_eq!(of(id, "critical", notes), (Tier::Unhealthy, "running".to_owned()), "{id} {notes:?}");
    }
}

#[test]
fn what_the_instance_said_of_itself_comes_back() {
    let entry = json!({"Service": {
        "ID": "a", "Address": "::1", "Port": 1, "Tags": ["blue"], "Weights": {"Passing": 7, "Warning": 1},
        "Meta": {INCARNATION: "00000000000000ff", ZONE: "north", "colour": "red"}}});
    let endpoint = parse(vec![entry]).endpoints.remove(0);
    assert_eq!(endpoint.incarnation, Some(255));
    assert_eq!(endpoint.zone.as_deref(), Some("north"));
    assert_eq!(endpoint.weight, 7);
    assert_eq!(endpoint.tags, ["blue"]);
    assert_eq!(endpoint.meta, BTreeMap::from([("colour".to_owned(), "red".to_owned())]));
}

#[test]
fn weights_that_make_no_sense_become_the_nearest_that_do() {
    for (told, understood) in [(-1, 1), (0, 1), (3, 3), (1_i64 << 40, u16::MAX)] {
        let entry = json!({"Service": {"ID": "a", "Address": "::1", "Port": 1, "Weights": {"Passing": told}}});
        assert_eq!(parse(vec![entry]).endpoints[0].weight, understood, "told {told}");
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~\n]{0,20}".prop_map(Value::from),
        Just(Value::from("10.0.0.1")),
        Just(Value::from("picom stopped @1: why")),
    ];
    let key = prop_oneof![
        Just("Service"),
        Just("Node"),
        Just("Checks"),
        Just("ID"),
        Just("Address"),
        Just("Port"),
        Just("Meta"),
        Just("Weights"),
        Just("Passing"),
        Just("Status"),
        Just("Tags"),
        Just("CheckID"),
        Just("ServiceID"),
        Just("Notes"),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..8)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_consul_lists_is_either_an_endpoint_or_rejected(entries in prop::collection::vec(json_value(), 0..8)) {
        let number = entries.len();
        let parsed = parse(entries);
        prop_assert!(parsed.endpoints.len() + parsed.rejected.len() <= number);
        for endpoint in parsed.endpoints {
            prop_assert!(endpoint.addr.port() != 0 && !endpoint.addr.ip().is_unspecified());
        }
    }
}
