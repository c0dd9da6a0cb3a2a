//! The client: callers append and wait, one task writes, one reads.
//!
//! Owns the lock, which is never held while anything waits. Must never wake anybody with the lock held. Next: `slab`, and
//! `down` and `up` for streams.

use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::frame::{Key, Kind, number};
use super::inbox::Inbox;
use super::outbox::{Outbox, SLICES, Sending};
use super::slab::{Entry, Slab};
use super::{down, up};
use crate::peer::{Client, Feed};

/// Small frames that are worth a write of their own, and those that should not wait for more.
const PLENTY: RangeInclusive<usize> = 32..=128;

pub(crate) struct Shared {
    state: Mutex<State>,
    socket: OwnedWriteHalf,
}

pub(crate) struct State {
    pub(crate) out: Outbox,
    pub(crate) slab: Slab,
    /// The writer, while it sleeps.
    pub(crate) writer: Option<Waker>,
    /// Whether the writer has begun what nobody else may write into.
    sending: bool,
    /// Streams up that wait for room in the outbox.
    pub(crate) crowd: Vec<Waker>,
}

impl Shared {
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic with the lock held")
    }

    /// Lets the caller's frame be sent: by itself if it is alone, else by the writer, which then has more to send; but half of
    /// the calls at once, so that the server works on them while the other half is made.
    #[inline]
    pub(crate) fn send(&self, mut state: MutexGuard<'_, State>) {
        let plenty = (state.slab.used / 2).clamp(*PLENTY.start(), *PLENTY.end());
        let now = state.slab.used == 1 || state.out.frames >= plenty;
        if now && !state.sending && self.write_now(&mut state) {
            return;
        }
        if state.writer.is_none() {
            return;
        }
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
    }

    /// Writes what is there if it is small; whether all of it is gone.
    #[inline]
    fn write_now(&self, state: &mut State) -> bool {
        state.out.frames = 0;
        let Some(small) = state.out.only_small() else { return false };
        let Ok(bytes) = self.socket.try_write(small) else { return false };
        small.drain(..bytes);
        small.is_empty()
    }
}

#[derive(Clone)]
pub(crate) struct Caller(Arc<Shared>);

pub(crate) async fn connect(address: SocketAddr) -> Caller {
    let stream = TcpStream::connect(address).await.expect("a server");
    stream.set_nodelay(true).expect("an open connection");
    let (reader, socket) = stream.into_split();
    let state = State { out: Outbox::default(), slab: Slab::new(), writer: None, sending: false, crowd: Vec::new() };
    let shared = Arc::new(Shared { state: Mutex::new(state), socket });
    tokio::spawn(write(Arc::clone(&shared)));
    tokio::spawn(read(Arc::clone(&shared), reader));
    Caller(shared)
}

