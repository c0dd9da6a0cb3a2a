//! What is believed of what others say.
//!
//! Owns the rules. An owner's records are one value with a version, which only the owner makes; the newer incarnation wins,
//! then the newer version, never a time. Whoever hears somebody else speak in his own name takes the next incarnation, so
//! that a lie lives no longer than it needs to reach the one whom it is about. It must never grow a table past its limits,
//! nor remove a record because one frame was bad. Look next at `speak.rs` for what is passed on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::events::Event;
use super::super::frame::{BadFrame, Beat, Change, Frame, MAX_FRAME, MAX_OWNER_BYTES, MAX_OWNERS, MAX_RECORDS, UNSURE};
use super::super::record::{Content, RecordId};
use super::owner::{Life, Owner, Stored, sum_of};
use super::{MAX_TABLE_BYTES, Table};

/// Highest incarnation. A member that is forced to it takes another name.
const MAX_INCARNATION: u64 = 1 << 48;

/// Most frames of one connection that may be refused before it is closed: one that lies or babbles is of no use.
const MAX_REFUSED: u32 = 100;

/// Most living members that one link may bring, so that a single one that babbles does not keep out those who join elsewhere.
/// Against somebody who means it, and makes many connections, nothing but the secret helps.
pub(super) const MAX_BROUGHT: usize = MAX_OWNERS / 4 * 3;

/// Most names that a member remembers to have had.
const MAX_FORMER: usize = 16;

/// A record that is acceptable: its number, its version, and its content as it came and as it was read.
type Accepted = (u64, u64, Bytes, Arc<Content>);

/// What the sum of an owner's records is if these are all.
fn sum_of_all(change: &Change) -> u64 {
    change.put.iter().fold(0, |sum, put| sum.wrapping_add(sum_of(put.0, put.1, &put.2)))
}

/// A connection that is of no more use.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Close(pub(in super::super) &'static str);

impl Table {
    /// Takes in what came over a link.
    pub(in super::super) fn receive(&mut self, link: u64, frame: Bytes, now: Instant) -> Result<(), Close> {
        debug_assert!(frame.len() <= MAX_FRAME);
        if !self.hear_link(link, now) {
            return Err(Close("it was closed"));
        }
        match Frame::decode(frame) {
            Ok(Frame::Pulse { full, beats }) => self.pulse(link, full, &beats, now),
            Ok(Frame::Change(change)) => {
                self.heard_news(link);
                self.change(link, change, now);
            }
            Ok(Frame::Freed(records)) => {
                self.heard_news(link);
                self.freed_elsewhere(&records, now);
            }
            Ok(Frame::Synced) => self.synced(link),
            Ok(Frame::Summary { sum, heard }) => self.summary_heard(link, sum, heard, now),
            Ok(Frame::Taken) => {
                self.rename(now);
                return Err(Close("another process is connected there under the same name"));
            }
            Err(BadFrame::Unknown) => {
                self.refusals.unknown_frames += 1;
                self.refused(link);
            }
            Err(BadFrame::Malformed) => {
                self.refusals.malformed_frames += 1;
                return Err(Close("it sent what is no frame"));
            }
        }
        match self.links.get(&link) {
            Some(link) if link.refused > MAX_REFUSED => Err(Close("too much of what it sent was refused")),
            _ => Ok(()),
        }
    }

    fn heard_news(&mut self, link: u64) {
        if let Some(link) = self.links.get_mut(&link) {
            link.heard_news += 1;
        }
    }

    fn refused(&mut self, link: u64) {
        if let Some(link) = self.links.get_mut(&link) {
            link.refused += 1;
        }
    }

    fn synced(&mut self, link: u64) {
        let Some(link) = self.links.get_mut(&link) else { return };
        if !std::mem::replace(&mut link.synced, true) {
            let event = Event::Synced { owner: link.owner };
            self.event(event);
        }
    }

