//! The one task of a connection: reads, hands events on, writes what is queued, keeps the timer.
//!
//! Owns the reading half, its buffer and the order of work in one wake: read, dispatch, write, sleep. It must never hold the
//! lock across a write or a handler. Look next at [`super::link`] for how others share the connection.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use super::link::{Flush, Link, Phase};
use super::state::{News, State};
use super::{Io, ReadHalf, buffers};
use crate::proto::{Config, Connection, Error, Event, Load};
use crate::wire::{HEADER, Header, MAX_PAYLOAD};

/// Size of the read buffer of a quiet connection. One that waits has none, so it is one that allocators make quickly.
const MIN_READ: usize = 1 << 10;
/// What must be left of a buffer for another read into it, unless all of it is less.
const MIN_ROOM: usize = 4 << 10;
/// Size to which the read buffer grows while reads fill it. A piece of a body that is not read keeps the buffer it came in, so
/// with pieces of 16 KiB and more a stream holds at most eight times its credit.
const MAX_READ: usize = 128 << 10;
/// Size of the buffers into which such reads go: two frames of the longest kind.
const BULK: usize = 2 * (HEADER + MAX_PAYLOAD);
/// Reads in a row that use less than a quarter of the buffer before it is halved.
const SHRINK_AFTER: u32 = 16;
/// Events handed on in one turn, and turns in one wake: bounds how long one connection keeps a worker.
const EVENTS_PER_TURN: usize = 256;
/// See [`EVENTS_PER_TURN`].
const TURNS_PER_WAKE: usize = 8;
/// How long a closed connection may stand still: with last words that the peer does not take, or with nothing coming from it.
const LINGER: Duration = Duration::from_secs(1);
/// How long a peer may take nothing while something waits to be written. It costs memory at this end and tells its own keepalive
/// nothing; NATS gives a slow reader as long. TCP_USER_TIMEOUT is the same for what the kernel has already, on systems that have it.
const WRITE_STALL: Duration = Duration::from_secs(10);
/// How many bytes a closed connection is still read, so that the peer gets our last words instead of a reset. A peer that has
/// not heard of the end yet may send as much as the default credit of a connection allows.
const LINGER_BYTES: usize = crate::proto::CONNECTION_WINDOW as usize;

/// What happens with the events that concern calls: the server dispatches them, a client has none.
pub(crate) trait Handler: Send + 'static {
    /// Hello is through.
    fn ready(&mut self, link: &Arc<Link>);
    /// A call arrived, was given up or is over its deadline.
    fn event(&mut self, link: &Arc<Link>, happened: Happened);
    /// No more events are there for now.
    fn rest(&mut self);
    /// The peer has said how busy it is. Once for all that is read together.
    fn load(&mut self, load: Load);
    /// Whether others who can run now take so long that nothing may wait for them.
    fn hurries(&self) -> bool {
        false
    }
    /// Whether the connection should be driven elsewhere.
    fn is_misplaced(&self) -> bool {
        false
    }
    /// It is driven by threads that do nothing else from now on, or no longer.
    fn moved(&mut self, _apart: bool) {}
    /// It cannot be driven elsewhere.
    fn stays(&mut self) {}
    /// Something was read. Once for all that is read together.
    fn read(&mut self, _link: &Arc<Link>, _now: std::time::Instant) {}
}

/// An event, and the body of the call that it announces if all of it is there.
pub(crate) type Happened = (Event, Option<Bytes>);

/// A client's connection: nobody calls it.
pub(crate) struct NoCalls;

impl Handler for NoCalls {
    fn ready(&mut self, _link: &Arc<Link>) {}
    fn event(&mut self, _link: &Arc<Link>, _happened: Happened) {}
    fn rest(&mut self) {}
    fn load(&mut self, _load: Load) {}
}

/// The task of one connection; [`Driver::run`] ends when the connection does. Dropping it ends the connection too.
pub(crate) struct Driver<H: Handler> {
    link: Arc<Link>,
    read: Box<dyn ReadHalf>,
    buffer: BytesMut,
    read_size: usize,
    small_reads: u32,
    events: VecDeque<Happened>,
    wakers: Vec<Waker>,
    timer: Pin<Box<Sleep>>,
    yielded: bool,
    /// So much waits to be written that nothing more is read.
    congested: bool,
    /// When a closed connection is given up although not everything was written.
    close_by: Option<Instant>,
    handler: H,
}

