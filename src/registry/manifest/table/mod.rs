//! What one member knows of all: a table that does no I/O and is told the time.
//!
//! Owns the members, their records and the links over which news come and go; here are the parts that need no other member:
//! one's own records, who is silent, and looking up. It must never look at a clock, neither the wall's nor another, nor wait.
//! Look next at `merge.rs` for what is believed of others, at `speak.rs` for what is said to them, at `beats.rs` for when, and
//! at `../engine.rs` for who drives it.

mod beats;
mod merge;
mod owner;
mod speak;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::owner::{Life, Owner, Stored, TOMBSTONE};
use self::speak::Link;
pub(super) use self::speak::Unwanted;
use super::events::{Event, Refusals};
use super::frame::{Beat, MAX_FREED, MAX_OWNER_BYTES, MAX_RECORDS};
use super::record::{Content, Record, RecordId};
use super::role::Query;
use crate::registry::{Endpoint, RegistryError, Tier};
use crate::state::{NodeState, NodeStatus};

/// Most bytes of all records together: as many as a thousand members with 32 KiB each.
pub(super) const MAX_TABLE_BYTES: usize = 32 << 20;

/// Most events that wait to be told; the stream itself is bounded too.
const MAX_EVENTS: usize = 4096;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) me: u64,
    /// The names that this member had before others spoiled them.
    former: Vec<u64>,
    /// When it took the last of them.
    renamed: Option<Instant>,
    heartbeat: Duration,
    lifetime: Duration,
    owners: BTreeMap<u64, Owner>,
    /// The records of each role, without its version.
    roles: HashMap<String, BTreeSet<RecordId>>,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    /// Counts beats that were news and records that were first seen.
    count: u64,
    bytes: usize,
    /// Persistent records that were freed by others than their owners, oldest first, and how many there ever were.
    freed: VecDeque<RecordId>,
    freed_count: u64,
    /// Where this member is reached, as far as it knows, and which of its records follow that.
    address: Option<IpAddr>,
    follows: BTreeSet<u64>,
    ticked: Instant,
    /// For how long others have been speaking, and when they last did. Time in which nobody does proves nothing.
    listened_for: Duration,
    listened_at: Instant,
    /// Of whom nothing can be known now, because somebody on the way has fallen silent, and when that was last heard of any.
    unsure: BTreeSet<u64>,
    unsure_at: Option<Instant>,
    /// Before this time nobody can have been silent for too long, and nothing is old enough to be forgotten.
    expire_at: Instant,
    beaten: Option<Instant>,
    /// When the next beat is due at the latest, and whether that or anything else that is due has changed.
    beat_next: Instant,
    retimed: bool,
    /// The beats after a count, as those are told who pass on nothing.
    told: Option<(u64, Arc<Vec<Beat>>)>,
    /// Whether silence of all others can only mean that there are none: nobody is looked for.
    pub(super) rooted: bool,
    pub(super) refusals: Refusals,
    /// Whether anybody wants to know what happens.
    pub(super) listened: bool,
    events: Vec<Event>,
    touched: BTreeSet<String>,
    /// The roles of which two have one address.
    contested: BTreeSet<String>,
    /// Those who wait for something to say.
    bells: Vec<Arc<Notify>>,
}

impl Table {
    pub(super) fn new(me: u64, heartbeat: Duration, lifetime: Duration, now: Instant) -> Self {
        Self {
            me,
            former: Vec::new(),
            renamed: None,
            heartbeat,
            lifetime,
            owners: BTreeMap::from([(me, Owner::new(1, 0, now))]),
            roles: HashMap::new(),
            links: BTreeMap::new(),
            next_link: 0,
            count: 0,
            bytes: 0,
            freed: VecDeque::new(),
            freed_count: 0,
            address: None,
            follows: BTreeSet::new(),
            ticked: now,
            listened_for: Duration::ZERO,
            listened_at: now,
            unsure: BTreeSet::new(),
            unsure_at: None,
            expire_at: now,
            beaten: None,
            beat_next: now,
            retimed: false,
            told: None,
            rooted: true,
            refusals: Refusals::default(),
            listened: true,
            events: Vec::new(),
            touched: BTreeSet::new(),
            contested: BTreeSet::new(),
            bells: Vec::new(),
        }
    }

