//! The few HTTP calls that picom makes to Consul.
//!
//! Owns requests, their deadlines, the bound on bodies, and the reading of refusals. It must never retry, and no text
//! that it makes may contain a token. Look next at `register.rs` and `watch.rs` for who calls, and at `trouble.rs`
//! for what a failed call says.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Method, redirect};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::sync::watch;

use super::settings::{Settings, bad};
use super::tls;
use super::trouble::{Kind, Trouble};
use crate::registry::RegistryError;

/// How long Consul may hold a blocking query. Short enough that abandoned ones do not fill its 200 places per client.
pub(super) const WAIT: Duration = Duration::from_secs(55);

/// Consul adds up to a sixteenth to the wait; the rest is for a slow network.
const WAIT_TIMEOUT: Duration = Duration::from_millis(55_000 * 17 / 16 + 10_000);

/// For every call that Consul should answer at once.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(30);

/// More than a thousand instances need, and bearable if something else than Consul answers.
const MAX_BODY_LEN: usize = 8 * 1024 * 1024;

/// The most instances of one service.
const MAX_ENTRIES: usize = 10_000;

/// How a list of instances is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// At once, from any server.
    Stale,
    /// When something is newer than this index, or after [`WAIT`]; from any server.
    StaleAfter(u64),
    /// At once, from the leader.
    Leader,
    /// At once, from the leader of the agent's own datacenter, which is where instances are registered.
    Own,
}

/// The answer to a reading of instances.
pub(super) struct Health {
    /// Where to go on waiting; 0 if Consul did not say.
    pub(super) index: u64,
    /// How long the server that answered has not heard from the leader.
    pub(super) last_contact: Duration,
    /// Whether Consul says that rights hide some entries.
    pub(super) filtered: bool,
    /// One object per instance, not looked at yet.
    pub(super) entries: Vec<Value>,
}

/// Consul's HTTP interface at one address with one set of settings.
pub(super) struct Api {
    pub(super) settings: Settings,
    reads: Connections,
    /// Connections of their own, so that a beat never waits behind a long poll.
    beats: Connections,
    token: watch::Sender<Option<HeaderValue>>,
    /// Whether anything has ever answered there.
    answered: AtomicBool,
}

/// Connections that are kept. The address is looked up whenever one is made, so a name that has moved is followed as soon as
/// the old address fails; as long as it answers well, one stays with the agent at which one is registered.
struct Connections {
    tls: ClientConfig,
    client: Mutex<Client>,
}

impl Connections {
    fn new(tls: ClientConfig) -> Result<Self, RegistryError> {
        let client = Self::client(&tls).map_err(|error| bad(format!("no HTTP client: {}", Trouble::cause(&error))))?;
        Ok(Self { tls, client: Mutex::new(client) })
    }

    fn client(tls: &ClientConfig) -> Result<Client, reqwest::Error> {
        Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CALL_TIMEOUT)
            .pool_idle_timeout(IDLE)
            .build()
    }

    fn get(&self) -> Client {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses the present connections for nothing new: whoever answers there may not be Consul any more.
    fn leave(&self) {
        match Self::client(&self.tls) {
            Ok(fresh) => *self.client.lock().unwrap_or_else(PoisonError::into_inner) = fresh,
            Err(error) => tracing::warn!(error = Trouble::cause(&error), "the old connections to consul stay in use"),
        }
    }
}

impl Api {
    pub(super) fn new(settings: Settings) -> Result<Self, RegistryError> {
        settings.validate()?;
        let token = token(&settings)?;
        let tls = tls::config(&settings)?;
        let (reads, beats) = (Connections::new(tls.clone())?, Connections::new(tls)?);
        let (token, answered) = (watch::Sender::new(token), AtomicBool::new(false));
        Ok(Self { reads, beats, token, answered, settings })
    }

    /// What errors call it.
    pub(super) fn describe(&self) -> String {
        format!("consul at {}", self.settings.address)
    }

    /// Whether anything has ever answered this process there.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Reads the token's file again; all who wait for another token hear of it. An unreadable file changes nothing.
    pub(super) fn reload_token(&self) {
        match token(&self.settings) {
            Ok(fresh) => {
                self.token.send_if_modified(|current| {
                    let changed = *current != fresh;
                    *current = fresh;
                    changed
                });
            }
            Err(error) => tracing::warn!(%error, "the old token stays in use"),
        }
    }

    /// Changes whenever there is another token.
    pub(super) fn tokens(&self) -> watch::Receiver<Option<HeaderValue>> {
        self.token.subscribe()
    }

    /// Tells the agent of an instance; it overwrites the one with the same id.
    pub(super) async fn register(&self, body: &Value, timeout: Duration) -> Result<(), Trouble> {
        self.put("/v1/agent/service/register", Some(body), timeout).await
    }

    /// Says that an instance lives, and whether it is to be called.
    pub(super) async fn beat(&self, check_id: &str, passes: bool, timeout: Duration) -> Result<(), Trouble> {
        let verb = if passes { "pass" } else { "fail" };
        self.put(&format!("/v1/agent/check/{verb}/{}", escape(check_id)), None, timeout).await
    }

    /// Takes an instance back; an unknown one counts as taken back.
    pub(super) async fn deregister(&self, id: &str) -> Result<(), Trouble> {
        match self.put(&format!("/v1/agent/service/deregister/{}", escape(id)), None, CALL_TIMEOUT).await {
            Err(trouble) if trouble.kind == Kind::Unknown => Ok(()),
            outcome => outcome,
        }
    }

