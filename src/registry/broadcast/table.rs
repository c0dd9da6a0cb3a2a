//! The instances of others, as their datagrams tell.
//!
//! Owns who is known, until when, and the refusal of replays, of second users of an id, and of more than there is room for.
//! It must never do I/O or look at a clock: the time comes with every call, and is monotone. A wall clock plays no part.
//! Look next at `announce.rs` for one's own instances, and at `node.rs` for who publishes what is known.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::datagram::{Datagram, Kind, PERIODS, Sender, known_as};
use super::events::{Event, Gone, Refusal};
use crate::registry::{Endpoint, Instance, Tier};

/// How long after its announced period was missed an instance is gone. With the usual period of 2 s one lost datagram in a row
/// is forgiven, and the next one too late is not.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// Most instances of others. At some 3 KiB each, with the bytes that they are known by, they take 12 MiB.
pub(super) const MAX_INSTANCES: usize = 4096;

/// Most instances of others from one address: many containers behind one address fit, and it takes several addresses to fill
/// the table.
pub(super) const MAX_PER_SOURCE: usize = 1024;

/// Most senders whose last sequence number is remembered; past it the one that was silent longest is forgotten.
pub(super) const MAX_SENDERS: usize = 4096;

/// How long a silent sender is remembered where there is a key: its datagrams cannot be shown again meanwhile. At least as
/// long as any instance lives.
pub(super) const MEMORY: Duration = Duration::from_secs(600);

/// The same without a key. Anybody could forge whatever they like then, so this is only about datagrams that overtake each
/// other; a longer memory would let one forged number silence a sender for as long.
const MEMORY_WITHOUT_KEY: Duration = Duration::from_secs(5);

/// An observer that looks for who is gone this much too late was asleep itself, and gives everybody another chance.
const ASLEEP: Duration = Duration::from_millis(500);

/// So many datagrams, none of which was heard before, say that a process lives whose place another one has taken. One can be
/// what somebody kept from the observer; more come only from the living, or from whoever can silence them anyhow.
const ALIVE: u32 = 2;

/// How often a second user of one id is reported.
pub(super) const DUPLICATES_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Table {
    me: Sender,
    ignore_process: bool,
    memory: Duration,
    /// By service and id. Ids begin alike and are looked up with every datagram, so they are not kept in order.
    services: BTreeMap<String, HashMap<String, Entry>>,
    len: usize,
    sources: HashMap<IpAddr, usize>,
    senders: HashMap<Sender, Heard>,
    /// When somebody may be gone; never later than the first is.
    look_at: Option<Instant>,
    arrivals: u64,
}

struct Entry {
    endpoint: Arc<Endpoint>,
    /// What the endpoint was made of: what was said last, and where that came from.
    made_of: (Arc<Instance>, IpAddr),
    incarnation: u64,
    /// The process that was here before at the same address, and how often it was heard since. It is dead, whatever somebody
    /// replays of it, unless it goes on speaking.
    predecessor: Option<(u64, u32)>,
    /// One that took its place here for a while, and was only a recording.
    ghost: Option<u64>,
    source: IpAddr,
    arrival: u64,
    period: Duration,
    heard: Instant,
    duplicate_told: Option<Instant>,
}

struct Heard {
    highest: u64,
    at: Instant,
}

impl Entry {
    fn gone_at(&self) -> Instant {
        self.heard + self.period + GRACE
    }
}

impl Table {
    pub(super) fn new(me: Sender, ignore_process: bool, keyed: bool) -> Self {
        Self {
            me,
            ignore_process,
            memory: if keyed { MEMORY } else { MEMORY_WITHOUT_KEY },
            services: BTreeMap::new(),
            len: 0,
            sources: HashMap::new(),
            senders: HashMap::new(),
            look_at: None,
            arrivals: 0,
        }
    }

