//! Messages into a body: packing items while their source is ready.
//!
//! Owns the step from items to frames on both sides of a call: many small items leave in one piece, long bytes leave by
//! reference. It must never choose a connection. Look next at [`crate::body`] for the other direction.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::stream::BoxStream;
use serde::Serialize;

use crate::message::{self, MessageError, Number};
use crate::proto::SendState;
use crate::status::Status;
use crate::streaming::ITEMS_COUNTED;
use crate::transport::link::{Link, Piece};
use crate::wire::{self, StreamId, WireStatus};

/// Bytes gathered before they are handed to the connection while a source keeps having items ready.
const PACK: usize = 16 << 10;
/// Bodies of at least this length are handed on by reference; shorter ones are cheaper to copy.
const BY_REFERENCE: usize = 2 << 10;

/// A body ready to be sent: pieces that consist of whole messages, or an error that ends it.
pub(crate) type Pieces = BoxStream<'static, Result<Piece, WireStatus>>;

/// Turns items into pieces of a body. A piece is handed on when enough have gathered, or the source has no item
/// ready, also after others had their turn.
pub(crate) struct Packed<S> {
    items: Pin<Box<S>>,
    packed: BytesMut,
    /// The source had nothing more ready, and those who feed it were let go first.
    waited: bool,
    /// How many more items are asked for before others have their turn, or the runtime is asked whether they should.
    uncounted: usize,
    /// Others had their turn once, so that a handler that is polled in place does not hold up its connection.
    began: bool,
    /// A long message that follows what is packed.
    long: Option<Piece>,
    /// How the source ended, to be told once what is packed has left.
    end: Option<Result<(), WireStatus>>,
    limit: u64,
}

impl<S> Packed<S> {
    /// Packs `items`, each at most `limit` bytes long.
    pub(crate) fn new(items: S, limit: u64) -> Self {
        Self {
            items: Box::pin(items),
            packed: BytesMut::new(),
            waited: false,
            uncounted: ITEMS_COUNTED,
            began: false,
            long: None,
            end: None,
            limit,
        }
    }

    fn take(&mut self) -> Piece {
        Piece::Packed(self.packed.split().freeze())
    }

    /// Lets others run, after the first items and from then on whenever the runtime says so.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.uncounted == 0 {
            if !std::mem::replace(&mut self.began, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(pin!(tokio::task::coop::consume_budget()).poll(cx));
            self.uncounted = ITEMS_COUNTED;
        }
        Poll::Ready(())
    }

    /// Packs one item. Says whether the piece has to leave now.
    fn push<T: Serialize + 'static>(&mut self, item: &T) -> Result<bool, WireStatus> {
        if self.packed.capacity() == 0 {
            // Small at first: many streams carry a few items only.
            self.packed.reserve(PACK / 64);
        } else if self.packed.capacity() < PACK / 4 {
            self.packed.reserve(2 * PACK);
        }
        let before = self.packed.len();
        if let Some(bytes) = message::as_shared_bytes(item).filter(|bytes| bytes.len() >= BY_REFERENCE) {
            self.check(bytes.len())?;
            self.long = Some(long(bytes.clone()).map_err(|error| cannot_encode(&error))?);
            return Ok(true);
        }
        if let Some(number) = Number::of(item).filter(|number| number.len() as u64 <= self.limit) {
            wire::put_short(&mut self.packed, number.bytes(), number.len());
            return Ok(self.packed.len() >= PACK);
        }
        let encode = |out: &mut BytesMut| message::encode(item, out).map(|()| wire::Apart::new());
        let len = match wire::encode_message(&mut self.packed, encode) {
            Ok((len, _)) => len,
            Err(error) => {
                self.packed.truncate(before);
                return Err(cannot_encode(&error));
            }
        };
        if let Err(status) = self.check(len) {
            self.packed.truncate(before);
            return Err(status);
        }
        Ok(self.packed.len() >= PACK)
    }

    fn check(&self, len: usize) -> Result<(), WireStatus> {
        if len as u64 <= self.limit {
            return Ok(());
        }
        let text =
            format!("an item of {len} bytes exceeds the peer's limit of {}; raise `max_message` there", self.limit);
        Err(WireStatus::from(&Status::resource_exhausted(text)))
    }
}

fn cannot_encode(error: &MessageError) -> WireStatus {
    WireStatus::from(&Status::internal(format!("an item cannot be encoded: {error}")))
}