    fn pulse(&mut self, link: u64, full: bool, beats: &[Beat], now: Instant) {
        if full {
            self.peer_speaks(link);
        }
        let spoken = self.links.get(&link).map_or(Duration::ZERO, |link| link.spoken);
        let (mut behind, mut unknown, mut usual) = (false, false, 0);
        for beat in beats {
            if !full && self.usual_beat(link, spoken, *beat, now) {
                usual += 1;
            } else if self.owners.contains_key(&beat.0) {
                behind |= self.beat(link, full, *beat, now);
            } else {
                unknown = true;
            }
        }
        let me = self.me;
        if let Some(link) = self.links.get_mut(&link) {
            link.echoes += usual;
            if !full && beats.iter().any(|beat| beat.0 != link.owner && beat.0 != me) {
                link.relays = Some(now);
            }
        }
        behind |= unknown && self.may_bring(link);
        if full {
            let mut named: Vec<_> = beats.iter().map(|beat| beat.0).collect();
            named.sort_unstable();
            let missing: Vec<_> = self
                .owners
                .iter()
                .filter(|(id, owner)| owner.is_told() && named.binary_search(id).is_err())
                .map(|(id, _)| *id)
                .collect();
            self.peer_told_all(link, missing, now);
        }
        if behind {
            self.want_digest(link, now);
        }
        if !full {
            self.pulse_heard(now);
        }
    }

    /// Nearly all that is ever heard: one more beat of somebody who is well and has nothing new. Returns whether it was that.
    fn usual_beat(&mut self, link: u64, spoken: Duration, beat: Beat, now: Instant) -> bool {
        let Beat(id, incarnation, beat, version, sum) = beat;
        let Some(owner) = self.owners.get_mut(&id) else { return false };
        let is_known = (incarnation, version, sum) == (owner.incarnation, owner.version, 0) && beat > owner.beat;
        if !is_known || owner.life != Life::Live || owner.doubted || id == self.me {
            return false;
        }
        self.count += 1;
        owner.hear(beat, now, self.listened_for, (link, spoken), self.count);
        true
    }

    /// Returns whether the other side knows more.
    fn beat(&mut self, link: u64, full: bool, Beat(id, incarnation, beat, version, sum): Beat, now: Instant) -> bool {
        if id == self.me {
            self.own_beat(link, full, Beat(id, incarnation, beat, version, sum), now);
            return false;
        }
        let Some(owner) = self.owners.get_mut(&id) else { return false };
        let is_news = (incarnation, beat) > (owner.incarnation, owner.beat);
        if owner.is_gone() {
            // It lives after all if it has beaten since; what it has must be told anew. Who missed that it left is told, and of two
            // truths about what it left either side must see the other's.
            let differs = full && beat == 0 && owner.version == version && owner.sum != sum;
            if full && !is_news {
                self.peer_has(link, id, (!differs).then_some((incarnation, version)), now);
            }
            return is_news && sum != UNSURE || differs;
        }
        if !full && sum == UNSURE {
            if is_news && incarnation == owner.incarnation && owner.life == Life::Live {
                self.hear(id, beat, link, now);
            }
            let Some(owner) = self.owners.get_mut(&id) else { return false };
            // Only from where its beats came: what comes another way would have brought a newer one.
            if owner.beat_from == Some(link) && (incarnation, beat) == (owner.incarnation, owner.beat) {
                owner.unsure = Some(now);
                self.unsure_at = Some(now);
                owner.seen_by_link = self.links.get(&link).map_or(Duration::ZERO, |link| link.spoken);
            }
            return false;
        }
        let is_ahead = (incarnation, version) > (owner.incarnation, owner.version);
        if is_news && incarnation == owner.incarnation {
            let was = std::mem::replace(&mut owner.life, Life::Live);
            self.hear(id, beat, link, now);
            if was == Life::Remembered {
                self.touch_all(id);
            }
        }
        if full && beat == 0 {
            // The other side has given it up, and kept at most what is persistent: only all of it is of use there.
            self.peer_has(link, id, None, now);
            return is_ahead;
        }
        if full {
            let same = self.owners.get(&id).is_some_and(|owner| owner.version != version || owner.sum == sum);
            self.peer_has(link, id, same.then_some((incarnation, version)), now);
            // Of two truths either side must see the other's.
            return is_ahead || !same;
        }
        is_ahead
    }

