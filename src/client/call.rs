//! A call before it is made, and while it is: what to call, with which options, and how far it is.
//!
//! Owns [`Call`], the lazy builder that every client method returns, how its options combine with the context in which it is
//! made, and [`CallFuture`], which takes the short way as long as there is one. It must never touch a connection. Look next at
//! [`super::attempts`].

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use tokio::time::Instant;

use super::args::Arguments;
use super::attempts::{Attempts, Extra, Settled};
use super::body::{Body, IntoBody};
use super::pool::{Pool, Preference};
use super::response::{All, First, Response, WithInfo};
use super::stream::{Answer, Asked, Attempt};
use crate::balance::{self, Balancer};
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
    /// Most calls choose nothing.
    chosen: Option<Box<Chosen>>,
    response: PhantomData<fn() -> R>,
}

/// What was chosen for one call.
#[derive(Default)]
struct Chosen {
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    idle: Option<Duration>,
    metadata: Metadata,
    extra: Option<Box<Extra>>,
    preference: Option<Box<Preference>>,
    retries: Option<u32>,
    idempotent: bool,
    collect_limit: Option<usize>,
    problem: Option<Status>,
}

/// The choices of a call without any.
static NOTHING: Chosen = Chosen {
    timeout: None,
    deadline: None,
    idle: None,
    metadata: Metadata::new(),
    extra: None,
    preference: None,
    retries: None,
    idempotent: false,
    collect_limit: None,
    problem: None,
};

impl Chosen {
    fn note<E: fmt::Display>(&mut self, result: Result<(), E>) {
        if let Err(error) = result {
            self.problem.get_or_insert_with(|| Status::invalid_argument(error.to_string()));
        }
    }
}

impl<A, R> Call<A, R> {
    pub(super) fn new(pool: Arc<Pool>, policy: Option<Arc<dyn Balancer>>, method: Method, args: A) -> Self {
        let mut call = Self { pool, method, args, body: None, chosen: None, response: PhantomData };
        if policy.is_some() {
            call.prefer().policy = policy;
        }
        call
    }

    fn prefer(&mut self) -> &mut Preference {
        self.choose().preference.get_or_insert_default()
    }

    fn extra(&mut self) -> &mut Extra {
        self.choose().extra.get_or_insert_default()
    }

    fn choose(&mut self) -> &mut Chosen {
        self.chosen.get_or_insert_default()
    }

