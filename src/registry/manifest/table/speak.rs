//! What is said to others, and what they are known to know.
//!
//! Owns [`Link`], one connection as the table sees it. Nothing is queued for a link: what to say next is worked out when the
//! link can take it, from what the other side has, so that one that reads slowly costs nothing but its own delay. It must never
//! say back what was just heard there. Look next at `../link.rs` for the connection itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::events::Event;
use super::super::frame::{Beat, Frame, MAX_OWNERS, UNSURE};
use super::super::record::RecordId;
use super::Table;
use super::owner::{Life, Owner};

/// Every so many heartbeats both sides of a link compare one number over all that they know, and only where that differs all of
/// it, line by line: what was lost in whatever way is healed.
const BEATS_PER_SUMMARY: u32 = 5;

/// Every so many heartbeats, five minutes with the usual one, everything is compared line by line all the same: two tables that
/// differ may have one number, if somebody means them to.
const BEATS_PER_DIGEST: u32 = 150;

/// So many summaries in a row may be of no use because news were under way; then everything is compared.
const MAX_UNCLEAR: u32 = 3;

/// So many times per heartbeat, at most, the other side of a link may have all that is known here told again, because it says that
/// it lacks it: once when it joins and once when a comparison finds something, and as often again for what crosses on the way.
/// A frame of some bytes asks for as much, so that without this who may join could keep others busy with nothing else.
const TABLES_TOLD_AGAIN: usize = 4;

/// What a member costs in that beside its records, in bytes: about the head of a frame.
const HEAD: usize = 64;

/// Most connections of one member.
pub(in super::super) const MAX_LINKS: usize = 512;

#[derive(Debug)]
pub(super) struct Link {
    /// Who is at the other end, and the random number of that process.
    pub(super) owner: u64,
    birth: u64,
    pub(super) heard: Instant,
    /// For how long it has been speaking: like the time, but it does not go on while the other side is silent.
    pub(super) spoken: Duration,
    /// Whether the other side has said everything that this one lacked when they met.
    pub(super) synced: bool,
    pub(super) refused: u32,
    /// Incarnation and version that the other side has, by owner; `None` until it has said so.
    knows: Option<BTreeMap<u64, (u64, u64)>>,
    /// Owners of whom there may be something to say, and those of them that are about to be.
    dirty: BTreeSet<u64>,
    queue: VecDeque<u64>,
    /// Everything is to be compared now, and when next.
    pub(super) digest: bool,
    pub(super) digest_next: Instant,
    digest_at: Option<Instant>,
    /// A summary is to be said now, and when next; when the last one came, and how many of them in a row told nothing.
    pub(super) summary: bool,
    pub(super) summary_next: Instant,
    summary_heard: Option<Instant>,
    unclear: u32,
    /// How many bytes are told again because the other side says that it lacks them, since when.
    again: usize,
    again_since: Instant,
    /// How many changes and frees were said to the other side, and heard from it.
    said: u64,
    pub(super) heard_news: u64,
    /// When it last brought a beat of anybody but its own other end.
    pub(super) relays: Option<Instant>,
    pub(super) bell: Arc<Notify>,
    /// Beats that came after this count of the table are to be said now.
    pub(super) pulse: Option<u64>,
    /// Up to which count of the table beats were told, and how many since then were heard on this very link.
    pub(super) beats: u64,
    pub(super) echoes: u64,
    /// How many of the frees of persistent records were told.
    freed: u64,
    told_synced: bool,
    /// Which of one's own incarnations and versions was the last to be said, or known to the other side, and which is on its way.
    told_own: (u64, u64),
    written: (u64, u64),
}

impl Link {
    /// When it was last heard, if it can know of others.
    pub(super) fn listened(&self) -> Option<Instant> {
        self.synced.then_some(self.heard)
    }

    pub(super) fn forget(&mut self, owner: u64) {
        self.dirty.remove(&owner);
        if let Some(knows) = &mut self.knows {
            knows.remove(&owner);
        }
    }
}

