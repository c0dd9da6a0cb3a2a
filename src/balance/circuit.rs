//! Who is left alone, and how it comes back.
//!
//! Owns the state of one endpoint's circuit: failures in a row, their share, the pause after each, ejection, the one call that
//! finds out, and the slow start after it. It must never choose an endpoint. Look next at [`super::group`], which asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fleet::Fleet;

/// So many failures without an answer in between eject an endpoint, as in Finagle and Envoy.
pub(crate) const FAILURES_IN_A_ROW: u32 = 5;
/// So does a larger share of failures than this, in percent (Finagle: success below 80 %) …
const MAX_FAILED_PERCENT: u32 = 20;
/// … of at least so many calls …
const RATED_CALLS: u32 = 20;
/// … within this time.
const WINDOW: Duration = Duration::from_secs(10);
/// How long the first ejection lasts at most, and at least half of it; each further one lasts twice as long …
pub(crate) const EJECTION: Duration = Duration::from_secs(5);
/// … up to this. One that has been well for as long begins anew.
const MAX_EJECTION: Duration = Duration::from_secs(300);
/// After a failed connection the endpoint is left alone, as far as there are others, for a time that doubles from this …
const REST: Duration = Duration::from_millis(50);
/// … up to this.
const MAX_REST: Duration = Duration::from_secs(5);
/// How long one that refused a call is left alone if it does not say itself.
const REFUSED_REST: Duration = Duration::from_secs(1);
/// How long one that is new or has come back gets less than its share, unless the [policy](super::Balancer::slow_start) says less.
pub const SLOW_START: Duration = Duration::from_secs(10);
/// The share grows from this, as in Envoy.
const FIRST_SHARE: f64 = 0.1;

/// A failure that speaks against an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No connection came about, or one was lost.
    Connection,
    /// A call was not answered in time, or the service said that it was unavailable.
    Call,
}

/// Where an endpoint stands. Times are nanoseconds that are left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Standing {
    Well,
    /// It should get a part of its share, since so long ago; see [`share`].
    Warming(u64),
    Resting(u64),
    /// With 0 left one call may find out.
    Open(u64),
    HalfOpen,
}

#[derive(Debug, Default)]
pub(super) struct Circuit {
    /// It may be something else than well.
    unwell: AtomicBool,
    state: Mutex<State>,
}

/// Moments are nanoseconds of the fleet's time.
#[derive(Debug, Default)]
struct State {
    phase: Phase,
    in_a_row: u32,
    /// Answers when the last failure came: none since then, and the next one is in a row with it.
    answers: u32,
    window: Window,
    rests_until: u64,
    ejections: u32,
    returned: u64,
    warms_since: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Closed,
    Open {
        until: u64,
    },
    HalfOpen,
}

/// Begins with a failure.
#[derive(Debug, Default)]
struct Window {
    since: u64,
    answers: u32,
    failures: u32,
}

impl Window {
    fn is_bad(&mut self, now: u64, answers: u32) -> bool {
        if self.since == 0 || now.saturating_sub(self.since) > nanos(WINDOW) {
            *self = Self { since: now, answers, failures: 0 };
        }
        self.failures += 1;
        let calls = answers.wrapping_sub(self.answers).saturating_add(self.failures);
        calls >= RATED_CALLS && u64::from(self.failures) * 100 > u64::from(calls) * u64::from(MAX_FAILED_PERCENT)
    }
}

impl State {
    /// Opens, for a time half of which is random, so that a crowd of clients does not come back at one moment.
    fn open(&mut self, now: u64) {
        let longest = EJECTION.saturating_mul(1 << self.ejections.min(10)).min(MAX_EJECTION);
        self.ejections += 1;
        self.phase = Phase::Open { until: now.saturating_add(nanos(jittered(longest))) };
    }

    fn close(&mut self, now: u64, fleet: &Fleet) {
        fleet.readmit();
        *self = Self {
            ejections: self.ejections,
            answers: self.answers,
            returned: now,
            warms_since: Some(now),
            ..Self::default()
        };
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The part of its share that an endpoint gets after so many nanoseconds, if it shall have all of it after this time.
pub(super) fn share(warm: u64, slow_start: Duration) -> f64 {
    (warm as f64 / nanos(slow_start).max(1) as f64).clamp(FIRST_SHARE, 1.0)
}

fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + fastrand::f64() / 2.0)
}

impl Circuit {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called with the lock held, or a look that came before would say that all is well.
    fn changed(&self, fleet: &Fleet) {
        self.unwell.store(true, Ordering::Relaxed);
        fleet.somebody_is_unwell();
    }

