//! From one call to as many attempts as are safe and useful.
//!
//! Owns the loop: choose an endpoint, connect, open, and after a failure decide whether to go on. It must never read an
//! answer. Look next at [`super::retry`] for the rules, [`super::outcome`] for what a failure means, [`super::response`] for who
//! drives it, and [`super::hedge`] for attempts that are looked after while they run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context as TaskContext;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::args::Arguments;
use super::body::Body;
use super::call::Method;
use super::outcome::connect_status;
use super::pool::{Chosen, Pool, Preference};
use super::retry::{self, Class};
use super::stream::{Asked, Attempt};
use super::target::Target;
use super::ticket::Ticket;
use crate::balance::Member;
use crate::body::{BodyError, BodyReader};
use crate::metadata::Metadata;
use crate::options::MAX_ATTEMPTS;
use crate::proto::{Open, OpenError};
use crate::service;
use crate::status::{Execution, Status};
use crate::transport::link::Link;
use crate::wire::StreamId;
use crate::wire::head::MAX_NAME;

/// What was settled when the call began.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) deadline: Option<Instant>,
    pub(super) idle: Option<Duration>,
    pub(super) metadata: Option<Box<Metadata>>,
    pub(super) idempotent: bool,
    pub(super) extra: Option<Box<Extra>>,
    pub(super) preference: Option<Box<Preference>>,
    pub(super) max_attempts: u32,
    /// Attempts that a call which never ran may have, if that is more: see [`super::call`].
    pub(super) max_failovers: u32,
    pub(super) max_response: usize,
}

/// What few calls ask for. Those that do are not made the short way.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// Calls this endpoint and no other.
    pub(super) on: Option<SocketAddr>,
    /// Asks a second endpoint when the first one is late.
    pub(super) hedge: bool,
    /// How long an attempt may take to be answered.
    pub(super) attempt_timeout: Option<Duration>,
}

impl Extra {
    /// Whether somebody has to look after an attempt while it runs, and to end it or make another one.
    pub(super) fn is_watched(&self) -> bool {
        self.hedge || self.attempt_timeout.is_some()
    }
}

/// One call with its attempts.
#[derive(Debug)]
pub struct Attempts<A> {
    pub(super) pool: Arc<Pool>,
    pub(super) method: Method,
    args: A,
    body: Option<Body>,
    pub(super) settled: Settled,
    started: Instant,
    /// Where the next attempt goes, if that is known already.
    pub(super) chosen: Option<Ticket>,
    tried: Vec<Arc<Member>>,
    count: u32,
    /// An attempt before this one may have run.
    pub(super) may_have_run: bool,
}

/// Why a call failed in the end.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) status: Status,
    pub(super) application: Option<Bytes>,
}

/// A failed attempt, after which there may be another one.
pub(super) struct Failing {
    pub(super) target: Arc<Target>,
    pub(super) class: Class,
    pub(super) status: Status,
    /// When the server asks to be tried again.
    pub(super) asked: Option<Duration>,
    /// The method's own error, if it is that.
    pub(super) application: Option<Bytes>,
}

impl Failing {
    /// Before anything was sent.
    fn unsent(ticket: &Ticket, class: Class, status: Status) -> Self {
        Self { target: Arc::clone(ticket.target()), class, status, asked: None, application: None }
    }
}

impl Failed {
    /// As the error type of the method.
    pub(super) fn into_error<E: service::Failure>(self) -> E {
        match self.application {
            Some(details) => E::from_application(&details, self.status),
            None => self.status.into(),
        }
    }
}

impl<A: Arguments> Attempts<A> {
    #[inline]
    pub(super) fn new(
        pool: Arc<Pool>,
        method: Method,
        args: A,
        body: Option<Body>,
        settled: Settled,
        started: Instant,
    ) -> Self {
        Self {
            pool,
            method,
            args,
            body,
            settled,
            started,
            chosen: None,
            tried: Vec::new(),
            count: 0,
            may_have_run: false,
        }
    }

