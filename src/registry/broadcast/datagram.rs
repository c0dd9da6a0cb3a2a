//! What one datagram says: an instance, who says it, and whether it stays or leaves.
//!
//! Owns the layout of the part that a key seals, and the refusal of whatever no honest sender would send. It must never
//! do I/O, keep state, or look at a clock. Look next at `seal.rs` for what is around it, at `parsed.rs` for what need not be read
//! again, and at `table.rs` for what it means.
//!
//! Two values of MessagePack: first what differs from one datagram to the next, then what the instance says of itself.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::events::Refusal;
use super::parsed::Parsed;
use crate::registry::Instance;
use crate::state::{MAX_REASON, NodeState, NodeStatus};

/// Longest datagram, in bytes, with everything around it. Below what every path carries in one piece: a fragment that is
/// lost loses all, and fragments that never become whole fill the memory of kernels.
pub(super) const MAX_DATAGRAM: usize = 1200;

/// How often an instance may be advertised. More often is a flood; a sender that is heard less often would be taken for alive
/// long after its death.
pub(super) const PERIODS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// Whose sequence numbers these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sender {
    /// Random number of the process.
    pub(super) process: u64,
    /// Which of the process's registries.
    pub(super) registry: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is there.
    Announce,
    /// It leaves.
    Leave,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) kind: Kind,
    /// When to expect the next one, at the latest.
    pub(super) period: Duration,
    pub(super) sender: Sender,
    /// Grows with every datagram of this sender.
    pub(super) sequence: u64,
    /// Whether others may share its id: then it is known as `id:incarnation`.
    pub(super) replica: bool,
    /// The same one for all datagrams that say the same, while somebody keeps it.
    pub(super) instance: Arc<Instance>,
}

impl Datagram {
    /// What the instance is known as.
    pub(super) fn known_as(&self) -> Cow<'_, str> {
        known_as(&self.instance, self.replica)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let given = &self.instance;
        let head = Head {
            kind: match self.kind {
                Kind::Announce => 0,
                Kind::Leave => 1,
            },
            period_ms: u32::try_from(self.period.as_millis()).unwrap_or(u32::MAX),
            process: self.sender.process,
            registry: self.sender.registry,
            sequence: self.sequence,
        };
        let body = Body {
            replica: self.replica,
            service: given.service.clone(),
            id: given.id.clone(),
            incarnation: given.incarnation,
            address: match given.address.filter(|ip| !ip.is_unspecified()) {
                Some(IpAddr::V4(ip)) => Bytes::copy_from_slice(&ip.octets()),
                Some(IpAddr::V6(ip)) => Bytes::copy_from_slice(&ip.octets()),
                None => Bytes::new(),
            },
            port: given.port,
            weight: given.weight,
            zone: given.zone.clone(),
            tags: given.tags.clone(),
            meta: given.meta.clone(),
            state: STATES.iter().position(|state| *state == given.status.state).map_or(u8::MAX, |at| at as u8),
            // Cut as every other reason, because receivers refuse a longer one.
            reason: NodeStatus::now(given.status.state, given.status.reason.as_deref()).reason,
            since: since_seconds(&given.status),
        };
        let mut bytes = Vec::new();
        rmp_serde::encode::write(&mut bytes, &head)
            .and_then(|()| rmp_serde::encode::write(&mut bytes, &body))
            .map_err(|error| format!("the announcement cannot be written: {error}"))?;
        Ok(bytes)
    }

    /// Reads it. What the instance says of itself is read only if these bytes are not known.
    pub(super) fn decode(mut bytes: &[u8], parsed: &mut Parsed) -> Result<Self, Refusal> {
        let head: Head = rmp_serde::from_read(&mut bytes).map_err(|_| Refusal::Malformed)?;
        let kind = match head.kind {
            0 => Kind::Announce,
            1 => Kind::Leave,
            _ => return Err(Refusal::Malformed),
        };
        let period = Duration::from_millis(head.period_ms.into());
        if !PERIODS.contains(&period) {
            return Err(Refusal::Malformed);
        }
        let (instance, replica) = parsed.read(bytes, Body::read).ok_or(Refusal::Malformed)?;
        let sender = Sender { process: head.process, registry: head.registry };
        Ok(Self { kind, period, sender, sequence: head.sequence, replica, instance })
    }
}

pub(super) fn known_as(instance: &Instance, replica: bool) -> Cow<'_, str> {
    if replica { format!("{}:{:016x}", instance.id, instance.incarnation).into() } else { Cow::Borrowed(&instance.id) }
}

/// How long the datagrams of an instance can become while it lives, without what is around them.
pub(super) fn longest(instance: &Instance, replica: bool) -> Result<usize, String> {
    let mut instance = instance.clone();
    instance.address = instance.address.or(Some(IpAddr::from([0xff; 16])));
    instance.status = NodeStatus { state: NodeState::Down, reason: Some("x".repeat(MAX_REASON)), since: None };
    let sender = Sender { process: u64::MAX, registry: u32::MAX };
    let (period, instance) = (*PERIODS.end(), Arc::new(instance));
    let longest = Datagram { kind: Kind::Leave, period, sender, sequence: u64::MAX, replica, instance };
    // A number takes up to 9 bytes, and that there is none takes one.
    longest.encode().map(|bytes| bytes.len() + 8)
}

/// The numbers of the states.
const STATES: [NodeState; 5] =
    [NodeState::Up, NodeState::Running, NodeState::Doing, NodeState::Stopped, NodeState::Down];

/// In this order, as an array of MessagePack.
#[derive(Serialize, Deserialize)]
struct Head {
    kind: u8,
    period_ms: u32,
    process: u64,
    registry: u32,
    sequence: u64,
}

/// In this order, as an array of MessagePack.
#[derive(Serialize, Deserialize)]
struct Body {
    replica: bool,
    service: String,
    id: String,
    incarnation: u64,
    /// 4 or 16 bytes; none leaves it to the receiver, who takes the address that the datagram came from.
    address: Bytes,
    port: u16,
    weight: u16,
    zone: Option<String>,
    tags: Vec<String>,
    meta: BTreeMap<String, String>,
    state: u8,
    reason: Option<String>,
    since: Option<u64>,
}

impl Body {
    /// The instance, and whether others may share its id.
    fn read(mut bytes: &[u8]) -> Option<(Instance, bool)> {
        let body: Self = rmp_serde::from_read(&mut bytes).ok()?;
        // What follows would be nobody's.
        if bytes.is_empty() { body.check() } else { None }
    }

    fn check(self) -> Option<(Instance, bool)> {
        let address = match self.address.len() {
            0 => None,
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(&*self.address).ok()?)),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(&*self.address).ok()?)),
            _ => return None,
        };
        let short = self.reason.as_ref().is_none_or(|reason| reason.len() <= MAX_REASON);
        let callable = address.is_none_or(|ip| !ip.is_multicast() && ip != IpAddr::from([255; 4]));
        if !short || !callable {
            return None;
        }
        let since = self.since.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let status = NodeStatus { state: *STATES.get(usize::from(self.state))?, reason: self.reason, since };
        let instance = Instance {
            service: self.service,
            id: self.id,
            incarnation: self.incarnation,
            address: address.filter(|ip| !ip.is_unspecified()),
            port: self.port,
            weight: self.weight,
            zone: self.zone,
            tags: self.tags,
            meta: self.meta,
            status,
        };
        instance.check().ok()?;
        Some((instance, self.replica))
    }
}

fn since_seconds(status: &NodeStatus) -> Option<u64> {
    status.since?.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
#[path = "datagram_tests.rs"]
pub(super) mod tests;
