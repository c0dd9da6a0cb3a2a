//! Streams from the server, in the client.
//!
//! Owns the return of credit: by halves of the window, when the reader has taken the bytes. Next: `client`.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::WINDOW;
use super::client::Shared;
use super::frame::{Key, Kind, number};
use super::slab::Entry;
use crate::peer::Feed;
use crate::workloads::meter::Pace;

/// A stream that is read.
struct Reader<'a> {
    shared: &'a Shared,
    key: Key,
    /// What was taken over with one lock.
    taken: VecDeque<Bytes>,
    unreturned: usize,
}

impl<'a> Reader<'a> {
    fn open(shared: &'a Shared, kind: Kind, arguments: &[u8]) -> Self {
        let mut state = shared.lock();
        let key = state.slab.insert(Entry::Down { queue: VecDeque::new(), ended: false, waker: None });
        state.out.small(kind, key, arguments);
        shared.send(state);
        Self { shared, key, taken: VecDeque::new(), unreturned: 0 }
    }

    /// The next piece, `None` at the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.taken.is_empty() {
            let mut state = self.shared.lock();
            match state.slab.get(self.key) {
                Some(Entry::Down { queue, .. }) if !queue.is_empty() => std::mem::swap(queue, &mut self.taken),
                Some(Entry::Down { ended: true, .. }) => drop(state.slab.remove(self.key)),
                Some(Entry::Down { waker, .. }) => {
                    *waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                _ => unreachable!("the stream is in its place"),
            }
        }
        let Some(piece) = self.taken.pop_front() else { return Poll::Ready(None) };
        self.unreturned += piece.len();
        if self.unreturned >= WINDOW / 2 {
            let mut state = self.shared.lock();
            state.out.small(Kind::Credit, self.key, &(self.unreturned as u64).to_le_bytes());
            self.unreturned = 0;
            self.shared.send(state);
        }
        Poll::Ready(Some(piece))
    }
}

/// The items of a stream, one by one, as whoever reads any of them is given them.
fn read(mut reader: Reader<'_>) -> BoxStream<'_, u64> {
    let mut piece = Bytes::new();
    stream::poll_fn(move |cx| {
        if piece.is_empty() {
            match ready!(reader.poll(cx)) {
                Some(next) => piece = next,
                None => return Poll::Ready(None),
            }
        }
        let len = usize::from(piece.get_u8());
        let item = number(&piece[..len]);
        piece.advance(len);
        Poll::Ready(Some(item))
    })
    .boxed()
}

pub(crate) async fn items(shared: &Shared, count: u64, feed: Feed) -> u64 {
    let kind = match feed {
        Feed::Ready => Kind::Items,
        Feed::Sent => Kind::ItemsSent,
    };
    let mut items = read(Reader::open(shared, kind, &count.to_le_bytes()));
    let (mut sum, mut pace) = (0_u64, Pace::items());
    while let Some(item) = items.next().await {
        pace.add(1);
        sum = sum.wrapping_add(item);
    }
    sum
}

pub(crate) async fn chunks(shared: &Shared, count: u64, size: usize) -> u64 {
    let mut arguments = [0; 16];
    arguments[..8].copy_from_slice(&count.to_le_bytes());
    arguments[8..].copy_from_slice(&(size as u64).to_le_bytes());
    let mut reader = Reader::open(shared, Kind::Chunks, &arguments);
    let (mut bytes, mut pace) = (0, Pace::bytes());
    while let Some(piece) = poll_fn(|cx| reader.poll(cx)).await {
        pace.add(piece.len() as u64);
        bytes += piece.len() as u64;
    }
    bytes
}
