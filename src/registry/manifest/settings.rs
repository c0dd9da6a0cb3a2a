//! What a [`Manifest`](super::Manifest) was told: values, limits, URL.
//!
//! Owns the settings and the refusal of nonsensical ones. It must never do network I/O, and a secret must never reach a
//! `Debug`, an error or a log. Look next at `engine.rs` for who uses them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::registry::RegistryError;
use crate::registry::settings::{Hidden, duration, options, switch, unknown};

/// The port of `Manifest::local()`, and of addresses without one.
pub(super) const PORT: u16 = 3100;

/// Heartbeats below 50 ms are a busy loop, and a minute without one is surely a mistaken unit.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);

/// Longest lifetime, for the same reason.
const MAX_LIFETIME: Duration = Duration::from_secs(600);

/// Shortest secret, in bytes. Proofs can be overheard, and a shorter one be found by trying.
const MIN_SECRET: usize = 16;

/// Most addresses to join or to listen on.
const MAX_ADDRESSES: usize = 32;

pub(super) type Secret = Hidden<Vec<u8>>;

impl Secret {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) heartbeat: Duration,
    pub(super) lifetime: Duration,
    /// The port of this machine that is held by whoever comes first.
    pub(super) local: Option<u16>,
    pub(super) listen: Vec<String>,
    pub(super) join: Vec<String>,
    secret: Option<Secret>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) allow_remote: bool,
}

impl Settings {
    pub(super) const fn new() -> Self {
        Self {
            heartbeat: Duration::from_secs(2),
            lifetime: Duration::from_secs(6),
            local: None,
            listen: Vec::new(),
            join: Vec::new(),
            secret: None,
            secret_file: None,
            allow_remote: false,
        }
    }

    pub(super) fn set_secret(&mut self, secret: Vec<u8>) {
        self.secret = Some(Hidden(secret));
    }

    pub(super) fn is_locked(&self) -> bool {
        self.secret.is_some() || self.secret_file.is_some()
    }

