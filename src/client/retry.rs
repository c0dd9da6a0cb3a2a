//! When a call may be tried again, how long to wait before it, and how much of that a service can bear.
//!
//! Owns the classes of failures, the back-off and the budget. It must never choose an endpoint. Look next at
//! [`super::attempts`], which asks.
//!
//! | class | what happened | tried again | first pause |
//! | --- | --- | --- | --- |
//! | R0, never sent | no connection came about, or it was lost while the call was still in this process's buffer | any call | none |
//! | R1, not processed | the server refused it as busy or leaving | any call | none, or as the server says if nobody else can be asked |
//! | R1, not taken | the server said with DRAIN that it had not accepted it, or the connection was left or over before the call was on it | any call, without a budget | none |
//! | R2, may have run | sent, and no byte of an answer came before the connection was lost or the attempt's own time was up | if idempotent | below 25 ms |
//! | R3, final | a byte of an answer had come; any other failure that the handler or the server answered with; the deadline | never | |
//! | R4, retryable | the handler failed, no byte of an answer came, and it says that the call may be tried again | any call | below 25 ms, or as the handler says |
//!
//! R0 to R3 are gRPC's (A6): what has not been processed is tried again without asking, the beginning of an answer commits. R4 is the
//! handler's word that it has done nothing, as when a transaction lost against another one. It gives it with its status
//! ([`retryable`](crate::Status::retryable)) or, if the error is of a type of its own, which has no place for it, through its context
//! ([`allow_retry`](crate::Context::allow_retry)). On the wire both are the same.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::proto::{CloseReason, Error, Failure};

/// What is known of a failed attempt, as far as trying again is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// R0. Never handed to the kernel, or no connection came about: any call may be tried again.
    NeverSent,
    /// R0 too, but somebody else is at that address and will be there in a moment as well: tried again only elsewhere.
    WrongPeer,
    /// R1. The server says that it did not process it: any call may be tried again.
    NotProcessed,
    /// R1 too, and nobody had any work with it: the connection was being left, or had ended, before it took the call.
    NotTaken,
    /// R2. Sent, and no byte of an answer came: only an idempotent call may be tried again.
    MaybeRan,
    /// R3. An answer had begun, or the outcome is final: never tried again.
    Final,
    /// R4. The handler says that nothing speaks against it, whatever its error is: any call may be tried again.
    Retryable,
}

impl Class {
    /// The class of a stream's failure.
    pub(super) fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Refused { .. } => Self::NotProcessed,
            Failure::NotAccepted => Self::NotTaken,
            Failure::Lost { sent: false, .. } => Self::NeverSent,
            Failure::Lost { sent: true, answered: false, .. } => Self::MaybeRan,
            Failure::Status { status, answered: false } if status.retryable => Self::Retryable,
            Failure::Lost { answered: true, .. }
            | Failure::Status { .. }
            | Failure::Deadline { .. }
            | Failure::Idle { .. }
            | Failure::Truncated => Self::Final,
        }
    }

    /// The class of a connection that did not come about.
    pub(super) fn of_connecting(error: &Error) -> Self {
        match error {
            Error::WrongService { .. }
            | Error::Version
            | Error::PeerClosed { reason: CloseReason::WrongService | CloseReason::Version, .. } => Self::WrongPeer,
            _ => Self::NeverSent,
        }
    }

    /// Whether a call may be tried again after it, at best at an endpoint that it has not tried if there is one `elsewhere`.
    pub(super) fn allows(self, idempotent: bool, elsewhere: bool) -> bool {
        match self {
            Self::NeverSent | Self::NotProcessed | Self::NotTaken | Self::Retryable => true,
            Self::WrongPeer => elsewhere,
            Self::MaybeRan => idempotent,
            Self::Final => false,
        }
    }

    /// Whether the handler provably never ran.
    pub(super) fn never_ran(self) -> bool {
        matches!(self, Self::NeverSent | Self::WrongPeer | Self::NotProcessed | Self::NotTaken)
    }

    /// Whether trying again adds to what the service has to do. Where it does not, all calls that a connection had may be tried again at
    /// once: the budget is for services that fail, not for those that end a connection in good order.
    pub(super) fn is_load(self) -> bool {
        self != Self::NotTaken
    }
}

/// First step of the back-off.
const BASE: Duration = Duration::from_millis(25);
/// Longest back-off.
const CAP: Duration = Duration::from_secs(1);
/// Longest time that a server may ask a call to wait; one that asks for more is told to the caller, who may know better. It is
/// what a call takes at most by default.
pub(super) const MAX_ASKED: Duration = crate::options::DEADLINE;

/// How long to wait before the next attempt, after `failed` attempts. The first failover of a call that never ran goes at
/// once; later ones wait a random time below a bound that doubles ("full jitter", which spreads a crowd better than a
/// fixed wait). A server that says when to come back is obeyed.
pub(super) fn delay(class: Class, failed: u32, asked: Option<Duration>) -> Duration {
    if let Some(asked) = asked {
        return asked;
    }
    if failed == 1 && class.never_ran() {
        return Duration::ZERO;
    }
    let bound = BASE.saturating_mul(1 << failed.saturating_sub(1).min(10)).min(CAP);
    bound.mul_f64(fastrand::f64())
}

/// Retries per second of the window that are always allowed: a service with little traffic is retried too.
const FLOOR_PER_SECOND: u64 = 10;
/// One retry may come of so many calls: 20 %, as in Finagle.
const CALLS_PER_RETRY: u64 = 5;
/// Seconds that are looked back over.
const WINDOW: usize = 10;

/// Limits retries to a share of the calls to one service, so that they cannot keep down a service that is down.
#[derive(Debug)]
pub(super) struct Budget {
    start: Instant,
    second: AtomicU64,
    /// Calls of the second that runs.
    calls: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    second: u64,
    calls: [u64; WINDOW],
    retries: [u64; WINDOW],
}

