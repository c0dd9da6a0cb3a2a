//! Streams to the server, in the client.
//!
//! Must never queue more than the outbox has room for. Next: `sources`, which the server uses as well.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;

use super::WINDOW;
use super::client::Shared;
use super::frame::{Key, Kind};
use super::slab::Entry;
use super::sources::Source;
use crate::peer::Feed;

pub(crate) async fn items(shared: &Shared, count: u64, feed: Feed) -> u64 {
    send(shared, Kind::Sum, Source::items(count, feed)).await
}

pub(crate) async fn chunks(shared: &Shared, count: u64, size: usize) -> u64 {
    send(shared, Kind::Size, Source::chunks(count, size)).await
}

async fn send(shared: &Shared, kind: Kind, mut source: Source) -> u64 {
    let key = {
        let mut state = shared.lock();
        let key = state.slab.insert(Entry::Up { credit: WINDOW as i64, total: None, waker: None });
        state.out.bulk(kind, key, Bytes::new());
        shared.send(state);
        key
    };
    while let Some(piece) = poll_fn(|cx| source.poll(cx)).await {
        push(shared, key, piece).await;
    }
    {
        let mut state = shared.lock();
        state.out.bulk(Kind::End, key, Bytes::new());
        shared.send(state);
    }
    poll_fn(|cx| {
        let mut state = shared.lock();
        match state.slab.get(key) {
            Some(Entry::Up { total: Some(total), .. }) => {
                let total = *total;
                state.slab.remove(key);
                Poll::Ready(total)
            }
            Some(Entry::Up { waker, .. }) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => unreachable!("the stream is in its place"),
        }
    })
    .await
}

/// Appends a piece when there is credit and room for it.
async fn push(shared: &Shared, key: Key, piece: Bytes) {
    poll_fn(|cx| {
        let mut state = shared.lock();
        let full = state.out.is_full();
        let Some(Entry::Up { credit, waker, .. }) = state.slab.get(key) else {
            unreachable!("the stream is in its place")
        };
        if *credit <= 0 {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if full {
            state.crowd.push(cx.waker().clone());
            return Poll::Pending;
        }
        *credit -= piece.len() as i64;
        state.out.bulk(Kind::Data, key, piece.clone());
        shared.send(state);
        Poll::Ready(())
    })
    .await;
}