    /// Ends the call after this time, counted from when it is awaited, over all attempts. The default is the method's
    /// deadline, else 30 seconds for calls that do not stream and none for those that do. A deadline that the context
    /// inherits still holds if it is earlier.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.choose().timeout = Some(timeout);
        self
    }

    /// Ends the call at this moment; see [`Call::timeout`].
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.choose().deadline = Some(deadline);
        self
    }

    /// How long a streaming call may wait for its peer without anything moving in either direction; the default is 60
    /// seconds. [`Duration::MAX`] is for ever.
    pub fn idle_timeout(mut self, idle: Duration) -> Self {
        self.choose().idle = Some(idle);
        self
    }

    /// Sends metadata beside the arguments. What is wrong with it fails the call.
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        let chosen = self.choose();
        let inserted = chosen.metadata.insert(key, value);
        chosen.note(inserted);
        self
    }

    /// Sends metadata that calls made while this one is handled pass on, and so on down the chain.
    pub fn metadata_inherited(mut self, key: &str, value: &str) -> Self {
        let chosen = self.choose();
        let inserted = chosen.metadata.insert_inherited(key, value);
        chosen.note(inserted);
        self
    }

    /// Calls this endpoint and no other: one that was [picked](crate::Picom::pick), or any address.
    ///
    /// ```
    /// # use picom::args;
    /// # async fn f(node: picom::Picom) -> Result<(), picom::Status> {
    /// let picked = node.pick("service1").await?;
    /// let sum: i64 = node.fetch("service1", "add", args! { a: 2, b: 5 }).on(&*picked).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on(mut self, endpoint: impl Into<SocketAddr>) -> Self {
        self.extra().on = Some(endpoint.into());
        self
    }

    /// Chooses endpoints by this policy instead of the client's or the node's.
    pub fn balance(mut self, policy: impl Balancer) -> Self {
        self.pool.identity.ask_for_load(&policy);
        self.prefer().policy = Some(Arc::new(policy));
        self
    }

    /// What calls that belong together share, such as the id of a user: [`ConsistentHash`](crate::balance::ConsistentHash) sends
    /// them to the same endpoint. Other policies do not look at it. It is not sent.
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.prefer().key = Some(balance::key(key.as_ref()));
        self
    }

    /// How often the call may be tried again where that is safe; the default is the node's `retries`, 3. There are never
    /// more than five attempts in all.
    pub fn retries(mut self, retries: u32) -> Self {
        self.choose().retries = Some(retries);
        self
    }

    /// Says that running the method twice does no harm, so that it may be tried again after a lost connection.
    pub fn idempotent(mut self) -> Self {
        self.choose().idempotent = true;
        self
    }

    /// Asks a second endpoint when the first one is late. The first answer counts, and the other attempt is cancelled at once.
    ///
    /// Late is what takes longer than 95 % of the calls of this method that were made with `hedge` in the last 10 to 20 seconds, at least
    /// 1 ms; nothing is late before there were 50 of them. Second attempts add at most 2 % to the calls made with `hedge` to this service,
    /// and ten that may have been saved up before. The less is left of this, the longer a call has to take, longer than 98 % of the others
    /// in the long run: so it is used for those that are latest, and a service that is slow altogether gets no more than that.
    ///
    /// There is no second attempt if there is no other endpoint that is well, if half of the endpoints or more are not, while
    /// servers refuse calls as busy, if the deadline is nearer than a late answer is far, or if the call has had as many attempts as
    /// [`retries`](Self::retries) allows, of which it is one. A failure that would be tried again waits for the other attempt, any other one
    /// ends the call; the error counts both attempts, and never says that the handler did not run if the other one's may have. Dropping
    /// the call cancels both.
    ///
    /// Only for methods that do no harm if they are run twice: if neither the client's trait nor the server nor
    /// [`idempotent`](Self::idempotent) says so, the call fails with [`Code::FailedPrecondition`](crate::Code::FailedPrecondition)
    /// before it is sent. So does one that streams a body. Of an answer that is a stream it is the first item that counts: awaiting the call
    /// then lasts until that has come.
    pub fn hedge(mut self) -> Self {
        self.extra().hedge = true;
        self
    }

    /// How long one attempt may take from when it is sent until its answer begins; by default as long as the call may. One that takes longer
    /// is cancelled, counts as a failure of its endpoint, and is tried elsewhere under the rules of [`retries`](Self::retries).
    ///
    /// An attempt that nothing can follow runs on until the deadline: the last one that is allowed, one for which the retry budget has no
    /// room, or one that no other endpoint can take, because the call has tried it or because it is not well. So this never makes a
    /// call fail sooner; [`timeout`](Self::timeout) does.
    ///
    /// Others call it the timeout per try. For the same calls as [`hedge`](Self::hedge), and with the same errors for others.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.extra().attempt_timeout = Some(timeout);
        self
    }

    /// Streams a body after the arguments.
    pub fn body<T: Serialize + Send + 'static, B: IntoBody<T>>(mut self, body: B) -> Self {
        self.body = Some(Body::new(body));
        self
    }

    fn returning<S>(self) -> Call<A, S> {
        let Self { pool, method, args, body, chosen, response: _ } = self;
        Call { pool, method, args, body, chosen, response: PhantomData }
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
        self.choose().collect_limit = Some(items);
        self
    }
}

impl<A: Arguments, R: Response> Call<A, R> {
    /// Decides everything that does not depend on who answers. Also says how many items may be collected, and what was
    /// wrong with the choices.
    fn settle(self, now: Instant) -> (Attempts<A>, usize, Option<Status>) {
        let Self { pool, method, args, body, chosen, response: _ } = self;
        let options = &pool.identity.options;
        let own = chosen.as_deref().unwrap_or(&NOTHING);
        let described = method.described();
        let streams = R::STREAMS || body.is_some();

        let default = described.and_then(|method| method.deadline).or(if streams { None } else { options.deadline });
        let timeout = if own.deadline.is_some() { own.timeout } else { own.timeout.or(default) };
        let (inherited, metadata, in_retried_call) = Context::with_current(|context| match context {
            None => (None, None, false),
            Some(context) => {
                let inherited = context.deadline().map(|deadline| leave_margin(now, deadline));
                let metadata = context.metadata().inherited();
                (inherited, (!metadata.is_empty()).then_some(metadata), context.attempt() > 0)
            }
        });
        let until = timeout.map(|timeout| at(now, timeout));
        let deadline = [until, own.deadline, inherited].into_iter().flatten().min();
        let retries = own.retries.unwrap_or(options.retries);
        // A call that is made on behalf of one that was itself tried again is not multiplied further, or a chain of services
        // would turn one failure into a storm. What a server has not even accepted may still go to one other.
        let chained = in_retried_call && own.retries.is_none();
        let idle = if streams { own.idle.or(options.stream_idle).filter(|idle| *idle != Duration::MAX) } else { None };
        let idempotent = own.idempotent;
        let limit = own.collect_limit.unwrap_or(options.collect_limit);
        let (mut sent, mut extra, mut preference, mut problem) = (None, None, None, None);
        if chosen.is_some() || metadata.is_some() {
            let mut chosen = chosen.map_or_else(Chosen::default, |chosen| *chosen);
            for (key, value) in metadata.iter().flat_map(Metadata::iter) {
                if chosen.metadata.get(key).is_none() {
                    let inserted = chosen.metadata.insert_inherited(key, value);
                    chosen.note(inserted);
                }
            }
            sent = (!chosen.metadata.is_empty()).then(|| Box::new(chosen.metadata));
            preference = chosen.preference;
            problem = chosen.problem;
            if body.is_some() && chosen.extra.as_ref().is_some_and(|extra| extra.is_watched()) {
                let text = "a call that streams a body has no `.hedge()` and no `.attempt_timeout()`: it cannot be sent twice at once";
                problem.get_or_insert_with(|| Status::failed_precondition(text));
            }
            extra = chosen.extra;
        }
        let max_response = described.and_then(|method| method.max_response).unwrap_or(options.max_message);
        pool.budget.call(now);
        // The last thing done, so that it is built where it stays: a move of what was just written costs more than writing it.
        let settled = Settled {
            deadline,
            idle,
            metadata: sent,
            idempotent: idempotent || described.is_some_and(|method| method.idempotent),
            extra,
            preference,
            max_attempts: if chained { 1 } else { retries.saturating_add(1) },
            max_failovers: if chained { 2.min(retries.saturating_add(1)) } else { retries.saturating_add(1) },
            max_response,
        };
        (Attempts::new(pool, method, args, body, settled, now), limit, problem)
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
    type IntoFuture = CallFuture<A, R>;

    fn into_future(self) -> CallFuture<A, R> {
        CallFuture(Stage::New(Some(self)))
    }
}

impl<A, R> fmt::Debug for Call<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("service", &self.pool.asked())
            .field("method", &self.method.name())
            .finish_non_exhaustive()
    }
}

