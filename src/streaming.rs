//! Streams of items as users see them: [`Streaming`], and [`channel`] to make one by hand.
//!
//! Owns the item streams on both sides of a call. It must never decide on retries. Look next at
//! [`crate::body`] for how items come off a connection.

mod queue;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures::Stream;

use crate::metadata::Metadata;
use crate::status::Status;

/// Items that take one unit of the budget that the runtime gives a task, of 128, before it lets others run: counting each of them
/// takes as long as handing it on.
pub(crate) const ITEMS_COUNTED: usize = 32;

/// A stream of items: `Stream<Item = Result<T, E>>`.
///
/// It ends only when the sender ended it; a body that was cut short yields an error first. After an error or the end it yields
/// `None` for ever. Dropping it gives the rest up: in a client the call is cancelled. Cancel safe.
pub struct Streaming<T, E = Status> {
    /// `None` once it has ended.
    source: Option<Box<dyn Source<T, E>>>,
    /// Items that were ready beside those that were asked for.
    ready: VecDeque<Result<T, E>>,
    /// What the runtime has to count of the items that were ready before.
    uncounted: usize,
    metadata: Option<Arc<OnceLock<Metadata>>>,
}

/// Where the items of a [`Streaming`] come from: a stream that is asked for many at once, as a call through a box costs more than
/// a small item.
pub(crate) trait Source<T, E>: Send {
    /// The next item, `None` at the end, and behind it in `ready`, which is empty, others that were there as well. After an error
    /// or the end it is not asked again. Cancel safe.
    fn poll_items(&mut self, ready: &mut VecDeque<Result<T, E>>, cx: &mut Context<'_>) -> Poll<Option<Result<T, E>>>;
}

/// Any stream, whose next items are not asked for before somebody wants them.
struct Any<S>(Pin<Box<S>>);

impl<T, E, S: Stream<Item = Result<T, E>> + Send> Source<T, E> for Any<S> {
    fn poll_items(&mut self, _: &mut VecDeque<Result<T, E>>, cx: &mut Context<'_>) -> Poll<Option<Result<T, E>>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl<T, E> Streaming<T, E> {
    /// Wraps any stream of results.
    pub fn new(items: impl Stream<Item = Result<T, E>> + Send + 'static) -> Self {
        Self::from_source(Any(Box::pin(items)))
    }

    /// A stream of what comes from there.
    pub(crate) fn from_source(source: impl Source<T, E> + 'static) -> Self {
        Self { source: Some(Box::new(source)), ready: VecDeque::new(), uncounted: 0, metadata: None }
    }

    /// The same, with metadata that comes with the first item.
    pub(crate) fn with_metadata(mut self, metadata: Arc<OnceLock<Metadata>>) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// What the server sent beside its answer; known once the first item or the end has come, `None` before, and always `None`
    /// for a stream that no call returned.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref().and_then(|metadata| metadata.get())
    }

    /// The next item, `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// When the stream ended otherwise than by its sender's will.
    pub async fn next(&mut self) -> Option<Result<T, E>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next item or `None` at the end, in the shape that `while let Some(item) = items.message().await?` wants.
    /// Cancel safe.
    ///
    /// # Errors
    /// When the stream ended otherwise than by its sender's will.
    pub async fn message(&mut self) -> Result<Option<T>, E> {
        self.next().await.transpose()
    }

    /// Collects every item, at most `limit` of them.
    ///
    /// # Errors
    /// The stream's own error; [`Code::ResourceExhausted`](crate::Code::ResourceExhausted) when there are more items.
    pub async fn collect_vec(mut self, limit: usize) -> Result<Vec<T>, E>
    where
        E: From<Status>,
    {
        let mut items = Vec::new();
        while let Some(item) = self.message().await? {
            if items.len() == limit {
                return Err(Status::resource_exhausted(format!(
                    "more than {limit} items; read them as a stream or raise the limit"
                ))
                .into());
            }
            items.push(item);
        }
        Ok(items)
    }
}

// Items are moved, never pinned.
impl<T, E> Unpin for Streaming<T, E> {}

impl<T, E> Stream for Streaming<T, E> {
    type Item = Result<T, E>;

    #[inline]
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.ready.pop_front() {
            Some(Ok(item)) => Poll::Ready(Some(Ok(item))),
            item => self.poll_source(item, cx),
        }
    }
}

