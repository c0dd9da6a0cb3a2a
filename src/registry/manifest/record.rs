//! What the members of a manifest tell each other about: records.
//!
//! Owns [`RecordId`], [`Record`], [`Details`], the form in which a record's content travels, and what of it is acceptable. It
//! must never know who holds which record. Look next at `table.rs` for who does, and at `registry/role.rs` for how records are found.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::role;
use crate::message;
use crate::registry::address::usable;
use crate::registry::{Endpoint, Instance, MAX_NAME_LEN, RegistryError, Tier, check_service_name};
use crate::state::{MAX_REASON, NodeState, NodeStatus};

/// Most extra data of one record, in bytes: enough for a small configuration, too little to make the table a file store.
pub const MAX_DATA: usize = 4 << 10;

/// Most bytes of one record as it travels: its data, and as much again for everything else.
pub(super) const MAX_BODY: usize = 2 * MAX_DATA;

/// Names a record everywhere. It contains the owner, so that nobody can claim the record of another as his own.
///
/// Written as `0123456789abcdef-7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    /// The member that registered it.
    pub owner: u64,
    /// Which one of the owner's; never used again.
    pub number: u64,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.owner, self.number)
    }
}

impl FromStr for RecordId {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let parts = text.split_once('-').filter(|(owner, _)| owner.len() == 16);
        let id = parts.and_then(|(owner, number)| {
            Some(Self { owner: u64::from_str_radix(owner, 16).ok()?, number: number.parse().ok()? })
        });
        id.ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            RegistryError::Invalid(format!("{shown:?} is not the id of a record, which looks like 0123456789abcdef-7"))
        })
    }
}

/// What is registered under a role; every field may be left at its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// Where it is reached; `None`, the default, means the member's own address, once that is known: what it listens on, or as
    /// what the first member that it joined sees it, or if it joins nobody and listens on all addresses at once, the one at which
    /// it is joined first. An address that other machines reach is preferred to one of loopback. Until one is known others know
    /// the record but cannot call it.
    pub address: Option<IpAddr>,
    /// The port that it is reached at; default 0, which means that it is not reached by picom's calls.
    pub port: u16,
    /// Share of the calls relative to others; default 1.
    pub weight: u16,
    /// Where it runs.
    pub zone: Option<String>,
    /// Free labels.
    pub tags: Vec<String>,
    /// Small extra data as text.
    pub meta: BTreeMap<String, String>,
    /// What it is ready for; default running.
    pub status: NodeStatus,
    /// Whether it outlives its owner. Such a record may be freed by every member, also by one that does not own it.
    pub persistent: bool,
    /// Extra data, at most [`MAX_DATA`] bytes.
    pub data: Vec<u8>,
}

impl Default for Details {
    fn default() -> Self {
        Self {
            address: None,
            port: 0,
            weight: 1,
            zone: None,
            tags: Vec::new(),
            meta: BTreeMap::new(),
            status: NodeStatus::only(NodeState::Running),
            persistent: false,
            data: Vec::new(),
        }
    }
}

/// A record as a member sees it: a copy, which does not change any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which record it is.
    pub id: RecordId,
    /// Grows with every change of the record; comparable only between states of one record.
    pub revision: u64,
    /// The role as it was registered: `calc@1.2.3`, or `calc`.
    pub service: String,
    /// The role without its version.
    pub role: String,
    /// The role's version, if it has one.
    pub version: Option<String>,
    /// What its owner calls it; empty if it does not say.
    pub instance: String,
    /// The random number of the process that answers there, if its owner said.
    pub incarnation: Option<u64>,
    /// Everything else.
    pub details: Details,
}

/// A record's content on its way. What it is in bytes is kept, relayed and compared as it came, so that members of another
/// version of picom agree on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    #[serde(rename = "s")]
    pub(super) service: String,
    #[serde(rename = "i", default, skip_serializing_if = "String::is_empty")]
    pub(super) instance: String,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub(super) incarnation: Option<u64>,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<IpAddr>,
    #[serde(rename = "p", default)]
    pub(super) port: u16,
    #[serde(rename = "w", default = "one")]
    pub(super) weight: u16,
    #[serde(rename = "z", default, skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<String>,
    #[serde(rename = "t", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tags: Vec<String>,
    #[serde(rename = "m", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) meta: BTreeMap<String, String>,
    #[serde(rename = "n", default)]
    state: String,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(rename = "l", default)]
    pub(super) persistent: bool,
    #[serde(rename = "d", default, skip_serializing_if = "Vec::is_empty", with = "crate::message::bytes_field")]
    data: Vec<u8>,
}

const fn one() -> u16 {
    1
}

