//! From one call to as many attempts as are safe and useful.
//!
//! Owns the loop: choose an endpoint, connect, open, and after a failure decide whether to go on. It must never read an
//! answer. Look next at [`super::retry`] for the rules and [`super::response`] for who drives it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context as TaskContext;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::args::Arguments;
use super::body::Body;
use super::call::Method;
use super::pool::{Chosen, Pool, Preference};
use super::retry::{self, Class};
use super::stream::{Asked, Attempt};
use super::target::Target;
use super::ticket::Ticket;
use crate::balance::Member;
use crate::body::{BodyError, BodyReader};
use crate::metadata::Metadata;
use crate::options::MAX_ATTEMPTS;
use crate::proto::{Error, Failure, Open, OpenError};
use crate::service;
use crate::status::{Code, Execution, Status};
use crate::transport::link::Link;
use crate::wire::head::MAX_NAME;
use crate::wire::{Refusal, StreamId};

/// What was settled when the call began.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) deadline: Option<Instant>,
    pub(super) idle: Option<Duration>,
    pub(super) metadata: Option<Box<Metadata>>,
    pub(super) idempotent: bool,
    pub(super) on: Option<Box<SocketAddr>>,
    pub(super) preference: Option<Box<Preference>>,
    pub(super) max_attempts: u32,
    /// Attempts that a call which never ran may have, if that is more: see [`super::call`].
    pub(super) max_failovers: u32,
    pub(super) max_response: usize,
}

/// One call with its attempts.
#[derive(Debug)]
pub struct Attempts<A> {
    pool: Arc<Pool>,
    method: Method,
    args: A,
    body: Option<Body>,
    settled: Settled,
    started: Instant,
    /// Where the next attempt goes, if that is known already.
    chosen: Option<Ticket>,
    tried: Vec<Arc<Member>>,
    count: u32,
    /// An attempt before this one may have run.
    may_have_run: bool,
}

