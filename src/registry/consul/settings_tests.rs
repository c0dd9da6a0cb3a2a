//! Tests of what a Consul registry can be told: variables, URLs, limits.
//!
//! Owns only tests. It must never touch the process's real environment. Look next at `settings.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use super::*;

fn from(variables: &[(&str, &str)]) -> Result<Settings, RegistryError> {
    Settings::from_variables(|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

fn refusal<T: fmt::Debug>(result: Result<T, RegistryError>) -> String {
    match result {
        Err(RegistryError::Settings(text)) => text,
        other => panic!("expected a refusal of the settings, got {other:?}"),
    }
}

#[test]
fn without_variables_it_is_the_local_agent() {
    assert_eq!(from(&[]).unwrap().address, "http://127.0.0.1:8500");
    assert_eq!(from(&[("CONSUL_HTTP_ADDR", "")]).unwrap().address, "http://127.0.0.1:8500");
}

#[test]
fn the_address_may_come_with_or_without_a_scheme() {
    assert_eq!(from(&[("CONSUL_HTTP_ADDR", "10.0.0.1:8500")]).unwrap().address, "http://10.0.0.1:8500");
    assert_eq!(from(&[("CONSUL_HTTP_ADDR", "https://c.example:8501/")]).unwrap().address, "https://c.example:8501");
    let tls = from(&[("CONSUL_HTTP_ADDR", "c.example:8501"), ("CONSUL_HTTP_SSL", "true")]).unwrap();
    assert_eq!(tls.address, "https://c.example:8501");
    assert_eq!(from(&[("CONSUL_HTTP_ADDR", "[::1]:8500")]).unwrap().address, "http://[::1]:8500");
}

#[test]
fn every_variable_is_honoured() {
    let settings = from(&[
        ("CONSUL_HTTP_TOKEN", "hush"),
        ("CONSUL_HTTP_TOKEN_FILE", "/run/token"),
        ("CONSUL_CACERT", "/ca.pem"),
        ("CONSUL_CLIENT_CERT", "/cert.pem"),
        ("CONSUL_CLIENT_KEY", "/key.pem"),
        ("CONSUL_NAMESPACE", "team"),
    ])
    .unwrap();
    assert_eq!(settings.token, Some(Hidden("hush".to_owned())));
    assert_eq!(settings.token_file, Some(PathBuf::from("/run/token")));
    assert_eq!(settings.ca_cert, Some(PathBuf::from("/ca.pem")));
    assert_eq!(settings.client_cert, Some(PathBuf::from("/cert.pem")));
    assert_eq!(settings.client_key, Some(PathBuf::from("/key.pem")));
    assert_eq!(settings.namespace.as_deref(), Some("team"));
    assert!(!format!("{settings:?}").contains("hush"), "the token shows in {settings:?}");
}

#[test]
fn addresses_that_cannot_work_are_refused_without_being_repeated() {
    for address in ["", "unix:///run/consul.sock", "http://u:hush@c:8500", "http://c:8500/v1", "http://c:0", "a b"] {
        let text = refusal(Settings::new(address));
        assert!(text.contains("the address") && !text.contains("hush"), "{address:?} gave {text:?}");
    }
    refusal(from(&[("CONSUL_HTTP_SSL", "perhaps")]));
}

#[test]
fn a_url_replaces_what_it_says() {
    let mut settings = from(&[("CONSUL_HTTP_TOKEN", "hush")]).unwrap();
    settings.apply_url("https", "c.example:8501?ttl=90s&token-file=%2Frun%2Ftoken&dc=dc2&ns=team").unwrap();
    assert_eq!(settings.address, "https://c.example:8501");
    assert_eq!(settings.ttl, Duration::from_secs(90));
    assert_eq!(settings.token_file, Some(PathBuf::from("/run/token")));
    assert_eq!(settings.datacenter.as_deref(), Some("dc2"));
    assert_eq!(settings.namespace.as_deref(), Some("team"));
    assert_eq!(settings.token, Some(Hidden("hush".to_owned())), "what the URL does not say stays");
}

#[test]
fn a_url_with_nonsense_is_refused() {
    for rest in ["c:8500?ttl=0s", "c:8500?ttl=30", "c:8500?ttl=s", "c:8500?ttl=25h", "c:8500?colour=red", "c:8500/v1"] {
        let refused = Settings::new("c:1").unwrap().apply_url("http", rest);
        assert!(refused.is_err(), "{rest:?} was accepted");
    }
    let text = refusal(Settings::new("c:1").unwrap().apply_url("http", "c:8500?token=hush"));
    assert!(text.contains("token-file") && !text.contains("hush"), "{text}");
}

#[test]
fn a_ttl_outside_one_second_to_one_day_is_refused() {
    for (ttl, legal) in [(0, false), (999, false), (1000, true), (86_400_000, true), (86_400_001, false)] {
        let settings = Settings { ttl: Duration::from_millis(ttl), ..Settings::new("c:1").unwrap() };
        assert_eq!(settings.validate().is_ok(), legal, "TTL of {ttl} ms");
    }
}
