//! The road of a call at the server: from the event to the handler.
//!
//! Owns the choice of the handler, its first poll in place, and its end when the caller gives up or the deadline passes. It
//! must never encode an answer. Look next at [`super::incoming`] for what the handler is given.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::admission::{Admission, Entry, Refused, Running};
use super::bulkhead::Inside;
use super::incoming::{Incoming, body_status};
use super::router::Route;
use crate::body::{Assembly, BodyError, BodyReader};
use crate::context::{Context, Line, Peer};
use crate::metadata::Metadata;
use crate::proto::{Event, Load, MethodRef, Refusal};
use crate::service::{HandlerFuture, Service, panic_text};
use crate::status::{Execution, Status};
use crate::transport::driver::{Handler, Happened};
use crate::transport::link::Link;
use crate::wire::{self, StreamId, WireStatus};

/// The calls of one connection.
pub(super) struct Dispatch {
    shared: Arc<Shared>,
    peer: Option<Arc<Peer>>,
    /// Who answers, by the numbers that the client gave to the methods.
    callees: Vec<Option<Callee>>,
    /// Room for messages that are still being put together.
    assembly: Arc<Assembly>,
    /// What the next call takes its place with: calls that are over at once use one after the other.
    running: Option<Running>,
    /// This runs on one of the [`IoThreads`](super::io_threads::IoThreads), where no handler may.
    apart: bool,
    /// It cannot be anywhere else.
    stays: bool,
}

/// One of so many calls of a method is measured while it is polled in place: no divisor or multiple of the calls that fill a batch, or
/// it would always be the one that is written.
const SAMPLE: u8 = 61;
/// A handler that works for longer than this before it first waits, or ends, is better off in a task: everything else on its
/// connection waits for it, also to be refused, and there may be as many such calls as one connection has open: in place they never
/// are too many, so nobody is. 1,024 of them take as long as tasks may be late before a server counts as overloaded, and each as
/// long as twenty tasks or more take to begin.
/// Only the second of two in a row that were measured counts: the answer that fills a batch is written in place, which takes as long.
const IN_PLACE: Duration = Duration::from_micros(20);
/// Longer than a write takes: the first one counts.
const FAR_TOO_LONG: Duration = Duration::from_micros(250);

/// Whether the next calls are to have tasks.
fn is_heavy(took: Duration, was_long: bool) -> bool {
    took > FAR_TOO_LONG || was_long && took > IN_PLACE
}

/// A method as this connection knows it.
struct Callee {
    route: Route,
    line: Arc<Line>,
    /// The context of a call that is over, for the next one.
    spare: Option<Context>,
    /// How many calls there were, to measure one of [`SAMPLE`].
    calls: u8,
    /// The last one that was measured took longer than [`IN_PLACE`].
    was_long: bool,
    /// How many of the next calls get a task at once, because those that were measured held the driver up.
    heavy: u8,
}

impl Dispatch {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        // One message of the longest kind must always fit.
        let longest = shared.options.max_message.max(shared.router().longest_request());
        let assembly = Arc::new(Assembly::new(shared.options.max_assembly.max(longest)));
        Self { shared, peer: None, callees: Vec::new(), assembly, running: None, apart: false, stays: false }
    }
}

impl Handler for Dispatch {
    fn ready(&mut self, link: &Arc<Link>) {
        self.peer = link.with_peer(|peer| {
            peer.map(|peer| {
                Arc::new(Peer { node: peer.node.as_str().into(), addr: link.remote(), incarnation: peer.incarnation })
            })
        });
        if self.shared.is_draining() {
            link.drain();
        }
    }

    fn event(&mut self, link: &Arc<Link>, (event, whole): Happened) {
        match event {
            Event::Call { id, method, deadline, attempt, metadata } => {
                let deadline = deadline.map(Instant::from_std);
                self.call(link, Head { id, method, deadline, attempt, metadata }, whole);
            }
            Event::Cancelled(id) => link.abort_task(id),
            Event::Expired(id) => {
                let status = Status::deadline_exceeded("the deadline passed while the handler ran");
                link.fail_and_abort(id, &WireStatus::from(&status));
            }
            _ => {}
        }
    }

    fn rest(&mut self) {
        self.running = None;
    }

    fn load(&mut self, _load: Load) {}

    fn hurries(&self) -> bool {
        self.shared.admission.is_full()
    }

    fn is_misplaced(&self) -> bool {
        self.shared.io_threads.are_wanted() != self.apart && !self.stays
    }

    fn moved(&mut self, apart: bool) {
        self.apart = apart;
    }

    fn stays(&mut self) {
        self.stays = true;
    }
}