    /// Whether a datagram is from somebody else, and new. What is one's own is no refusal.
    pub(super) fn admit(&mut self, now: Instant, datagram: &Datagram) -> Result<bool, Refusal> {
        let Datagram { sender, sequence, .. } = *datagram;
        if sender == self.me || (self.ignore_process && sender.process == self.me.process) {
            return Ok(false);
        }
        match self.senders.get_mut(&sender) {
            Some(heard) if heard.highest >= sequence && heard.at + self.memory > now => return Err(Refusal::Replayed),
            Some(heard) => *heard = Heard { highest: sequence, at: now },
            None => {
                if self.senders.len() >= MAX_SENDERS {
                    self.forget_senders(now);
                }
                self.senders.insert(sender, Heard { highest: sequence, at: now });
            }
        }
        Ok(true)
    }

    /// Takes a datagram that was admitted, and tells what it changed.
    pub(super) fn hear(
        &mut self,
        now: Instant,
        source: SocketAddr,
        datagram: Datagram,
        news: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        self.doubt_oneself(now);
        let said = datagram.instance;
        let (id, service, incarnation) = (known_as(&said, datagram.replica), &said.service, said.incarnation);
        let known = self.services.get_mut(service).and_then(|entries| entries.get_mut(&*id));
        if datagram.kind == Kind::Leave {
            if let Some(entry) = known.filter(|entry| entry.incarnation == incarnation) {
                // It says why, also to whoever has missed the word before it.
                if entry.endpoint.status != said.status {
                    let status = said.status.clone();
                    entry.endpoint = Arc::new(Endpoint { status, ..Endpoint::clone(&entry.endpoint) });
                }
                self.remove(service, &id, Gone::Left, news);
            }
            return Ok(());
        }
        let period = datagram.period.clamp(*PERIODS.start(), *PERIODS.end());
        let gone_at = now + period + GRACE;
        let (mut predecessor, mut ghost) = (None, None);
        if let Some(entry) = known {
            if entry.incarnation == incarnation {
                (entry.heard, entry.period) = (now, period);
                // The same words from the same place make the same endpoint.
                if !Arc::ptr_eq(&entry.made_of.0, &said) || entry.made_of.1 != source.ip() {
                    let endpoint = endpoint(source.ip(), &id, &said);
                    if *entry.endpoint != endpoint {
                        entry.endpoint = Arc::new(endpoint);
                        news.push(Event::Changed { service: service.clone(), endpoint: Arc::clone(&entry.endpoint) });
                    }
                    entry.made_of = (Arc::clone(&said), source.ip());
                }
                self.look(gone_at);
                return Ok(());
            }
            if entry.ghost == Some(incarnation) {
                return Err(Refusal::Replayed);
            }
            ghost = entry.ghost;
            match &mut entry.predecessor {
                Some((before, heard)) if *before == incarnation => {
                    *heard += 1;
                    if *heard < ALIVE {
                        return Err(Refusal::Replayed);
                    }
                    // What took its place is what somebody recorded of a process that died before it.
                    ghost = Some(entry.incarnation);
                }
                _ => {}
            }
            // Two processes cannot listen at one address: the one that is known has died.
            let (kept, other) = (entry.endpoint.addr, addr(source.ip(), &said));
            if kept != other {
                if entry.duplicate_told.is_none_or(|told| told + DUPLICATES_EVERY <= now) {
                    entry.duplicate_told = Some(now);
                    let (service, id) = (service.clone(), id.into_owned());
                    news.push(Event::DuplicateId { service, id, kept, other });
                }
                return Err(Refusal::DuplicateId);
            }
            predecessor = (ghost != Some(entry.incarnation)).then_some((entry.incarnation, 0));
            self.remove(service, &id, Gone::Replaced, news);
        }
        if self.len >= MAX_INSTANCES {
            return Err(Refusal::Full);
        }
        let from_there = self.sources.entry(source.ip()).or_default();
        if *from_there >= MAX_PER_SOURCE {
            return Err(Refusal::FullOfSource);
        }
        *from_there += 1;
        self.len += 1;
        self.arrivals += 1;
        let entry = Entry {
            endpoint: Arc::new(endpoint(source.ip(), &id, &said)),
            made_of: (Arc::clone(&said), source.ip()),
            incarnation,
            predecessor,
            ghost,
            source: source.ip(),
            arrival: self.arrivals,
            period,
            heard: now,
            duplicate_told: None,
        };
        news.push(Event::Added { service: service.clone(), endpoint: Arc::clone(&entry.endpoint) });
        self.services.entry(service.clone()).or_default().insert(id.into_owned(), entry);
        self.look(gone_at);
        Ok(())
    }

