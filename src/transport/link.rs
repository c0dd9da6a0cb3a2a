//! The handle of one connection: everyone who calls, answers or reads on it shares it.
//!
//! Owns the lock around the protocol machine, the wakers of those who wait, and the decision who writes: a lone caller writes
//! from its own task, otherwise the driver is woken once and writes for all. The lock is never held across a write. It must
//! never interpret messages. Look next at [`super::driver`] for the task behind it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::WriteHalf;
use super::state::State;
use crate::metadata::Metadata;
use crate::proto::{
    Batch, CloseReason, Connection, Error, Open, OpenError, Over, Peer, Read, Refusal, SendError, SendState, Short,
};
use crate::wire::{Apart, StreamId, WireStatus};

/// Pieces that one write hands to the kernel at most; more are written in the next turn.
const MAX_SLICES: usize = 64;

/// A part of an outgoing body; prefixes are in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    /// Whole messages.
    Packed(Bytes),
    /// One message whose bytes go by reference.
    Long { head: Bytes, body: Bytes },
}

impl Piece {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Packed(messages) => messages.len(),
            Self::Long { head, body } => head.len() + body.len(),
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Hello is not through yet.
    Handshaking,
    /// Calls can be made.
    Ready,
    /// The server is leaving: running calls finish, new ones go elsewhere.
    Draining,
    /// It is over.
    Closed(Arc<Error>),
}

/// One connection, shared.
pub(crate) struct Link {
    state: Mutex<State>,
    write: Box<dyn WriteHalf>,
    phase: watch::Sender<Phase>,
    /// The phase is [`Phase::Ready`].
    usable: AtomicBool,
    /// How often somebody found the lock held by somebody else.
    waits: AtomicU32,
    remote: Option<SocketAddr>,
}

/// What became of an attempt to write what is queued.
pub(super) enum Flush {
    /// Nothing is left, or somebody else is writing and will look again.
    Done,
    /// The kernel takes no more.
    Blocked,
    /// Some was written, more is left; others should have their turn first.
    More,
}