/// What a call says before its body.
struct Head {
    id: StreamId,
    method: MethodRef,
    deadline: Option<Instant>,
    attempt: u8,
    metadata: Option<Box<Metadata>>,
}

impl Dispatch {
    fn call(&mut self, link: &Arc<Link>, call: Head, whole: Option<Bytes>) {
        let Head { id, method, deadline, attempt, metadata } = call;
        let mut unnumbered = None;
        let number = usize::from(method.number);
        if !matches!(self.callees.get(number), Some(Some(_))) {
            match self.callee(link, &method) {
                Err(status) => return link.fail(id, &WireStatus::from(&status)),
                Ok(callee) if number == 0 => unnumbered = Some(callee),
                Ok(callee) => {
                    if self.callees.len() <= number {
                        self.callees.resize_with(number + 1, || None);
                    }
                    self.callees[number] = Some(callee);
                }
            }
        }
        let Some(callee) = unnumbered.as_mut().or_else(|| self.callees.get_mut(number)?.as_mut()) else { return };
        let route = &callee.route;
        let place = match &route.bulkhead {
            None => None,
            Some(bulkhead) => match bulkhead.enter() {
                Some(place) => Some(place),
                None => return refuse(link, id, Refusal::MethodBusy, &Refused::new(bulkhead.full(&route.name))),
            },
        };
        let mut turn = None;
        let running = match self.running.take().or_else(|| Admission::enter_now(&self.shared)) {
            Some(running) => Some(running),
            None => match Admission::enter(&self.shared, deadline) {
                Entry::Now(running) => Some(running),
                Entry::Full(refused) => return refuse(link, id, Refusal::Busy, &refused),
                Entry::Later(receiver, until) => {
                    turn = Some((receiver, until));
                    None
                }
            },
        };
        let context = Context::begin(callee.spare.take(), &callee.line, deadline, attempt, metadata);
        let start = Start {
            link: Arc::clone(link),
            id,
            context: context.clone(),
            service: Arc::clone(&route.service),
            method: route.method,
            limit: route.max_request.unwrap_or(self.shared.options.max_message),
            whole,
        };
        let Some(running) = running else {
            if let Some((turn, until)) = turn {
                let (shared, assembly) = (Arc::clone(&self.shared), Arc::clone(&self.assembly));
                let (future, place): (HandlerFuture, _) = if self.apart {
                    // The place is the handler's, which may be in the middle of something when the waiting is ended.
                    (Box::pin(wait_apart(start, assembly, turn, until, shared, place)), None)
                } else {
                    (Box::pin(wait(start, assembly, turn, until, shared)), place)
                };
                let handling = Handling { context: Some(context), future, done: false, _running: None, _place: place };
                // Here, where nothing keeps it from giving up waiting.
                spawn(link, id, handling);
            }
            return;
        };
        callee.calls = (callee.calls + 1) % SAMPLE;
        let measured = (callee.calls == 0 && !self.apart).then(Instant::now);
        if self.apart || measured.is_none() && callee.heavy > 0 {
            callee.heavy = callee.heavy.saturating_sub(1);
            let handling = start.task(&self.shared, Arc::clone(&self.assembly), running, place);
            let task = self.shared.io_threads.home().spawn(handling);
            return link.keep_task(id, task.abort_handle());
        }
        let Some(future) = start.handler(&self.assembly) else { return };
        (callee.spare, self.running) = run(link, id, context, future, running, place);
        if let Some(began) = measured {
            let took = began.elapsed();
            callee.heavy = if is_heavy(took, callee.was_long) { SAMPLE - 1 } else { 0 };
            callee.was_long = took > IN_PLACE;
        }
    }

    /// Looks a method up.
    fn callee(&self, link: &Link, method: &MethodRef) -> Result<Callee, Status> {
        let router = self.shared.router();
        // A name comes with its first call only; a method that is exposed later is looked up again.
        let name = method.name.clone().or_else(|| link.method_name(method.number)).unwrap_or_default();
        let route = router.get(&name).ok_or_else(|| router.unknown(&self.shared.service, &name))?.clone();
        let peer = self.peer.clone().ok_or_else(|| Status::internal("a call came before hello"))?;
        let line = Line { service: Arc::clone(&self.shared.service), method: Arc::clone(&route.name), peer };
        Ok(Callee { route, line: Arc::new(line), spare: None, calls: 0, was_long: false, heavy: 0 })
    }
}

/// The length of the prefix, if a body is one message that may be as long as it is.
fn only_message(body: &[u8], limit: usize) -> Option<usize> {
    let (len, prefix) = wire::parse_prefix(body)?;
    (len <= limit && prefix + len == body.len()).then_some(prefix)
}