    /// How many attempts there were.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// How long the call has taken so far.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Opens the first attempt if that takes no waiting; then whoever polls with `cx` is woken when its answer can be read.
    /// `None` means that [`Attempts::start`] has to do it, or to say why not.
    pub(super) fn start_now(&mut self, now: Instant, cx: &TaskContext<'_>) -> Option<Asked> {
        if self.settled.extra.is_some() || self.settled.deadline.is_some_and(|deadline| deadline <= now) {
            return None;
        }
        if self.pool.throttle.is_armed() {
            return None;
        }
        let mut ticket = match self.pool.choose_now(self.settled.preference.as_deref(), now)? {
            Chosen::Connected(ticket) => ticket,
            Chosen::Other(mut ticket) => match ticket.target().connected() {
                Some(link) => {
                    let route = self.pool.keep_route(ticket.target(), link);
                    ticket.hand_over(route)
                }
                None => {
                    // Its turn must not be passed over because it is not connected yet.
                    self.chosen = Some(ticket);
                    return None;
                }
            },
        };
        let link = ticket.link();
        let id = link.open(self.head(0), now.into_std(), Some(cx.waker()), |out| self.args.encode(out)).ok()?;
        self.count = 1;
        self.pump(link, id);
        ticket.sent(now);
        Some(Asked::new(id, ticket))
    }

    fn pump(&self, link: &Arc<Link>, id: StreamId) {
        if let Some(body) = &self.body {
            body.pump(Arc::clone(link), id);
        }
    }

    pub(super) fn max_response(&self) -> usize {
        self.settled.max_response
    }