    /// Whether a connection with this address is acceptable at all.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        self.is_locked() || self.allow_remote || address.to_canonical().is_loopback()
    }

    /// Whether members can only be on this machine. With a secret the port that is joined may be the near end of a tunnel, whatever its
    /// address.
    pub(super) fn is_local(&self) -> bool {
        let is_here = |address: &String| {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
            host == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
        };
        !(self.is_locked() || self.allow_remote) || self.join.is_empty() && self.listen.iter().all(is_here)
    }

    /// The secret, wherever it is. Reads a file.
    pub(super) fn secret(&self) -> Result<Option<Secret>, RegistryError> {
        let Some(path) = &self.secret_file else { return Ok(self.secret.clone()) };
        let text =
            std::fs::read(path).map_err(|error| bad(format!("the secret cannot be read from {path:?}: {error}")))?;
        let secret = Hidden(text.trim_ascii().to_vec());
        check_secret(&secret).map(|()| Some(secret))
    }

    /// What can be known to be wrong without reading a file or asking anybody.
    pub(super) fn validate(&self) -> Result<(), RegistryError> {
        if !HEARTBEATS.contains(&self.heartbeat) {
            return Err(bad(format!("the heartbeat must be between 50 ms and 1 min, and is {:?}", self.heartbeat)));
        }
        if self.lifetime < self.heartbeat * 2 || self.lifetime > MAX_LIFETIME {
            return Err(bad(format!(
                "the lifetime must be at least twice the heartbeat of {:?} and at most 10 min, and is {:?}",
                self.heartbeat, self.lifetime
            )));
        }
        self.secret.as_ref().map_or(Ok(()), check_secret)?;
        if self.listen.len() > MAX_ADDRESSES || self.join.len() > MAX_ADDRESSES {
            return Err(bad(format!("at most {MAX_ADDRESSES} addresses can be listened on, and as many be joined")));
        }
        for address in &self.listen {
            let Ok(parsed) = with_port(address).parse::<SocketAddr>() else {
                return Err(bad(format!("it can listen on an IP address with a port only, not on {:?}", cut(address))));
            };
            self.check_allowed(parsed, "listen on")?;
        }
        for address in &self.join {
            let written = with_port(address);
            let port =
                written.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse().ok())?);
            if port.is_none_or(|port: u16| port == 0) || written.contains(['/', '@', '?', ' ']) {
                return Err(bad("an address to join is written like 10.0.0.1:3100 or registry.example:3100"));
            }
            if let Ok(parsed) = written.parse() {
                self.check_allowed(parsed, "join")?;
            }
        }
        Ok(())
    }

    fn check_allowed(&self, address: SocketAddr, what: &str) -> Result<(), RegistryError> {
        if self.allows(address.ip()) {
            return Ok(());
        }
        Err(bad(format!(
            "it may not {what} {address}, where others could add services of their own: give it a secret, or call \
             allow_remote() in a network where nobody would"
        )))
    }

    /// Reads `local`, `local:3100`, or addresses to join with options: `10.0.0.1:3100,10.0.0.2?listen=…&secret-file=…`.
    pub(super) fn parse(rest: &str) -> Result<Self, RegistryError> {
        let mut settings = Self::new();
        let (hosts, query) = rest.split_once('?').unwrap_or((rest, ""));
        match hosts.trim_end_matches('/') {
            "local" => settings.local = Some(PORT),
            hosts => match hosts.strip_prefix("local:").map(str::parse) {
                Some(Ok(port)) if port != 0 => settings.local = Some(port),
                Some(_) => return Err(bad("the port behind local: must be a number from 1 to 65535")),
                None => {
                    settings.join.extend(hosts.split(',').map(str::trim).filter(|host| !host.is_empty()).map(with_port))
                }
            },
        }
        for (name, value) in options(query) {
            match &*name {
                "listen" => settings.listen.extend(value.split(',').map(with_port)),
                "secret-file" => settings.secret_file = Some(PathBuf::from(value)),
                "heartbeat" => settings.heartbeat = duration(&value).map_err(bad)?,
                "lifetime" => settings.lifetime = duration(&value).map_err(bad)?,
                "allow-remote" => settings.allow_remote = switch(&value).map_err(bad)?,
                "secret" => {
                    return Err(bad(
                        "a secret does not belong into a URL, which ends up in logs and process lists; use \
                         secret-file=…",
                    ));
                }
                _ => return Err(bad(unknown(&name, "listen, secret-file, heartbeat, lifetime and allow-remote"))),
            }
        }
        if settings.local.is_none() && settings.join.is_empty() && settings.listen.is_empty() {
            return Err(bad("manifest:// needs `local`, or addresses to join or to listen on, as in \
                 manifest://local or manifest://10.0.0.1:3100?listen=10.0.0.2:3100"));
        }
        settings.validate()?;
        Ok(settings)
    }

    /// Whom it looks for.
    pub(super) fn describe(&self) -> String {
        let places = match (self.local, self.join.is_empty(), self.listen.is_empty()) {
            (Some(port), ..) => format!("of this machine on 127.0.0.1:{port}"),
            (None, false, _) => format!("joined at {}", self.join.join(", ")),
            (None, true, false) => format!("on {}", self.listen.join(", ")),
            (None, true, true) => "of this process".to_owned(),
        };
        format!("manifest {places}")
    }
}

fn check_secret(secret: &Secret) -> Result<(), RegistryError> {
    if secret.0.len() >= MIN_SECRET {
        return Ok(());
    }
    Err(bad(format!("the secret must have at least {MIN_SECRET} bytes")))
}

/// The address with the usual port, if it has none.
pub(super) fn with_port(address: &str) -> String {
    let has_port = match address.rsplit_once(':') {
        Some((host, port)) => {
            port.bytes().all(|byte| byte.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{PORT}"),
        _ if has_port => address.to_owned(),
        _ => format!("{address}:{PORT}"),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

pub(super) fn bad(text: impl fmt::Display) -> RegistryError {
    RegistryError::Settings(format!("manifest: {text}"))
}