    /// Registers a record of one's own and returns its number.
    pub(super) fn add(&mut self, mut content: Content, now: Instant) -> Result<RecordId, RegistryError> {
        content.check()?;
        let follows = content.address.is_none();
        content.address = content.address.or(self.address);
        let body = content.encode()?;
        let me = self.own(now);
        if me.is_gone() {
            return Err(RegistryError::Invalid("the manifest was closed".to_owned()));
        }
        if me.records.len() >= MAX_RECORDS || me.bytes + body.len() > MAX_OWNER_BYTES {
            return Err(RegistryError::Invalid(format!(
                "record of {:?}: one member holds at most {MAX_RECORDS} records of {MAX_OWNER_BYTES} bytes together",
                content.service
            )));
        }
        me.version += 1;
        let version = me.version;
        let id = RecordId { owner: self.me, number: version };
        self.insert(id, &Arc::new(content), version, body);
        if follows {
            self.follows.insert(id.number);
        }
        self.tell(self.me, None);
        Ok(id)
    }

    /// The records of one's own that were registered before this one as the same instance.
    pub(super) fn predecessors(&self, of: RecordId) -> Vec<RecordId> {
        let Some(own) = self.owners.get(&of.owner) else { return Vec::new() };
        let Some(newest) = own.records.get(&of.number).map(|stored| &stored.content) else { return Vec::new() };
        let same = |content: &Content| content.service == newest.service && content.instance == newest.instance;
        let older = own.records.iter().filter(|(number, stored)| **number != of.number && same(&stored.content));
        older.map(|(number, _)| RecordId { number: *number, ..of }).collect()
    }

    /// Says what a record of one's own is ready for. Does nothing for one that was freed.
    pub(super) fn set_status(&mut self, number: u64, status: &NodeStatus, now: Instant) {
        self.edit(number, now, |content| content.set_status(status));
    }

    /// Says where this member is reached; records without an address of their own follow.
    pub(super) fn set_address(&mut self, address: IpAddr, now: Instant) {
        if self.address == Some(address) {
            return;
        }
        self.address = Some(address);
        for number in self.follows.clone() {
            self.edit(number, now, |content| content.address = Some(address));
        }
    }

    fn edit(&mut self, number: u64, now: Instant, edit: impl FnOnce(&mut Content)) {
        let id = RecordId { owner: self.me, number };
        let me = self.own(now);
        let Some(stored) = me.records.get(&number) else { return };
        let mut content = Content::clone(&stored.content);
        edit(&mut content);
        // What was accepted with an address and a reason of any length may grow past the limit of a record; the old stays.
        let Ok(body) = content.encode() else { return };
        if content == *stored.content {
            return;
        }
        me.version += 1;
        let version = me.version;
        self.insert(id, &Arc::new(content), version, body);
        self.tell(self.me, None);
    }

    /// Takes back a record of one's own, or a persistent one of anybody's.
    pub(super) fn free(&mut self, id: RecordId, now: Instant) -> Result<Record, RegistryError> {
        let id = self.current_id(id);
        let unknown = || RegistryError::Invalid(format!("there is no record {id}"));
        let owner = self.owners.get_mut(&id.owner).ok_or_else(unknown)?;
        let stored = owner.records.get(&id.number).cloned().ok_or_else(unknown)?;
        if id.owner == self.me {
            owner.version += 1;
            let (version, why) = (owner.version, stored.content.farewell().map(str::to_owned));
            owner.bury(version, id.number, why, now);
        } else if !stored.content.persistent {
            return Err(RegistryError::Invalid(format!(
                "record {id} belongs to another member, who alone may free it"
            )));
        } else {
            self.note_freed(id);
        }
        self.remove(id);
        self.tell(id.owner, None);
        Ok(stored.content.record(id, stored.version))
    }