fn place(second: u64) -> usize {
    // The remainder is below WINDOW.
    (second % WINDOW as u64) as usize
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), second: AtomicU64::new(0), calls: AtomicU64::new(0), window: Mutex::default() }
    }

    /// Counts one call.
    pub(super) fn call(&self, now: Instant) {
        let second = now.saturating_duration_since(self.start).as_secs();
        if self.second.load(Ordering::Relaxed) != second {
            drop(self.turn(second));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// How long ago the last call was, to the second.
    pub(super) fn unused(&self, now: Instant) -> Duration {
        let last = Duration::from_secs(self.second.load(Ordering::Relaxed));
        now.saturating_duration_since(self.start).saturating_sub(last)
    }

    /// How many calls there were of late.
    pub(super) fn recent(&self, now: Instant) -> u64 {
        let window = self.turn(now.saturating_duration_since(self.start).as_secs());
        window.calls.iter().sum::<u64>() + self.calls.load(Ordering::Relaxed)
    }

    /// Takes one retry out of the budget, if one is left.
    pub(super) fn retry(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.start).as_secs();
        let mut window = self.turn(second);
        let calls = window.calls.iter().sum::<u64>() + self.calls.load(Ordering::Relaxed);
        let retries: u64 = window.retries.iter().sum();
        if retries >= calls / CALLS_PER_RETRY + FLOOR_PER_SECOND * WINDOW as u64 {
            return false;
        }
        window.retries[place(second)] += 1;
        true
    }

    /// Moves the window to `second`, forgetting what left it.
    fn turn(&self, second: u64) -> MutexGuard<'_, Window> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.second < second {
            let last = window.second;
            window.calls[place(last)] += self.calls.swap(0, Ordering::Relaxed);
            for passed in (last + 1..=second).rev().take(WINDOW) {
                window.calls[place(passed)] = 0;
                window.retries[place(passed)] = 0;
            }
            window.second = second;
            self.second.store(second, Ordering::Relaxed);
        }
        window
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::proto::Error;
    use crate::status::Status;
    use crate::wire::{Refusal, WireStatus};

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_a_fifth_of_the_calls_and_ten_a_second() {
        let budget = Budget::new();
        for _ in 0..1000 {
            budget.call(Instant::now());
        }
        let allowed = (0..1000).filter(|_| budget.retry(Instant::now())).count();
        assert_eq!(allowed, 1000 / 5 + 10 * 10);
        assert!(!budget.retry(Instant::now()), "one past the limit");
        tokio::time::advance(Duration::from_secs(WINDOW as u64)).await;
        let allowed = (0..1000).filter(|_| budget.retry(Instant::now())).count();
        assert_eq!(allowed, 10 * 10, "calls and retries of the last window are forgotten");
    }

    fn said(answered: bool, edit: impl FnOnce(&mut WireStatus)) -> Failure {
        let mut status = WireStatus::from(&Status::aborted("lost against another one"));
        edit(&mut status);
        Failure::Status { status, answered }
    }

    #[test]
    fn each_class_ends_where_the_next_one_begins() {
        let lost = |sent, answered| Failure::Lost { error: Arc::new(Error::Closed), sent, answered };
        let refused = |reason| Failure::Refused { reason, retry_after: None, text: String::new() };
        // Whether any call is tried again, and one that is idempotent.
        let (any, idempotent, none) = ((true, true), (false, true), (false, false));
        let cases = [
            (lost(false, false), Class::NeverSent, any),
            (refused(Refusal::Busy), Class::NotProcessed, any),
            (refused(Refusal::MethodBusy), Class::NotProcessed, any),
            (refused(Refusal::Draining), Class::NotProcessed, any),
            (Failure::NotAccepted, Class::NotTaken, any),
            (lost(true, false), Class::MaybeRan, idempotent),
            (lost(true, true), Class::Final, none),
            (Failure::Truncated, Class::Final, none),
            (Failure::Deadline { sent: false, answered: false }, Class::Final, none),
            (Failure::Idle { sent: true, answered: false }, Class::Final, none),
            (said(false, |status| status.retryable = true), Class::Retryable, any),
            (said(false, |_| {}), Class::Final, none),
            (said(false, |status| status.retry_after = Some(1)), Class::Final, none),
            (said(false, |status| status.app = true), Class::Final, none),
            (said(true, |status| status.retryable = true), Class::Final, none),
            (said(false, |status| (status.retryable, status.app) = (true, true)), Class::Retryable, any),
        ];
        for (failure, class, (any, idempotent)) in cases {
            assert_eq!(Class::of(&failure), class, "{failure:?}");
            assert_eq!((class.allows(false, true), class.allows(true, true)), (any, idempotent), "{failure:?}");
        }
    }

    #[test]
    fn the_first_failover_of_a_call_that_never_ran_goes_at_once() {
        assert_eq!(delay(Class::NeverSent, 1, None), Duration::ZERO);
        assert_eq!(delay(Class::NotProcessed, 1, None), Duration::ZERO);
        for (failed, most) in [(1, BASE), (2, 2 * BASE), (6, 32 * BASE), (7, CAP), (40, CAP)] {
            for class in [Class::MaybeRan, Class::Retryable] {
                let longest = (0..200).map(|_| delay(class, failed, None)).max().unwrap_or_default();
                assert!((most / 2..=most).contains(&longest), "{longest:?} after {failed} attempts, of {most:?}");
            }
        }
        let asked = Duration::from_millis(7);
        assert_eq!(delay(Class::NotProcessed, 1, Some(asked)), asked, "the server's word goes first");
    }
}
