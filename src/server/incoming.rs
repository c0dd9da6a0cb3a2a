//! One call as its handler's glue sees it: arguments, body, and the duty to answer.
//!
//! Owns the promise that every call is answered: dropping an [`Incoming`] answers with an error. It must never choose the
//! handler. Look next at [`super::answer`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::body::{BodyError, BodyReader};
use crate::context::Context;
use crate::message;
use crate::proto::Failure;
use crate::status::{Execution, Status};
use crate::streaming::{Source, Streaming};
use crate::transport::link::Link;
use crate::wire::{StreamId, WireStatus};

/// One call on its way to its handler.
#[derive(Debug)]
pub struct Incoming {
    pub(super) link: Arc<Link>,
    pub(super) id: StreamId,
    context: Context,
    args: Bytes,
    /// What comes behind the arguments; in a box, for this moves with the handler's future, and most calls have none.
    body: Option<Box<BodyReader>>,
    answered: bool,
}

impl Incoming {
    /// A call that is all there.
    pub(super) fn whole(link: Arc<Link>, id: StreamId, context: Context, args: Bytes) -> Self {
        Self { link, id, context, args, body: None, answered: false }
    }

    /// A call with a body behind its arguments.
    pub(super) fn with_body(context: Context, args: Bytes, body: BodyReader) -> Self {
        let link = Arc::clone(body.link());
        let id = body.id();
        Self { link, id, context, args, body: Some(Box::new(body)), answered: false }
    }

    /// What the handler may know of the call.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Reads the arguments.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument), naming the argument; the handler must not run then.
    pub fn args<A: DeserializeOwned + 'static>(&mut self) -> Result<A, Status> {
        let args = std::mem::take(&mut self.args);
        message::decode_args(&args)
            .map_err(|error| Status::invalid_argument(error.to_string()).with_execution(Execution::Never))
    }

    /// The streamed body of the request. Only the first call of it gets the body.
    pub fn body<T: DeserializeOwned + Send + 'static>(&mut self) -> Streaming<T> {
        match self.body.take() {
            Some(body) => Streaming::from_source(Items(body)),
            None => Streaming::new(futures::stream::empty()),
        }
    }

    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    pub(super) fn max_answer(&self) -> u64 {
        self.link.with_peer(|peer| peer.map_or(u64::MAX, |peer| peer.max_message))
    }
}

/// The items of a body.
struct Items(Box<BodyReader>);

impl<T: DeserializeOwned + 'static> Source<T, Status> for Items {
    fn poll_items(
        &mut self,
        ready: &mut VecDeque<Result<T, Status>>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<T, Status>>> {
        if self.0.read_in_place(ready, |item| message::decode_in_place(item).map(Ok)) {
            return Poll::Ready(ready.pop_front());
        }
        let message = self.0.poll_message(cx);
        if message.is_pending() {
            // Room for what comes together is not kept while nothing comes.
            *ready = VecDeque::new();
        }
        message.map(|message| {
            Some(match message? {
                Ok(message) => message::decode(&message)
                    .map_err(|error| Status::invalid_argument(format!("an item of the body: {error}"))),
                Err(error) => Err(body_status(error)),
            })
        })
    }
}

/// What a handler is told when the body of its request ends badly.
pub(super) fn body_status(error: BodyError) -> Status {
    match error {
        BodyError::Truncated => Status::data_loss("the body of the request ends within a message"),
        BodyError::TooLong { len, limit } => Status::resource_exhausted(format!(
            "a message of {len} bytes in the request exceeds the limit of {limit}; raise `max_message` at the server or `max_request` of the method"
        )),
        // Arguments are refused where they are waited for; items are not counted.
        BodyError::NoRoom => Status::internal("an item was counted among the arguments"),
        BodyError::Failed(Failure::Status { status, .. }) => status.into_status(),
        BodyError::Failed(Failure::Lost { error, .. }) => {
            Status::unavailable(format!("the connection was lost within the body of the request: {error}"))
        }
        BodyError::Failed(_) => Status::cancelled("the caller gave up within the body of the request"),
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let message = if std::thread::panicking() {
            "the handler panicked; see the server's log"
        } else {
            "the handler ended without an answer"
        };
        self.link.fail(self.id, &WireStatus::from(&Status::internal(message)));
    }
}
