//! A real Consul agent that checks rights, and one that speaks only TLS.
//!
//! Owns only tests; each starts an agent of its own. Look next at `support/consul.rs`.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use picom::registry::{Consul, Freshness, RegistrationState, Registry};
use serde_json::{Value, json};
use support::consul::{Agent, program};
use support::{instance, state, until};

/// A token that may do everything; any UUID will do.
const MANAGEMENT: &str = "6d9a1f7c-0f5b-4d55-9c39-3a4b1f1c9e10";

fn consul(agent: &Agent) -> Consul {
    Consul::new(&agent.url()).unwrap().ttl(Duration::from_secs(2))
}

/// Makes a token and returns its secret and the name by which it can be deleted.
async fn token(agent: &Agent, rights: Value) -> (String, String) {
    let answer = agent.http("PUT", "/v1/acl/token", Some(MANAGEMENT), &rights.to_string()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let token: Value = serde_json::from_str(&answer.body).unwrap();
    (token["SecretID"].as_str().unwrap().to_owned(), token["AccessorID"].as_str().unwrap().to_owned())
}

async fn policy(agent: &Agent, name: &str, rules: &str) -> (String, String) {
    let body = json!({"Name": name, "Rules": rules}).to_string();
    let answer = agent.http("PUT", "/v1/acl/policy", Some(MANAGEMENT), &body).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    token(agent, json!({"Policies": [{"Name": name}]})).await
}

#[tokio::test]
async fn a_service_identity_is_all_that_a_service_needs() {
    let Some(agent) = Agent::start_with_rights(MANAGEMENT).await else { return };
    let (secret, _) = token(&agent, json!({"ServiceIdentities": [{"ServiceName": "service1"}]})).await;
    let registry = consul(&agent).token(&secret);
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    assert_eq!(registration.state(), RegistrationState::Registered);
    let found = until(&mut registry.watch("service1"), "the instance", |e| e.usable().len() == 1).await;
    assert_eq!(found.problem, None);
    registration.leave().await.unwrap();

    let other = registry.register(instance("service2", "two", 4001)).await.unwrap();
    match other.state() {
        RegistrationState::Denied(why) => assert!(why.contains("403") && why.contains("service2"), "{why}"),
        other => panic!("expected another name to be denied, got {other:?}"),
    }
}

#[tokio::test]
async fn without_rights_both_sides_say_so() {
    let Some(agent) = Agent::start_with_rights(MANAGEMENT).await else { return };
    let registration = consul(&agent).register(instance("service1", "one", 4000)).await.unwrap();
    match registration.state() {
        RegistrationState::Denied(why) => assert!(why.contains("403") && why.contains(&agent.url()), "{why}"),
        other => panic!("expected Denied, got {other:?}"),
    }
    // Consul answers as if nobody were there.
    let hint = |text: &str| text.contains("service:read") && text.contains("node:read");
    let mut watch = consul(&agent).watch("service1");
    let found = until(&mut watch, "the hint", |e| e.problem.as_deref().is_some_and(hint)).await;
    assert_eq!(found.freshness, Freshness::Live);

    let unknown = consul(&agent).token("11111111-2222-3333-4444-555555555555");
    let found = until(&mut unknown.watch("service1"), "the refusal", |e| e.problem.is_some()).await;
    let problem = found.problem.as_deref().unwrap();
    assert!(problem.contains("403") && problem.contains("ACL not found") && !problem.contains("5555"), "{problem}");
}

#[tokio::test]
async fn a_token_that_may_only_write_is_enough_to_register() {
    let Some(agent) = Agent::start_with_rights(MANAGEMENT).await else { return };
    let (secret, _) = policy(&agent, "write", "service \"service1\" { policy = \"write\" }").await;
    let registration = consul(&agent).token(secret).register(instance("service1", "one", 4000)).await.unwrap();
    assert_eq!(registration.state(), RegistrationState::Registered);
    let list = agent.http("GET", "/v1/health/service/service1", Some(MANAGEMENT), "").await.unwrap();
    assert!(list.body.contains("\"one\""), "{}", list.body);
}

#[tokio::test]
async fn a_deleted_token_is_denied_and_its_successor_in_the_file_is_used() {
    let Some(agent) = Agent::start_with_rights(MANAGEMENT).await else { return };
    let identity = json!({"ServiceIdentities": [{"ServiceName": "service1"}]});
    let (first, accessor) = token(&agent, identity.clone()).await;
    let (second, _) = token(&agent, identity).await;
    let folder = Folder::new("token");
    let path = folder.0.join("token");
    std::fs::write(&path, first).unwrap();
    let registry = consul(&agent).token_file(&path);
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    assert_eq!(registration.state(), RegistrationState::Registered);
    let mut watch = registry.watch("service1");
    until(&mut watch, "the instance", |e| e.usable().len() == 1).await;

    let path_of_token = format!("/v1/acl/token/{accessor}");
    assert_eq!(agent.http("DELETE", &path_of_token, Some(MANAGEMENT), "").await.unwrap().status, 200);
    state(&registration, "Denied", |state| matches!(state, RegistrationState::Denied(_))).await;
    std::fs::write(&path, second).unwrap();
    state(&registration, "Registered", |state| *state == RegistrationState::Registered).await;
    until(&mut watch, "the list again", |e| e.usable().len() == 1 && e.freshness == Freshness::Live).await;
}

/// A folder of one's own, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("picom-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Lets Consul make a CA and certificates, signed by it, in the folder.
fn certificates(program: &Path, folder: &Path) {
    for arguments in
        [["ca", "create", "", ""], ["cert", "create", "-server", "-dc=dc1"], ["cert", "create", "-client", "-dc=dc1"]]
    {
        let arguments = arguments.iter().filter(|argument| !argument.is_empty());
        let made = Command::new(program)
            .arg("tls")
            .args(arguments)
            .current_dir(folder)
            .stdout(Stdio::null())
            .status()
            .expect("consul makes certificates");
        assert!(made.success());
    }
}

#[tokio::test]
async fn a_certificate_and_its_authority_open_a_consul_that_speaks_tls() {
    let Some(program) = program() else { return };
    let folder = Folder::new("tls");
    certificates(&program, &folder.0);
    let file = |name: &str| folder.0.join(name);
    let ca = file("consul-agent-ca.pem");
    let (cert, key) = (file("dc1-client-consul-0.pem"), file("dc1-client-consul-0-key.pem"));
    let server = (file("dc1-server-consul-0.pem"), file("dc1-server-consul-0-key.pem"));
    let agent = Agent::start_with_tls(&ca, &server.0, &server.1).await.expect("the program is there");
    assert!(agent.url().starts_with("https://"));

    let registry = consul(&agent).ca_cert(&ca).client_cert(&cert, &key);
    registry.validate().unwrap();
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    state(&registration, "Registered", |state| *state == RegistrationState::Registered).await;
    until(&mut registry.watch("service1"), "the instance", |e| e.usable().len() == 1).await;

    let unknown_ca = until(&mut consul(&agent).watch("service1"), "the refusal", |e| e.problem.is_some()).await;
    let problem = unknown_ca.problem.as_deref().unwrap();
    assert!(problem.contains("certificate") && problem.contains(&agent.url()), "{problem}");
    let nameless = consul(&agent).ca_cert(&ca).watch("service1");
    until(&mut nameless.clone(), "the refusal", |e| e.problem.is_some()).await;
    assert_eq!(nameless.current().freshness, Freshness::Never);

    registration.leave().await.unwrap();
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let folder = Folder::new("files");
    let empty = folder.0.join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let missing = folder.0.join("missing.pem");
    let tls = || Consul::new("https://127.0.0.1:1").unwrap();
    for (registry, name) in [
        (tls().ca_cert(&missing), "missing.pem"),
        (tls().ca_cert(&empty), "empty.pem"),
        (tls().client_cert(&empty, &missing), "empty.pem"),
        (tls().token_file(&missing), "missing.pem"),
    ] {
        let text = registry.validate().unwrap_err().to_string();
        assert!(text.contains(name), "{text}");
    }
}
