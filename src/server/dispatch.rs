//! The road of a call at the server: from the event to the handler.
//!
//! Owns the choice of the handler, its first poll in place, and its end when the caller gives up or the deadline passes. It
//! must never encode an answer. Look next at [`super::incoming`] for what the handler is given.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Shared;
use super::incoming::{Incoming, Running, body_status};
use super::router::Route;
use crate::body::{Assembly, BodyError, BodyReader};
use crate::context::{Context, Peer};
use crate::metadata::Metadata;
use crate::proto::{Event, MethodRef, Refusal};
use crate::service::{HandlerFuture, panic_text};
use crate::status::{Execution, Status};
use crate::transport::driver::Handler;
use crate::transport::link::Link;
use crate::wire::{StreamId, WireStatus};

/// The calls of one connection.
pub(super) struct Dispatch {
    shared: Arc<Shared>,
    peer: Option<Arc<Peer>>,
    /// Routes by the numbers that the client gave to the methods.
    routes: Vec<Option<Route>>,
    /// Room for messages that are still being put together.
    assembly: Arc<Assembly>,
}

impl Dispatch {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        // One message of the longest kind must always fit.
        let longest = shared.options.max_message.max(shared.router().longest_request());
        let assembly = Arc::new(Assembly::new(shared.options.max_assembly.max(longest)));
        Self { shared, peer: None, routes: Vec::new(), assembly }
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

    fn event(&mut self, link: &Arc<Link>, event: Event) {
        match event {
            Event::Call { id, method, deadline, attempt, metadata } => {
                let head = Head { id, method, deadline, attempt, metadata };
                self.call(link, head);
            }
            Event::Cancelled(id) => link.abort_task(id),
            Event::Expired(id) => {
                let status = Status::deadline_exceeded("the deadline passed while the handler ran");
                link.fail_and_abort(id, &WireStatus::from(&status));
            }
            _ => {}
        }
    }
}

/// What a call says before its body.
struct Head {
    id: StreamId,
    method: MethodRef,
    deadline: Option<std::time::Instant>,
    attempt: u8,
    metadata: Option<Metadata>,
}

impl Dispatch {
    fn call(&mut self, link: &Arc<Link>, call: Head) {
        let id = call.id;
        let route = match self.route(link, &call.method) {
            Ok(route) => route,
            Err(status) => return link.fail(id, &WireStatus::from(&status)),
        };
        let running = self.shared.running.fetch_add(1, Ordering::Relaxed);
        let running_guard = Running(Arc::clone(&self.shared));
        if running >= self.shared.options.max_running {
            return link.refuse(id, Refusal::Busy, "the server has its limit of running calls");
        }
        let Some(peer) = self.peer.clone() else {
            return link.fail(id, &WireStatus::from(&Status::internal("a call came before hello")));
        };
        let context = Context::new(
            Arc::clone(&self.shared.service),
            Arc::clone(&route.name),
            peer,
            call.deadline.map(Instant::from_std),
            call.attempt,
            call.metadata.unwrap_or_default(),
        );
        let limit = route.max_request.unwrap_or(self.shared.options.max_message);
        let mut body = BodyReader::new(Arc::clone(link), id, limit).within(Arc::clone(&self.assembly));
        let nobody = TaskContext::from_waker(Waker::noop());
        let Poll::Ready(message) = body.poll_message(&nobody) else {
            return assemble(link, id, context, body, route, running_guard);
        };
        if let Some(args) = first_message(link, id, message) {
            let incoming = Incoming::new(context.clone(), args, body, running_guard);
            run(link, id, context, Arc::clone(&route.service).call(route.method, incoming));
        }
    }

    fn route(&mut self, link: &Link, method: &MethodRef) -> Result<Route, Status> {
        let number = usize::from(method.number);
        if let Some(Some(route)) = self.routes.get(number) {
            return Ok(route.clone());
        }
        let router = self.shared.router();
        // A name comes with its first call only; a method that is exposed later is looked up again.
        let name = method.name.clone().or_else(|| link.method_name(method.number)).unwrap_or_default();
        let Some(route) = router.get(&name) else {
            return Err(router.unknown(&self.shared.service, &name));
        };
        if number > 0 {
            if self.routes.len() <= number {
                self.routes.resize_with(number + 1, || None);
            }
            self.routes[number] = Some(route.clone());
        }
        Ok(route.clone())
    }
}

/// How long the arguments of a call without a deadline may take to come, beside the time that their length allows for.
const ARGUMENTS_TIME: Duration = Duration::from_secs(60);
/// The slowest pace, in bytes a second, at which long arguments may come.
const ARGUMENTS_PACE: usize = 128 << 10;

/// Waits, off the driver, for arguments that span several frames.
fn assemble(link: &Arc<Link>, id: StreamId, context: Context, mut body: BodyReader, route: Route, running: Running) {
    let in_task = Arc::clone(link);
    let for_handler = context.clone();
    let limit = ARGUMENTS_TIME + Duration::from_secs((body.limit() / ARGUMENTS_PACE) as u64);
    let future: HandlerFuture = Box::pin(async move {
        let Ok(message) = tokio::time::timeout(limit, body.message()).await else {
            let text = format!("the arguments did not come within {limit:?}");
            let status = Status::deadline_exceeded(text).with_execution(Execution::Never);
            return in_task.fail(id, &WireStatus::from(&status));
        };
        if let Some(args) = first_message(&in_task, id, message) {
            let incoming = Incoming::new(for_handler, args, body, running);
            Arc::clone(&route.service).call(route.method, incoming).await;
        }
    });
    run(link, id, context, future);
}

/// The arguments; `None` if the caller was told why there are none that can be used.
fn first_message(link: &Link, id: StreamId, message: Option<Result<Bytes, BodyError>>) -> Option<Bytes> {
    let status = match message {
        // A call without any message is one without arguments.
        None => return Some(Bytes::new()),
        Some(Ok(args)) => return Some(args),
        Some(Err(BodyError::NoRoom)) => {
            link.refuse(id, Refusal::Busy, "the connection has too many long messages under way");
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

/// Polls the handler once, here; spawns it only if it is not ready.
fn run(link: &Arc<Link>, id: StreamId, context: Context, future: HandlerFuture) {
    let mut handler = InContext { context, future, done: false };
    let mut nobody = TaskContext::from_waker(Waker::noop());
    // A task polls it again at once with a waker of its own, so nothing that happens in between is missed.
    if Pin::new(&mut handler).poll(&mut nobody).is_pending() {
        let task = tokio::spawn(handler);
        link.keep_task(id, task.abort_handle());
    }
}

/// A handler in the context of its call. Panics end here; being dropped before the end tells the context.
struct InContext {
    context: Context,
    future: HandlerFuture,
    done: bool,
}

impl Future for InContext {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let Self { context, future, done } = &mut *self;
        let polled = context.enter(|| std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => {
                *done = true;
                Poll::Ready(())
            }
            Err(panic) => {
                // What the handler held is dropped with the future; among it the call, which answers for itself.
                self.report(&*panic);
                Poll::Ready(())
            }
        }
    }
}

impl InContext {
    fn report(&self, panic: &(dyn Any + Send)) {
        tracing::error!(
            service = self.context.service(),
            method = self.context.method(),
            panic = panic_text(panic),
            "a handler panicked"
        );
    }
}

impl Drop for InContext {
    fn drop(&mut self) {
        if !self.done {
            self.context.cancel();
        }
    }
}
