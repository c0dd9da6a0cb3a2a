//! The handlers of streams that go down: where their items come from.
//!
//! Must never send. Next: `server`.

use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::BATCH;
use crate::peer::Feed;

/// Items that a channel holds, as many as picom's and what people write by hand.
pub(crate) const CHANNEL: usize = 64;

/// One stream's source.
pub(crate) enum Source {
    Items { next: u64, count: u64 },
    Sent(mpsc::Receiver<u64>),
    Chunks { left: u64, chunk: Bytes },
}

impl Source {
    pub(crate) fn items(count: u64, feed: Feed) -> Self {
        match feed {
            Feed::Ready => Self::Items { next: 0, count },
            Feed::Sent => {
                let (sender, receiver) = mpsc::channel(CHANNEL);
                tokio::spawn(async move {
                    for item in 0..count {
                        sender.send(item).await.expect("somebody reads");
                    }
                });
                Self::Sent(receiver)
            }
        }
    }

    pub(crate) fn chunks(count: u64, size: usize) -> Self {
        Self::Chunks { left: count, chunk: Bytes::from(vec![7; size]) }
    }

    /// What to send next: as many items as are ready and fit a frame, or a chunk. `None` at the end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self {
            Self::Items { next, count } => {
                let mut batch = BytesMut::with_capacity(BATCH);
                while *next < *count && batch.len() < BATCH {
                    batch.put_u64_le(*next);
                    *next += 1;
                }
                Poll::Ready((!batch.is_empty()).then(|| batch.freeze()))
            }
            Self::Sent(items) => {
                let mut batch = BytesMut::new();
                loop {
                    match items.poll_recv(cx) {
                        Poll::Ready(Some(item)) if batch.len() + 8 < BATCH => batch.put_u64_le(item),
                        Poll::Ready(Some(item)) => {
                            batch.put_u64_le(item);
                            return Poll::Ready(Some(batch.freeze()));
                        }
                        _ if !batch.is_empty() => return Poll::Ready(Some(batch.freeze())),
                        Poll::Ready(None) => return Poll::Ready(None),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
            Self::Chunks { left: 0, .. } => Poll::Ready(None),
            Self::Chunks { left, chunk } => {
                *left -= 1;
                Poll::Ready(Some(chunk.clone()))
            }
        }
    }
}