impl Link {
    pub(super) fn new(proto: Connection, write: Box<dyn WriteHalf>, remote: Option<SocketAddr>) -> Self {
        Self {
            state: Mutex::new(State::new(proto)),
            write,
            phase: watch::Sender::new(Phase::Handshaking),
            usable: AtomicBool::new(false),
            waits: AtomicU32::new(0),
            remote,
        }
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // The state is only ever left consistent: user code that runs under the lock (encoding) cannot leave a trace.
        match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => self.wait(),
        }
    }

    #[cold]
    fn wait(&self) -> MutexGuard<'_, State> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls were opened on it, and how often somebody had to wait for its lock: a number that begins anew.
    pub(crate) fn crowd(&self) -> (u64, u32) {
        (self.lock().proto.calls(), self.waits.load(Ordering::Relaxed))
    }

    /// The address of the other side; `None` within one process.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// How far the connection has come.
    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.usable.store(matches!(phase, Phase::Ready), Ordering::Release);
        self.phase.send_replace(phase);
    }

    /// Whether calls can be made on it now.
    pub(crate) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    /// What the other side said in its hello.
    pub(crate) fn with_peer<T>(&self, read: impl FnOnce(Option<&Peer>) -> T) -> T {
        read(self.lock().proto.peer())
    }

    /// How many calls are open.
    pub(crate) fn open_calls(&self) -> usize {
        self.lock().proto.open_calls()
    }

    // ---- calls

    /// Opens a call whose first message `encode` writes straight into the send buffer. `reader` is woken when its answer can
    /// be read.
    pub(crate) fn open<E>(
        &self,
        head: Open<'_>,
        now: Instant,
        reader: Option<&Waker>,
        encode: impl FnOnce(&mut BytesMut) -> Result<Apart, E>,
    ) -> Result<StreamId, OpenError<E>> {
        let mut state = self.lock();
        let id = state.proto.open(head, now, encode)?;
        let slot = state.slot(id);
        slot.reader = reader.cloned();
        slot.writer = None;
        slot.metadata = None;
        self.kick(state);
        Ok(id)
    }

    /// How many calls are open, if another one can be opened now.
    pub(crate) fn room(&self) -> Option<usize> {
        let state = self.lock();
        (!state.proto.is_draining() && state.proto.free_slots() > 0).then(|| state.proto.open_calls())
    }

    /// Whether as many calls are open as the peer allows.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.lock().proto.is_at_limit()
    }

    /// Waits until a call has ended, after [`OpenError::Full`]. May return early.
    pub(crate) async fn slot_free(&self) {
        let mut waited = false;
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if waited || state.proto.free_slots() > 0 || state.proto.is_closed() || state.proto.is_draining() {
                return Poll::Ready(());
            }
            waited = true;
            state.slot_waiters.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Gives the call up.
    pub(crate) fn cancel(&self, id: StreamId) {
        let mut state = self.lock();
        state.proto.cancel(id);
        self.kick(state);
    }

    // ---- bodies

    /// Takes the next piece of the incoming body, giving back the credit of `release` bytes taken before.
    /// What came with the beginning of an answer is put into `metadata`.
    pub(crate) fn poll_read(
        &self,
        id: StreamId,
        release: usize,
        metadata: &mut Option<Box<Metadata>>,
        cx: &Context<'_>,
    ) -> Poll<Read> {
        self.read(self.lock(), id, release, metadata, cx)
    }

    /// Like [`poll_read`](Self::poll_read) before anything was read, for whoever can do with a copy of an answer that is short.
    pub(crate) fn poll_answer(
        &self,
        id: StreamId,
        metadata: &mut Option<Box<Metadata>>,
        cx: &Context<'_>,
    ) -> Poll<Result<Short, Read>> {
        let mut state = self.lock();
        let Some(short) = state.proto.take_short_answer(id) else {
            return self.read(state, id, 0, metadata, cx).map(Err);
        };
        if !state.is_settled() {
            self.kick(state);
        }
        Poll::Ready(Ok(short))
    }

    fn read<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        id: StreamId,
        release: usize,
        metadata: &mut Option<Box<Metadata>>,
        cx: &Context<'_>,
    ) -> Poll<Read> {
        // Before reading: the end of a stream frees its slot for another one.
        if state.proto.is_open(id) && metadata.is_none() {
            *metadata = state.slot(id).metadata.take();
        }
        let read = state.proto.read(id, release);
        if matches!(read, Read::Pending) {
            let slot = state.slot(id);
            if !slot.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                slot.reader = Some(cx.waker().clone());
            }
            self.kick(state);
            return Poll::Pending;
        }
        if state.is_settled() {
            return Poll::Ready(read);
        }
        self.kick(state);
        Poll::Ready(read)
    }

    /// Appends to the outgoing body.
    pub(crate) fn send(&self, id: StreamId, piece: Piece) -> Result<SendState, Over> {
        let mut state = self.lock();
        let sent = match piece {
            Piece::Packed(messages) => state.proto.send(id, messages),
            Piece::Long { head, body } => state.proto.send_parts(id, head, body),
        };
        self.kick(state);
        sent
    }

    /// Waits until the outgoing body has room, or is over.
    pub(crate) async fn writable(&self, id: StreamId) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if !state.proto.is_full(id) {
                return Poll::Ready(());
            }
            state.slot(id).writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether nobody wants more of the outgoing body.
    pub(crate) fn is_over(&self, id: StreamId) -> bool {
        !self.lock().proto.is_sending(id)
    }

    /// Waits until nobody wants more of the outgoing body.
    pub(crate) fn poll_over(&self, id: StreamId, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if !state.proto.is_sending(id) {
            return Poll::Ready(());
        }
        state.slot(id).writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ends the outgoing body.
    pub(crate) fn finish(&self, id: StreamId) {
        self.end(id, |proto| proto.finish(id));
    }

    /// Ends the request body with an error; the call goes on.
    pub(crate) fn abort_body(&self, id: StreamId, status: WireStatus) {
        let status = status.into_status();
        self.end(id, |proto| proto.abort_body(id, &status));
    }

    // ---- answers

    /// Answers with the one message that `encode` writes.
    pub(crate) fn answer<E>(
        &self,
        id: StreamId,
        metadata: Option<&Metadata>,
        encode: impl FnOnce(&mut BytesMut) -> Result<Apart, E>,
    ) -> Result<(), SendError<E>> {
        self.end(id, |proto| proto.answer(id, metadata, encode))
    }

    /// Begins an answer that is a stream.
    pub(crate) fn start_answer(&self, id: StreamId, metadata: Option<&Metadata>) {
        self.end(id, |proto| proto.start_answer(id, metadata));
    }

    /// Ends the call with an error, behind what was sent.
    pub(crate) fn fail(&self, id: StreamId, status: &WireStatus) {
        self.end(id, |proto| proto.fail(id, status));
    }

    /// Ends the call with an error and its handler with it.
    pub(crate) fn fail_and_abort(&self, id: StreamId, status: &WireStatus) {
        let mut state = self.lock();
        state.proto.fail(id, status);
        let task = state.take_task(id);
        self.kick(state);
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Says that the call was not and will not be processed, and when it may come back.
    pub(crate) fn refuse(&self, id: StreamId, reason: Refusal, retry_after: Option<Duration>, text: &str) {
        self.end(id, |proto| proto.refuse(id, reason, retry_after, text));
    }

    fn end<T>(&self, id: StreamId, act: impl FnOnce(&mut Connection) -> T) -> T {
        let mut state = self.lock();
        let result = act(&mut state.proto);
        let task = if state.proto.is_open(id) { None } else { state.take_task(id) };
        self.kick(state);
        drop(task);
        result
    }

    /// Keeps the handle of the task that runs the call's handler, for as long as the call is open.
    pub(crate) fn keep_task(&self, id: StreamId, task: AbortHandle) {
        let mut state = self.lock();
        if state.proto.is_open(id) {
            state.slot(id).task = Some((id, task));
        }
    }

    /// Ends the task that runs the call's handler, if there is one.
    pub(crate) fn abort_task(&self, id: StreamId) {
        let task = self.lock().take_task(id);
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Server: the name that the client gave this number to.
    pub(crate) fn method_name(&self, number: u16) -> Option<Arc<str>> {
        self.lock().proto.method_name(number).cloned()
    }

    // ---- the connection

    /// Asks the server how busy it is, which its [`Handler`](super::driver::Handler) is told.
    pub(crate) fn ask_load(&self) {
        let mut state = self.lock();
        state.proto.ask_load();
        self.kick(state);
    }

    /// Closes the connection as soon as no call is open.
    pub(crate) fn close_when_idle(&self) {
        let mut state = self.lock();
        state.retired = true;
        self.kick(state);
    }

    /// Tells the client to make its next calls elsewhere.
    pub(crate) fn drain(&self) {
        let mut state = self.lock();
        state.proto.drain();
        state.retired = true;
        self.kick(state);
    }

    /// Closes the connection with a reason, once what is queued before is written. Handlers end now: nobody hears from them any more,
    /// and the peer may take its time for the last words.
    pub(crate) fn close(&self, reason: CloseReason, text: &str) {
        let mut state = self.lock();
        state.proto.close(reason, text);
        let tasks: Vec<_> = state.slots.iter_mut().filter_map(|slot| slot.task.take()).collect();
        Self::wake(state, false);
        tasks.iter().for_each(|(_, task)| task.abort());
    }

    /// Sees to it that what was just queued is written, and wakes whoever waits for what has just happened.
    #[inline]
    fn kick<'a>(&'a self, state: MutexGuard<'a, State>) {
        // The driver will look at the queues before it sleeps, as is usual for all but the first of many calls.
        if !state.awake || !state.is_quiet() || state.retired || state.proto.has_plenty() {
            self.kick_now(state);
        }
    }

    fn kick_now<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        let mut wakers = Vec::new();
        state.take_wakers(&mut wakers);
        self.write_soon(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Writes what was just queued: in this task if it is alone, else in the driver's.
    fn write_soon<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if state.retired && state.proto.open_calls() == 0 && !state.proto.is_closed() {
            let reason = if state.proto.is_draining() { CloseReason::ShuttingDown } else { CloseReason::Done };
            state.proto.close(reason, "");
        }
        if state.proto.has_plenty() && !state.writing && state.can_write() {
            self.flush(state);
            state = self.lock();
            if !state.can_write() {
                return Self::wake(state, false);
            }
        }
        if state.awake {
            return;
        }
        if state.proto.is_closed() {
            // The driver must notice even if a caller could write the last bytes: it limits how long the peer may take.
            return Self::wake(state, false);
        }
        let due_sooner = match (state.proto.timeout(), state.armed) {
            (Some(timeout), Some(armed)) => timeout < armed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let has_output = !state.writing && state.can_write() && state.proto.wants_transmit();
        if has_output && !due_sooner && state.proto.open_calls() <= 1 {
            match self.flush(state) {
                Flush::Done => return,
                Flush::Blocked | Flush::More => state = self.lock(),
            }
        } else if !has_output && !due_sooner {
            return;
        }
        if !state.can_write() {
            return Self::wake(state, false);
        }
        if !state.awake {
            Self::wake(state, has_output);
        }
    }

    /// Lets the driver look at the queues, and wait for room if there is none. When there is none it is woken even if it is awake: it
    /// may have looked while somebody else was writing, and would not look again before it sleeps.
    fn wake(mut state: MutexGuard<'_, State>, kicked: bool) {
        state.awake = true;
        state.kicked = kicked;
        let driver = state.driver.clone();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Writes what is queued, up to one quantum of bulk.
    pub(super) fn flush<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Flush {
        let mut turns = 0;
        let mut wakers = Vec::new();
        loop {
            if state.writing || state.write_error.is_some() {
                return Flush::Done;
            }
            let State { proto, batch, .. } = &mut *state;
            if batch.is_empty() {
                if !proto.wants_transmit() {
                    return Flush::Done;
                }
                if turns > 0 {
                    return Flush::More;
                }
                turns += 1;
                proto.transmit(batch);
                state.take_wakers(&mut wakers);
                if state.batch.is_empty() {
                    drop(state);
                    wakers.into_iter().for_each(Waker::wake);
                    return Flush::Done;
                }
            }
            let mut batch = std::mem::take(&mut state.batch);
            state.writing = true;
            drop(state);
            // There may be room again; whoever waits for it can go on while this is written.
            wakers.drain(..).for_each(Waker::wake);
            let written = self.write_batch(&batch);
            state = self.lock();
            state.writing = false;
            match written {
                Ok(n) => {
                    state.blocked = false;
                    state.stalled_since = None;
                    state.progressed = true;
                    state.proto.wrote();
                    batch.advance(n);
                    state.batch = batch;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    state.blocked = true;
                    state.batch = batch;
                    return Flush::Blocked;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => state.batch = batch,
                Err(error) => {
                    state.write_error = Some(Error::from(error));
                    return Flush::More;
                }
            }
        }
    }

    fn write_batch(&self, batch: &Batch) -> io::Result<usize> {
        if let Some(bytes) = batch.only() {
            return self.write.try_write(&[io::IoSlice::new(bytes)]);
        }
        self.write_pieces(batch)
    }

    #[inline(never)]
    fn write_pieces(&self, batch: &Batch) -> io::Result<usize> {
        let mut slices = [io::IoSlice::new(&[]); MAX_SLICES];
        let count = batch.slices(&mut slices);
        self.write.try_write(&slices[..count])
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.poll_ready(cx)
    }

    pub(super) fn shutdown(&self) {
        self.write.shutdown();
    }

    /// Fails everything that is open and wakes everyone who waits.
    pub(crate) fn lost(&self, error: &Arc<Error>) {
        let mut state = self.lock();
        if state.writing {
            // Somebody is in the middle of a write. What it hands over may have reached the peer, and been run.
            state.proto.wrote();
        }
        state.proto.lost(Error::clone(error));
        state.awake = true; // Nobody drives any more; nobody shall be woken for it.
        let mut wakers: Vec<Waker> = std::mem::take(&mut state.slot_waiters);
        let mut tasks = Vec::new();
        for slot in &mut state.slots {
            wakers.extend(slot.reader.take());
            wakers.extend(slot.writer.take());
            tasks.extend(slot.task.take());
        }
        drop(state);
        tasks.iter().for_each(|(_, task)| task.abort());
        wakers.into_iter().for_each(Waker::wake);
        self.set_phase(Phase::Closed(Arc::clone(error)));
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("remote", &self.remote)
            .field("phase", &*self.phase.borrow())
            .finish_non_exhaustive()
    }
}