/// Makes the handle and the task of a connection. Nothing happens until the task runs.
pub(crate) fn connection<H: Handler>(
    io: Io,
    remote: Option<SocketAddr>,
    config: Arc<Config>,
    handler: H,
) -> (Arc<Link>, Driver<H>) {
    #[cfg(test)]
    let made_with = Arc::clone(&config);
    let proto = Connection::new(config, Instant::now().into_std());
    let link = Arc::new(Link::new(proto, io.write, remote));
    #[cfg(test)]
    super::simulated::made(&made_with, Arc::downgrade(&link));
    let driver = Driver {
        link: Arc::clone(&link),
        read: io.read,
        buffer: BytesMut::new(),
        read_size: MIN_READ,
        small_reads: 0,
        // See `Connection::new`.
        events: VecDeque::with_capacity(1),
        wakers: Vec::new(),
        timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        yielded: false,
        congested: false,
        close_by: None,
        handler,
    };
    (link, driver)
}

impl<H: Handler> Driver<H> {
    /// Drives the connection to its end and says why it ended.
    pub(crate) async fn run(mut self) -> Arc<Error> {
        loop {
            if let Some(error) = self.drive().await {
                return error;
            }
        }
    }

    /// Drives the connection to its end and says why it ended; or as long as this is where its handler wants to be.
    pub(crate) async fn drive(&mut self) -> Option<Arc<Error>> {
        let error = Arc::new(std::future::poll_fn(|cx| self.poll(cx)).await?);
        self.link.lost(&error);
        self.link.shutdown();
        if !matches!(*error, Error::Io { .. }) {
            self.linger().await;
        }
        Some(error)
    }

    /// From here on the runtime of whoever calls this drives it, whose threads do nothing else. If that cannot be, it stays where it was.
    pub(crate) fn moves_away(&mut self) -> bool {
        let moves = self.read.leave_home();
        if moves {
            self.moved(true);
        } else {
            self.stays();
        }
        moves
    }

    /// The runtime of whoever calls this drives it, which is the first one again.
    pub(crate) fn moves_home(&mut self) {
        self.read.come_home();
        self.moved(false);
    }

    /// It cannot be driven elsewhere.
    pub(crate) fn stays(&mut self) {
        self.handler.stays();
    }