    /// What others believe of me.
    fn own_beat(&mut self, link: u64, full: bool, Beat(id, incarnation, beat, version, sum): Beat, now: Instant) {
        let me = self.own(now);
        let newest = (me.incarnation, me.version);
        // Whoever has given me up has kept at most what is persistent, which is no lie.
        let is_given_up = full && beat == 0;
        let is_forged = incarnation > me.incarnation
            || incarnation == me.incarnation && (beat > me.beat || version > me.version)
            || full && !is_given_up && (incarnation, version) == newest && sum != me.sum;
        if is_forged {
            self.defend(incarnation, now);
        } else if full {
            self.peer_has(link, id, (!is_given_up).then_some((incarnation, version)), now);
        }
    }

    /// Somebody speaks in my name: my next incarnation says how it is.
    fn defend(&mut self, incarnation: u64, now: Instant) {
        let me = self.own(now);
        let next = me.incarnation.max(incarnation).saturating_add(1);
        if next >= MAX_INCARNATION {
            return self.rename(now);
        }
        me.incarnation = next;
        self.refusals.takeovers += 1;
        self.tell(self.me, None);
    }

    /// No incarnation is left under this name, or somebody else uses it. Another one does as well, because nobody else may use
    /// the records by it. At most once per heartbeat: others remember each name for a lifetime, and whoever can force names
    /// without end would fill their tables.
    pub(in super::super) fn rename(&mut self, now: Instant) {
        self.refusals.takeovers += 1;
        if self.renamed.is_some_and(|at| now.duration_since(at) < self.heartbeat) {
            return;
        }
        self.renamed = Some(now);
        let before = self.me;
        let mut owner = self.owners.remove(&before).unwrap_or_else(|| Owner::new(1, 0, now));
        owner.incarnation = 1;
        self.me = fastrand::u64(..);
        for (number, stored) in &owner.records {
            let ids = self.roles.entry(stored.content.role().to_owned()).or_default();
            ids.remove(&RecordId { owner: before, number: *number });
            ids.insert(RecordId { owner: self.me, number: *number });
        }
        self.owners.insert(self.me, owner);
        self.former.push(before);
        if self.former.len() > MAX_FORMER {
            self.former.remove(0);
        }
        self.tell(self.me, None);
    }

    fn change(&mut self, link: u64, change: Change, now: Instant) {
        let Change { owner: id, incarnation, from, to, beat, gone, .. } = change;
        if id == self.me {
            return self.own_change(link, &change, now);
        }
        if incarnation >= MAX_INCARNATION || change.put.len() > MAX_RECORDS || change.freed.len() > MAX_RECORDS {
            self.refusals.records += 1;
            return self.refused(link);
        }
        let Some(owner) = self.owners.get(&id) else {
            if from != 0 {
                return self.want_digest(link, now);
            }
            if !self.has_room(link, gone) {
                // Whoever passes it on may be innocent.
                self.refusals.owners += 1;
                return;
            }
            return self.replace(link, &change, now);
        };
        let (known, told) = ((owner.incarnation, owner.version), (incarnation, to));
        if owner.life != Life::Live {
            let is_news = (incarnation, beat) > (owner.incarnation, owner.beat);
            let is_known_gone = gone && owner.is_gone();
            let is_later = told > known || told == known && sum_of_all(&change) > owner.sum;
            return match () {
                // It went with more than what was known here.
                () if is_known_gone && is_later && from == 0 => self.replace(link, &change, now),
                // What has not beaten since is what was known when it went.
                () if !is_news || is_known_gone => self.peer_has_seen(link, id, told),
                () if from != 0 => self.want_digest(link, now),
                () => self.replace(link, &change, now),
            };
        }
        if told < known || told == known && gone {
            // The other side is behind.
            self.peer_has(link, id, (!gone).then_some(told), now);
        } else if told == known {
            // Two truths of one version: somebody lies. The owner will say; until then all believe the same one.
            if from == 0 && sum_of_all(&change) > owner.sum {
                self.replace(link, &change, now);
            } else {
                self.peer_has_seen(link, id, told);
            }
        } else if from == 0 {
            self.replace(link, &change, now);
        } else if incarnation != owner.incarnation || from > owner.version {
            self.want_digest(link, now);
        } else {
            self.apply(link, change, now);
        }
    }