/// Why a connection is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Unwanted {
    Myself,
    /// Another process is connected under the same name.
    Taken,
    Full,
}

impl Table {
    /// A member has joined over a new link.
    pub(in super::super) fn link_up(&mut self, owner: u64, birth: u64, now: Instant) -> Result<u64, Unwanted> {
        self.is_wanted(owner, birth)?;
        let id = self.next_link;
        self.next_link += 1;
        let link = Link {
            owner,
            birth,
            heard: now,
            spoken: Duration::ZERO,
            synced: false,
            refused: 0,
            knows: None,
            dirty: BTreeSet::new(),
            queue: VecDeque::new(),
            digest: true,
            digest_next: now,
            digest_at: None,
            summary: false,
            summary_next: now,
            summary_heard: None,
            unclear: 0,
            again: 0,
            again_since: now,
            said: 0,
            heard_news: 0,
            relays: None,
            bell: Arc::default(),
            pulse: None,
            beats: 0,
            echoes: 0,
            freed: self.freed_count - self.freed.len() as u64,
            told_synced: false,
            told_own: (0, 0),
            written: (0, 0),
        };
        self.links.insert(id, link);
        self.event(Event::Connected { owner });
        Ok(id)
    }

    /// Rings when there may be something to say on a link.
    pub(in super::super) fn bell(&self, link: u64) -> Option<Arc<Notify>> {
        self.links.get(&link).map(|link| Arc::clone(&link.bell))
    }

    pub(in super::super) fn is_wanted(&self, owner: u64, birth: u64) -> Result<(), Unwanted> {
        if owner == self.me {
            return Err(Unwanted::Myself);
        }
        if self.links.values().any(|link| link.owner == owner && link.birth != birth) {
            return Err(Unwanted::Taken);
        }
        if self.links.len() < MAX_LINKS { Ok(()) } else { Err(Unwanted::Full) }
    }

    /// A connection has ended. Nothing is removed for that; but a member that was at its other end is doubted.
    pub(in super::super) fn link_down(&mut self, link: u64) {
        let Some(link) = self.links.remove(&link) else { return };
        let others = self.links.values().any(|other| other.owner == link.owner);
        if let Some(owner) = self.owners.get_mut(&link.owner).filter(|_| !others) {
            owner.doubted = true;
            self.touch_all(link.owner);
        }
        self.event(Event::Disconnected { owner: link.owner });
    }

    /// Something has come over a link; `false` if there is no such link.
    pub(super) fn hear_link(&mut self, link: u64, now: Instant) -> bool {
        // Whoever is well speaks once per heartbeat. A longer silence is not the silence of those of whom it would have told.
        let most = self.heartbeat * 5 / 4;
        let Some(link) = self.links.get_mut(&link) else { return false };
        link.spoken += now.duration_since(link.heard).min(most);
        link.heard = now;
        if link.synced {
            self.listened_for += now.duration_since(self.listened_at).min(most);
            self.listened_at = now;
        }
        true
    }

    /// Whether the other side has been silent for so long that the connection must be dead. Longer than the lifetime, so that
    /// one that only stood still keeps its connections, and others do not take those behind it for dead.
    pub(in super::super) fn is_dead(&self, link: u64, now: Instant) -> bool {
        self.links.get(&link).is_none_or(|link| now.duration_since(link.heard) > self.lifetime * 2)
    }

    pub(in super::super) fn is_synced(&self, link: u64) -> bool {
        self.links.get(&link).is_some_and(|link| link.synced)
    }

    pub(in super::super) fn links(&self) -> Vec<u64> {
        self.links.values().map(|link| link.owner).collect()
    }

    /// Whether everybody who is connected was told of all of one's own changes.
    pub(in super::super) fn all_told(&self) -> bool {
        let Some(me) = self.owners.get(&self.me) else { return true };
        let newest = (me.incarnation, me.version);
        self.links.values().all(|link| link.written >= newest)
    }