    /// The id that a record has now: a member that had to take another name keeps its records.
    fn current_id(&self, id: RecordId) -> RecordId {
        let owner = if self.former.contains(&id.owner) { self.me } else { id.owner };
        RecordId { owner, ..id }
    }

    /// Takes back everything but what is persistent, for good.
    pub(super) fn leave(&mut self, now: Instant) {
        let me = self.me;
        let own = self.own(now);
        if own.is_gone() {
            return;
        }
        own.version += 1;
        own.beat += 1;
        own.life = Life::Gone(now);
        self.drop_transient(me);
        self.tell(me, None);
    }

    fn expire(&mut self, now: Instant) {
        // What is new from here on cannot be due sooner.
        self.expire_at = now + self.lifetime.min(TOMBSTONE);
        let mut forgotten = Vec::new();
        let (mut dead, mut doubtful) = (Vec::new(), Vec::new());
        for (id, owner) in &mut self.owners {
            if let Some(at) = owner.prune(now) {
                self.expire_at = self.expire_at.min(at);
            }
            if let Life::Gone(since) = owner.life {
                if owner.records.is_empty() {
                    self.expire_at = self.expire_at.min(since + TOMBSTONE);
                }
                let is_over = owner.records.is_empty() && now.duration_since(since) >= TOMBSTONE;
                if is_over && *id != self.me {
                    forgotten.push(*id);
                }
                continue;
            }
            if *id == self.me {
                continue;
            }
            // Only who has spoken all the while without a word of it can know that it is silent.
            let missed = match owner.beat_from.and_then(|link| self.links.get(&link)) {
                Some(link) => link.spoken.saturating_sub(owner.seen_by_link),
                None if self.rooted => now.duration_since(owner.seen),
                None => self.listened_for.saturating_sub(owner.seen_by_all),
            };
            if missed >= self.lifetime {
                dead.push(*id);
            } else if owner.life == Life::Live && now.duration_since(owner.seen) >= self.lifetime {
                doubtful.push(*id);
            }
            // However silence is measured, it is no longer than it is by the clock.
            self.expire_at = self.expire_at.min(owner.seen + self.lifetime);
        }
        forgotten.into_iter().for_each(|id| self.forget_owner(id));
        for id in dead {
            if let Some(owner) = self.owners.get_mut(&id) {
                owner.life = Life::Gone(now);
            }
            self.drop_transient(id);
            // Others have dropped it too, or will: if it comes back they need everything.
            self.links.values_mut().for_each(|link| link.forget(id));
        }
        for id in doubtful {
            if let Some(owner) = self.owners.get_mut(&id) {
                owner.life = Life::Remembered;
            }
            self.touch_all(id);
        }
    }

    fn forget_owner(&mut self, id: u64) {
        self.owners.remove(&id);
        self.links.values_mut().for_each(|link| link.forget(id));
    }

    /// Removes an owner's records, except for the persistent ones.
    fn drop_transient(&mut self, id: u64) {
        let Some(owner) = self.owners.get(&id) else { return };
        let of_owner = owner.records.iter().filter(|(_, stored)| !stored.content.persistent);
        let transient: Vec<_> = of_owner.map(|(number, _)| RecordId { owner: id, number: *number }).collect();
        transient.into_iter().for_each(|id| self.remove(id));
        if let Some(owner) = self.owners.get_mut(&id) {
            owner.forget_freed(owner.version);
        }
        self.touch_all(id);
    }

