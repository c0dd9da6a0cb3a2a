//! What is known of one member: its records, and how it is doing.
//!
//! Owns [`Owner`], the difference between two versions of its records, and the memory of those that were freed. It must never
//! judge who may say what. Look next at `merge.rs` for that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::frame::{Change, MAX_RECORDS, MAX_WHY, Put};
use super::super::record::{Content, RecordId};

/// How long freed records, and members that have gone, are remembered. Whoever was away for longer gets everything anew.
pub(super) const TOMBSTONE: Duration = Duration::from_secs(60);

/// A record as it is kept.
#[derive(Clone, Debug)]
pub(in super::super) struct Stored {
    pub(in super::super) content: Arc<Content>,
    /// The owner's version when it last changed.
    pub(in super::super) version: u64,
    pub(super) body: Bytes,
    /// Grows with every record that this process first saw.
    pub(super) order: u64,
}

/// How a member is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Live,
    /// It has not been heard for its lifetime, but nor has anybody who could know. Its records are believed no more than that.
    Remembered,
    /// It has left or died. Only persistent records are left.
    Gone(Instant),
}

#[derive(Debug)]
pub(super) struct Owner {
    pub(super) incarnation: u64,
    pub(super) version: u64,
    pub(super) beat: u64,
    /// When its last beat came, by the clock, by the time that all links have been speaking, and by that of the link it came on.
    pub(super) seen: Instant,
    pub(super) seen_by_all: Duration,
    pub(super) seen_by_link: Duration,
    /// When the link of its last beat said that it has no way to know how it is.
    pub(super) unsure: Option<Instant>,
    pub(super) life: Life,
    /// Its own connection has broken, and nothing was heard of it since.
    pub(super) doubted: bool,
    pub(super) records: BTreeMap<u64, Stored>,
    /// Sum over its records, equal wherever they are equal.
    pub(super) sum: u64,
    /// Bytes of its records.
    pub(super) bytes: usize,
    /// What was freed; nothing as a rule, and then it takes no room where all owners are gone through.
    graves: Option<Box<Graves>>,
    /// Up to this version it is not known any more what was freed.
    floor: u64,
    /// The table's count when the beat last grew, and the link that said so.
    pub(super) beat_at: u64,
    pub(super) beat_from: Option<u64>,
}

#[derive(Debug, Default)]
struct Graves {
    /// Version, number and time of what was freed, oldest first.
    freed: VecDeque<(u64, u64, Instant)>,
    /// Version, number and reason of the last of them that were freed for one, the latest first.
    why: VecDeque<(u64, u64, String)>,
}

impl Owner {
    pub(super) fn new(incarnation: u64, beat: u64, now: Instant) -> Self {
        Self {
            incarnation,
            version: 0,
            beat,
            seen: now,
            seen_by_all: Duration::ZERO,
            seen_by_link: Duration::ZERO,
            unsure: None,
            life: Life::Live,
            doubted: false,
            records: BTreeMap::new(),
            sum: 0,
            bytes: 0,
            graves: None,
            floor: 0,
            beat_at: 0,
            beat_from: None,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.life, Life::Gone(_))
    }

    /// Whether others should know of it.
    pub(super) fn is_told(&self) -> bool {
        match self.life {
            Life::Live => true,
            Life::Remembered => false,
            Life::Gone(_) => !self.records.is_empty(),
        }
    }

    /// It has been heard: when by the clock, by the time that all links have been speaking, by that of the link it came on, and as
    /// which of the table's news.
    pub(super) fn hear(&mut self, beat: u64, now: Instant, by_all: Duration, by: (u64, Duration), count: u64) {
        (self.beat, self.doubted) = (beat, false);
        (self.seen, self.seen_by_all, self.seen_by_link) = (now, by_all, by.1);
        (self.beat_at, self.beat_from) = (count, Some(by.0));
    }

    pub(super) fn put(&mut self, number: u64, stored: Stored) -> Option<Stored> {
        self.sum = self.sum.wrapping_add(sum_of(number, stored.version, &stored.body));
        self.bytes += stored.body.len();
        let old = self.records.insert(number, stored);
        self.forget(number, old.as_ref());
        old
    }

    pub(super) fn take(&mut self, number: u64) -> Option<Stored> {
        let old = self.records.remove(&number);
        self.forget(number, old.as_ref());
        old
    }

    fn forget(&mut self, number: u64, old: Option<&Stored>) {
        if let Some(old) = old {
            self.sum = self.sum.wrapping_sub(sum_of(number, old.version, &old.body));
            self.bytes -= old.body.len();
        }
    }

    /// Remembers that a record was freed with this version, and why.
    pub(super) fn bury(&mut self, version: u64, number: u64, why: Option<String>, now: Instant) {
        let graves = self.graves.get_or_insert_default();
        if let Some(why) = why {
            graves.why.truncate(MAX_WHY - 1);
            graves.why.push_front((version, number, why));
        }
        graves.freed.push_back((version, number, now));
        if graves.freed.len() > MAX_RECORDS {
            self.exhume();
        }
    }

    /// Nothing is known of what was freed up to this version.
    pub(super) fn forget_freed(&mut self, version: u64) {
        self.graves = None;
        self.floor = version;
    }

    /// Forgets what was freed long ago, and says when there is more of it.
    pub(super) fn prune(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let (_, _, at) = self.graves.as_ref()?.freed.front()?;
            if now.duration_since(*at) < TOMBSTONE {
                return Some(*at + TOMBSTONE);
            }
            self.exhume();
        }
    }

    fn exhume(&mut self) {
        let Some(graves) = &mut self.graves else { return };
        if let Some((version, ..)) = graves.freed.pop_front() {
            self.floor = self.floor.max(version);
            graves.why.retain(|(freed, ..)| *freed > version);
        }
        if graves.freed.is_empty() {
            self.graves = None;
        }
    }

    /// What somebody lacks who has this incarnation and version; all of it for somebody who has nothing.
    pub(super) fn since(&self, owner: u64, known: Option<(u64, u64)>) -> Change {
        let from = match known {
            Some((incarnation, version))
                if incarnation == self.incarnation
                    && version >= self.floor
                    && version < self.version
                    && !self.is_gone() =>
            {
                version
            }
            _ => 0,
        };
        let news = self.records.iter().filter(|(_, stored)| stored.version > from);
        let graves = self.graves.iter().filter(|_| from > 0);
        let freed = graves.clone().flat_map(|graves| &graves.freed).filter(|(version, ..)| *version > from);
        let why = graves.flat_map(|graves| &graves.why).filter(|(version, ..)| *version > from);
        Change {
            owner,
            incarnation: self.incarnation,
            beat: self.beat,
            from,
            to: self.version,
            gone: self.is_gone(),
            put: news.map(|(number, stored)| Put(*number, stored.version, stored.body.clone())).collect(),
            freed: freed.map(|(_, number, _)| *number).collect(),
            why: why.map(|(_, number, why)| (*number, why.clone())).collect(),
        }
    }

    pub(super) fn ids(&self, owner: u64) -> Vec<RecordId> {
        self.records.keys().map(|number| RecordId { owner, number: *number }).collect()
    }
}

/// The share of one record in its owner's sum: FNV-1a, which is the same in every build.
pub(super) fn sum_of(number: u64, version: u64, body: &[u8]) -> u64 {
    let bytes = number.to_le_bytes().into_iter().chain(version.to_le_bytes()).chain(body.iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