    /// Where it stands.
    pub(super) fn standing(&self, now: u64) -> Standing {
        if !self.unwell.load(Ordering::Relaxed) {
            return Standing::Well;
        }
        let mut state = self.lock();
        match state.phase {
            Phase::HalfOpen => return Standing::HalfOpen,
            Phase::Open { until } => return Standing::Open(until.saturating_sub(now)),
            Phase::Closed => {}
        }
        if state.rests_until > now {
            return Standing::Resting(state.rests_until - now);
        }
        if let Some(since) = state.warms_since {
            let warm = now.saturating_sub(since);
            if warm < nanos(SLOW_START) {
                return Standing::Warming(warm);
            }
            state.warms_since = None;
        }
        self.unwell.store(false, Ordering::Relaxed);
        Standing::Well
    }

    /// Begins with less than its share.
    pub(super) fn warm_up(&self, now: u64, fleet: &Fleet) {
        let mut state = self.lock();
        state.warms_since = Some(now);
        self.changed(fleet);
    }

    /// Notes a failure; `answers` is how many calls were answered so far. Returns whether it is ejected now, and whether this
    /// failure was one of an endpoint that takes calls.
    pub(super) fn failed(&self, fault: Fault, now: u64, answers: u32, fleet: &Fleet) -> Failed {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Closed) {
            // Of a call that began before, or because there was nobody else.
            return Failed::Ignored;
        }
        // Of a lone endpoint no answers are counted.
        let in_a_row = answers == state.answers && fleet.size() > 1;
        state.in_a_row = if in_a_row { state.in_a_row.saturating_add(1) } else { 1 };
        state.answers = answers;
        if fault == Fault::Connection {
            let rest = REST.saturating_mul(1 << (state.in_a_row - 1).min(10)).min(MAX_REST);
            state.rests_until = now.saturating_add(nanos(jittered(rest)));
            self.changed(fleet);
        }
        let is_bad = state.window.is_bad(now, answers);
        if !(is_bad || state.in_a_row >= FAILURES_IN_A_ROW) || !fleet.eject() {
            return Failed::Noted;
        }
        if now.saturating_sub(state.returned) > nanos(MAX_EJECTION) {
            state.ejections = 0;
        }
        state.open(now);
        self.changed(fleet);
        Failed::Ejected
    }

    /// It refused a call, and may have said for how long it is of no use to ask again.
    pub(super) fn refused(&self, asked: Option<Duration>, now: u64, fleet: &Fleet) {
        let until = now.saturating_add(nanos(asked.unwrap_or(REFUSED_REST).min(MAX_REST)));
        let mut state = self.lock();
        state.rests_until = state.rests_until.max(until);
        self.changed(fleet);
    }

    /// There is a connection again. Where it is left alone, a call may find out at once whether that is all that it lacked.
    pub(super) fn connected(&self, now: u64, fleet: &Fleet) {
        let mut state = self.lock();
        state.rests_until = 0;
        if let Phase::Open { until } = &mut state.phase {
            *until = now.min(*until);
            self.changed(fleet);
        }
    }

    /// Takes the duty to find out, if it is time and nobody else has.
    pub(super) fn begin_probe(&self, now: u64) -> bool {
        let mut state = self.lock();
        let due = matches!(state.phase, Phase::Open { until } if until <= now);
        if due {
            state.phase = Phase::HalfOpen;
        }
        due
    }

    /// What came of it: `Some` with whether it was answered, `None` if nobody waited for that. Says whether it is called again now.
    pub(super) fn end_probe(&self, answered: Option<bool>, now: u64, fleet: &Fleet) -> bool {
        let mut state = self.lock();
        match (state.phase, answered) {
            (Phase::Closed, _) => return false,
            (_, Some(true)) => state.close(now, fleet),
            (Phase::HalfOpen, Some(false)) => state.open(now),
            (Phase::HalfOpen, None) => state.phase = Phase::Open { until: now },
            (Phase::Open { .. }, _) => return false,
        }
        self.changed(fleet);
        matches!(state.phase, Phase::Closed)
    }

    /// Closes it whatever happened.
    pub(super) fn pardon(&self, now: u64, fleet: &Fleet) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Closed) {
            state.close(now, fleet);
            state.warms_since = None;
        }
    }

    /// Gives its place among the ejected back, because the endpoint is gone.
    pub(super) fn forgotten(&mut self, fleet: &Fleet) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !matches!(state.phase, Phase::Closed) {
            fleet.readmit();
        }
    }
}

/// What became of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    Ignored,
    Noted,
    Ejected,
}