    fn insert(&mut self, id: RecordId, content: &Arc<Content>, version: u64, body: bytes::Bytes) {
        self.count += 1;
        let Some(owner) = self.owners.get_mut(&id.owner) else { return };
        let order = owner.records.get(&id.number).map_or(self.count, |old| old.order);
        let before = owner.bytes;
        let old = owner.put(id.number, Stored { content: Arc::clone(content), version, body, order });
        self.bytes = self.bytes - before + owner.bytes;
        if let Some(old) = &old {
            self.unlist(id, &old.content);
        }
        self.roles.entry(content.role().to_owned()).or_default().insert(id);
        self.touched.insert(content.role().to_owned());
        if self.listened {
            let record = content.record(id, version);
            self.event(if old.is_none() { Event::Registered(record) } else { Event::Changed(record) });
        }
    }

    fn unlist(&mut self, id: RecordId, content: &Content) {
        let role = content.role();
        if let Some(ids) = self.roles.get_mut(role) {
            ids.remove(&id);
            if ids.is_empty() {
                self.roles.remove(role);
            }
        }
        self.touched.insert(role.to_owned());
    }

    /// Removes a record from the table, whatever its owner thinks.
    fn remove(&mut self, id: RecordId) {
        self.remove_because(id, None);
    }

    /// The same, where its owner has said why.
    fn remove_because(&mut self, id: RecordId, why: Option<&str>) {
        let Some(owner) = self.owners.get_mut(&id.owner) else { return };
        let before = owner.bytes;
        let Some(old) = owner.take(id.number) else { return };
        self.bytes = self.bytes - before + owner.bytes;
        self.unlist(id, &old.content);
        if id.owner == self.me {
            self.follows.remove(&id.number);
        }
        if self.listened {
            let mut record = old.content.record(id, old.version);
            if why.is_some() {
                record.details.status = NodeStatus { since: None, ..NodeStatus::now(NodeState::Down, why) };
            }
            self.event(Event::Freed(record));
        }
    }

    /// The owner has just been heard over this link.
    fn hear(&mut self, id: u64, beat: u64, link: u64, now: Instant) {
        self.count += 1;
        let spoken = self.links.get_mut(&link).map_or(Duration::ZERO, |link| {
            link.echoes += 1;
            link.spoken
        });
        let Some(owner) = self.owners.get_mut(&id) else { return };
        let was_doubted = owner.doubted;
        owner.hear(beat, now, self.listened_for, (link, spoken), self.count);
        if was_doubted {
            self.touch_all(id);
        }
    }

    fn touch_all(&mut self, id: u64) {
        let Some(owner) = self.owners.get(&id) else { return };
        self.touched.extend(owner.records.values().map(|stored| stored.content.role().to_owned()));
    }

    fn note_freed(&mut self, id: RecordId) {
        if self.freed.len() == MAX_FREED {
            self.freed.pop_front();
        }
        self.freed.push_back(id);
        self.freed_count += 1;
    }

    fn own(&mut self, now: Instant) -> &mut Owner {
        self.owners.entry(self.me).or_insert_with(|| Owner::new(1, 0, now))
    }

    fn event(&mut self, event: Event) {
        if self.listened && self.events.len() < MAX_EVENTS {
            self.events.push(event);
        }
    }

    /// The records that fit, oldest first.
    pub(super) fn find(&self, mut fits: impl FnMut(&Record) -> bool) -> Vec<Record> {
        let owners = self.owners.iter().filter(|(_, owner)| owner.life != Life::Remembered);
        let all = owners.flat_map(|(id, owner)| {
            owner
                .records
                .iter()
                .map(|(number, stored)| (stored.order, RecordId { owner: *id, number: *number }, stored))
        });
        let records = all.map(|(order, id, stored)| (order, stored.content.record(id, stored.version)));
        let mut found: Vec<_> = records.filter(|(_, record)| fits(record)).collect();
        found.sort_by_key(|(order, _)| *order);
        found.into_iter().map(|(_, record)| record).collect()
    }

