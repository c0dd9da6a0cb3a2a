//! A call before it is made: what to call, with which options.
//!
//! Owns [`Call`], the lazy builder that every client method returns, and how its options combine with the context in which it is
//! made. It must never touch a connection. Look next at [`super::attempts`].

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use tokio::time::Instant;

use super::args::Arguments;
use super::attempts::{Attempts, Settled};
use super::body::{Body, IntoBody};
use super::pool::Pool;
use super::response::{All, First, Response, WithInfo};
use crate::context::Context;
use crate::descriptor::MethodDescriptor;
use crate::metadata::Metadata;
use crate::registry::Endpoint;
use crate::status::{Execution, Status};

/// What of an inherited deadline is kept back, so that the outer call can still answer with the inner one's failure.
const MARGIN: Duration = Duration::from_millis(5);

/// The method that is called.
#[derive(Clone, Debug)]
pub(super) enum Method {
    Described(&'static MethodDescriptor),
    Named(Arc<str>),
}

impl Method {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Described(method) => &method.name,
            Self::Named(name) => name,
        }
    }

    /// The name for errors.
    pub(super) fn shown(&self) -> Arc<str> {
        match self {
            Self::Described(method) => method.name.as_ref().into(),
            // Errors are one line, whatever the name is.
            Self::Named(name) if name.chars().any(char::is_control) => name.escape_debug().to_string().into(),
            Self::Named(name) => Arc::clone(name),
        }
    }

    pub(super) fn described(&self) -> Option<&'static MethodDescriptor> {
        match self {
            Self::Described(method) => Some(method),
            Self::Named(_) => None,
        }
    }
}

/// A call that is made when it is awaited.
///
/// Dropping the future, or the stream that it returned, cancels the call at the server.
#[must_use = "a call is made only when it is awaited"]
pub struct Call<A, R> {
    pool: Arc<Pool>,
    method: Method,
    args: A,
    body: Option<Body>,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    idle: Option<Duration>,
    metadata: Metadata,
    on: Option<SocketAddr>,
    retries: Option<u32>,
    idempotent: bool,
    collect_limit: Option<usize>,
    problem: Option<Status>,
    response: PhantomData<fn() -> R>,
}

impl<A, R> Call<A, R> {
    pub(super) fn new(pool: Arc<Pool>, method: Method, args: A) -> Self {
        Self {
            pool,
            method,
            args,
            body: None,
            timeout: None,
            deadline: None,
            idle: None,
            metadata: Metadata::new(),
            on: None,
            retries: None,
            idempotent: false,
            collect_limit: None,
            problem: None,
            response: PhantomData,
        }
    }

    /// Ends the call after this time, counted from when it is awaited, over all attempts. The default is the method's
    /// deadline, else 30 seconds for calls that do not stream and none for those that do. A deadline that the context
    /// inherits still holds if it is earlier.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ends the call at this moment; see [`Call::timeout`].
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How long a streaming call may wait for its peer without anything moving in either direction; the default is 60
    /// seconds. [`Duration::MAX`] is for ever.
    pub fn idle_timeout(mut self, idle: Duration) -> Self {
        self.idle = Some(idle);
        self
    }

    /// Sends metadata beside the arguments. What is wrong with it fails the call.
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        let inserted = self.metadata.insert(key, value);
        self.note(inserted);
        self
    }

    /// Sends metadata that calls made while this one is handled pass on, and so on down the chain.
    pub fn metadata_inherited(mut self, key: &str, value: &str) -> Self {
        let inserted = self.metadata.insert_inherited(key, value);
        self.note(inserted);
        self
    }

    fn note<E: fmt::Display>(&mut self, result: Result<(), E>) {
        if let Err(error) = result {
            self.problem.get_or_insert_with(|| Status::invalid_argument(error.to_string()));
        }
    }

    /// Calls this endpoint and no other.
    pub fn on(mut self, endpoint: impl Into<SocketAddr>) -> Self {
        self.on = Some(endpoint.into());
        self
    }

    /// How often the call may be tried again where that is safe; the default is the node's `retries`, 3. There are never
    /// more than five attempts in all.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
    }

    /// Says that running the method twice does no harm, so that it may be tried again after a lost connection.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Streams a body after the arguments.
    pub fn body<T: Serialize + Send + 'static, B: IntoBody<T>>(mut self, body: B) -> Self {
        self.body = Some(Body::new(body));
        self
    }

    fn returning<S>(self) -> Call<A, S> {
        Call {
            pool: self.pool,
            method: self.method,
            args: self.args,
            body: self.body,
            timeout: self.timeout,
            deadline: self.deadline,
            idle: self.idle,
            metadata: self.metadata,
            on: self.on,
            retries: self.retries,
            idempotent: self.idempotent,
            collect_limit: self.collect_limit,
            problem: self.problem,
            response: PhantomData,
        }
    }

    /// Also returns what is known about the call beside its answer: the output becomes `(answer, CallInfo)`.
    pub fn with_info(self) -> Call<A, WithInfo<R>> {
        self.returning()
    }
}

