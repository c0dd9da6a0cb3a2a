//! What a [`Consul`](super::Consul) registry was told: values, limits, environment, URL.
//!
//! Owns the settings and the refusal of nonsensical ones. It must never do network I/O, and a token must never reach
//! a `Debug`, an error or a log. Look next at `http.rs` for who uses them.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use crate::registry::RegistryError;
use crate::registry::settings::{Hidden, duration, options, unknown};

/// Where Consul's own tools look when they are told nothing.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8500";

/// Three beats fit in, two of which may be lost; long enough for a busy machine, short enough for a dead one.
const DEFAULT_TTL: Duration = Duration::from_secs(30);

/// Below 1 s any pause of the machine looks like death, and Consul takes 0 for "healthy for ever". A whole day is
/// surely a mistaken unit.
const TTL_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// `http://host:port` or `https://host:port`, without a slash at the end.
    pub(super) address: String,
    pub(super) ttl: Duration,
    pub(super) token: Option<Hidden<String>>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) datacenter: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) stale_grace: Option<Duration>,
    pub(super) deregister_after: Option<Duration>,
    pub(super) ca_cert: Option<PathBuf>,
    pub(super) client_cert: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
}

impl Settings {
    pub(super) fn new(address: &str) -> Result<Self, RegistryError> {
        Ok(Self {
            address: checked_address(address, "http")?,
            ttl: DEFAULT_TTL,
            token: None,
            token_file: None,
            datacenter: None,
            namespace: None,
            stale_grace: None,
            deregister_after: None,
            ca_cert: None,
            client_cert: None,
            client_key: None,
        })
    }

    /// Reads Consul's own variables through `variable`; an empty one counts as unset, as in Consul's own tools.
    pub(super) fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, RegistryError> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let scheme = match get("CONSUL_HTTP_SSL").as_deref() {
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => "https",
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => "http",
            Some(_) => return Err(bad("CONSUL_HTTP_SSL must be true or false")),
        };
        let address = get("CONSUL_HTTP_ADDR").unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
        Ok(Self {
            address: checked_address(&address, scheme)?,
            token: get("CONSUL_HTTP_TOKEN").map(Hidden),
            token_file: get("CONSUL_HTTP_TOKEN_FILE").map(PathBuf::from),
            namespace: get("CONSUL_NAMESPACE"),
            ca_cert: get("CONSUL_CACERT").map(PathBuf::from),
            client_cert: get("CONSUL_CLIENT_CERT").map(PathBuf::from),
            client_key: get("CONSUL_CLIENT_KEY").map(PathBuf::from),
            ..Self::new(DEFAULT_ADDRESS)?
        })
    }

    /// Replaces what a URL says: `host:port?ttl=30s&token-file=…&dc=…&ns=…`, to be spoken to through `scheme`. An
    /// empty host keeps the address.
    pub(super) fn apply_url(&mut self, scheme: &str, rest: &str) -> Result<(), RegistryError> {
        let (host, query) = rest.split_once('?').unwrap_or((rest, ""));
        let host = host.trim_end_matches('/');
        if !host.is_empty() {
            self.address = checked_address(&format!("{scheme}://{host}"), scheme)?;
        } else if scheme == "https" {
            return Err(bad("consul+https:// needs an address, as in consul+https://consul.example:8501"));
        }
        for (name, value) in options(query) {
            match &*name {
                "ttl" => self.ttl = duration(&value).map_err(bad)?,
                "token-file" => self.token_file = Some(PathBuf::from(value)),
                "dc" => self.datacenter = Some(value),
                "ns" => self.namespace = Some(value),
                "token" => {
                    return Err(bad("a token does not belong into a URL, which ends up in logs and process lists; \
                         use token-file=… or the variable CONSUL_HTTP_TOKEN"));
                }
                _ => return Err(bad(unknown(&name, "ttl, token-file, dc and ns"))),
            }
        }
        self.validate()
    }

    /// What can be known to be wrong without reading a file or asking anybody.
    pub(super) fn validate(&self) -> Result<(), RegistryError> {
        if !TTL_RANGE.contains(&self.ttl) {
            return Err(bad(format!("the TTL must be between 1 s and 1 day, and is {:?}", self.ttl)));
        }
        if self.client_cert.is_some() != self.client_key.is_some() {
            return Err(bad("a client certificate needs its key, and a key its certificate"));
        }
        Ok(())
    }

    /// How long a list that became empty is remembered.
    pub(super) fn stale_grace(&self) -> Duration {
        self.stale_grace.unwrap_or(self.ttl * 2)
    }

    /// After which time without a beat Consul forgets an instance.
    pub(super) fn deregister_after(&self) -> Duration {
        self.deregister_after.unwrap_or_else(|| (self.ttl * 10).max(Duration::from_secs(5 * 60)))
    }
}

pub(super) fn bad(text: impl fmt::Display) -> RegistryError {
    RegistryError::Settings(format!("consul: {text}"))
}

/// `scheme://host:port` of what somebody wrote with or without a scheme. The text of an error never repeats what was
/// written, because it may hold a password.
fn checked_address(address: &str, scheme: &str) -> Result<String, RegistryError> {
    let refuse = |why: &str| Err(bad(format!("the address {why}; write http://127.0.0.1:8500")));
    let written = if address.contains("://") { address.to_owned() } else { format!("{scheme}://{address}") };
    let Ok(url) = Url::parse(&written) else {
        return refuse("cannot be read");
    };
    if !matches!(url.scheme(), "http" | "https") {
        return refuse("must be http:// or https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("must not hold a user or password");
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return refuse("must end after the port");
    }
    match (url.host_str(), url.port_or_known_default()) {
        (Some(host), Some(port)) if port != 0 => Ok(format!("{}://{host}:{port}", url.scheme())),
        _ => refuse("needs a host and a port"),
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
