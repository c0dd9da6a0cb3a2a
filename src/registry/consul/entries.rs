//! From Consul's JSON to endpoints that can be trusted to be addresses.
//!
//! Owns the reading, checking and grading of what Consul lists. Consul stores nonsense without complaint, so every
//! entry is checked here and nowhere else. It must never panic nor fail as a whole for one bad entry. Look next at
//! `watch.rs`, which publishes the result.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::Value;

use super::note;
use crate::registry::address::usable;
use crate::registry::{Endpoint, Tier};
use crate::state::{NodeState, NodeStatus};

/// The key in an instance's meta that holds its incarnation, in hexadecimal digits.
pub(super) const INCARNATION: &str = "picom-incarnation";
/// The key in an instance's meta that holds its zone.
pub(super) const ZONE: &str = "picom-zone";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(default)]
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Node {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    address: Option<String>,
    #[serde(default)]
    port: i64,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Option<Weights>,
    #[serde(default)]
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    #[serde(default)]
    passing: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID", default)]
    check_id: String,
    #[serde(default)]
    status: String,
    #[serde(rename = "ServiceID", default)]
    service_id: String,
    #[serde(default)]
    notes: String,
}

impl Check {
    /// Whether it is the one with which the instance shows that it lives.
    fn is_own(&self, id: &str) -> bool {
        self.service_id == id && self.check_id.strip_prefix(OWN_CHECK) == Some(id)
    }
}

/// Before an instance's id, this is the id of its own check. It is what Consul would call it by itself; but it would number
/// it as soon as there is another check.
const OWN_CHECK: &str = "service:";

/// The id of an instance's own check.
pub(super) fn own_check(id: &str) -> String {
    format!("{OWN_CHECK}{id}")
}

/// What an answer amounts to.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// One per address, the newest of several.
    pub(super) endpoints: Vec<Endpoint>,
    /// One line for every entry that cannot be used.
    pub(super) rejected: Vec<String>,
}

/// Reads and checks every entry.
pub(super) fn parse(entries: Vec<Value>) -> Parsed {
    let mut newest: HashMap<SocketAddr, (u64, Endpoint)> = HashMap::new();
    let mut rejected = Vec::new();
    for entry in entries {
        match read(entry) {
            Ok((modified, endpoint)) => match newest.get(&endpoint.addr) {
                Some((other, _)) if *other > modified => {}
                _ => {
                    newest.insert(endpoint.addr, (modified, endpoint));
                }
            },
            Err(why) => rejected.push(why),
        }
    }
    Parsed { endpoints: newest.into_values().map(|(_, endpoint)| endpoint).collect(), rejected }
}

/// Whether the list holds the instance `id` as it says of itself now, with no other check of its own that fails, and not as
/// another process left it: one that crashed may have had the same id.
pub(super) fn shows_as(entries: &[Value], id: &str, incarnation: u64, status: &NodeStatus) -> bool {
    let wanted = if note::passes(status.state) { "passing" } else { "critical" };
    let fits = |check: &Check| {
        if check.is_own(id) {
            // An agent that does not list notes has none to be wrong.
            let said = note::read(&check.notes);
            check.status == wanted && said.is_none_or(|said| said == *status)
        } else {
            check.service_id.is_empty() || check.status == "passing"
        }
    };
    let ours = |entry: &&Value| {
        let meta = entry["Service"]["Meta"][INCARNATION].as_str();
        meta.is_none_or(|hex| u64::from_str_radix(hex, 16) == Ok(incarnation))
    };
    entries.iter().find(|entry| entry["Service"]["ID"] == id).filter(ours).is_some()
        && find(entries, id).is_some_and(|checks| checks.iter().all(fits))
}

/// Whether the list holds the instance `id` at all.
pub(super) fn shows(entries: &[Value], id: &str) -> bool {
    find(entries, id).is_some()
}

fn find(entries: &[Value], id: &str) -> Option<Vec<Check>> {
    let entry = entries.iter().find(|entry| entry["Service"]["ID"] == id)?;
    Some(Entry::deserialize(entry).ok()?.checks.unwrap_or_default())
}

fn read(entry: Value) -> Result<(u64, Endpoint), String> {
    let entry: Entry = serde_json::from_value(entry).map_err(|error| format!("an entry is malformed: {error}"))?;
    let Service { id, address, port, tags, meta, weights, modify_index } = entry.service;
    let name: String = id.chars().take(64).collect();
    let address = address.filter(|address| !address.is_empty()).unwrap_or(entry.node.address);
    let ip = usable_ip(&address).map_err(|why| {
        let shown: String = address.chars().take(64).collect();
        format!("{name:?} has the address {shown:?}: {why}")
    })?;
    let port = match u16::try_from(port) {
        Ok(port) if port > 0 => port,
        _ => return Err(format!("{name:?} has the port {port}")),
    };
    let mut meta = meta.unwrap_or_default();
    let incarnation = meta.remove(INCARNATION).and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    let zone = meta.remove(ZONE).filter(|zone| !zone.is_empty());
    let weight = weights.map_or(1, |weights| u16::try_from(weights.passing.clamp(1, i64::from(u16::MAX))).unwrap_or(1));
    let checks = entry.checks.unwrap_or_default();
    let status = checks.iter().find(|check| check.is_own(&id)).and_then(|check| note::read(&check.notes));
    let status = status.unwrap_or(NodeStatus::only(NodeState::Running));
    let endpoint = Endpoint {
        addr: SocketAddr::new(ip, port),
        incarnation,
        tier: tier(&checks, &id, status.state),
        id,
        weight,
        zone,
        tags: tags.unwrap_or_default(),
        meta,
        status,
    };
    Ok((modify_index, endpoint))
}

fn usable_ip(text: &str) -> Result<IpAddr, &'static str> {
    text.parse::<IpAddr>().map_err(|_| "not an IP address").and_then(usable)
}

fn tier(checks: &[Check], id: &str, state: NodeState) -> Tier {
    let grade = |check: &Check| match check.status.as_str() {
        "passing" => Tier::Healthy,
        // It fails on purpose, and the state says why nobody is to call it.
        "critical" if !note::passes(state) && check.is_own(id) => Tier::Healthy,
        // The machine's agent may be the only thing that died; but somebody who puts the whole machine into
        // maintenance means it.
        "critical" if check.service_id.is_empty() && check.check_id != "_node_maintenance" => Tier::Doubtful,
        "critical" => Tier::Unhealthy,
        _ => Tier::Doubtful,
    };
    checks.iter().map(grade).max().unwrap_or(Tier::Healthy)
}

#[cfg(test)]
#[path = "entries_tests.rs"]
mod tests;