    fn moved(&mut self, apart: bool) {
        // The old one would be late where the old runtime is.
        self.timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        self.link.lock().armed = None;
        self.handler.moved(apart);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Error>> {
        {
            let mut state = self.link.lock();
            state.awake = true;
            if !state.driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.driver = Some(cx.waker().clone());
            }
            // Whoever woke us has queued one thing. Others who can run now will queue theirs first if we let them, and
            // one write carries all.
            let kicked = std::mem::take(&mut state.kicked) && !self.handler.hurries();
            if kicked && !std::mem::replace(&mut self.yielded, true) {
                drop(state);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.yielded = false;
        if self.handler.is_misplaced() {
            return Poll::Ready(None);
        }
        for _ in 0..TURNS_PER_WAKE {
            let progress = match self.poll_turn(cx) {
                Ok(progress) => progress,
                Err(error) => return Poll::Ready(Some(self.last_words(error))),
            };
            if !progress && self.try_sleep(cx) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once, hands events on, writes once. Says whether there may be more to do right away.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut progress = false;
        self.wakers.drain(..).for_each(Waker::wake);
        let mut listening = false;
        if self.events.is_empty() && !self.congested {
            let read = self.poll_read(cx)?;
            listening = !read;
            progress |= read;
        }
        progress |= self.dispatch();
        // `try_sleep` has polled it, so it wakes this task; here it is enough to look.
        if self.timer.is_elapsed() && self.link.lock().armed.take().is_some() {
            self.time_out(listening)?;
            progress = true;
        }
        let state = self.link.lock();
        let closing = state.is_closing();
        let congested = self.congested || state.proto.is_congested();
        match self.link.flush(state) {
            Flush::Done => {}
            Flush::More => progress = true,
            Flush::Blocked => {
                if self.link.poll_write_ready(cx)?.is_ready() {
                    self.link.lock().blocked = false;
                    progress = true;
                }
            }
        }
        if congested {
            self.congested = self.link.lock().proto.is_congested();
            // Perhaps nothing was read this time; then nothing wakes this task when there is something to read.
            progress |= !self.congested;
        }
        Ok((closing && self.poll_closing(cx)?) || progress)
    }

    /// Ends a connection that is closed once its last words are written, and one that cannot be written to once everything
    /// that the peer sent before is read: answers, above all, and that it takes no more calls.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut state = self.link.lock();
        if state.take_progressed() {
            self.close_by = None;
        }
        let limit = *self.close_by.get_or_insert_with(|| Instant::now() + LINGER);
        let late = limit <= Instant::now();
        match state.write_error() {
            Some(error) if late || state.proto.is_congested() => return Err(error.clone()),
            None if late || !state.has_output() => return Err(Error::Closed),
            _ => {}
        }
        state.armed = Some(limit.into_std());
        drop(state);
        self.timer.as_mut().reset(limit);
        Ok(self.timer.as_mut().poll(cx).is_ready())
    }

    /// Goes to sleep unless somebody has queued something in the meantime.
    fn try_sleep(&mut self, cx: &mut Context<'_>) -> bool {
        let mut state = self.link.lock();
        take_events(&self.link, &mut state, &mut self.wakers, &mut self.events);
        // Whoever is in the middle of a write finds this task asleep afterwards, and wakes it if more is left. To look again and again
        // until then would take the lock from those who call, and the processor from whoever writes.
        let has_output = !state.writing && state.can_write() && state.proto.wants_transmit();
        let began_to_close = self.close_by.is_none() && state.is_closing();
        if !self.events.is_empty() || !self.wakers.is_empty() || has_output || began_to_close {
            return false;
        }
        let timeout = match (state.proto.timeout(), self.stalls_at(&mut state)) {
            (Some(timeout), Some(stall)) => Some(timeout.min(stall)),
            (timeout, stall) => timeout.or(stall),
        };
        // A timer that fires too early costs a look; moving it at every frame would cost more.
        let rearm = match (timeout, state.armed) {
            (Some(timeout), Some(armed)) => timeout < armed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if let (true, Some(timeout)) = (rearm, timeout) {
            state.armed = Some(timeout);
            self.timer.as_mut().reset(Instant::from_std(timeout));
            if self.timer.as_mut().poll(cx).is_ready() {
                return false;
            }
        }
        state.awake = false;
        state.kicked = false;
        drop(state);
        // Making a small one again costs a hundredth of a read.
        if self.buffer.is_empty() && self.read_size == MIN_READ {
            self.buffer = BytesMut::new();
        }
        true
    }

    /// When the peer will have taken nothing for too long, if something waits for it.
    fn stalls_at(&self, state: &mut State) -> Option<std::time::Instant> {
        let blocked = state.blocked && !state.proto.is_closed();
        blocked.then(|| *state.stalled_since.get_or_insert_with(|| Instant::now().into_std()) + WRITE_STALL)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let room = self.make_room();
        let mut target = (&mut self.buffer).limit(room);
        let n = match poll_read_buf(Pin::new(&mut *self.read), cx, &mut target) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Poll::Ready(Err(error)) => return Err(Error::from(error)),
            Poll::Ready(Ok(0)) => return Err(eof(&self.buffer)),
            Poll::Ready(Ok(n)) => n,
        };
        self.adapt(n, room);
        let now = Instant::now().into_std();
        let mut state = self.link.lock();
        let received = state.proto.receive(&mut self.buffer, now);
        let load = state.proto.take_load();
        let became_ready = take_events(&self.link, &mut state, &mut self.wakers, &mut self.events);
        drop(state);
        if let Some(load) = load {
            self.handler.load(load);
        }
        self.handler.read(&self.link, now);
        self.wakers.drain(..).for_each(Waker::wake);
        if became_ready {
            self.handler.ready(&self.link);
        }
        received.map(|()| true)
    }

    /// Makes room for a read and says how much of it is to be used.
    fn make_room(&mut self) -> usize {
        let spare = self.buffer.capacity() - self.buffer.len();
        if self.read_size < MAX_READ {
            if spare < MIN_ROOM.min(self.read_size) {
                self.buffer.reserve(self.read_size);
            }
            return self.buffer.capacity() - self.buffer.len();
        }
        // Of the frame at the front, which is not whole.
        let frame = Header::parse(&self.buffer).ok().flatten().map_or(0, |header| HEADER + header.len);
        let missing = frame.saturating_sub(self.buffer.len());
        let again = self.buffer.is_empty() && self.buffer.try_reclaim(BULK);
        if spare < missing.max(MIN_ROOM) && !again {
            let mut next = buffers::used(BULK).unwrap_or_else(|| BytesMut::with_capacity(BULK));
            next.extend_from_slice(&self.buffer);
            buffers::keep(std::mem::replace(&mut self.buffer, next), BULK);
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        if missing == 0 || spare < missing {
            return spare;
        }
        // The frames behind it are probably as long. A read that ends where one of them does leaves nothing behind to be moved
        // to the next buffer.
        missing + (spare - missing) / frame * frame
    }

    /// Lets the buffer follow the traffic: twice as large when a read fills it, half when many reads do not need it.
    fn adapt(&mut self, n: usize, room: usize) {
        if n == room {
            self.read_size = (self.read_size * 2).min(MAX_READ);
            self.small_reads = 0;
        } else if n < self.read_size / 4 && self.read_size > MIN_READ {
            self.small_reads += 1;
            if self.small_reads >= SHRINK_AFTER {
                if self.read_size == MAX_READ {
                    // The burst is over, whatever else goes on.
                    buffers::forget();
                }
                self.read_size /= 2;
                self.small_reads = 0;
            }
        } else {
            self.small_reads = 0;
        }
    }

    fn dispatch(&mut self) -> bool {
        let mut handed_on = false;
        for _ in 0..EVENTS_PER_TURN {
            let Some(happened) = self.events.pop_front() else { break };
            self.handler.event(&self.link, happened);
            handed_on = true;
        }
        if handed_on {
            self.handler.rest();
        }
        handed_on
    }

    /// `listening` says that everything the peer has sent was read: otherwise its silence is ours.
    fn time_out(&mut self, listening: bool) -> Result<(), Error> {
        let now = Instant::now().into_std();
        let mut state = self.link.lock();
        if !listening {
            state.proto.excuse_silence(now);
        }
        let mut result = state.proto.handle_timeout(now);
        if result.is_ok() && self.stalls_at(&mut state).is_some_and(|limit| limit <= now) {
            result = Err(Error::WriteStall(WRITE_STALL));
        }
        take_events(&self.link, &mut state, &mut self.wakers, &mut self.events);
        // Time passes only where little else does: what a burst needed is given back.
        state.proto.rest();
        state.batch.rest();
        drop(state);
        self.wakers.drain(..).for_each(Waker::wake);
        if self.buffer.is_empty() {
            if self.buffer.capacity() > MIN_READ {
                buffers::forget();
            }
            self.buffer = BytesMut::new();
            self.read_size = MIN_READ;
        }
        result
    }

    /// Writes what is still queued (the reason for closing, above all) as far as the kernel takes it at once.
    fn last_words(&self, error: Error) -> Error {
        if !matches!(error, Error::Io { .. }) {
            while matches!(self.link.flush(self.link.lock()), Flush::More) {}
        }
        error
    }

    /// Reads on for a moment: closing a socket with unread bytes resets it, and the peer would not see our last words.
    async fn linger(&mut self) {
        let mut left = LINGER_BYTES;
        let read = async {
            while left > 0 {
                self.buffer.clear();
                self.buffer.reserve(MIN_READ);
                let read =
                    std::future::poll_fn(|cx| poll_read_buf(Pin::new(&mut *self.read), cx, &mut self.buffer)).await;
                match read {
                    Ok(n) if n > 0 => left = left.saturating_sub(n),
                    _ => break,
                }
            }
        };
        // Either the peer has closed too, or it has had its time.
        let _ = tokio::time::timeout(LINGER, read).await;
    }
}

impl<H: Handler> Drop for Driver<H> {
    fn drop(&mut self) {
        if self.read_size == MAX_READ {
            buffers::forget();
        }
        if !matches!(*self.link.phase().borrow(), Phase::Closed(_)) {
            self.link.lost(&Arc::new(Error::Closed));
        }
    }
}

fn eof(rest: &[u8]) -> Error {
    let text = if rest.is_empty() { "the peer closed it" } else { "the peer closed it in the middle of a frame" };
    Error::Io { kind: io::ErrorKind::UnexpectedEof, text: text.to_owned() }
}

/// Wakes those who wait and takes the rest for the handler. Says whether hello is through.
fn take_events(link: &Link, state: &mut State, wakers: &mut Vec<Waker>, events: &mut VecDeque<Happened>) -> bool {
    let mut became_ready = false;
    while let Some(news) = state.next_news(wakers) {
        let mut whole = None;
        match news {
            // In the order of the wire: who is leaving says so right after its hello.
            News::Ready => {
                link.set_phase(Phase::Ready);
                became_ready = true;
            }
            News::Draining => link.set_phase(Phase::Draining),
            News::Call(id) => whole = state.proto.take_whole(id),
            News::Other => {}
        }
        // Moved as it is: who looks into it on the way moves it twice.
        if let Some(event) = state.take_news() {
            events.push_back((event, whole));
        }
    }
    became_ready
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