impl Content {
    pub(super) fn of_details(role: &str, details: Details) -> Self {
        let Details { address, port, weight, zone, tags, meta, status, persistent, data } = details;
        let mut content = Self {
            service: role.to_owned(),
            instance: String::new(),
            incarnation: None,
            address,
            port,
            weight,
            zone,
            tags,
            meta,
            state: String::new(),
            reason: None,
            since: None,
            persistent,
            data,
        };
        content.set_status(&status);
        content
    }

    pub(super) fn of_instance(instance: Instance) -> Self {
        let Instance { service, id, incarnation, address, port, weight, zone, tags, meta, status } = instance;
        let details = Details { address, port, weight, zone, tags, meta, status, ..Details::default() };
        Self { instance: id, incarnation: Some(incarnation), ..Self::of_details(&service, details) }
    }

    pub(super) fn set_status(&mut self, status: &NodeStatus) {
        let since = status.since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.state = status.state.as_str().to_owned();
        self.reason.clone_from(&status.reason);
        self.since = since.map(|since| since.as_secs());
    }

    /// What the owner says that it is ready for. A state of which this version of picom does not know gets no calls.
    fn status(&self) -> NodeStatus {
        let since = self.since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since)));
        let state = NodeState::from_name(&self.state).unwrap_or(NodeState::Up);
        NodeStatus { state, reason: self.reason.clone(), since }
    }

    /// Why it is about to be freed, if that is said.
    pub(super) fn farewell(&self) -> Option<&str> {
        self.reason.as_deref().filter(|_| self.state == NodeState::Down.as_str())
    }

    /// What is wrong with it, whoever made it.
    pub(super) fn check(&self) -> Result<(), RegistryError> {
        check_service_name(&self.service)?;
        let problem = if self.instance.len() > MAX_NAME_LEN || self.instance.chars().any(char::is_control) {
            "its id must be at most 128 bytes without control characters"
        } else if self.weight == 0 {
            "its weight must be 1 or more"
        } else if self.data.len() > MAX_DATA {
            "its extra data must be at most 4 KiB"
        } else if self.reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON) {
            "the reason of its state is too long"
        } else if let Some(Err(why)) = self.address.map(usable) {
            return Err(RegistryError::Invalid(format!("record of {:?}: its address is {why}", self.service)));
        } else {
            return Ok(());
        };
        Err(RegistryError::Invalid(format!("record of {:?}: {problem}", self.service)))
    }

    /// As it travels.
    pub(super) fn encode(&self) -> Result<Bytes, RegistryError> {
        let mut out = BytesMut::new();
        let encoded = message::encode(self, &mut out).map_err(|error| RegistryError::Invalid(error.to_string()));
        encoded.and_then(|()| match out.len() {
            0..=MAX_BODY => Ok(out.freeze()),
            len => Err(RegistryError::Invalid(format!(
                "record of {:?}: it has {len} bytes, which is more than {MAX_BODY}",
                self.service
            ))),
        })
    }

    /// What somebody else sent, if it is acceptable.
    pub(super) fn decode(body: &Bytes) -> Option<Self> {
        let content: Self = (body.len() <= MAX_BODY).then(|| message::decode(body).ok())??;
        content.check().is_ok().then_some(content)
    }

    /// The role without its version.
    pub(super) fn role(&self) -> &str {
        role::Role::of(&self.service, None).name
    }

    pub(super) fn record(&self, id: RecordId, revision: u64) -> Record {
        let role = role::Role::of(&self.service, self.meta.get(role::VERSION).map(String::as_str));
        Record {
            id,
            revision,
            service: self.service.clone(),
            role: role.name.to_owned(),
            version: role.version.map(|version| version.to_string()),
            instance: self.instance.clone(),
            incarnation: self.incarnation,
            details: Details {
                address: self.address,
                port: self.port,
                weight: self.weight,
                zone: self.zone.clone(),
                tags: self.tags.clone(),
                meta: self.meta.clone(),
                status: self.status(),
                persistent: self.persistent,
                data: self.data.clone(),
            },
        }
    }

    /// As clients see it, if it can be called at all. `unknown` stands for an address that is not known.
    pub(super) fn endpoint(&self, id: RecordId, tier: Tier, unknown: Option<IpAddr>) -> Option<Endpoint> {
        let addr = SocketAddr::new(
            self.address.map(|ip| ip.to_canonical()).or(unknown)?,
            (self.port != 0).then_some(self.port)?,
        );
        let mut meta = self.meta.clone();
        if let Some(version) = role::Role::of(&self.service, None).version {
            meta.insert(role::VERSION.to_owned(), version.to_string());
        }
        Some(Endpoint {
            addr,
            incarnation: self.incarnation,
            id: if self.instance.is_empty() { id.to_string() } else { self.instance.clone() },
            tier,
            weight: self.weight,
            zone: self.zone.clone(),
            tags: self.tags.clone(),
            meta,
            status: self.status(),
        })
    }
}