/// A call that is being made. Dropping it cancels the call at the server.
pub struct CallFuture<A: Arguments, R: Response>(Stage<A, R>);

/// How far a call is. The common case allocates nothing: a connection is there, and the answer is one message.
#[allow(clippy::large_enum_variant, reason = "a box for the common case is what it spares")]
enum Stage<A: Arguments, R: Response> {
    /// Taken out only to be made.
    New(Option<Call<A, R>>),
    Asked {
        attempts: Attempts<A>,
        asked: Option<Asked>,
        limit: usize,
    },
    /// Everything else.
    General(BoxFuture<'static, Result<R::Output, R::Error>>),
    Done,
}

// Nothing in it is ever pinned in place.
impl<A: Arguments, R: Response> Unpin for CallFuture<A, R> {}

impl<A: Arguments, R: Response> CallFuture<A, R> {
    /// Begins the call. `Err` is how it failed.
    fn begin(&mut self, call: Call<A, R>, cx: &TaskContext<'_>) -> Result<(), R::Error> {
        let now = Instant::now();
        let (attempts, limit, problem) = call.settle(now);
        if let Some(problem) = problem {
            return Err(attempts.failed(None, problem.with_execution(Execution::Never)).into_error());
        }
        // Built where it stays: it is too large to be moved about for nothing.
        self.0 = Stage::Asked { attempts, asked: None, limit };
        if let Stage::Asked { attempts, asked, .. } = &mut self.0 {
            *asked = R::ONE_MESSAGE.then(|| attempts.start_now(now, cx)).flatten();
            if asked.is_none() {
                self.go_general(None);
            }
        }
        Ok(())
    }

    /// Leaves the short way, with the attempt that was begun on it.
    fn go_general(&mut self, begun: Option<Attempt>) {
        if let Stage::Asked { attempts, limit, .. } = std::mem::replace(&mut self.0, Stage::Done) {
            self.0 = Stage::General(Box::pin(general::<A, R>(attempts, begun, limit)));
        }
    }
}

async fn general<A: Arguments, R: Response>(
    attempts: Attempts<A>,
    begun: Option<Attempt>,
    limit: usize,
) -> Result<R::Output, R::Error> {
    R::receive(attempts, begun, limit).await.map(|(output, _)| output)
}

impl<A: Arguments, R: Response> Future for CallFuture<A, R> {
    type Output = Result<R::Output, R::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        if let Stage::New(call) = &mut self.0 {
            if let Some(call) = call.take() {
                if let Err(error) = self.begin(call, cx) {
                    return Poll::Ready(Err(error));
                }
            }
            if let Stage::Asked { .. } = &self.0 {
                // The connection wakes this task when there is something to read.
                return Poll::Pending;
            }
        }
        if let Stage::Asked { attempts, asked: Some(asked), .. } = &mut self.0 {
            match ready!(asked.poll_answer(attempts.max_response(), cx)) {
                Answer::Other(attempt) => self.go_general(Some(attempt)),
                Answer::Whole(message) => {
                    let output = R::whole(attempts, asked, &message);
                    self.0 = Stage::Done;
                    return Poll::Ready(output);
                }
            }
        }
        match &mut self.0 {
            Stage::General(future) => {
                let output = ready!(future.as_mut().poll(cx));
                self.0 = Stage::Done;
                Poll::Ready(output)
            }
            #[allow(clippy::panic, reason = "polling a future after its end is a mistake that must not go unnoticed")]
            _ => panic!("a call was polled after its end"),
        }
    }
}

impl<A: Arguments, R: Response> fmt::Debug for CallFuture<A, R> {
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

    /// How many attempts it took, with one that was made beside another.
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
