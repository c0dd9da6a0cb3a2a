//! One attempt of a call on one connection, as its caller reads it.
//!
//! Owns the duty to cancel: dropping it before the end gives the call up at the server. It must never start another attempt.
//! Look next at [`super::attempts`].

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::target::Target;
use crate::body::{BodyError, BodyReader};
use crate::metadata::Metadata;

/// An open call.
#[derive(Debug)]
pub struct Attempt {
    reader: BodyReader,
    target: Arc<Target>,
    /// The server knows that it is over, so there is nothing to cancel.
    over: bool,
}

impl Attempt {
    pub(super) fn new(reader: BodyReader, target: Arc<Target>) -> Self {
        Self { reader, target, over: false }
    }

    /// Where it runs.
    pub(super) fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The next message of the answer, `None` at its end. Cancel safe.
    pub(super) fn poll_message(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let message = std::task::ready!(self.reader.poll_message(cx));
        self.over = match &message {
            Some(Ok(_)) => self.reader.is_at_end(),
            None | Some(Err(BodyError::Failed(_) | BodyError::Truncated)) => true,
            Some(Err(BodyError::TooLong { .. } | BodyError::NoRoom)) => false,
        };
        Poll::Ready(message)
    }

    /// See [`Attempt::poll_message`].
    pub(super) async fn message(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Whether the last message was the end of the answer.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// What the server sent beside its answer.
    pub(super) fn metadata(&self) -> Metadata {
        self.reader.metadata()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.over {
            self.reader.link().cancel(self.reader.id());
        }
    }
}