    /// Everything that was to be said on this link so far is on its way.
    pub(in super::super) fn written(&mut self, link: u64) {
        if let Some(link) = self.links.get_mut(&link) {
            link.written = link.told_own;
        }
    }

    /// There is news of an owner, which came over this link.
    pub(super) fn tell(&mut self, owner: u64, except: Option<u64>) {
        for (id, link) in &mut self.links {
            if Some(*id) != except {
                link.dirty.insert(owner);
                self.bells.push(Arc::clone(&link.bell));
            }
        }
    }

    /// The other side has this of an owner, or something else of which nothing is known.
    pub(super) fn peer_has(&mut self, link: u64, owner: u64, version: Option<(u64, u64)>, now: Instant) {
        let newest = self.owners.get(&owner).map(|owner| (owner.incarnation, owner.version));
        // Usually both sides know the same, and nobody is to be woken for that.
        let is_behind = newest.is_some_and(|newest| version.is_none_or(|version| version < newest));
        // Until it has named all whom it knows, it is told nothing.
        let is_known = self.links.get(&link).is_some_and(|link| link.knows.is_some());
        if !is_known || is_behind && !self.may_tell_again(link, owner, now) {
            return;
        }
        let Some(link) = self.links.get_mut(&link) else { return };
        let Some(knows) = &mut link.knows else { return };
        match version {
            Some(version) => knows.insert(owner, version),
            None => knows.remove(&owner),
        };
        if is_behind {
            link.dirty.insert(owner);
            self.bells.push(Arc::clone(&link.bell));
        }
    }

    /// Whether the other side may be told again what it says it lacks. What is refused is compared again later, as all is.
    fn may_tell_again(&mut self, link: u64, owner: u64, now: Instant) -> bool {
        let most = TABLES_TOLD_AGAIN * (self.bytes + HEAD * self.owners.len());
        let cost = HEAD + self.owners.get(&owner).map_or(0, |owner| owner.bytes);
        let Some(link) = self.links.get_mut(&link) else { return false };
        if link.dirty.contains(&owner) {
            // It is about to be told.
            return true;
        }
        if now.duration_since(link.again_since) >= self.heartbeat {
            (link.again, link.again_since) = (0, now);
        }
        if link.again + cost > most {
            self.refusals.repeats += 1;
            return false;
        }
        link.again += cost;
        true
    }

    /// The other side has just said this of an owner.
    pub(super) fn peer_has_seen(&mut self, link: u64, owner: u64, version: (u64, u64)) {
        if let Some(knows) = self.links.get_mut(&link).and_then(|link| link.knows.as_mut()) {
            let known = knows.entry(owner).or_insert(version);
            *known = version.max(*known);
        }
    }

    /// The other side has something that was freed, from this place on in the memory of what was: it learnt of the record after it
    /// was told, from somebody who had not heard of the free.
    pub(super) fn tell_freed_again(&mut self, link: u64, place: u64) {
        let first = self.freed_count - self.freed.len() as u64;
        let Some(link) = self.links.get_mut(&link) else { return };
        link.freed = link.freed.min(first + place);
        self.bells.push(Arc::clone(&link.bell));
    }

    /// The other side names all whom it knows.
    pub(super) fn peer_speaks(&mut self, link: u64) {
        let Some(link) = self.links.get_mut(&link) else { return };
        if link.knows.is_none() {
            link.knows = Some(BTreeMap::new());
            self.bells.push(Arc::clone(&link.bell));
        }
    }

    /// The other side has named all whom it knows; these are not among them.
    pub(super) fn peer_told_all(&mut self, link: u64, missing: Vec<u64>, now: Instant) {
        for owner in missing {
            self.peer_has(link, owner, None, now);
        }
    }

