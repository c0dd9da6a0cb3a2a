//! One attempt of a call on one connection, as its caller reads it.
//!
//! Owns the duty to cancel: dropping it before the end gives the call up at the server. It must never start another attempt.
//! Look next at [`super::attempts`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};

use super::route::Route;
use super::target::Target;
use super::ticket::Ticket;
use crate::body::{BodyError, BodyReader};
use crate::metadata::Metadata;
use crate::proto::{Read, Short};
use crate::transport::link::Link;
use crate::wire::{self, StreamId};

/// A call whose answer was not read yet.
#[derive(Debug)]
pub struct Asked {
    id: StreamId,
    ticket: Ticket<Arc<Route>>,
    metadata: Option<Box<Metadata>>,
    /// Somebody else has the duty to cancel, or there is nothing to cancel.
    over: bool,
}

/// One message, without its prefix.
#[derive(Debug)]
pub enum Message {
    /// A short one.
    Copied {
        bytes: Short,
        prefix: usize,
    },
    Shared(Bytes),
}

/// What came of it.
pub(super) enum Answer {
    /// The whole answer, one message.
    Whole(Message),
    /// Anything else, to be read from the attempt.
    Other(Attempt),
}

impl Asked {
    pub(super) fn new(id: StreamId, ticket: Ticket<Arc<Route>>) -> Self {
        Self { id, ticket, metadata: None, over: false }
    }

    /// Where it runs.
    pub(super) fn target(&self) -> &Arc<Target> {
        self.ticket.target()
    }

    /// What the server sent beside its answer.
    pub(super) fn metadata(&self) -> Metadata {
        self.metadata.as_deref().cloned().unwrap_or_default()
    }

    /// Waits for the beginning of the answer, messages of which have at most `limit` bytes. Cancel safe.
    pub(super) fn poll_answer(&mut self, limit: usize, cx: &Context<'_>) -> Poll<Answer> {
        let answer = std::task::ready!(self.ticket.link().poll_answer(self.id, &mut self.metadata, cx));
        self.over = true;
        let read = match answer {
            Ok(short) => match wire::parse_prefix(&short) {
                Some((len, prefix)) if len <= limit && prefix + len == short.len() => {
                    self.ticket.finished();
                    return Poll::Ready(Answer::Whole(Message::Copied { bytes: short, prefix }));
                }
                _ => Read::Chunk { bytes: Bytes::copy_from_slice(&short), last: true },
            },
            Err(read) => read,
        };
        let read = match read {
            Read::Chunk { mut bytes, last: true } => match wire::parse_prefix(&bytes) {
                Some((len, prefix)) if len <= limit && prefix + len == bytes.len() => {
                    self.ticket.finished();
                    bytes.advance(prefix);
                    return Poll::Ready(Answer::Whole(Message::Shared(bytes)));
                }
                _ => Read::Chunk { bytes, last: true },
            },
            other => other,
        };
        let reader = BodyReader::new(Arc::clone(self.ticket.link()), self.id, limit).after(read, self.metadata.take());
        let target = Arc::clone(self.ticket.target());
        Poll::Ready(Answer::Other(Attempt::new(reader, self.ticket.hand_over(target))))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.over {
            self.ticket.link().cancel(self.id);
        }
    }
}

/// An open call.
#[derive(Debug)]
pub struct Attempt {
    reader: BodyReader,
    ticket: Ticket,
    /// The server knows that it is over, so there is nothing to cancel.
    over: bool,
}

impl Attempt {
    pub(super) fn new(reader: BodyReader, ticket: Ticket) -> Self {
        Self { reader, ticket, over: false }
    }

    /// Where it runs.
    pub(super) fn target(&self) -> &Arc<Target> {
        self.ticket.target()
    }

    /// Its connection.
    pub(super) fn link(&self) -> &Arc<Link> {
        self.reader.link()
    }

    /// How it is counted.
    pub(super) fn ticket(&mut self) -> &mut Ticket {
        &mut self.ticket
    }

    /// The next message of the answer, `None` at its end. Cancel safe.
    pub(super) fn poll_message(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let message = std::task::ready!(self.reader.poll_message(cx));
        // What a failure means is not known here.
        if !matches!(message, Some(Err(BodyError::Failed(_)))) {
            self.ticket.answered();
        }
        self.over = match &message {
            Some(Ok(_)) => self.reader.is_at_end(),
            None | Some(Err(BodyError::Failed(_) | BodyError::Truncated)) => true,
            Some(Err(BodyError::TooLong { .. } | BodyError::NoRoom)) => false,
        };
        Poll::Ready(message)
    }

    /// See [`BodyReader::read_in_place`].
    pub(super) fn read_in_place<T>(&mut self, items: &mut VecDeque<T>, read: impl FnMut(&[u8]) -> Option<T>) -> bool {
        let any = self.reader.read_in_place(items, read);
        self.over |= any && self.reader.is_at_end();
        any
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