impl<A, T> Call<A, First<T>> {
    /// Collects every item instead of expecting one.
    pub fn multiple(self) -> Call<A, All<T>> {
        self.returning()
    }
}

impl<A, T> Call<A, All<T>> {
    /// Most items that are collected; more are an error. The default is the node's `collect_limit`.
    pub fn limit(mut self, items: usize) -> Self {
        self.collect_limit = Some(items);
        self
    }
}

impl<A: Arguments, R: Response> Call<A, R> {
    async fn make(mut self) -> Result<R::Output, R::Error> {
        let now = Instant::now();
        let identity = Arc::clone(&self.pool.identity);
        let options = &identity.options;
        let limit = self.collect_limit.unwrap_or(options.collect_limit);
        let described = self.method.described();
        let streams = R::STREAMS || self.body.is_some();

        let own = self.timeout.map(|timeout| at(now, timeout)).into_iter().chain(self.deadline).min();
        let default = described.and_then(|method| method.deadline).or(if streams { None } else { options.deadline });
        let (inherited, metadata, in_retried_call) = Context::with_current(|context| match context {
            None => (None, None, false),
            Some(context) => {
                let inherited = context.deadline().map(|deadline| leave_margin(now, deadline));
                (inherited, Some(context.metadata().inherited()), context.attempt() > 0)
            }
        });
        let deadline = own.or_else(|| default.map(|default| at(now, default))).into_iter().chain(inherited).min();
        for (key, value) in metadata.iter().flat_map(Metadata::iter) {
            if self.metadata.get(key).is_none() {
                let inserted = self.metadata.insert_inherited(key, value);
                self.note(inserted);
            }
        }

        let retries = self.retries.unwrap_or(options.retries);
        // A call that is made on behalf of one that was itself tried again is not multiplied further, or a chain of services
        // would turn one failure into a storm. What a server has not even accepted may still go to one other.
        let chained = in_retried_call && self.retries.is_none();
        let settled = Settled {
            deadline,
            idle: if streams { self.idle.or(options.stream_idle).filter(|idle| *idle != Duration::MAX) } else { None },
            metadata: (!self.metadata.is_empty()).then_some(self.metadata),
            idempotent: self.idempotent || described.is_some_and(|method| method.idempotent),
            on: self.on,
            max_attempts: if chained { 1 } else { retries.saturating_add(1) },
            max_failovers: if chained { 2.min(retries.saturating_add(1)) } else { retries.saturating_add(1) },
            max_response: described.and_then(|method| method.max_response).unwrap_or(options.max_message),
        };
        let attempts = Attempts::new(self.pool, self.method, self.args, self.body, settled, now);
        if let Some(problem) = self.problem {
            return Err(attempts.failed(None, problem.with_execution(Execution::Never)).into_error());
        }
        R::receive(attempts, limit).await.map(|(output, _)| output)
    }
}

/// A moment this far away; very long times are cut to thirty years, which timers can hold.
pub(super) fn at(now: Instant, after: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);
    now + after.min(FAR)
}

fn leave_margin(now: Instant, deadline: Instant) -> Instant {
    match deadline.checked_sub(MARGIN) {
        Some(earlier) if earlier > now => earlier,
        _ => deadline,
    }
}

impl<A: Arguments, R: Response> IntoFuture for Call<A, R> {
    type Output = Result<R::Output, R::Error>;
    type IntoFuture = CallFuture<R>;

    fn into_future(self) -> CallFuture<R> {
        CallFuture(Box::pin(self.make()))
    }
}

impl<A, R> fmt::Debug for Call<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("service", &self.pool.service())
            .field("method", &self.method.name())
            .finish_non_exhaustive()
    }
}

/// A call that is being made. Dropping it cancels the call at the server.
pub struct CallFuture<R: Response>(BoxFuture<'static, Result<R::Output, R::Error>>);

impl<R: Response> Future for CallFuture<R> {
    type Output = Result<R::Output, R::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<R: Response> fmt::Debug for CallFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture").finish_non_exhaustive()
    }
}

/// What is known about a call beside its answer.
#[derive(Clone, Debug)]
pub struct CallInfo {
    endpoint: SocketAddr,
    attempts: u32,
    elapsed: Duration,
    metadata: Metadata,
}

impl CallInfo {
    pub(super) fn new(endpoint: SocketAddr, attempts: u32, elapsed: Duration, metadata: Metadata) -> Self {
        Self { endpoint, attempts, elapsed, metadata }
    }

    /// Who answered.
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// How many attempts it took.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long it took from the first attempt to the answer; for a stream, to its opening.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// What the server sent beside its answer. A stream opens before anything has come: ask
    /// [`Streaming::metadata`](crate::Streaming::metadata) for its own.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl From<&Endpoint> for SocketAddr {
    fn from(endpoint: &Endpoint) -> Self {
        endpoint.addr
    }
}