/// Why a call failed in the end.
#[derive(Debug)]
pub(super) struct Failed {
    status: Status,
    application: Option<Bytes>,
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
        if self.settled.on.is_some() || self.settled.deadline.is_some_and(|deadline| deadline <= now) {
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
                Err(status) => {
                    ticket.unreachable();
                    let target = Arc::clone(ticket.target());
                    drop(ticket);
                    self.go_on(&target, Class::NeverSent, status, None).await?;
                    continue;
                }
            };
            if let Some(attempt) = self.open(ticket, link).await? {
                return Ok(attempt);
            }
        }
    }

    async fn choose(&mut self) -> Result<Ticket, Failed> {
        if let Some(addr) = &self.settled.on {
            return Ok(self.pool.at(**addr));
        }
        if let Some(ticket) = self.chosen.take() {
            return Ok(ticket);
        }
        let preference = self.settled.preference.as_deref();
        let picked = self.pool.pick(preference, &self.tried, self.settled.deadline).await;
        picked.map_err(|status| self.failed(None, status))
    }

    async fn connect(&self, target: &Arc<Target>) -> Result<Arc<Link>, Status> {
        if let Some(link) = target.connected() {
            return Ok(link);
        }
        let connecting = target.connect(&self.pool.identity);
        let outcome = match self.settled.deadline {
            None => connecting.await,
            Some(deadline) => tokio::time::timeout_at(deadline, connecting).await.map_err(|_| {
                Status::deadline_exceeded("the deadline passed while connecting").with_execution(Execution::Never)
            })?,
        };
        outcome.map_err(|error| connect_status(&error))
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
                    let target = Arc::clone(ticket.target());
                    drop(ticket);
                    self.go_on(&target, Class::NeverSent, status, None).await?;
                    return Ok(None);
                }
                OpenError::Full => {
                    if let Some(other) = ticket.target().with_room() {
                        // The next calls go there, too.
                        self.pool.keep_route(ticket.target(), Arc::clone(&other));
                        link = other;
                        continue;
                    }
                    let elsewhere = if self.settled.on.is_none() { self.pool.with_room() } else { None };
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

    /// Decides what a failed attempt means: `Ok` to start another, or the error of the call.
    pub(super) async fn after(&mut self, mut attempt: Attempt, error: BodyError) -> Result<(), Failed> {
        let target = Arc::clone(attempt.target());
        if let BodyError::Failed(failure) = &error {
            self.note(&mut attempt, failure);
        }
        drop(attempt);
        let failure = match error {
            BodyError::Failed(failure) => failure,
            BodyError::Truncated => {
                let status = Status::data_loss("the answer ends within a message").with_execution(Execution::Maybe);
                return Err(self.failed(Some(&target), status));
            }
            // Only servers count messages under way.
            BodyError::NoRoom => Failure::Truncated,
            BodyError::TooLong { len, limit } => {
                let option = match self.method.described().and_then(|method| method.max_response) {
                    Some(_) => "`max_response` of the method",
                    None => "`max_message` here",
                };
                let text = format!("an answer of {len} bytes exceeds the limit of {limit}; raise {option}");
                let status = Status::resource_exhausted(text).with_execution(Execution::Done);
                return Err(self.failed(Some(&target), status));
            }
        };
        let class = Class::of(&failure);
        let asked = match &failure {
            Failure::Refused { retry_after, .. } => *retry_after,
            _ => None,
        };
        if let Failure::Refused { reason: Refusal::Busy, .. } = failure {
            let now = Instant::now();
            if let Some(overloaded) = self.pool.throttle.refused(now, || self.pool.budget.recent(now)) {
                let (status, _) = self.status_of(failure);
                let text = format!("{overloaded}; {}", status.message());
                return Err(self.failed(Some(&target), status.with_message(text)));
            }
        }
        let (status, application) = self.status_of(failure);
        if application.is_some() {
            let status = self.failed(Some(&target), status).status;
            return Err(Failed { status, application });
        }
        self.go_on(&target, class, status, asked).await
    }

    /// Tells balancing what a failure says of the endpoint. Whatever the application says speaks for it, except that it is
    /// unavailable: whoever says only that, at once, must not seem to be the fastest of all.
    fn note(&self, attempt: &mut Attempt, failure: &Failure) {
        match failure {
            // One full method says nothing of the others.
            Failure::Refused { reason: Refusal::MethodBusy, .. } => attempt.ticket().declined(),
            Failure::Refused { retry_after, .. } => attempt.ticket().refused(*retry_after),
            Failure::Lost { .. } => {
                attempt.target().lost(attempt.link());
                attempt.ticket().unreachable();
                self.pool.refresh();
            }
            Failure::Deadline { sent: true, answered: false } => attempt.ticket().failed(),
            Failure::Status { status, answered: false } if status.code == Code::Unavailable.number() && !status.app => {
                attempt.ticket().failed();
            }
            Failure::Status { .. } => attempt.ticket().answered(),
            Failure::Deadline { .. } | Failure::Idle { .. } | Failure::NotAccepted | Failure::Truncated => {}
        }
    }

    /// Waits for the next attempt if there may be one; otherwise the error of the call.
    async fn go_on(
        &mut self,
        target: &Arc<Target>,
        class: Class,
        status: Status,
        asked: Option<Duration>,
    ) -> Result<(), Failed> {
        // When to come back is said of this server; another one may be asked at once.
        let elsewhere = self.settled.on.is_none() && self.pool.has_another(target, &self.tried);
        let asked = asked.filter(|_| !elsewhere);
        let delay = retry::delay(class, self.count, asked);
        let in_time =
            delay <= retry::MAX_ASKED && self.settled.deadline.is_none_or(|deadline| Instant::now() + delay < deadline);
        let most = if class.never_ran() { self.settled.max_failovers } else { self.settled.max_attempts };
        if !class.allows(self.is_idempotent(target)) || self.count >= most.min(MAX_ATTEMPTS) || !in_time {
            return Err(self.failed(Some(target), status));
        }
        if let Some(body) = &self.body {
            if !body.can_replay().await {
                return Err(self.failed(Some(target), status));
            }
        }
        if !self.pool.budget.retry(Instant::now()) {
            let text =
                format!("{}; not tried again, because the retry budget of the service is used up", status.message());
            return Err(self.failed(Some(target), status.with_message(text)));
        }
        self.may_have_run |= !class.never_ran();
        if !self.tried.iter().any(|tried| Arc::ptr_eq(tried, target.member())) {
            self.tried.push(Arc::clone(target.member()));
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }

    fn is_idempotent(&self, target: &Target) -> bool {
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

    fn status_of(&self, failure: Failure) -> (Status, Option<Bytes>) {
        let ran = |sent| if sent { Execution::Maybe } else { Execution::Never };
        let status = match failure {
            Failure::Status { status, .. } => {
                let application = if status.app { status.details.clone() } else { None };
                return (status.into_status(), application);
            }
            Failure::Refused { reason: Refusal::Draining, text, .. } => {
                Status::unavailable(format!("the server is leaving: {text}")).with_execution(Execution::Never)
            }
            Failure::Refused { text, retry_after, .. } => {
                let status = Status::resource_exhausted(format!("the server is busy: {text}"));
                let status = if let Some(after) = retry_after { status.with_retry_after(after) } else { status };
                status.with_execution(Execution::Never)
            }
            Failure::NotAccepted => Status::unavailable("the server is leaving").with_execution(Execution::Never),
            Failure::Lost { error, sent, .. } => {
                Status::unavailable(format!("connection lost: {error}")).with_execution(ran(sent))
            }
            Failure::Deadline { sent, .. } => {
                let waited = self.elapsed();
                Status::deadline_exceeded(format!("no answer within {waited:.1?}")).with_execution(ran(sent))
            }
            Failure::Idle { sent, .. } => {
                let idle = self.settled.idle.unwrap_or_default();
                Status::deadline_exceeded(format!("nothing moved for {idle:?}; allow more with `.idle_timeout()`"))
                    .with_execution(ran(sent))
            }
            Failure::Truncated => Status::data_loss("the answer was cut short").with_execution(Execution::Maybe),
        };
        (status, None)
    }
}

/// What a failure to connect means to the caller.
fn connect_status(error: &Arc<Error>) -> Status {
    let text = match &**error {
        Error::Io { kind: std::io::ErrorKind::UnexpectedEof, .. } => {
            "the peer closed the connection before hello".to_owned()
        }
        Error::Io { kind, .. } if *kind != std::io::ErrorKind::TimedOut && *kind != std::io::ErrorKind::Other => {
            kind.to_string()
        }
        error => error.to_string(),
    };
    Status::unavailable(text).with_execution(Execution::Never).with_source(Error::clone(error))
}
