//! One's own instances: what is to be sent of them, and when.
//!
//! Owns the schedule of announcements and leave notices, their sequence numbers, and the states of registrations. It must never
//! do I/O or look at a clock. Look next at `task.rs` for who sends, and at `table.rs` for the instances of others.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::datagram::{Datagram, Kind, Sender, known_as};
use super::table::{DUPLICATES_EVERY, GRACE};
use crate::registry::{Endpoint, Instance, RegistrationState, RegistryError, Tier};
use crate::state::NodeStatus;

/// How often what must not be lost is sent: a first announcement, another state, a leave notice.
const COPIES: u8 = 2;

/// How long after the first copy the second follows: longer than the burst that may have cost the first.
const COPY_AFTER: Duration = Duration::from_millis(50);

/// How soon what could not be sent is tried again, if the period is not shorter.
const RETRY: Duration = Duration::from_millis(500);

/// By how much a period is cut at random, so that nodes that were started together do not send together for ever. It is only
/// cut, because the announced period is what others wait for.
const JITTER: f64 = 0.2;

pub(super) type Left = oneshot::Receiver<Result<(), RegistryError>>;

pub(super) struct Announcer {
    sender: Sender,
    period: Duration,
    replica: bool,
    listen_only: bool,
    /// The address to announce where an instance has none of its own.
    address: Option<IpAddr>,
    sequence: u64,
    /// Never used again, so that a late handle takes back only what is its own.
    next: u64,
    own: BTreeMap<u64, Own>,
    leaving: BTreeMap<u64, Leaving>,
}

struct Own {
    instance: Instance,
    due: Instant,
    copies: u8,
    state: watch::Sender<RegistrationState>,
    rival: Option<Rival>,
}

/// Another living instance with the id of one's own.
struct Rival {
    addr: SocketAddr,
    until: Instant,
    told: Instant,
}

struct Leaving {
    instance: Instance,
    due: Instant,
    copies: u8,
    done: Option<oneshot::Sender<Result<(), RegistryError>>>,
}

/// A body to be sealed and sent, and what it is of.
pub(super) struct Outgoing {
    pub(super) key: u64,
    pub(super) body: Result<Vec<u8>, String>,
}

impl Announcer {
    pub(super) fn new(sender: Sender, period: Duration, replica: bool, listen_only: bool) -> Self {
        Self {
            sender,
            period,
            replica,
            listen_only,
            address: None,
            sequence: 0,
            next: 0,
            own: BTreeMap::new(),
            leaving: BTreeMap::new(),
        }
    }

    pub(super) fn set_address(&mut self, address: Option<IpAddr>) {
        self.address = address;
    }

    /// Of two instances with one id the newer counts.
    pub(super) fn add(&mut self, now: Instant, instance: Instance) -> (u64, watch::Receiver<RegistrationState>) {
        let same = |own: &Instance| own.service == instance.service && own.id == instance.id;
        let older: Vec<u64> = self.own.iter().filter(|(_, own)| same(&own.instance)).map(|(key, _)| *key).collect();
        for key in older {
            let _nobody_waits = self.leave(now, key);
        }
        // A late copy of a notice would take back what is registered now.
        self.leaving.retain(|_, left| !same(&left.instance) || left.instance.incarnation != instance.incarnation);
        let state = if self.listen_only { RegistrationState::Registered } else { first() };
        let (state, states) = watch::channel(state);
        let key = self.next;
        self.next += 1;
        self.own.insert(key, Own { instance, due: now, copies: COPIES, state, rival: None });
        (key, states)
    }

    /// The service of the instance, if it is still one's own.
    pub(super) fn set_status(&mut self, now: Instant, key: u64, status: NodeStatus) -> Option<String> {
        let own = self.own.get_mut(&key)?;
        own.instance.status = status;
        (own.due, own.copies) = (now, COPIES);
        Some(own.instance.service.clone())
    }

    /// Takes an instance back. Resolves when others have been told.
    pub(super) fn leave(&mut self, now: Instant, key: u64) -> Option<(String, Left)> {
        let own = self.own.remove(&key)?;
        own.state.send_replace(RegistrationState::Left);
        let (done, left) = oneshot::channel();
        let service = own.instance.service.clone();
        if self.listen_only {
            let _ = done.send(Ok(()));
        } else {
            let leaving = Leaving { instance: own.instance, due: now, copies: COPIES, done: Some(done) };
            self.leaving.insert(key, leaving);
        }
        Some((service, left))
    }

    /// Whether everybody who left has been told of.
    pub(super) fn is_done(&self) -> bool {
        self.leaving.is_empty()
    }