async fn write(shared: Arc<Shared>) {
    let mut sending = Sending::default();
    loop {
        poll_fn(|cx| {
            let mut state = shared.lock();
            state.sending = false;
            if !state.out.is_empty() {
                return Poll::Ready(());
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        // Whoever can run appends first, and all of it goes in one write.
        tokio::task::yield_now().await;
        let crowd = {
            let mut state = shared.lock();
            state.sending = true;
            sending.load(&mut state.out);
            std::mem::take(&mut state.crowd)
        };
        crowd.into_iter().for_each(Waker::wake);
        while !sending.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = sending.slices(&mut slices);
            match shared.socket.try_write_vectored(&slices[..count]) {
                Ok(bytes) => sending.advance(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    shared.socket.writable().await.expect("an open connection");
                }
                Err(error) => panic!("cannot write: {error}"),
            }
        }
    }
}

async fn read(shared: Arc<Shared>, mut reader: OwnedReadHalf) {
    let mut inbox = Inbox::new();
    let mut wakers = Vec::new();
    loop {
        let bytes = reader.read_buf(inbox.room()).await.expect("an open connection");
        assert!(bytes > 0, "the server has closed the connection");
        inbox.filled();
        deliver(&mut shared.lock().slab, &mut inbox, &mut wakers);
        wakers.drain(..).for_each(Waker::wake);
    }
}

/// Puts everything that came where it is waited for.
fn deliver(slab: &mut Slab, inbox: &mut Inbox, wakers: &mut Vec<Waker>) {
    while let Some((head, body)) = inbox.frame() {
        let key = head.key;
        let Some(entry) = slab.get(key) else {
            body.look();
            continue;
        };
        match (head.kind, entry) {
            (Kind::Number, entry @ Entry::Waiting(_)) => {
                let answer = Entry::Number(number(body.look()));
                if let Entry::Waiting(waker) = std::mem::replace(entry, answer) {
                    wakers.push(waker);
                }
            }
            (Kind::Number, Entry::Up { total, waker, .. }) => {
                *total = Some(number(body.look()));
                wakers.extend(waker.take());
            }
            (Kind::BodyPart, Entry::Body { size, parts, .. }) => body.join(parts, *size),
            (Kind::BodyEnd, Entry::Body { parts, whole, waker, .. }) => {
                *whole = Some(body.end(std::mem::take(parts)));
                wakers.extend(waker.take());
            }
            (Kind::Data, Entry::Down { queue, waker, .. }) => {
                queue.push_back(body.take());
                wakers.extend(waker.take());
            }
            (Kind::End, Entry::Down { ended, waker, .. }) => {
                body.look();
                *ended = true;
                wakers.extend(waker.take());
            }
            (Kind::Credit, Entry::Up { credit, waker, .. }) => {
                *credit += number(body.look()) as i64;
                wakers.extend(waker.take());
            }
            (kind, Entry::Gone) => {
                body.look();
                if matches!(kind, Kind::Number | Kind::BodyEnd | Kind::End) {
                    slab.remove(key);
                }
            }
            (kind, entry) => unreachable!("{kind:?} for {entry:?}"),
        }
    }
}

impl Client for Caller {
    #[inline]
    fn add(&self, a: u64, b: u64) -> impl Future<Output = u64> + Send {
        Add { shared: &self.0, numbers: [a, b], key: None }
    }

    async fn echo(&self, body: Bytes) -> Bytes {
        let shared = &*self.0;
        let key = {
            let mut state = shared.lock();
            let key =
                state.slab.insert(Entry::Body { size: body.len(), parts: BytesMut::new(), whole: None, waker: None });
            state.out.message(Kind::EchoPart, Kind::EchoEnd, key, body);
            shared.send(state);
            key
        };
        poll_fn(|cx| {
            let mut state = shared.lock();
            match state.slab.get(key) {
                Some(Entry::Body { whole, waker, .. }) => match whole.take() {
                    Some(whole) => {
                        state.slab.remove(key);
                        Poll::Ready(whole)
                    }
                    None => {
                        *waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                },
                _ => unreachable!("the call is in its place"),
            }
        })
        .await
    }

    async fn items_down(&self, count: u64, feed: Feed) -> u64 {
        down::items(&self.0, count, feed).await
    }

    async fn items_up(&self, count: u64, feed: Feed) -> u64 {
        up::items(&self.0, count, feed).await
    }

    async fn chunks_down(&self, count: u64, size: usize) -> u64 {
        down::chunks(&self.0, count, size).await
    }

    async fn chunks_up(&self, count: u64, size: usize) -> u64 {
        up::chunks(&self.0, count, size).await
    }
}

/// One call for a number: the first poll registers and appends, the second takes the answer.
struct Add<'a> {
    shared: &'a Shared,
    numbers: [u64; 2],
    key: Option<Key>,
}

impl Future for Add<'_> {
    type Output = u64;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        let shared = self.shared;
        let mut state = shared.lock();
        let Some(key) = self.key else {
            let key = state.slab.insert(Entry::Waiting(cx.waker().clone()));
            let mut body = [0; 16];
            body[..8].copy_from_slice(&self.numbers[0].to_le_bytes());
            body[8..].copy_from_slice(&self.numbers[1].to_le_bytes());
            state.out.small(Kind::Add, key, &body);
            shared.send(state);
            self.key = Some(key);
            return Poll::Pending;
        };
        match state.slab.get(key) {
            Some(Entry::Number(sum)) => {
                let sum = *sum;
                state.slab.remove(key);
                self.key = None;
                Poll::Ready(sum)
            }
            Some(Entry::Waiting(waker)) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            _ => unreachable!("the call is in its place"),
        }
    }
}

impl Drop for Add<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let mut state = self.shared.lock();
            match state.slab.get(key) {
                Some(entry @ Entry::Waiting(_)) => *entry = Entry::Gone,
                _ => drop(state.slab.remove(key)),
            }
        }
    }
}