/// Tells a caller to go elsewhere.
fn refuse(link: &Link, id: StreamId, reason: Refusal, refused: &Refused) {
    link.refuse(id, reason, Some(refused.retry_after), &refused.text);
}

/// A call that was let in, on its way to its handler.
struct Start {
    link: Arc<Link>,
    id: StreamId,
    context: Context,
    service: Arc<dyn Service>,
    method: usize,
    /// Of its arguments, in bytes.
    limit: usize,
    /// Its body, if all of it came with the call.
    whole: Option<Bytes>,
}

impl Start {
    /// What is to be spawned where handlers may run; to look at the arguments is part of it.
    fn task(self, shared: &Arc<Shared>, assembly: Arc<Assembly>, running: Running, place: Option<Inside>) -> Handling {
        let (context, doubt) = (self.context.clone(), shared.admission.doubt());
        let shared = Arc::clone(shared);
        let future = Box::pin(async move {
            if doubt.is_some_and(|doubt| shared.admission.was_right(doubt)) {
                return refuse(&self.link, self.id, Refusal::Busy, &shared.admission.in_vain());
            }
            drop(shared);
            if let Some(handler) = self.handler(&assembly) {
                handler.await;
            }
        });
        Handling::begin(Some(context), future, running, place)
    }

    /// What is to be polled; `None` if the caller was told why there is nothing.
    fn handler(self, assembly: &Arc<Assembly>) -> Option<HandlerFuture> {
        let Self { link, id, context, service, method, limit, whole } = self;
        let prefix = whole.as_deref().and_then(|body| only_message(body, limit));
        let mut body = match (whole, prefix) {
            (Some(mut body), Some(prefix)) => {
                body.advance(prefix);
                return Some(service.call(method, Incoming::whole(link, id, context, body)));
            }
            (Some(body), None) => BodyReader::whole(Arc::clone(&link), id, limit, body),
            (None, _) => BodyReader::new(Arc::clone(&link), id, limit).within(Arc::clone(assembly)),
        };
        let nobody = TaskContext::from_waker(Waker::noop());
        match body.poll_message(&nobody) {
            Poll::Pending => Some(assemble(&link, id, context, body, service, method)),
            Poll::Ready(message) => first_message(&link, id, message)
                .map(|args| service.call(method, Incoming::with_body(context, args, body))),
        }
    }
}

/// Waits for a call's turn, and then runs its handler.
async fn wait(
    start: Start,
    assembly: Arc<Assembly>,
    turn: oneshot::Receiver<Running>,
    until: Instant,
    shared: Arc<Shared>,
) {
    let Ok(Ok(mut running)) = tokio::time::timeout_at(until, turn).await else {
        return refuse(&start.link, start.id, Refusal::Busy, &shared.admission.in_vain());
    };
    running.goes_on();
    if shared.admission.spares_processors() {
        let_sockets_go_first().await;
    }
    drop(shared);
    if let Some(handler) = start.handler(&assembly) {
        handler.await;
    }
    drop(running);
}

/// The same on a thread where no handler may run: only the waiting is done here. Whoever ends this ends the handler.
async fn wait_apart(
    start: Start,
    assembly: Arc<Assembly>,
    turn: oneshot::Receiver<Running>,
    until: Instant,
    shared: Arc<Shared>,
    place: Option<Inside>,
) {
    let Ok(Ok(running)) = tokio::time::timeout_at(until, turn).await else {
        return refuse(&start.link, start.id, Refusal::Busy, &shared.admission.in_vain());
    };
    let handling = start.task(&shared, assembly, running, place);
    // It reports panics itself.
    let _ = AbortOnDropHandle::new(shared.io_threads.home().spawn(handling)).await;
}