    /// Every instance of a service, whatever its health.
    pub(super) async fn health(&self, service: &str, read: Read, timeout: Duration) -> Result<Health, Trouble> {
        let path = format!("/v1/health/service/{}", escape(service));
        let mut query = match read {
            Read::Leader | Read::Own => String::new(),
            Read::Stale => "stale".to_owned(),
            Read::StaleAfter(index) => format!("stale&index={index}&wait={}s", WAIT.as_secs()),
        };
        if let Some(datacenter) = self.settings.datacenter.as_ref().filter(|_| read != Read::Own) {
            query = format!("{query}&dc={}", escape(datacenter));
        }
        let timeout = if matches!(read, Read::StaleAfter(_)) { WAIT_TIMEOUT } else { timeout };
        let (headers, body) = self.call(&self.reads, Method::GET, &path, &query, None, timeout).await?;
        let nonsense = || self.wrong(&self.reads, &Method::GET, &path, Kind::Failed, &Trouble::not_json(&body));
        // `null` is Go's empty list.
        let entries: Vec<Value> =
            serde_json::from_slice::<Option<_>>(&body).map_err(|_| nonsense())?.unwrap_or_default();
        if entries.len() > MAX_ENTRIES {
            let text = format!("more than {MAX_ENTRIES} instances");
            return Err(self.trouble(&Method::GET, &path, Kind::Failed, &text));
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        Ok(Health {
            index: number("x-consul-index"),
            last_contact: Duration::from_millis(number("x-consul-lastcontact")),
            filtered: text("x-consul-results-filtered-by-acls") == Some("true"),
            entries,
        })
    }

    /// Whether Consul checks rights at all; without an answer it is assumed not to.
    pub(super) async fn checks_rights(&self) -> bool {
        match self.call(&self.reads, Method::GET, "/v1/acl/token/self", "", None, CALL_TIMEOUT).await {
            Ok(_) => true,
            Err(trouble) => trouble.kind == Kind::Denied && !trouble.text.contains("ACL support disabled"),
        }
    }

    async fn put(&self, path: &str, body: Option<&Value>, timeout: Duration) -> Result<(), Trouble> {
        let (_, answer) = self.call(&self.beats, Method::PUT, path, "", body, timeout).await?;
        // Consul answers these with nothing. A page of HTML is what a login or error page in front of it sends.
        if answer.trim_ascii_start().starts_with(b"<") {
            return Err(self.wrong(&self.beats, &Method::PUT, path, Kind::Failed, &Trouble::not_json(&answer)));
        }
        Ok(())
    }

    async fn call(
        &self,
        connections: &Connections,
        method: Method,
        path: &str,
        query: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<(HeaderMap, Vec<u8>), Trouble> {
        let mut url = format!("{}{path}?{query}", self.settings.address);
        if let Some(namespace) = &self.settings.namespace {
            url = format!("{url}&ns={}", escape(namespace));
        }
        let mut request = connections.get().request(method.clone(), url).timeout(timeout);
        let token = self.token.borrow().clone();
        if let Some(token) = token {
            request = request.header("X-Consul-Token", token);
        }
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let failed = |error: &reqwest::Error| {
            let text = if error.is_timeout() { format!("no answer within {timeout:?}") } else { Trouble::cause(error) };
            self.trouble(&method, path, Kind::Failed, &text)
        };
        let mut response = request.send().await.map_err(|error| failed(&error))?;
        self.answered.store(true, Ordering::Relaxed);
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error))? {
            if answer.len() + chunk.len() > MAX_BODY_LEN {
                return Err(self.wrong(connections, &method, path, Kind::Failed, "answered with more than 8 MiB"));
            }
            answer.extend_from_slice(&chunk);
        }
        let status = response.status();
        if !status.is_success() {
            let (kind, text) = Trouble::of_answer(status, &answer);
            return Err(self.wrong(connections, &method, path, kind, &text));
        }
        Ok((response.headers().clone(), answer))
    }

    /// What to make of an answer other than success. The connection is not used again: at its other end may be something else
    /// than where the name leads now. Only who asks for too much must keep what he has.
    fn wrong(&self, connections: &Connections, method: &Method, path: &str, kind: Kind, text: &str) -> Trouble {
        if kind != Kind::Limited {
            connections.leave();
        }
        self.trouble(method, path, kind, text)
    }

    fn trouble(&self, method: &Method, path: &str, kind: Kind, text: &str) -> Trouble {
        Trouble { kind, text: format!("{}: {method} {path}: {text}", self.describe()) }
    }
}

/// The token to use: what the file holds, else the given one.
fn token(settings: &Settings) -> Result<Option<HeaderValue>, RegistryError> {
    let mut token = settings.token.as_ref().map(|secret| secret.0.clone());
    if let Some(path) = &settings.token_file {
        let text = fs::read_to_string(path).map_err(|error| bad(format!("token file {}: {error}", path.display())))?;
        if !text.trim().is_empty() {
            token = Some(text.trim().to_owned());
        }
    }
    let Some(token) = token else { return Ok(None) };
    let mut value = HeaderValue::from_str(&token).map_err(|_| bad("the token holds illegal characters"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Makes any text fit for one segment of a path or one value of a query.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