    /// The other side knows more: it says so when it learns what is known here. Once per heartbeat is often enough.
    pub(super) fn want_digest(&mut self, link: u64, now: Instant) {
        let heartbeat = self.heartbeat;
        let Some(link) = self.links.get_mut(&link) else { return };
        if link.digest_at.is_none_or(|at| now.duration_since(at) >= heartbeat) {
            link.digest = true;
            self.bells.push(Arc::clone(&link.bell));
        }
    }

    /// The other side says what it knows, in one number, and how much of what it was told it had heard by then. News come in
    /// the order in which they were said: if it had heard all and something differs, then it will not heal by itself.
    pub(super) fn summary_heard(&mut self, link: u64, sum: u64, heard: u64, now: Instant) {
        let (heartbeat, freed) = (self.heartbeat, self.freed_count);
        let next = now + heartbeat * BEATS_PER_SUMMARY + self.spread(link);
        let Some(other) = self.links.get_mut(&link) else { return };
        // Adding up is work, and honest members do not ask for it so often.
        let is_early = other.summary_heard.is_some_and(|at| now.duration_since(at) < heartbeat);
        if is_early || other.knows.is_none() {
            return;
        }
        other.summary_heard = Some(now);
        let is_under_way =
            !other.dirty.is_empty() || !other.queue.is_empty() || other.freed != freed || heard < other.said;
        let is_same = self.summary() == sum;
        let Some(other) = self.links.get_mut(&link) else { return };
        if is_same {
            // One of the two sides is enough.
            other.summary_next = next;
        }
        other.unclear = if is_under_way && !is_same { other.unclear + 1 } else { 0 };
        if !is_same && (!is_under_way || other.unclear >= MAX_UNCLEAR) {
            other.unclear = 0;
            self.want_digest(link, now);
        }
    }

    /// What should be the same at both ends of a link. Of those who have gone only their records count: how they went may have
    /// looked different from different places.
    pub(super) fn summary(&self) -> u64 {
        let told = self.owners.iter().filter(|(_, owner)| owner.is_told());
        told.fold(0, |sum, (id, owner)| {
            let (incarnation, version) = if owner.is_gone() { (0, 0) } else { (owner.incarnation, owner.version) };
            let line = [*id, incarnation, version, owner.sum].into_iter().fold(0, |hash, part| scatter(hash ^ part));
            sum.wrapping_add(line)
        })
    }

    /// What to say next on a link.
    pub(in super::super) fn next_frame(&mut self, id: u64, now: Instant) -> Option<Frame> {
        let link = self.links.get_mut(&id)?;
        // First what is known here, so that the other side knows what to say; later what it lacks goes first.
        if link.digest_at.is_none() {
            return Some(self.digest(id, now));
        }
        if let Some(knows) = &mut link.knows {
            loop {
                if link.queue.is_empty() {
                    // Who was heard longest ago comes first, so that also a newcomer knows who of two at one address came later.
                    let heard = |id: &u64| self.owners.get(id).map_or(0, |owner| owner.beat_at);
                    link.queue.extend(std::mem::take(&mut link.dirty));
                    link.queue.make_contiguous().sort_by_cached_key(heard);
                }
                let Some(owner_id) = link.queue.pop_front() else { break };
                let Some(owner) = self.owners.get(&owner_id) else { continue };
                let version = (owner.incarnation, owner.version);
                let known = knows.get(&owner_id).copied();
                if owner_id == self.me {
                    link.told_own = version;
                }
                if known.is_some_and(|known| known >= version) {
                    continue;
                }
                // Who never heard of one that has gone need not.
                if owner.life == Life::Remembered || known.is_none() && !owner.is_told() && owner_id != self.me {
                    continue;
                }
                knows.insert(owner_id, version);
                link.said += 1;
                return Some(Frame::Change(owner.since(owner_id, known)));
            }
            if link.freed < self.freed_count {
                let new = usize::try_from(self.freed_count - link.freed).unwrap_or(usize::MAX);
                let skipped = self.freed.len().saturating_sub(new);
                link.freed = self.freed_count;
                link.said += 1;
                let pair = |id: &RecordId| (id.owner, id.number);
                return Some(Frame::Freed(self.freed.iter().skip(skipped).map(pair).collect()));
            }
            if !std::mem::replace(&mut link.told_synced, true) {
                return Some(Frame::Synced);
            }
        }
        if link.digest {
            return Some(self.digest(id, now));
        }
        if std::mem::take(&mut link.summary) {
            let heard = link.heard_news;
            return Some(Frame::Summary { sum: self.summary_said(id, now), heard });
        }
        let told = link.pulse.take()?;
        let beats = self.beats_since(id, told);
        (!beats.is_empty()).then_some(Frame::Pulse { full: false, beats })
    }

