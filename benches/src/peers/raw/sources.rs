//! The handlers of streams that go down: where their items come from.
//!
//! Items reach a multiplexer from code that it does not know, and are messages of any length: so they come through a boxed
//! `Stream`, one poll each, and go behind a byte with their length. A loop over numbers that the compiler sees through is faster
//! and multiplexes nothing. Must never send. Next: `server`.

use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;

use super::BATCH;
use crate::peer::Feed;
use crate::workloads::meter::Pace;

/// Items that a channel holds, as many as picom's and what people write by hand.
pub(crate) const CHANNEL: usize = 64;

/// Bytes of an item on the wire: its length and a 64-bit number.
pub(crate) const ITEM: usize = 9;

/// One stream's source.
pub(crate) enum Source {
    Items(BoxStream<'static, u64>),
    Chunks { left: u64, chunk: Bytes, rest: Bytes, pace: Pace },
}

impl Source {
    pub(crate) fn items(count: u64, feed: Feed) -> Self {
        let mut pace = Pace::items();
        Self::Items(match feed {
            Feed::Ready => stream::iter((0..count).inspect(move |_| pace.add(1))).boxed(),
            Feed::Sent => {
                let (sender, mut receiver) = mpsc::channel(CHANNEL);
                tokio::spawn(async move {
                    for item in 0..count {
                        pace.add(1);
                        sender.send(item).await.expect("somebody reads");
                    }
                });
                stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed()
            }
        })
    }

    pub(crate) fn chunks(count: u64, size: usize) -> Self {
        Self::Chunks { left: count, chunk: Bytes::from(vec![7; size]), rest: Bytes::new(), pace: Pace::bytes() }
    }

    /// What to send next: as many items as are ready and fit a frame, or what there is credit for of a chunk. `None` at the end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, credit: i64) -> Poll<Option<Bytes>> {
        match self {
            Self::Items(items) => {
                let mut batch = BytesMut::new();
                while batch.len() + ITEM <= BATCH {
                    match items.poll_next_unpin(cx) {
                        Poll::Ready(Some(item)) => {
                            if batch.is_empty() {
                                batch.reserve(BATCH);
                            }
                            batch.put_u8(size_of::<u64>() as u8);
                            batch.put_u64_le(item);
                        }
                        _ if !batch.is_empty() => break,
                        Poll::Ready(None) => return Poll::Ready(None),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(Some(batch.freeze()))
            }
            Self::Chunks { left: 0, rest, .. } if rest.is_empty() => Poll::Ready(None),
            Self::Chunks { left, chunk, rest, pace } => {
                if rest.is_empty() {
                    pace.add(chunk.len() as u64);
                    *left -= 1;
                    *rest = chunk.clone();
                }
                Poll::Ready(Some(rest.split_to(rest.len().min(credit as usize))))
            }
        }
    }
}
