//! What is measured of one endpoint: calls under way, latency, and the load that it reports.
//!
//! Owns a few atomic words, so that counting needs no lock. It must never decide anything. Look next at [`super::p2c`], which
//! makes a cost of it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Time constant in which latency follows shorter times, in milliseconds. Finagle and linkerd take 10 s, which starves a
/// replica that has recovered; 2 s feeds a slow one too much.
const DECAY: f64 = 5_000.0;
/// What a failure counts as, in seconds: as in linkerd. Without it one that fails fast looks fast.
const PENALTY: f32 = 5.0;
/// Time constant in which a failure fades, in milliseconds: after about 5 s the endpoint is asked again.
const PENALTY_DECAY: f64 = 1_000.0;
/// Answered, but not measured yet.
const UNMEASURED: f32 = 0.0;
/// The capacity that a server reports while it has no limit, which is the rule for one that is well.
const NO_LIMIT: u32 = 65_535;
/// What such a server is taken to run well at once: where a server's own limit starts if it has one by time.
const TYPICAL: u32 = 64;
/// Time constant in which a reported load fades, in milliseconds.
const REPORT_DECAY: f64 = 1_000.0;
/// Highest load that is believed, in capacities.
const MAX_REPORT: f32 = 16.0;

/// One call answered, in the upper half of the counter.
const ANSWERED: u64 = 1 << 32;

/// Of one endpoint. Moments are nanoseconds of the fleet's time; what is kept of them is milliseconds.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Calls that were answered (upper half, wraps) and calls under way (lower half).
    calls: AtomicU64,
    /// Of the calls under way, those whose answers have begun.
    going_on: AtomicU32,
    /// When the first of those began that have no answer yet, if none has come since then.
    waits_since: AtomicU32,
    latency: AtomicU64,
    reported: AtomicU64,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With its answer.
    Answered,
    /// With the end of an answer that had begun before.
    AnsweredBefore,
    /// Without any.
    Unanswered,
}

/// A number and when it was noted, in one word; zero is nothing.
#[derive(Clone, Copy)]
struct Noted {
    value: f32,
    at: u32,
}

impl Noted {
    fn new(value: f32, now: u64) -> Self {
        // Not nothing, even if both are zero.
        Self { value, at: millis(now).max(1) }
    }

    fn read(word: &AtomicU64) -> Option<Self> {
        Self::unpack(word.load(Ordering::Relaxed))
    }

    /// `None` if nothing was noted.
    fn unpack(word: u64) -> Option<Self> {
        // Both halves are meant to be cut off.
        let (value, at) = (f32::from_bits((word >> 32) as u32), word as u32);
        (word != 0).then_some(Self { value, at })
    }

    fn pack(self) -> u64 {
        u64::from(self.value.to_bits()) << 32 | u64::from(self.at)
    }

    /// Its share after the time since then.
    fn faded(self, now: u64, decay: f64) -> f64 {
        let value = f64::from(self.value.abs());
        match self.age(now) {
            0 => value,
            age => value * (-f64::from(age) / decay).exp(),
        }
    }

    fn age(self, now: u64) -> u32 {
        let age = millis(now).wrapping_sub(self.at);
        // Somebody else may have been later.
        if age > u32::MAX / 2 { 0 } else { age }
    }

    /// A penalty is kept with a minus.
    fn is_penalty(self) -> bool {
        self.value.is_sign_negative()
    }
}

/// Wraps after 49 days, which [`Noted::age`] copes with.
fn millis(now: u64) -> u32 {
    (now / 1_000_000) as u32
}

impl Load {
    /// A call goes there.
    pub(super) fn begin(&self, now: u64) {
        let before = self.calls.fetch_add(1, Ordering::Relaxed) as u32;
        if before == self.going_on.load(Ordering::Relaxed) {
            self.waits_since.store(millis(now), Ordering::Relaxed);
        }
    }

    /// A call has ended.
    pub(super) fn end(&self, end: End) {
        if end == End::AnsweredBefore {
            self.going_on.fetch_sub(1, Ordering::Relaxed);
        }
        let change = if end == End::Answered { ANSWERED - 1 } else { 1u64.wrapping_neg() };
        self.calls.fetch_add(change, Ordering::Relaxed);
    }

    /// A call was answered and goes on.
    pub(super) fn answered(&self) {
        self.going_on.fetch_add(1, Ordering::Relaxed);
        self.calls.fetch_add(ANSWERED, Ordering::Relaxed);
    }

    /// Calls under way.
    pub(super) fn outstanding(&self) -> u32 {
        self.calls.load(Ordering::Relaxed) as u32
    }