impl<T, E> Streaming<T, E> {
    /// What comes when no item is ready. Apart from the short way, which every item of a long stream takes.
    #[inline(never)]
    fn poll_source(&mut self, error: Option<Result<T, E>>, cx: &mut Context<'_>) -> Poll<Option<Result<T, E>>> {
        let item = match (error, &mut self.source) {
            (None, Some(source)) => {
                // Who always finds items would never let others run.
                while self.uncounted > 0 {
                    std::task::ready!(std::pin::pin!(tokio::task::coop::consume_budget()).poll(cx));
                    self.uncounted -= 1;
                }
                let item = std::task::ready!(source.poll_items(&mut self.ready, cx));
                self.uncounted = 1 + self.ready.len() / ITEMS_COUNTED;
                item
            }
            (error, _) => error,
        };
        if !matches!(item, Some(Ok(_))) {
            self.source = None;
            self.ready = VecDeque::new();
        }
        Poll::Ready(item)
    }
}

impl<T, E> fmt::Debug for Streaming<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streaming").field("ended", &self.source.is_none()).finish_non_exhaustive()
    }
}

/// A stream to send items into by hand, as the body of a call or the answer of a handler.
///
/// It holds 64 items, whatever their size, and the reader may have as many more: then `send` waits. So make the call, or return the
/// stream, before sending, or send in another task:
///
/// ```
/// # use picom::{Status, Streaming};
/// async fn count(to: u64) -> Result<Streaming<u64>, Status> {
///     let (sender, items) = picom::channel();
///     tokio::spawn(async move {
///         for n in 0..to {
///             if sender.send(n).await.is_err() {
///                 return; // nobody reads any more
///             }
///         }
///     });
///     Ok(items)
/// }
/// ```
///
/// Dropping the sender ends the stream properly; [`Sender::abort`] ends it with an error.
pub fn channel<T: Send + 'static>() -> (Sender<T>, Streaming<T>) {
    let (sender, items) = queue::new();
    (Sender(sender), Streaming::from_source(items))
}

/// The sending side of [`channel`].
pub struct Sender<T>(queue::Sending<Result<T, Status>>);

impl<T> Sender<T> {
    /// Sends one item; waits while the other side has no room for it. Cancel safe: a cancelled `send` sent nothing.
    ///
    /// # Errors
    /// When nobody reads any more; the item comes back.
    pub async fn send(&self, item: T) -> Result<(), SendError<T>> {
        // Mostly there is room, and no future to be made.
        let Err(item) = self.0.send_now(Ok(item)) else { return Ok(()) };
        self.0.send(item).await.map_err(|error| match error {
            Ok(item) => SendError(item),
            // Only `Ok` was sent.
            Err(_) => unreachable!("an item came back as an error"),
        })
    }

    /// Ends the stream with an error, which the reader gets after the items sent before. Does not wait, and has happened when it
    /// is first polled.
    pub async fn abort(self, status: Status) {
        // Without waiting for room: a stream that was to be aborted must not look like one that ended if somebody gives up here.
        self.0.send_last(Err(status));
    }

    /// Waits until nobody reads any more. Cancel safe.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("closed", &self.0.is_closed()).finish_non_exhaustive()
    }
}

/// The reader of a [`channel`] is gone; the item that could not be sent comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendError<T>(pub T);

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the stream any more")
    }
}

impl<T: fmt::Debug> std::error::Error for SendError<T> {}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use futures::StreamExt;

    /// Always has so many items more.
    struct Endless(usize);

    impl Source<u8, Status> for Endless {
        fn poll_items(
            &mut self,
            ready: &mut VecDeque<Result<u8, Status>>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<u8, Status>>> {
            ready.extend((0..self.0).map(|_| Ok(7)));
            Poll::Ready(Some(Ok(7)))
        }
    }

    #[tokio::test]
    async fn who_always_finds_items_lets_others_run_too() {
        for more in [0, 1, ITEMS_COUNTED, 255] {
            tokio::task::yield_now().await;
            let mut items = Streaming::from_source(Endless(more));
            let mut count = 0;
            std::future::poll_fn(|cx| {
                while items.poll_next_unpin(cx).is_ready() {
                    count += 1;
                    assert!(count < 100_000, "a timeout around it would never fire");
                }
                Poll::Ready(())
            })
            .await;
            assert!(count <= (128 + 1) * ITEMS_COUNTED + more, "{count} items with {more} at once");
        }
    }

    #[tokio::test]
    async fn an_abort_that_nobody_waits_for_is_an_abort_even_where_there_is_no_room() {
        let (sender, items) = channel::<u32>();
        let mut sent = 0;
        while futures::poll!(std::pin::pin!(sender.send(sent))).is_ready() {
            sent += 1;
        }
        let _ = futures::poll!(std::pin::pin!(sender.abort(Status::aborted("cut"))));
        let items: Vec<_> = items.collect().await;
        let (last, before) = items.split_last().unwrap();
        assert_eq!(before.len(), sent as usize, "what was sent before is lost");
        assert!(last.is_err(), "a stream that was cut looks like one that ended");
    }
}