    fn own_change(&mut self, link: u64, change: &Change, now: Instant) {
        let me = self.own(now);
        let (mine, told) = ((me.incarnation, me.version), (change.incarnation, change.to));
        let differs = change.from == 0 && told == mine && !change.gone && sum_of_all(change) != me.sum;
        let is_forged = told > mine || differs || change.incarnation == mine.0 && change.beat > me.beat;
        if is_forged {
            self.defend(change.incarnation, now);
        } else if told < mine {
            self.peer_has(link, self.me, Some(told), now);
        }
    }

    /// Reads the records of a change. Nothing of it is taken if one of them is not acceptable: a table holds all of what an
    /// owner said, or what it said before.
    fn read(&mut self, link: u64, change: &Change) -> Option<Vec<Accepted>> {
        let of_owner = self.freed.iter().zip(0..).filter(|(id, _)| id.owner == change.owner);
        let freed: BTreeMap<_, u64> = of_owner.map(|(id, place)| (id.number, place)).collect();
        let mut missed = None;
        let mut numbers = BTreeSet::new();
        let mut records = Vec::with_capacity(change.put.len());
        for put in &change.put {
            let content = Content::decode(&put.2).filter(|_| numbers.insert(put.0) && put.0 <= put.1);
            let Some(content) = content.filter(|content| content.persistent || !change.gone) else {
                self.refusals.records += 1;
                self.refused(link);
                return None;
            };
            match freed.get(&put.0).filter(|_| content.persistent) {
                Some(place) => missed = Some(missed.map_or(*place, |first: u64| first.min(*place))),
                // A copy, because the frame would live as long as its smallest part.
                None => records.push((put.0, put.1, Bytes::copy_from_slice(&put.2), Arc::new(content))),
            }
        }
        if let Some(place) = missed {
            self.tell_freed_again(link, place);
        }
        Some(records)
    }

    /// Makes room for another member, at the cost of the memory of one that has left: for a living one also of one that left
    /// something persistent, else whoever fills a table with such records would keep everybody out for ever.
    fn has_room(&mut self, link: u64, gone: bool) -> bool {
        if self.owners.len() >= MAX_OWNERS {
            self.forget_oldest(|_, owner| owner.records.is_empty() || !gone);
        }
        self.may_bring(link)
    }

    /// Whether a link may bring another member.
    fn may_bring(&self, link: u64) -> bool {
        let brought = |owner: &&Owner| owner.beat_from == Some(link) && !owner.is_gone();
        self.owners.len() < MAX_BROUGHT
            || self.owners.len() < MAX_OWNERS && self.owners.values().filter(brought).count() < MAX_BROUGHT
    }

    /// Forgets the one that left longest ago of those that fit, first of those that left nothing. Whether there was one.
    fn forget_oldest(&mut self, fits: impl Fn(u64, &Owner) -> bool) -> bool {
        let left = self.owners.iter().filter_map(|(id, owner)| match owner.life {
            Life::Gone(since) if fits(*id, owner) && *id != self.me => Some((!owner.records.is_empty(), since, *id)),
            _ => None,
        });
        let Some((_, _, oldest)) = left.min() else { return false };
        let ids = self.owners.get(&oldest).map(|owner| owner.ids(oldest)).unwrap_or_default();
        ids.into_iter().for_each(|id| self.remove(id));
        self.forget_owner(oldest);
        true
    }

    /// Whether the limits allow an owner to grow to this.
    fn fits(&mut self, link: u64, change: &Change, records: usize, before: usize, after: usize) -> bool {
        if records > MAX_RECORDS || after > MAX_OWNER_BYTES {
            self.refusals.records += 1;
            self.refused(link);
            return false;
        }
        let is_full = |table: &Self| table.bytes - before + after > MAX_TABLE_BYTES;
        let mut fits = !is_full(self);
        while !fits && !change.gone && self.forget_oldest(|id, owner| !owner.records.is_empty() && id != change.owner) {
            fits = !is_full(self);
        }
        self.refusals.owners += u64::from(!fits);
        fits
    }

