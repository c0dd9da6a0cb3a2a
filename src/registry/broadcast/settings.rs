//! What a [`Broadcast`](super::Broadcast) registry was told: whom to send to, how often, with which key.
//!
//! Owns the settings, their grammar in a URL, and the refusal of those that cannot work. It must never do network I/O, and
//! never guess a network: what is not named is loopback. Look next at `task.rs` for the socket that is made of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::datagram::PERIODS;
use super::seal::{KEY, Key};
use crate::registry::RegistryError;
use crate::registry::settings::{Hidden, duration, options, switch, unknown};

/// The usual port.
const PORT: u16 = 5000;

/// The usual time between two advertisements of one instance.
const PERIOD: Duration = Duration::from_secs(2);

/// Most addresses of a list: every announcement is sent to each of them.
const MAX_UNICAST: usize = 256;

/// Longest file with a key, in bytes: 64 hexadecimal digits with room for a line's end.
const MAX_KEY_FILE: usize = 80;

/// The address to which all of loopback listens.
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Broadcast(SocketAddr),
    Multicast(SocketAddr),
    Unicast(Vec<SocketAddr>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) target: Target,
    /// Where multicast is sent and listened to; loopback if nobody says.
    pub(super) interface: Option<Ipv4Addr>,
    pub(super) period: Duration,
    pub(super) key: Option<Key>,
    pub(super) ignore_process: bool,
    pub(super) listen_only: bool,
    pub(super) replica: bool,
}

impl Settings {
    pub(super) fn loopback() -> Self {
        Self::with(Target::Broadcast(SocketAddr::from((LOOPBACK, PORT))))
    }

    fn with(target: Target) -> Self {
        Self {
            target,
            interface: None,
            period: PERIOD,
            key: None,
            ignore_process: false,
            listen_only: false,
            replica: false,
        }
    }

    pub(super) fn broadcast(address: &str) -> Result<Self, RegistryError> {
        let addr = checked_address(address)?;
        match addr.ip() {
            IpAddr::V6(_) => Err(bad("IPv6 has no broadcast; use multicast with IPv4, or a list of addresses")),
            IpAddr::V4(Ipv4Addr::BROADCAST) => Err(bad(
                "255.255.255.255 leaves it to the machine which network is meant; name the network's own broadcast \
                 address, like 10.1.255.255 of 10.1.0.0/16",
            )),
            IpAddr::V4(ip) if ip.is_multicast() => Err(bad("that is a multicast group, not a broadcast address")),
            IpAddr::V4(ip) if ip.is_loopback() && ip != LOOPBACK => {
                Err(bad("on loopback the broadcast address is 127.255.255.255"))
            }
            IpAddr::V4(_) => Ok(Self::with(Target::Broadcast(addr))),
        }
    }

    pub(super) fn multicast(group: &str) -> Result<Self, RegistryError> {
        let addr = checked_address(group)?;
        if !addr.ip().is_multicast() || addr.is_ipv6() {
            return Err(bad("a multicast group is an IPv4 address from 224.0.0.0 to 239.255.255.255"));
        }
        Ok(Self::with(Target::Multicast(addr)))
    }

    pub(super) fn unicast<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Self, RegistryError> {
        let mut list = addresses.into_iter().map(checked_address).collect::<Result<Vec<_>, _>>()?;
        if let Some(odd) = list.iter().find(|addr| addr.ip().is_multicast() || addr.ip() == Ipv4Addr::BROADCAST) {
            return Err(bad(format!("{odd} is not the address of one machine")));
        }
        if list.iter().any(|addr| addr.is_ipv4() != list[0].is_ipv4()) {
            return Err(bad("the addresses must be all IPv4 or all IPv6"));
        }
        let mut seen = Vec::new();
        list.retain(|addr| {
            !seen.contains(addr) && {
                seen.push(*addr);
                true
            }
        });
        if !(1..=MAX_UNICAST).contains(&list.len()) {
            return Err(bad(format!("a list has 1 to {MAX_UNICAST} addresses, and this one has {}", list.len())));
        }
        Ok(Self::with(Target::Unicast(list)))
    }