    fn of_query<'a>(&'a self, query: &'a Query) -> impl Iterator<Item = (RecordId, &'a Owner, &'a Stored)> {
        // A role that is called exactly as the question may have an `@` in its name.
        let literal = (query.text != query.name).then(|| self.roles.get(&query.text)).flatten();
        let ids = self.roles.get(&query.name).into_iter().chain(literal).flatten();
        let stored = ids.filter_map(|id| {
            let owner = self.owners.get(&id.owner)?;
            Some((*id, owner, owner.records.get(&id.number)?))
        });
        let fits = |stored: &Stored| {
            query.matches(&stored.content.service, stored.content.meta.get("version").map(String::as_str))
        };
        stored.filter(move |(_, _, stored)| fits(stored))
    }

    /// The records of a role, oldest first.
    pub(super) fn get(&self, query: &Query) -> Vec<Record> {
        let live = self.of_query(query).filter(|(_, owner, _)| owner.life != Life::Remembered);
        let mut found: Vec<_> =
            live.map(|(id, _, stored)| (stored.order, stored.content.record(id, stored.version))).collect();
        found.sort_by_key(|(order, _)| *order);
        found.into_iter().map(|(_, record)| record).collect()
    }

    /// The endpoints of a role. Of several at one address the last one is the best: it is trusted most, it is heard, it came
    /// last. A process that takes the place of one that has died is so known before that one is given up.
    pub(super) fn endpoints(&mut self, query: &Query) -> Vec<Endpoint> {
        let late = self.heartbeat * 3 / 2;
        let rank = |(id, owner, stored): (RecordId, &Owner, &Stored)| {
            let endpoint = self.endpoint(id, owner, stored)?;
            let is_silent = self.ticked.duration_since(owner.seen) > late;
            Some((Reverse(endpoint.tier), Reverse(is_silent), stored.order, endpoint))
        };
        let mut found: Vec<_> = self.of_query(query).filter_map(rank).collect();
        found.sort_by_key(|(tier, is_silent, order, _)| (*tier, *is_silent, *order));
        let mut addresses = HashSet::new();
        if !found.iter().all(|(.., endpoint)| addresses.insert(endpoint.addr)) {
            self.contested.insert(query.name.clone());
        }
        found.into_iter().map(|(.., endpoint)| endpoint).collect()
    }

    fn endpoint(&self, id: RecordId, owner: &Owner, stored: &Stored) -> Option<Endpoint> {
        // A member that does not know its own address is still where it is.
        let here = (id.owner == self.me).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let tier = match owner.life {
            Life::Remembered => Tier::Unhealthy,
            // Nobody beats for what has outlived its owner.
            Life::Gone(_) => Tier::Doubtful,
            Life::Live if owner.doubted => Tier::Doubtful,
            Life::Live => Tier::Healthy,
        };
        stored.content.endpoint(id, tier, here)
    }

    /// The names under which services are registered.
    pub(super) fn services(&self) -> BTreeSet<String> {
        let records = self.owners.values().flat_map(|owner| owner.records.values());
        records.map(|stored| stored.content.service.clone()).collect()
    }

    /// Whether anybody else could be heard now, if there is anybody.
    pub(super) fn is_connected(&self, now: Instant) -> bool {
        let quiet = self.lifetime * 3 / 4;
        self.rooted || self.links.values().any(|link| link.listened().is_some_and(|at| now.duration_since(at) < quiet))
    }

    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The roles whose records are not what they were.
    pub(super) fn take_touched(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }

    /// Whether readers have not seen all, or the time is to be looked at at another time than was said.
    pub(super) fn wants_a_look(&mut self) -> bool {
        std::mem::take(&mut self.retimed) || !self.touched.is_empty()
    }

    /// Who is to be told that there may be something to say.
    pub(super) fn take_bells(&mut self) -> Vec<Arc<Notify>> {
        std::mem::take(&mut self.bells)
    }
}