    /// Removes who was not heard any more, and forgets senders that are silent for long.
    pub(super) fn sweep(&mut self, now: Instant, news: &mut Vec<Event>) {
        self.doubt_oneself(now);
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        let mut gone = Vec::new();
        let mut next: Option<Instant> = None;
        for (service, entries) in &self.services {
            for (id, entry) in entries {
                let at = entry.gone_at();
                if at <= now {
                    gone.push((service.clone(), id.clone()));
                } else {
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
        }
        gone.sort_unstable();
        for (service, id) in gone {
            self.remove(&service, &id, Gone::Missed, news);
        }
        self.senders.retain(|_, heard| heard.at + self.memory > now);
        self.look_at = next;
    }

    /// Begins the time of everybody anew, because this observer could not hear for a while.
    pub(super) fn forgive(&mut self, now: Instant) {
        let entries = self.services.values_mut().flat_map(HashMap::values_mut);
        self.look_at = entries
            .map(|entry| {
                entry.heard = now;
                entry.gone_at()
            })
            .min();
    }

    /// When to sweep.
    pub(super) const fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// The instances of a service, in the order in which they came.
    pub(super) fn list(&self, service: &str) -> Vec<Arc<Endpoint>> {
        let mut entries: Vec<&Entry> = self.services.get(service).into_iter().flat_map(HashMap::values).collect();
        entries.sort_by_key(|entry| entry.arrival);
        entries.into_iter().map(|entry| Arc::clone(&entry.endpoint)).collect()
    }

    fn doubt_oneself(&mut self, now: Instant) {
        if self.look_at.is_some_and(|at| at + ASLEEP < now) {
            self.forgive(now);
        }
    }

    fn look(&mut self, at: Instant) {
        self.look_at = Some(self.look_at.map_or(at, |known| known.min(at)));
    }

    fn remove(&mut self, service: &str, id: &str, reason: Gone, news: &mut Vec<Event>) {
        let Some(entries) = self.services.get_mut(service) else { return };
        let Some(entry) = entries.remove(id) else { return };
        if entries.is_empty() {
            self.services.remove(service);
        }
        self.len -= 1;
        if let Some(from_there) = self.sources.get_mut(&entry.source) {
            *from_there -= 1;
            if *from_there == 0 {
                self.sources.remove(&entry.source);
            }
        }
        news.push(Event::Removed { service: service.to_owned(), endpoint: entry.endpoint, reason });
    }

    fn forget_senders(&mut self, now: Instant) {
        self.senders.retain(|_, heard| heard.at + self.memory > now);
        if self.senders.len() >= MAX_SENDERS {
            let oldest = self.senders.iter().min_by_key(|(_, heard)| heard.at).map(|(sender, _)| *sender);
            oldest.and_then(|sender| self.senders.remove(&sender));
        }
    }
}

/// Where it is called; an address that it leaves open is the one that the datagram came from.
fn addr(source: IpAddr, said: &Instance) -> SocketAddr {
    SocketAddr::new(said.address.unwrap_or(source), said.port)
}

/// What others call.
fn endpoint(source: IpAddr, id: &str, said: &Instance) -> Endpoint {
    Endpoint {
        addr: addr(source, said),
        incarnation: Some(said.incarnation),
        id: id.to_owned(),
        tier: Tier::Healthy,
        weight: said.weight,
        zone: said.zone.clone(),
        tags: said.tags.clone(),
        meta: said.meta.clone(),
        status: said.status.clone(),
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