    /// These are all records of an owner.
    fn replace(&mut self, link: u64, change: &Change, now: Instant) {
        let Some(records) = self.read(link, change) else { return };
        let before = self.owners.get(&change.owner).map_or(0, |owner| owner.bytes);
        let after = records.iter().map(|(_, _, body, _)| body.len()).sum();
        if !self.fits(link, change, records.len(), before, after) {
            return;
        }
        let numbers: BTreeSet<_> = records.iter().map(|(number, ..)| *number).collect();
        let owner = self.owners.entry(change.owner).or_insert_with(|| Owner::new(change.incarnation, change.beat, now));
        owner.forget_freed(change.to);
        let over: Vec<_> = owner.ids(change.owner).into_iter().filter(|id| !numbers.contains(&id.number)).collect();
        self.put_all(change, records);
        over.into_iter().for_each(|id| self.remove(id));
        self.settle(link, change, now);
    }

    /// These are the differences between an earlier version of an owner's records and a later one.
    fn apply(&mut self, link: u64, mut change: Change, now: Instant) {
        let Some(owner) = self.owners.get(&change.owner) else { return };
        let known = owner.version;
        change.put.retain(|put| put.1 > known);
        let (count, before) = (owner.records.len(), owner.bytes);
        let over: BTreeSet<_> = change.put.iter().map(|put| put.0).chain(change.freed.iter().copied()).collect();
        let over = over.iter().filter_map(|number| owner.records.get(number)).map(|old| old.body.len());
        let (over, room) = (over.clone().count(), over.sum::<usize>());
        let Some(records) = self.read(link, &change) else { return };
        let added: usize = records.iter().map(|(_, _, body, _)| body.len()).sum();
        if !self.fits(link, &change, count - over + records.len(), before, before - room + added) {
            return;
        }
        self.put_all(&change, records);
        let mut reasons: BTreeMap<u64, String> = change.why.drain(..).collect();
        for number in change.freed.iter().copied() {
            let why = reasons.remove(&number);
            self.remove_because(RecordId { owner: change.owner, number }, why.as_deref());
            if let Some(owner) = self.owners.get_mut(&change.owner) {
                owner.bury(change.to, number, why, now);
            }
        }
        self.settle(link, &change, now);
    }

    fn put_all(&mut self, change: &Change, records: Vec<Accepted>) {
        for (number, version, body, content) in records {
            let known = self.owners.get(&change.owner).and_then(|owner| owner.records.get(&number));
            if known.is_none_or(|known: &Stored| known.version != version || known.content != content) {
                self.insert(RecordId { owner: change.owner, number }, &content, version, body);
            }
        }
    }

    fn settle(&mut self, link: u64, change: &Change, now: Instant) {
        let Some(owner) = self.owners.get(&change.owner) else { return };
        // News go at once, and beats wait at each member that passes them on. If news of one whose beats come already counted as
        // one, those that are on their way would be old, and the next one that is not would come too late.
        let is_known = owner.beat_at != 0 && owner.incarnation == change.incarnation;
        let is_beating = is_known && owner.life == Life::Live && !owner.doubted;
        let is_news = (change.incarnation, change.beat) > (owner.incarnation, owner.beat);
        if owner.beat_at == 0 || is_news && (!is_beating || change.gone) {
            self.hear(change.owner, change.beat, link, now);
        }
        let Some(owner) = self.owners.get_mut(&change.owner) else { return };
        (owner.incarnation, owner.version) = (change.incarnation, change.to);
        let was_live = owner.life == Life::Live;
        owner.life = if change.gone { Life::Gone(now) } else { Life::Live };
        if change.gone {
            self.drop_transient(change.owner);
        } else if !was_live {
            self.touch_all(change.owner);
        }
        self.peer_has_seen(link, change.owner, (change.incarnation, change.to));
        self.tell(change.owner, Some(link));
    }

    fn freed_elsewhere(&mut self, records: &[(u64, u64)], now: Instant) {
        for &(owner, number) in records {
            let id = self.current_id(RecordId { owner, number });
            let stored = self.owners.get(&id.owner).and_then(|owner| owner.records.get(&id.number));
            // What is not known, or belongs to a living process alone, is not anybody's to free.
            match stored.map(|stored| stored.content.persistent) {
                // Its own owner tells all others in turn.
                Some(true) => drop(self.free(id, now)),
                Some(false) => self.refusals.takeovers += 1,
                None => {}
            }
        }
    }
}
