//! Asking a second endpoint while the first one does not answer.
//!
//! Owns when that is worth it and the budget for it, and the race of the attempts of one call: it is also where an attempt ends that
//! takes longer than it may. It must never be on the way of a call that asked for neither. Look next at [`super::latencies`] for when a
//! call is late, at [`super::attempts`] for who is asked and what a failure means.
//!
//! A second attempt is made once for a call at most, at the earliest after the p95 of the method's latencies, when the budget has room for
//! it: the "hedged requests" of Dean and Barroso, "The Tail at Scale" (2013), and Finagle's `BackupRequestFilter`. After the p95 five calls
//! of a hundred are late, and the budget is for two. Whoever came first would use it up, for calls that are hardly late, and nothing would
//! be left for those that are very late, nor for a moment in which many are. So the share of calls that are late is the five percent of a
//! full budget, and of one that is not, the part of them that is left: it comes to rest at the p98, with two fifths of the budget saved.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use super::args::Arguments;
use super::attempts::{Attempts, Failed, Failing};
use super::call::at;
use super::latencies::Latencies;
use super::retry::Class;
use super::stream::Attempt;
use super::target::Target;
use super::ticket::Ticket;
use crate::body::BodyError;
use crate::proto::Failure;
use crate::transport::link::Link;

/// Second attempts that may be made, in percent of the calls that may have one.
const BUDGET_PERCENT: u32 = 2;
/// Second attempts that may be made at once, if there were none for as long as that takes to save: 500 calls. A pause of one replica makes
/// several calls late at the same time.
const BURST: u32 = 10;
/// What one costs, in what one percent of a call earns.
const PRICE: u32 = 100;
/// The share of calls that are late, with a full budget: those after the p95.
const LATE: f64 = 0.05;
/// Most methods of one service whose latencies are kept apart, at 2 KiB each; those that come later share one more.
const MAX_METHODS: usize = 64;

/// What is known of the calls to one service that may be hedged. Nothing of it is touched by others.
#[derive(Debug, Default)]
pub(super) struct Hedging(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    saved: u32,
    methods: HashMap<Box<str>, Latencies>,
    /// Second attempts that were made, for the simulator.
    #[cfg(test)]
    made: usize,
}

impl State {
    /// Under which name the latencies of a method are kept.
    fn kept_as<'a>(&self, method: &'a str) -> &'a str {
        if self.methods.len() < MAX_METHODS || self.methods.contains_key(method) { method } else { "" }
    }
}

impl Hedging {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call.
    fn call(&self) {
        let mut state = self.lock();
        state.saved = (state.saved + BUDGET_PERCENT).min(BURST * PRICE);
    }

    /// After what time an attempt is late; `None` as long as that is not known.
    fn late_after(&self, method: &str, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        let full = f64::from(state.saved) / f64::from(BURST * PRICE);
        let name = state.kept_as(method);
        state.methods.get_mut(name)?.percentile(1.0 - LATE * full, now)
    }

    /// A first attempt took so long, or at least so long if another was faster or time was up: what is cut off above a percentile does not
    /// change it, and to leave it out would.
    fn record(&self, method: &str, took: Duration, now: Instant) {
        let mut state = self.lock();
        let name = state.kept_as(method);
        if let Some(latencies) = state.methods.get_mut(name) {
            return latencies.record(took, now);
        }
        let mut latencies = Latencies::new(now);
        latencies.record(took, now);
        state.methods.insert(name.into(), latencies);
    }

    /// Takes a second attempt out of the budget, if there is room.
    fn take(&self) -> bool {
        let mut state = self.lock();
        let rest = state.saved.checked_sub(PRICE);
        state.saved = rest.unwrap_or(state.saved);
        rest.is_some()
    }
}

#[cfg(test)]
impl Hedging {
    fn made(&self, was_made: bool) {
        self.lock().made += usize::from(was_made);
    }
}

/// What the simulator judges, and the mistake that it must find.
#[cfg(test)]
impl super::Channel {
    /// How many second attempts were made beside a first.
    pub(crate) fn second_attempts(&self) -> usize {
        self.pool.hedging.lock().made
    }

    /// Saves as much as can be saved, whatever was earned.
    pub(crate) fn fill_budget(&self) {
        self.pool.hedging.lock().saved = BURST * PRICE;
    }
}

/// One of the attempts that run.
struct Runner {
    attempt: Attempt,
    is_second: bool,
    /// When it has taken as long as it may.
    ends: Option<Instant>,
}

/// A second attempt that waits for its connection.
type Connecting = BoxFuture<'static, Option<(Ticket, Arc<Link>)>>;

/// What happens next in a race.
enum Event {
    Message(usize, Option<Result<Bytes, BodyError>>),
    Connected(Option<(Ticket, Arc<Link>)>),
    Due,
}