    /// What is to be sent now; leave notices first, because an instance may take the place of another.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Outgoing> {
        if self.listen_only {
            return Vec::new();
        }
        let leaving = self.leaving.iter().filter(|(_, left)| left.due <= now);
        let staying = self.own.iter().filter(|(_, own)| own.due <= now);
        let due: Vec<(u64, Kind, Instance)> = leaving
            .map(|(key, left)| (*key, Kind::Leave, left.instance.clone()))
            .chain(staying.map(|(key, own)| (*key, Kind::Announce, own.instance.clone())))
            .collect();
        let mut outgoing = Vec::new();
        for (key, kind, mut instance) in due {
            self.sequence += 1;
            instance.address = instance.address.filter(|ip| !ip.is_unspecified()).or(self.address);
            let Self { period, sender, sequence, replica, .. } = *self;
            let datagram = Datagram { kind, period, sender, sequence, replica, instance: Arc::new(instance) };
            outgoing.push(Outgoing { key, body: datagram.encode() });
        }
        outgoing
    }

    /// What came of sending.
    pub(super) fn sent(&mut self, now: Instant, key: u64, outcome: Result<(), String>) {
        if let Some(left) = self.leaving.get_mut(&key) {
            left.copies = left.copies.saturating_sub(1);
            left.due = now + COPY_AFTER;
            if left.copies == 0 {
                if let Some(done) = left.done.take() {
                    let _ = done.send(outcome.map_err(RegistryError::Unreachable));
                }
                self.leaving.remove(&key);
            }
        } else if let Some(own) = self.own.get_mut(&key) {
            match outcome {
                Ok(()) => {
                    own.copies = own.copies.saturating_sub(1);
                    let pause = self.period.mul_f64(1.0 - JITTER * fastrand::f64());
                    own.due = now + if own.copies > 0 { COPY_AFTER.min(pause) } else { pause };
                    own.rival = own.rival.take().filter(|rival| rival.until > now);
                    become_state(own, None);
                }
                Err(why) => {
                    (own.due, own.copies) = (now + RETRY.min(self.period), COPIES);
                    become_state(own, Some(why));
                }
            }
        }
    }

    /// Nothing can be sent at all. Who waits to leave is told so.
    pub(super) fn trouble(&mut self, why: &str) {
        for own in self.own.values_mut().filter(|_| !self.listen_only) {
            become_state(own, Some(why.to_owned()));
        }
        for (_, mut left) in std::mem::take(&mut self.leaving) {
            if let Some(done) = left.done.take() {
                let _ = done.send(Err(RegistryError::Unreachable(why.to_owned())));
            }
        }
    }

    /// Everything can be sent again, and at once.
    pub(super) fn resume(&mut self, now: Instant) {
        for own in self.own.values_mut() {
            (own.due, own.copies) = (now, COPIES);
        }
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        let staying = self.own.values().filter(|_| !self.listen_only).map(|own| own.due);
        staying.chain(self.leaving.values().map(|left| left.due)).min()
    }

    /// Compares a datagram of another with one's own instances: `None` if it has nothing to do with them, else whether the
    /// two differ and this is worth telling, with the address of one's own.
    pub(super) fn meet(&mut self, now: Instant, source: IpAddr, datagram: &Datagram, home: IpAddr) -> Option<Meeting> {
        let id = datagram.known_as();
        let theirs = &datagram.instance;
        let own = self
            .own
            .values_mut()
            .find(|own| own.instance.service == theirs.service && known_as(&own.instance, self.replica) == id)?;
        if own.instance.incarnation == theirs.incarnation {
            return Some(Meeting::Same);
        }
        if datagram.kind == Kind::Leave {
            own.rival = None;
            return Some(Meeting::Same);
        }
        let kept = SocketAddr::new(own.instance.address.unwrap_or(home), own.instance.port);
        let addr = SocketAddr::new(theirs.address.unwrap_or(source), theirs.port);
        let told = own.rival.as_ref().map(|rival| rival.told).filter(|told| *told + DUPLICATES_EVERY > now);
        own.rival = Some(Rival { addr, until: now + datagram.period + GRACE, told: told.unwrap_or(now) });
        Some(Meeting::Rival { kept, other: addr, tell: told.is_none() })
    }

    /// One's own instances of a service, oldest first.
    pub(super) fn list(&self, service: &str, home: IpAddr) -> impl Iterator<Item = Endpoint> {
        self.own.values().filter(move |own| own.instance.service == service).map(move |own| Endpoint {
            addr: SocketAddr::new(
                own.instance.address.filter(|ip| !ip.is_unspecified()).unwrap_or(home),
                own.instance.port,
            ),
            incarnation: Some(own.instance.incarnation),
            id: known_as(&own.instance, self.replica).into_owned(),
            tier: Tier::Healthy,
            weight: own.instance.weight,
            zone: own.instance.zone.clone(),
            tags: own.instance.tags.clone(),
            meta: own.instance.meta.clone(),
            status: own.instance.status.clone(),
        })
    }
}

/// The state of a registration before its first announcement.
pub(super) fn first() -> RegistrationState {
    RegistrationState::Retrying("not announced yet".to_owned())
}

/// How a datagram of another relates to one's own instances.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// It is one's own, by another way, or leaves: nothing to do.
    Same,
    /// Another one uses the id.
    Rival {
        kept: SocketAddr,
        other: SocketAddr,
        /// Whether it is time to say so.
        tell: bool,
    },
}

fn become_state(own: &mut Own, trouble: Option<String>) {
    let state = match (trouble, &own.rival) {
        (Some(why), _) => RegistrationState::Retrying(why),
        (None, Some(rival)) => RegistrationState::Retrying(format!(
            "the instance at {} uses the id {:?} too: others know only the one that they heard first",
            rival.addr, own.instance.id
        )),
        (None, None) => RegistrationState::Registered,
    };
    own.state.send_if_modified(|current| {
        let changed = *current != state;
        if changed {
            let (service, id) = (&own.instance.service, &own.instance.id);
            match &state {
                RegistrationState::Registered => tracing::info!(service, id, "announced"),
                other => tracing::debug!(service, id, state = ?other, "not announced"),
            }
            *current = state;
        }
        changed
    });
}

#[cfg(test)]
#[path = "announce_tests.rs"]
mod tests;
