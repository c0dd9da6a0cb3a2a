//! One call as its handler's glue sees it: arguments, body, and the duty to answer.
//!
//! Owns the promise that every call is answered: dropping an [`Incoming`] answers with an error. It must never choose the
//! handler. Look next at [`super::answer`].

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::Shared;
use crate::body::{BodyError, BodyReader};
use crate::context::Context;
use crate::message;
use crate::proto::Failure;
use crate::status::{Execution, Status};
use crate::streaming::Streaming;
use crate::transport::link::Link;
use crate::wire::{StreamId, WireStatus};

/// One call on its way to its handler.
#[derive(Debug)]
pub struct Incoming {
    pub(super) link: Arc<Link>,
    pub(super) id: StreamId,
    context: Context,
    args: Bytes,
    body: Option<BodyReader>,
    answered: bool,
    /// Counts this call among those that run.
    _running: Running,
}

/// One of the calls that a server runs at this moment.
#[derive(Debug)]
pub(super) struct Running(pub(super) Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Incoming {
    pub(super) fn new(context: Context, args: Bytes, body: BodyReader, running: Running) -> Self {
        let link = Arc::clone(body.link());
        let id = body.id();
        Self { link, id, context, args, body: Some(body), answered: false, _running: running }
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
        let Some(mut body) = self.body.take() else { return Streaming::new(futures::stream::empty()) };
        Streaming::new(futures::stream::poll_fn(move |cx| {
            body.poll_message(cx).map(|message| {
                Some(match message? {
                    Ok(message) => message::decode(&message)
                        .map_err(|error| Status::invalid_argument(format!("an item of the body: {error}"))),
                    Err(error) => Err(body_status(error)),
                })
            })
        }))
    }

    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    pub(super) fn max_answer(&self) -> u64 {
        self.link.with_peer(|peer| peer.map_or(u64::MAX, |peer| peer.max_message))
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
