//! Streams to the server, in the client.
//!
//! Must never queue more than the outbox has room for. Next: `sources`, which the server uses as well.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;

use super::WINDOW_UP;
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
        let key = state.slab.insert(Entry::Up { credit: WINDOW_UP as i64, total: None, waker: None });
        state.out.bulk(kind, key, Bytes::new());
        shared.send(state);
        key
    };
    let mut credit = 0;
    loop {
        while credit <= 0 {
            credit += granted(shared, key).await;
        }
        let Some(piece) = poll_fn(|cx| source.poll(cx, credit)).await else { break };
        credit -= piece.len() as i64;
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

/// All the credit that has come.
async fn granted(shared: &Shared, key: Key) -> i64 {
    poll_fn(|cx| match shared.lock().slab.get(key) {
        Some(Entry::Up { credit: credit @ 1.., .. }) => Poll::Ready(std::mem::take(credit)),
        Some(Entry::Up { waker, .. }) => {
            *waker = Some(cx.waker().clone());
            Poll::Pending
        }
        _ => unreachable!("the stream is in its place"),
    })
    .await
}

/// Appends a piece when there is room for it.
async fn push(shared: &Shared, key: Key, piece: Bytes) {
    poll_fn(|cx| {
        let mut state = shared.lock();
        if state.out.is_full() {
            state.crowd.push(cx.waker().clone());
            return Poll::Pending;
        }
        state.out.bulk(Kind::Data, key, piece.clone());
        shared.send(state);
        Poll::Ready(())
    })
    .await;
}