    /// Reads `address[,address…][?option=value&…]`; nothing means loopback.
    pub(super) fn from_url(rest: &str) -> Result<Self, RegistryError> {
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let place = place.trim_end_matches('/');
        let mut settings = if place.is_empty() {
            Self::loopback()
        } else if place.contains(',') {
            Self::unicast(place.split(','))?
        } else if checked_address(place)?.ip().is_multicast() {
            Self::multicast(place)?
        } else {
            Self::broadcast(place)?
        };
        for (name, value) in options(query) {
            match &*name {
                "period" => settings.period = duration(&value).map_err(bad)?,
                "interface" => {
                    let ip = value.parse().map_err(|_| bad("the interface is named by its own IPv4 address"))?;
                    settings.interface = Some(ip);
                }
                "key-file" => settings.key = Some(key_of_file(&value)?),
                "ignore-process" => settings.ignore_process = switch(&value).map_err(bad)?,
                "listen-only" => settings.listen_only = switch(&value).map_err(bad)?,
                "replica" => settings.replica = switch(&value).map_err(bad)?,
                "key" => {
                    return Err(bad("a key does not belong into a URL, which ends up in logs and process lists; \
                         use key-file=…"));
                }
                _ => {
                    let there_are = "period, interface, key-file, ignore-process, listen-only and replica";
                    return Err(bad(unknown(&name, there_are)));
                }
            }
        }
        settings.validate()?;
        Ok(settings)
    }

    pub(super) fn validate(&self) -> Result<(), RegistryError> {
        if !PERIODS.contains(&self.period) {
            return Err(bad(format!("the period must be between 100 ms and 60 s, and is {:?}", self.period)));
        }
        match self.interface {
            Some(_) if !matches!(self.target, Target::Multicast(_)) => {
                Err(bad("only multicast has an interface; a broadcast address says by itself where it belongs"))
            }
            Some(ip) if ip.is_unspecified() || ip.is_multicast() => {
                Err(bad("the interface is named by its own address, and 0.0.0.0 leaves it to the machine"))
            }
            _ => Ok(()),
        }
    }

    /// Where multicast is sent and listened to.
    pub(super) fn multicast_interface(&self) -> Ipv4Addr {
        self.interface.unwrap_or(Ipv4Addr::LOCALHOST)
    }

    /// Whether nobody outside of this machine has a say.
    pub(super) fn is_loopback(&self) -> bool {
        match &self.target {
            Target::Broadcast(addr) => addr.ip().is_loopback(),
            Target::Multicast(_) => self.multicast_interface().is_loopback(),
            Target::Unicast(list) => list.iter().all(|addr| addr.ip().is_loopback()),
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Broadcast(addr) => write!(f, "broadcast to {addr}"),
            Target::Multicast(addr) => write!(f, "multicast to {addr} at interface {}", self.multicast_interface()),
            Target::Unicast(list) => match &list[..] {
                [first, _, ..] => write!(f, "datagrams to {first} and {} more", list.len() - 1),
                _ => write!(f, "datagrams to nobody else"),
            },
        }
    }
}

pub(super) fn bad(text: impl fmt::Display) -> RegistryError {
    RegistryError::Settings(format!("broadcast: {text}"))
}

pub(super) fn key(bytes: &[u8]) -> Result<Key, RegistryError> {
    <[u8; KEY]>::try_from(bytes)
        .map(Hidden)
        .map_err(|_| bad(format!("a key has {KEY} bytes, and this one has {}", bytes.len())))
}

/// 32 bytes, or 64 hexadecimal digits.
fn key_of_file(path: &str) -> Result<Key, RegistryError> {
    let text = std::fs::read(path).map_err(|error| bad(format!("the file with the key cannot be read: {error}")))?;
    if text.len() == KEY {
        return key(&text);
    }
    let digits = text.trim_ascii();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes: Option<Vec<u8>> =
        digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect();
    match bytes {
        Some(bytes) if bytes.len() == KEY && text.len() <= MAX_KEY_FILE => key(&bytes),
        _ => Err(bad("the file with the key must hold 32 bytes or 64 hexadecimal digits")),
    }
}

/// `10.1.255.255:5000`, or without a port for the usual one.
fn checked_address(text: &str) -> Result<SocketAddr, RegistryError> {
    let text = text.trim();
    let with_port = text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)));
    match with_port {
        Ok(addr) if addr.port() == 0 => Err(bad("the port must not be 0: everybody has to use the same one")),
        Ok(addr) if addr.ip().is_unspecified() => {
            Err(bad("0.0.0.0 names no network; name one, or leave it out for loopback"))
        }
        Ok(addr) => Ok(addr),
        Err(_) => Err(bad("an address is written like 10.1.255.255:5000")),
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