/// The first message of an answer, or its end without one, and the attempt that goes on with it.
type Answered = (Option<Bytes>, Attempt);

/// The attempts of one call that run at the same time, and what is waited for beside them. Dropping it cancels all of them.
struct Race {
    /// At least one, at most two.
    runners: Vec<Runner>,
    connecting: Option<Connecting>,
    /// When a second attempt is due.
    late: Option<Instant>,
}

impl Race {
    async fn next(&mut self) -> Event {
        let Self { runners, connecting, late } = self;
        let due = runners.iter().filter_map(|runner| runner.ends).chain(*late).min();
        let mut timer = pin!(due.map(sleep_until));
        std::future::poll_fn(|cx| {
            for (index, runner) in runners.iter_mut().enumerate() {
                if let Poll::Ready(message) = runner.attempt.poll_message(cx) {
                    return Poll::Ready(Event::Message(index, message));
                }
            }
            if let Some(connected) = connecting {
                if let Poll::Ready(connected) = connected.as_mut().poll(cx) {
                    return Poll::Ready(Event::Connected(connected));
                }
            }
            match timer.as_mut().as_pin_mut() {
                Some(timer) => timer.poll(cx).map(|()| Event::Due),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<A: Arguments> Attempts<A> {
    /// Makes attempts until one is answered: a second one beside the first that is late, if the call asked for it, and another one in
    /// place of those that take longer than they may.
    pub(super) async fn watched(&mut self) -> Result<Answered, Failed> {
        let mut may_hedge = self.hedges();
        if may_hedge {
            self.pool.hedging.call();
        }
        loop {
            let attempt = self.start().await?;
            if let Some(answered) = self.race(attempt, &mut may_hedge).await? {
                return Ok(answered);
            }
        }
    }

    /// `None` means: go on with another attempt.
    async fn race(&mut self, first: Attempt, may_hedge: &mut bool) -> Result<Option<Answered>, Failed> {
        let begun = Instant::now();
        let ends = |now: Instant, timeout: Option<Duration>| timeout.map(|timeout| at(now, timeout));
        let timeout = self.settled.extra.as_ref().and_then(|extra| extra.attempt_timeout);
        let late_after = if *may_hedge { self.pool.hedging.late_after(self.method.name(), begun) } else { None };
        let mut race = Race {
            runners: vec![Runner { attempt: first, is_second: false, ends: ends(begun, timeout) }],
            connecting: None,
            late: late_after.map(|after| at(begun, after)),
        };
        loop {
            match race.next().await {
                Event::Message(index, Some(Err(error))) => {
                    let Runner { attempt, is_second, .. } = race.runners.remove(index);
                    if !is_second && matches!(error, BodyError::Failed(Failure::Deadline { .. })) {
                        self.took(begun);
                    }
                    if race.runners.is_empty() {
                        return self.after(attempt, error).await.map(|()| None);
                    }
                    self.after_one_of_two(attempt, error)?;
                }
                Event::Message(index, message) => {
                    if race.runners.iter().any(|runner| !runner.is_second) {
                        self.took(begun);
                    }
                    let Runner { attempt, .. } = race.runners.remove(index);
                    // Nobody waits for the other one: it is cancelled before the answer is read.
                    drop(race);
                    return Ok(Some((message.transpose().unwrap_or_default(), attempt)));
                }
                Event::Connected(connected) => {
                    race.connecting = None;
                    let attempt = connected.and_then(|(ticket, link)| self.open_beside(ticket, link));
                    #[cfg(test)]
                    self.pool.hedging.made(attempt.is_some());
                    let ends = ends(Instant::now(), timeout);
                    race.runners.extend(attempt.map(|attempt| Runner { attempt, is_second: true, ends }));
                }
                Event::Due => {
                    let now = Instant::now();
                    if race.late.is_some_and(|late| late <= now) {
                        race.late = None;
                        *may_hedge = false;
                        race.connecting = self.second(&race, late_after.unwrap_or_default(), now);
                    }
                    while let Some(index) = race.runners.iter().position(|r| r.ends.is_some_and(|ends| ends <= now)) {
                        if !self.time_is_up(&mut race, index, begun).await {
                            return Ok(None);
                        }
                    }
                }
            }
        }
    }

    fn hedges(&self) -> bool {
        self.settled.extra.as_ref().is_some_and(|extra| extra.hedge)
    }

    /// Notes how long the first attempt of a race took, at least.
    fn took(&self, begun: Instant) {
        if self.hedges() {
            let now = Instant::now();
            self.pool.hedging.record(self.method.name(), now.saturating_duration_since(begun), now);
        }
    }

    /// The connection for a second attempt, if there should be one.
    fn second(&self, race: &Race, late_after: Duration, now: Instant) -> Option<Connecting> {
        let first = race.runners.first()?.attempt.target();
        // One that has less time than an answer usually takes would be for nothing.
        let in_time = self.settled.deadline.is_none_or(|deadline| at(now, late_after) < deadline);
        if !in_time || !self.has_attempts_left() || !self.is_idempotent(first) {
            return None;
        }
        let mut ticket = self.choose_beside(first, now, true)?;
        if !self.pool.hedging.take() {
            return None;
        }
        let identity = Arc::clone(&self.pool.identity);
        Some(Box::pin(async move {
            match ticket.target().connect(&identity).await {
                Ok(link) => Some((ticket, link)),
                Err(_) => {
                    ticket.unreachable();
                    None
                }
            }
        }))
    }

    /// One of two attempts has failed. The other one may still be answered, unless this failure is the last word: then that one is
    /// given up, and may have run.
    fn after_one_of_two(&mut self, attempt: Attempt, error: BodyError) -> Result<(), Failed> {
        let before = std::mem::replace(&mut self.may_have_run, true);
        let Failing { target, class, status, application, .. } = self.judge(attempt, error)?;
        if !class.allows(self.is_idempotent(&target), true) {
            return Err(Failed { application, ..self.failed(Some(&target), status) });
        }
        self.may_have_run = before;
        self.set_aside(&target, class);
        Ok(())
    }

    /// Chooses where to go on in place of an attempt whose time is up, and says after which pause.
    async fn elsewhere(&mut self, target: &Arc<Target>) -> Option<Duration> {
        let ticket = self.choose_beside(target, Instant::now(), false)?;
        let pause = self.may_go_on(target, Class::MaybeRan, None).await.ok()?;
        self.chosen = Some(ticket);
        Some(pause)
    }

    /// An attempt has taken as long as it may. Whether the race goes on: if nobody else can be asked it runs on, until the deadline.
    async fn time_is_up(&mut self, race: &mut Race, index: usize, begun: Instant) -> bool {
        let Some(runner) = race.runners.get_mut(index) else { return true };
        runner.ends = None;
        let target = Arc::clone(runner.attempt.target());
        let pause = if race.runners.len() > 1 {
            None
        } else {
            match self.elsewhere(&target).await {
                Some(pause) => Some(pause),
                None => return true,
            }
        };
        let mut runner = race.runners.remove(index);
        if !runner.is_second {
            self.took(begun);
        }
        runner.attempt.ticket().failed();
        drop(runner);
        self.set_aside(&target, Class::MaybeRan);
        if let Some(pause) = pause {
            // A connection that a second attempt waits for is for the next one as well.
            race.connecting = None;
            tokio::time::sleep(pause).await;
        }
        pause.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn fifty_calls_earn_one_second_attempt_and_five_hundred_ten_and_no_more() {
        let hedging = Hedging::default();
        (0..49).for_each(|_| hedging.call());
        assert!(!hedging.take(), "forty-nine calls are too few");
        hedging.call();
        assert!(hedging.take());
        assert!(!hedging.take(), "fifty calls are for one");
        for calls in [500, 5_000] {
            (0..calls).for_each(|_| hedging.call());
            assert_eq!((0..100).filter(|_| hedging.take()).count(), 10, "after {calls} calls");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_emptier_the_budget_the_later_is_late() {
        let (hedging, now) = (Hedging::default(), Instant::now());
        assert_eq!(hedging.late_after("add", now), None, "nothing is known yet");
        (1..=1000).for_each(|n| hedging.record("add", n * MS, now));
        let about = |found: Option<Duration>, exact: u32| {
            let found = found.unwrap_or_default();
            assert!((exact * MS..=(exact * MS).mul_f64(1.045)).contains(&found), "{found:?} instead of {exact} ms");
        };
        about(hedging.late_after("add", now), 1000);
        (0..200).for_each(|_| hedging.call());
        about(hedging.late_after("add", now), 980);
        (0..300).for_each(|_| hedging.call());
        about(hedging.late_after("add", now), 950);
        assert_eq!(hedging.late_after("other", now), None, "each method has times of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn methods_beyond_the_limit_share_what_is_known() {
        let (hedging, now) = (Hedging::default(), Instant::now());
        for method in 0..2 * MAX_METHODS {
            (0..super::super::latencies::ENOUGH).for_each(|_| hedging.record(&method.to_string(), MS, now));
        }
        assert_eq!(hedging.lock().methods.len(), MAX_METHODS + 1);
        assert!(hedging.late_after(&(MAX_METHODS - 1).to_string(), now).is_some(), "the last with its own");
        assert!(hedging.late_after("unheard of", now).is_some(), "one past it has what all others have");
    }
}