impl<S, T> Stream for Packed<S>
where
    S: Stream<Item = Result<T, WireStatus>>,
    T: Serialize + 'static,
{
    type Item = Result<Piece, WireStatus>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while this.long.is_none() && this.end.is_none() {
            ready!(this.poll_turn(cx));
            match this.items.as_mut().poll_next(cx) {
                Poll::Pending if this.packed.is_empty() => return Poll::Pending,
                // Who feeds the source item by item may have the next ones ready in a moment, and one frame carries all.
                Poll::Pending if !std::mem::replace(&mut this.waited, true) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Ready(Some(Ok(this.take()))),
                Poll::Ready(None) => this.end = Some(Ok(())),
                Poll::Ready(Some(Err(status))) => this.end = Some(Err(status)),
                Poll::Ready(Some(Ok(item))) => {
                    this.uncounted -= 1;
                    match this.push(&item) {
                        Ok(false) => this.waited = false,
                        Ok(true) => break,
                        Err(status) => this.end = Some(Err(status)),
                    }
                }
            }
        }
        if !this.packed.is_empty() {
            return Poll::Ready(Some(Ok(this.take())));
        }
        if let Some(long) = this.long.take() {
            return Poll::Ready(Some(Ok(long)));
        }
        match this.end.replace(Ok(())) {
            Some(Err(status)) => Poll::Ready(Some(Err(status))),
            _ => Poll::Ready(None),
        }
    }
}

/// Sends every piece, waiting while the connection has no room; returns early when nobody wants more. `Err` is what the
/// other side has to be told.
pub(crate) async fn send_all(
    link: &Link,
    id: StreamId,
    mut pieces: Pin<&mut (impl Stream<Item = Result<Piece, WireStatus>> + ?Sized)>,
) -> Result<(), WireStatus> {
    loop {
        let piece = std::future::poll_fn(|cx| {
            if let Poll::Ready(piece) = pieces.as_mut().poll_next(cx) {
                return Poll::Ready(piece);
            }
            // A source that is slow to have the next item must not keep a call alive that is over.
            ready!(link.poll_over(id, cx));
            Poll::Ready(None)
        });
        match piece.await {
            None => return Ok(()),
            Some(Err(status)) => return Err(status),
            Some(Ok(piece)) => match link.send(id, piece) {
                Ok(SendState::More) => {}
                Ok(SendState::Full) => {
                    link.writable(id).await;
                    // A source that is asked for more than anybody wants has to remember it for the next try.
                    if link.is_over(id) {
                        return Ok(());
                    }
                }
                Err(_) => return Ok(()),
            },
        }
    }
}

/// One message of bytes, by reference.
fn long(body: Bytes) -> Result<Piece, MessageError> {
    let mut bin = BytesMut::with_capacity(wire::LONG_PREFIX);
    message::put_bin_header(body.len(), &mut bin)?;
    let mut head = BytesMut::with_capacity(2 * wire::LONG_PREFIX);
    wire::put_prefix(&mut head, bin.len() + body.len());
    head.extend_from_slice(&bin);
    Ok(Piece::Long { head: head.freeze(), body })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use futures::{StreamExt, stream};

    async fn pieces<T: Serialize + 'static>(items: Vec<T>) -> Vec<Piece> {
        let items = stream::iter(items.into_iter().map(Ok::<_, WireStatus>));
        Packed::new(items, u64::MAX).map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn items_that_are_ready_leave_in_one_piece() {
        assert_eq!(pieces(vec![1u8, 2, 3]).await, [Piece::Packed(Bytes::from_static(&[1, 1, 1, 2, 1, 3]))]);
        assert!(pieces(Vec::<u8>::new()).await.is_empty());
    }

    #[tokio::test]
    async fn long_bytes_leave_by_reference_behind_their_header() {
        let bytes = Bytes::from(vec![9; BY_REFERENCE]);
        let short = Bytes::from_static(b"x");
        let pieces = pieces(vec![short.clone(), bytes.clone(), short]).await;
        let [Piece::Packed(_), Piece::Long { body, .. }, Piece::Packed(_)] = &*pieces else {
            unreachable!("three pieces in the order of the items, not {pieces:?}")
        };
        assert_eq!(body.as_ptr(), bytes.as_ptr(), "the bytes were copied");
    }

    #[tokio::test]
    async fn what_was_packed_leaves_before_the_error() {
        let items = stream::iter([Ok(1u8), Err(WireStatus::from(&Status::aborted("enough")))]);
        let mut packed = Packed::new(items, u64::MAX);
        assert_eq!(packed.next().await.unwrap().unwrap(), Piece::Packed(Bytes::from_static(&[1, 1])));
        assert!(packed.next().await.unwrap().is_err());
        assert!(packed.next().await.is_none());
    }

    #[tokio::test]
    async fn who_always_has_items_lets_others_run_soon_and_then_again_and_again() {
        let asked = std::cell::Cell::new(0);
        let items = stream::repeat(7_u64).inspect(|_| asked.set(asked.get() + 1)).map(Ok::<_, WireStatus>);
        let mut packed = pin!(Packed::new(items, u64::MAX));
        for expected in [ITEMS_COUNTED, 128 * ITEMS_COUNTED, 128 * ITEMS_COUNTED] {
            // Each turn has a budget of its own.
            tokio::task::yield_now().await;
            asked.set(0);
            std::future::poll_fn(|cx| {
                while packed.as_mut().poll_next(cx).is_ready() {
                    assert!(asked.get() < 100_000, "a timeout around it would never fire");
                }
                Poll::Ready(())
            })
            .await;
            assert_eq!(asked.get(), expected);
        }
    }
}