/// Lets this thread look at the sockets, where calls wait to be refused, and those who read them go first. A turn comes from a call
/// that has just ended: without this it would pass from one to the next, for a thread looks only when nothing is ready, or every
/// 61 tasks.
async fn let_sockets_go_first() {
    // Wakes this task after the thread has looked, and as the last one…
    tokio::task::yield_now().await;
    // … which goes first; but not when it wakes itself.
    let mut woken = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut woken, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How long the arguments of a call without a deadline may take to come, beside the time that their length allows for.
const ARGUMENTS_TIME: Duration = Duration::from_secs(60);
/// The slowest pace, in bytes a second, at which long arguments may come.
const ARGUMENTS_PACE: usize = 128 << 10;

/// Waits, off the driver, for arguments that span several frames, and then runs the handler.
fn assemble(
    link: &Arc<Link>,
    id: StreamId,
    context: Context,
    mut body: BodyReader,
    service: Arc<dyn Service>,
    method: usize,
) -> HandlerFuture {
    let link = Arc::clone(link);
    let limit = ARGUMENTS_TIME + Duration::from_secs((body.limit() / ARGUMENTS_PACE) as u64);
    Box::pin(async move {
        let Ok(message) = tokio::time::timeout(limit, body.message()).await else {
            let text = format!("the arguments did not come within {limit:?}");
            let status = Status::deadline_exceeded(text).with_execution(Execution::Never);
            return link.fail(id, &WireStatus::from(&status));
        };
        if let Some(args) = first_message(&link, id, message) {
            service.call(method, Incoming::with_body(context, args, body)).await;
        }
    })
}

/// The arguments; `None` if the caller was told why there are none that can be used.
fn first_message(link: &Link, id: StreamId, message: Option<Result<Bytes, BodyError>>) -> Option<Bytes> {
    let status = match message {
        // A call without any message is one without arguments.
        None => return Some(Bytes::new()),
        Some(Ok(args)) => return Some(args),
        Some(Err(BodyError::NoRoom)) => {
            link.refuse(id, Refusal::Busy, None, "the connection has too many long messages under way");
            return None;
        }
        Some(Err(BodyError::TooLong { len, limit })) => Status::invalid_argument(format!(
            "arguments of {len} bytes exceed the limit of {limit}; raise `max_message` at the server or `max_request` of the method"
        )),
        Some(Err(error)) => body_status(error),
    };
    link.fail(id, &WireStatus::from(&status.with_execution(Execution::Never)));
    None
}

/// Polls the handler once, here; spawns it only if it is not ready. What it was given comes back when the call is over.
fn run(
    link: &Arc<Link>,
    id: StreamId,
    context: Context,
    mut future: HandlerFuture,
    running: Running,
    place: Option<Inside>,
) -> (Option<Context>, Option<Running>) {
    let mut context = Some(context);
    match poll(&mut context, &mut future, &mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(finished) => {
            if !finished {
                context.as_ref().inspect(|context| context.cancel());
            }
            (context.filter(|context| finished && context.is_small()), Some(running))
        }
        Poll::Pending => {
            // A task polls it again at once with a waker of its own, so nothing that happens in between is missed.
            spawn(link, id, Handling::begin(context, future, running, place));
            (None, None)
        }
    }
}

fn spawn(link: &Link, id: StreamId, handling: Handling) {
    let task = tokio::spawn(handling);
    link.keep_task(id, task.abort_handle());
}

/// Polls a handler in the context of its call. Panics end here: `false` says that it did not come to its end.
fn poll(context: &mut Option<Context>, future: &mut HandlerFuture, cx: &mut TaskContext<'_>) -> Poll<bool> {
    let poll = AssertUnwindSafe(|| future.as_mut().poll(cx));
    match Context::enter(context, || std::panic::catch_unwind(poll)) {
        Ok(polled) => polled.map(|()| true),
        Err(panic) => {
            // What the handler held was dropped on the way; among it the call, which answered for itself.
            report(context.as_ref(), &*panic);
            Poll::Ready(false)
        }
    }
}

fn report(context: Option<&Context>, panic: &(dyn Any + Send)) {
    tracing::error!(
        service = context.map(Context::service),
        method = context.map(Context::method),
        panic = panic_text(panic),
        "a handler panicked"
    );
}

/// A handler that was not ready at once. Being dropped before the end tells its context.
struct Handling {
    context: Option<Context>,
    future: HandlerFuture,
    done: bool,
    /// Counts this call among those that run, unless it waits for its turn first.
    _running: Option<Running>,
    /// Its place among the calls of its method.
    _place: Option<Inside>,
}

impl Handling {
    fn begin(context: Option<Context>, future: HandlerFuture, mut running: Running, place: Option<Inside>) -> Self {
        running.goes_on();
        Self { context, future, done: false, _running: Some(running), _place: place }
    }
}

impl Future for Handling {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let Self { context, future, done, .. } = &mut *self;
        poll(context, future, cx).map(|finished| *done = finished)
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        if let Some(context) = self.context.as_ref().filter(|_| !self.done) {
            context.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_long_past_its_bound_twice_in_a_row_or_far_past_it_once() {
        let more = Duration::from_nanos(1);
        for (took, was_long, heavy) in [
            (IN_PLACE, true, false),
            (IN_PLACE + more, true, true),
            (IN_PLACE + more, false, false),
            (FAR_TOO_LONG, false, false),
            (FAR_TOO_LONG + more, false, true),
        ] {
            assert_eq!(is_heavy(took, was_long), heavy, "{took:?}, and the one before was long: {was_long}");
        }
    }
}
