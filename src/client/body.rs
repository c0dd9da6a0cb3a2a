//! The body that a caller streams: from items to the connection, again from the start if the call is tried again.
//!
//! Owns the pump and what it remembers for a second try. It must never decide to try again. Look next at
//! [`crate::pack`] for how items become bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::options::STREAM_WINDOW;
use crate::pack::{self, Packed, Pieces};
use crate::proto::FULL;
use crate::status::Status;
use crate::streaming::Streaming;
use crate::transport::link::{Link, Piece};
use crate::wire::{StreamId, WireStatus};

/// Bytes of a body that are remembered, so that a call which was not processed can be tried on another host. A server that does
/// not take the call gives no credit for it, so this is what can have been asked of the body by then: the first credit of a
/// stream, and what waits behind it.
const REPLAY: usize = STREAM_WINDOW as usize + FULL;

/// What a client method takes where the service takes a [`Streaming<T>`]: any stream of `T`, or a [`Streaming<T>`] itself,
/// whose error then ends the body.
pub trait IntoBody<T>: Send + 'static {
    /// The items, each of which may be the error that ends the body.
    #[doc(hidden)]
    fn into_items(self) -> impl Stream<Item = Result<T, Status>> + Send + 'static;
}

// `Serialize` tells a compiler that looks for `T` the two apart: a `Result` with a `Status` is no item.
impl<T: Serialize + Send + 'static, S: Stream<Item = T> + Send + 'static> IntoBody<T> for S {
    fn into_items(self) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
        self.map(Ok)
    }
}

impl<T: Serialize + Send + 'static> IntoBody<T> for Streaming<T> {
    fn into_items(self) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
        self
    }
}

/// A body that can be sent more than once as long as it was short so far.
#[derive(Clone)]
pub(crate) struct Body(Arc<Mutex<Replay>>);

struct Replay {
    source: Pieces,
    sent: Vec<Piece>,
    size: usize,
    /// More was sent than is remembered.
    overflowed: bool,
    /// The error with which the source ended.
    failed: Option<WireStatus>,
}

impl Body {
    pub(super) fn new<T: Serialize + Send + 'static>(items: impl IntoBody<T>) -> Self {
        let items = items.into_items().map(|item| item.map_err(|status| WireStatus::from(&status.passed_on())));
        // The server's own limit refuses items that are too long, with its own words.
        let source = Box::pin(Packed::new(items, u64::MAX));
        Self(Arc::new(Mutex::new(Replay { source, sent: Vec::new(), size: 0, overflowed: false, failed: None })))
    }

    /// Whether everything sent so far can be sent again. While a pump is at work, its end must be awaited first.
    pub(super) async fn can_replay(&self) -> bool {
        !self.0.lock().await.overflowed
    }

    /// Starts to send it on a call, in a task of its own, because callers need not poll an answer for their body to flow.
    pub(super) fn pump(&self, link: Arc<Link>, id: StreamId) {
        let body = self.clone();
        tokio::spawn(async move {
            // Held until this pump is done; a second one waits here for the first.
            let mut replay = body.0.lock().await;
            let replay = &mut *replay;
            let mut pieces = Again { sent: 0, replay };
            match pack::send_all(&link, id, Pin::new(&mut pieces)).await {
                Ok(()) => link.finish(id),
                Err(status) => link.abort_body(id, status),
            }
        });
    }
}

/// The pieces remembered, then the pieces that follow.
struct Again<'a> {
    sent: usize,
    replay: &'a mut Replay,
}

impl Stream for Again<'_> {
    type Item = Result<Piece, WireStatus>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(piece) = this.replay.sent.get(this.sent) {
            this.sent += 1;
            return Poll::Ready(Some(Ok(piece.clone())));
        }
        let next = match (&this.replay.failed, std::task::ready!(this.replay.source.poll_next_unpin(cx))) {
            // A body that failed must fail each time it is sent: its end is not a proper one.
            (Some(status), None) => Some(Err(status.clone())),
            (_, next) => next,
        };
        if let Some(Err(status)) = &next {
            this.replay.failed = Some(status.clone());
        }
        if let (Some(Ok(piece)), false) = (&next, this.replay.overflowed) {
            // The piece that goes beyond the limit counts only with the next one, which is asked for when it has been sent.
            if this.replay.size > REPLAY {
                this.replay.overflowed = true;
                this.replay.sent = Vec::new();
            } else {
                this.replay.size += piece.len();
                this.replay.sent.push(piece.clone());
                this.sent += 1;
            }
        }
        Poll::Ready(next)
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}