    fn head(&self, attempt: u8) -> Open<'_> {
        Open {
            method: self.method.name(),
            deadline: self.settled.deadline.map(Instant::into_std),
            idle: self.settled.idle,
            attempt,
            metadata: self.settled.metadata.as_deref(),
            end: self.body.is_none(),
        }
    }

    /// The next attempt, open. Failures that come before that are already behind it.
    pub(super) async fn start(&mut self) -> Result<Attempt, Failed> {
        loop {
            if self.pool.throttle.is_armed() {
                self.pool.throttle.admit(Instant::now()).map_err(|status| self.failed(None, status))?;
            }
            let mut ticket = self.choose().await?;
            self.count += 1;
            let link = match self.connect(ticket.target()).await {
                Ok(link) => link,
                Err((class, status)) => {
                    ticket.unreachable();
                    let failing = Failing::unsent(&ticket, class, status);
                    drop(ticket);
                    self.go_on(failing).await?;
                    continue;
                }
            };
            self.check_fit(ticket.target())?;
            if let Some(attempt) = self.open(ticket, link).await? {
                return Ok(attempt);
            }
        }
    }

    async fn choose(&mut self) -> Result<Ticket, Failed> {
        if let Some(addr) = self.tied_to() {
            return Ok(self.pool.at(addr));
        }
        if let Some(ticket) = self.chosen.take() {
            return Ok(ticket);
        }
        let preference = self.settled.preference.as_deref();
        let picked = self.pool.pick(preference, &self.tried, self.settled.deadline).await;
        picked.map_err(|status| self.failed(None, status))
    }

    /// The only endpoint that the call may use, if there is one.
    pub(super) fn tied_to(&self) -> Option<SocketAddr> {
        self.settled.extra.as_ref().and_then(|extra| extra.on)
    }

    /// Whether somebody has to look after its attempts while they run.
    pub(super) fn is_watched(&self) -> bool {
        self.settled.extra.as_ref().is_some_and(|extra| extra.is_watched())
    }

    /// A call that may be run twice must be one that does no harm then, which is known once there is a hello.
    fn check_fit(&self, target: &Arc<Target>) -> Result<(), Failed> {
        if !self.is_watched() || self.may_have_run || self.is_idempotent(target) {
            return Ok(());
        }
        let status = Status::failed_precondition(
            "`.hedge()` and `.attempt_timeout()` may run the method twice, and nothing says that this does no harm: declare it \
             idempotent in the service, say `.idempotent()` for the call, or leave them out",
        );
        Err(self.failed(Some(target), status.with_execution(Execution::Never)))
    }

    async fn connect(&self, target: &Arc<Target>) -> Result<Arc<Link>, (Class, Status)> {
        if let Some(link) = target.connected() {
            return Ok(link);
        }
        let connecting = target.connect(&self.pool.identity);
        let outcome = match self.settled.deadline {
            None => connecting.await,
            Some(deadline) => tokio::time::timeout_at(deadline, connecting).await.map_err(|_| {
                let status = Status::deadline_exceeded("the deadline passed while connecting");
                (Class::NeverSent, status.with_execution(Execution::Never))
            })?,
        };
        outcome.map_err(|error| (Class::of_connecting(&error), connect_status(&error)))
    }

    /// Opens the call; `None` means: go on with another attempt.
    async fn open(&mut self, mut ticket: Ticket, mut link: Arc<Link>) -> Result<Option<Attempt>, Failed> {
        let (mut waited, mut turn) = (false, None);
        loop {
            if self.has_deadline_passed() {
                let status = Status::deadline_exceeded(if waited {
                    "the connection had its limit of open calls until the deadline"
                } else {
                    "the deadline passed before the call was sent"
                });
                return Err(self.failed(Some(ticket.target()), status.with_execution(Execution::Never)));
            }
            let head = self.head(u8::try_from(self.count - 1).unwrap_or(u8::MAX));
            let now = Instant::now();
            let error = match link.open(head, now.into_std(), None, |out| self.args.encode(out)) {
                Ok(id) => {
                    ticket.sent(now);
                    self.pump(&link, id);
                    return Ok(Some(Attempt::new(BodyReader::new(link, id, self.settled.max_response), ticket)));
                }
                Err(error) => error,
            };
            let status = match error {
                OpenError::Encode(text) => Status::invalid_argument(text),
                OpenError::TooLarge { .. } if self.method.name().len() > MAX_NAME => Status::invalid_argument(format!(
                    "a method's name has 1 to {MAX_NAME} bytes, this one {}",
                    self.method.name().len()
                )),
                OpenError::TooLarge { len, limit } => Status::invalid_argument(format!(
                    "arguments of {len} bytes exceed the server's limit of {limit}; raise `max_message` there or stream them"
                )),
                OpenError::Draining | OpenError::Closed => {
                    let status = Status::unavailable("the connection closed before the call left");
                    let status = status.with_execution(Execution::Never);
                    let failing = Failing::unsent(&ticket, Class::NotTaken, status);
                    drop(ticket);
                    self.go_on(failing).await?;
                    return Ok(None);
                }
                OpenError::Full => {
                    if let Some(other) = ticket.target().with_room() {
                        // The next calls go there, too.
                        self.pool.keep_route(ticket.target(), Arc::clone(&other));
                        link = other;
                        continue;
                    }
                    let elsewhere = if self.tied_to().is_none() { self.pool.with_room() } else { None };
                    if let Some(other) = elsewhere {
                        ((ticket, link), turn) = (other, None);
                        continue;
                    }
                    waited = true;
                    let place = ticket.target().place(&self.pool.identity, &mut turn);
                    let until = self.settled.deadline.unwrap_or_else(|| Instant::now() + crate::options::DEADLINE);
                    // Either a place is free or the deadline has passed, which the next round finds out.
                    let _ = tokio::time::timeout_at(until, place).await;
                    link = ticket.target().connected().unwrap_or(link);
                    continue;
                }
            };
            return Err(self.failed(Some(ticket.target()), status.with_execution(Execution::Never)));
        }
    }

    fn has_deadline_passed(&self) -> bool {
        self.settled.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Opens a second attempt of a call that is one message, beside one that runs. It may come to nothing, also because this server does
    /// not say that running the method twice does no harm.
    pub(super) fn open_beside(&mut self, mut ticket: Ticket, link: Arc<Link>) -> Option<Attempt> {
        if !self.is_idempotent(ticket.target()) {
            return None;
        }
        let now = Instant::now();
        let head = self.head(u8::try_from(self.count).unwrap_or(u8::MAX));
        let id = link.open(head, now.into_std(), None, |out| self.args.encode(out)).ok()?;
        self.count += 1;
        ticket.sent(now);
        Some(Attempt::new(BodyReader::new(link, id, self.settled.max_response), ticket))
    }

    /// Who else can be asked while the attempt at `first` runs: somebody who is well and whom the call has not tried, unless it is tied to
    /// one, or the service has more to do than it can. If the first one is to go on, so that this one is `added`, half of the
    /// others must be well, too.
    pub(super) fn choose_beside(&self, first: &Arc<Target>, now: Instant, added: bool) -> Option<Ticket> {
        if self.tied_to().is_some() || self.pool.throttle.is_armed() {
            return None;
        }
        let used = self.tried.iter().chain([first.member()]).cloned().collect::<Vec<_>>();
        self.pool.choose_beside(self.settled.preference.as_deref(), &used, now, added)
    }

    /// Decides what a failed attempt means: `Ok` to start another, or the error of the call.
    pub(super) async fn after(&mut self, attempt: Attempt, error: BodyError) -> Result<(), Failed> {
        let failing = self.judge(attempt, error)?;
        self.go_on(failing).await
    }

    /// Waits for the next attempt if there may be one; otherwise the error of the call.
    async fn go_on(&mut self, failing: Failing) -> Result<(), Failed> {
        let Failing { target, class, status, asked, application } = failing;
        let delay = match self.may_go_on(&target, class, asked).await {
            Ok(delay) => delay,
            Err(why) => {
                let status = match why {
                    None => status,
                    Some(why) => {
                        let text = format!("{}; not tried again, because {why}", status.message());
                        status.with_message(text)
                    }
                };
                return Err(Failed { application, ..self.failed(Some(&target), status) });
            }
        };
        self.set_aside(&target, class);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }

    /// The pause before another attempt, which is taken out of the budget, if there may be one. Otherwise why not, where the failure does not
    /// say it.
    pub(super) async fn may_go_on(
        &self,
        target: &Arc<Target>,
        class: Class,
        asked: Option<Duration>,
    ) -> Result<Duration, Option<&'static str>> {
        // When to come back is said of this server, unless its handler says it; another one may be asked at once.
        let is_said_of_it = class.never_ran();
        let elsewhere = self.tied_to().is_none() && self.pool.has_another(target, &self.tried);
        let asked = asked.filter(|_| !(is_said_of_it && elsewhere));
        let delay = retry::delay(class, self.count, asked);
        let in_time =
            delay <= retry::MAX_ASKED && self.settled.deadline.is_none_or(|deadline| Instant::now() + delay < deadline);
        let most = if class.never_ran() { self.settled.max_failovers } else { self.settled.max_attempts };
        if !class.allows(self.is_idempotent(target), elsewhere) || self.count >= most.min(MAX_ATTEMPTS) || !in_time {
            return Err(None);
        }
        if let Some(body) = &self.body {
            if !body.can_replay().await {
                return Err(None);
            }
        }
        if class.is_load() && !self.pool.budget.retry(Instant::now()) {
            return Err(Some("the retry budget of the service is used up"));
        }
        Ok(delay)
    }

    /// Whether one attempt more may be made of a call that may run twice.
    pub(super) fn has_attempts_left(&self) -> bool {
        self.count < self.settled.max_attempts.min(MAX_ATTEMPTS)
    }

    /// Remembers an attempt that has failed.
    pub(super) fn set_aside(&mut self, target: &Arc<Target>, class: Class) {
        self.may_have_run |= !class.never_ran();
        if !self.tried.iter().any(|tried| Arc::ptr_eq(tried, target.member())) {
            self.tried.push(Arc::clone(target.member()));
        }
    }

    pub(super) fn is_idempotent(&self, target: &Target) -> bool {
        self.settled.idempotent || target.says_idempotent(self.method.name())
    }

    /// The error of the call, with everything that is known about it.
    pub(super) fn failed(&self, target: Option<&Arc<Target>>, status: Status) -> Failed {
        let service = &self.pool.identity.service;
        let most = self.settled.max_attempts.max(self.settled.max_failovers).min(MAX_ATTEMPTS);
        let mut status = status.with_call(service, &self.method.shown()).with_attempts(self.count, most);
        // What the last attempt knows of itself says nothing of those before it.
        if self.may_have_run && status.execution() == Execution::Never {
            status = status.with_execution(Execution::Maybe);
        }
        if let Some(target) = target {
            status = status.with_endpoint(target.name());
        }
        Failed { status, application: None }
    }
}