    /// For how many seconds calls have waited there while nothing was answered, to two milliseconds: what a call takes at
    /// least that goes there now.
    pub(super) fn waiting(&self, now: u64) -> f64 {
        if self.outstanding() <= self.going_on.load(Ordering::Relaxed) {
            return 0.0;
        }
        let since = Noted { value: 0.0, at: self.waits_since.load(Ordering::Relaxed) }.age(now);
        let answered =
            Noted::read(&self.latency).filter(|noted| !noted.is_penalty()).map_or(u32::MAX, |noted| noted.age(now));
        // Milliseconds were cut off at both ends.
        f64::from(since.min(answered).saturating_sub(1)) / 1_000.0
    }

    /// How many calls were answered; wraps.
    pub(super) fn answers(&self) -> u32 {
        (self.calls.load(Ordering::Relaxed) >> 32) as u32
    }

    /// Notes how long the first byte of an answer took, in seconds. Of an endpoint of which nothing is known, the first answer
    /// only says that there is one: it pays for what is made once, at both ends.
    pub(super) fn observe(&self, seconds: f64, now: u64) {
        let next = |word: u64| {
            let value = match Noted::unpack(word) {
                None => return Some(Noted::new(UNMEASURED, now).pack()),
                Some(old) if old.value == UNMEASURED => seconds,
                // An answer to a call that was made before the failure says nothing against it.
                Some(old) if old.is_penalty() => Some(seconds).filter(|new| *new >= old.faded(now, PENALTY_DECAY))?,
                Some(old) if seconds >= f64::from(old.value) => seconds,
                // One in a millisecond is enough.
                Some(old) if old.age(now) == 0 => return None,
                Some(old) => {
                    let weight = (-f64::from(old.age(now)) / DECAY).exp();
                    f64::from(old.value) * weight + seconds * (1.0 - weight)
                }
            };
            Some(Noted::new((value as f32).max(f32::MIN_POSITIVE), now).pack())
        };
        // Nothing to be noted is no error.
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// Notes that after so many seconds there was no answer yet, which tells something only if that is long.
    pub(super) fn observe_at_least(&self, seconds: f64, now: u64) {
        if self.latency(now).is_none_or(|known| known < seconds) {
            self.observe(seconds, now);
        }
    }

    /// Notes a failure.
    pub(super) fn penalise(&self, now: u64) {
        self.latency.store(Noted::new(-PENALTY, now).pack(), Ordering::Relaxed);
    }

    /// Forgets a failure, if that is the last that is known.
    pub(super) fn forgive(&self) {
        let penalty = |word: u64| Noted::unpack(word).filter(|noted| noted.is_penalty()).map(|_| 0);
        // Nothing to be forgiven is no error.
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, penalty);
    }

    /// Forgets what was measured.
    pub(super) fn forget(&self) {
        self.latency.store(0, Ordering::Relaxed);
    }

    /// The latency in seconds with what counts as such, if anything is known.
    pub(super) fn latency(&self, now: u64) -> Option<f64> {
        let noted = Noted::read(&self.latency).filter(|noted| noted.value != UNMEASURED)?;
        Some(noted.faded(now, if noted.is_penalty() { PENALTY_DECAY } else { DECAY }))
    }

    /// The latency in seconds, unless it is only a penalty.
    pub(super) fn measured(&self, now: u64) -> Option<f64> {
        Noted::read(&self.latency).filter(|noted| noted.value > 0.0).map(|noted| noted.faded(now, DECAY))
    }

    /// Notes what the server says. A capacity of zero says nothing; without a limit what it runs is compared with what servers
    /// run at first under one.
    pub(super) fn report(&self, slot: u32, capacity: u32, now: u64) {
        if capacity > 0 {
            let capacity = if capacity >= NO_LIMIT { TYPICAL } else { capacity };
            let share = (f64::from(slot) / f64::from(capacity)) as f32;
            self.reported.store(Noted::new(share.min(MAX_REPORT), now).pack(), Ordering::Relaxed);
        }
    }

    /// What the server said last, faded.
    pub(super) fn reported(&self, now: u64) -> Option<f64> {
        Noted::read(&self.reported).map(|noted| noted.faded(now, REPORT_DECAY))
    }

    /// The same as it was, and how long ago that was, to a millisecond.
    pub(super) fn last_report(&self, now: u64) -> Option<(f64, Duration)> {
        Noted::read(&self.reported).map(|noted| (noted.value.into(), Duration::from_millis(noted.age(now).into())))
    }
}