    /// The beats that came after this count of the table, for this link. Those who pass on nothing are told the same, their own beat
    /// included, so that it is put together once for all of them.
    fn beats_since(&mut self, id: u64, told: u64) -> Arc<Vec<Beat>> {
        let is_shared = self.links.get(&id).is_some_and(|link| link.relays.is_none()) && self.unsure.is_empty();
        if let Some((_, beats)) = self.told.as_ref().filter(|(since, _)| is_shared && *since == told) {
            return Arc::clone(beats);
        }
        let beat = |(of, owner): (&u64, &Owner)| {
            if !is_shared && owner.beat_from == Some(id) || owner.is_gone() {
                return None;
            }
            let unsure = self.unsure.contains(of);
            let is_told = unsure || owner.beat_at > told && owner.life == Life::Live;
            let sum = if unsure { UNSURE } else { 0 };
            is_told.then_some(Beat(*of, owner.incarnation, owner.beat, owner.version, sum))
        };
        let beats: Arc<Vec<_>> = Arc::new(match self.links.len() {
            // All others were heard over it.
            1 => self.owners.get_key_value(&self.me).into_iter().filter_map(beat).collect(),
            _ => self.owners.iter().filter_map(beat).collect(),
        });
        if is_shared && self.links.len() > 1 {
            self.told = Some((told, Arc::clone(&beats)));
        }
        beats
    }

    fn summary_said(&mut self, id: u64, now: Instant) -> u64 {
        let next = now + self.heartbeat * BEATS_PER_SUMMARY + self.spread(id);
        if let Some(link) = self.links.get_mut(&id) {
            link.summary_next = next;
        }
        self.summary()
    }

    /// Up to half a heartbeat, for each link another: not all at once, where many have joined at once.
    fn spread(&self, link: u64) -> Duration {
        let eighths = u32::try_from(scatter(self.me ^ link) % 8).unwrap_or(0);
        self.heartbeat / 16 * eighths
    }

    /// Everybody who is known here.
    fn digest(&mut self, id: u64, now: Instant) -> Frame {
        let spread = self.spread(id);
        if let Some(link) = self.links.get_mut(&id) {
            link.digest_next = now + self.heartbeat * BEATS_PER_DIGEST + spread * BEATS_PER_DIGEST / 2;
            link.summary_next = now + self.heartbeat * BEATS_PER_SUMMARY + spread;
            (link.digest, link.digest_at, link.summary) = (false, Some(now), false);
            (link.pulse, link.beats, link.echoes) = (None, self.count, 0);
        }
        let told = self.owners.iter().filter(|(_, owner)| owner.life == Life::Remembered || owner.is_told());
        let beat = |(id, owner): (&u64, &Owner)| {
            // Whoever has gone does not beat, whatever it did before.
            let beat = if owner.is_gone() { 0 } else { owner.beat };
            Beat(*id, owner.incarnation, beat, owner.version, owner.sum)
        };
        Frame::Pulse { full: true, beats: Arc::new(told.take(MAX_OWNERS).map(beat).collect()) }
    }
}

/// A number in which every bit of another one counts: the end of SplitMix64 (Steele, Lea, Flood, 2014).
const fn scatter(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
