//! What a connection's lock protects: the machine, who waits for what, and who writes.
//!
//! Owns the fields and the questions about them. It must never write, wake or block: whoever holds the lock gives it up first.
//! Look next at [`super::link`], which does those things.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use tokio::task::AbortHandle;

use crate::metadata::Metadata;
use crate::proto::{Batch, Connection, Error, Event};
use crate::wire::StreamId;

/// What all who share a connection change under its lock.
pub(super) struct State {
    pub(super) proto: Connection,
    pub(super) slots: Vec<Slot>,
    pub(super) slot_waiters: Vec<Waker>,
    /// What happened that only the driver can deal with.
    pub(super) events: VecDeque<Event>,
    /// Bytes on their way into the kernel. Whoever writes takes them out and sets `writing`.
    pub(super) batch: Batch,
    pub(super) writing: bool,
    /// The kernel takes no more; the driver waits until it does.
    pub(super) blocked: bool,
    /// Why nothing can be written any more. What the peer has sent before may still be read.
    pub(super) write_error: Option<Error>,
    /// Since when the kernel takes nothing, as far as the driver has noticed.
    pub(super) stalled_since: Option<Instant>,
    /// The kernel took something since the driver last asked.
    pub(super) progressed: bool,
    /// The driver will look at the queues before it sleeps, so nobody needs to wake it.
    pub(super) awake: bool,
    /// The driver was woken because somebody has something to write.
    pub(super) kicked: bool,
    pub(super) driver: Option<Waker>,
    /// Nobody will open another call.
    pub(super) retired: bool,
    /// When the driver's timer fires.
    pub(super) armed: Option<Instant>,
}

/// What a call needs beside what the machine knows of it.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// With whose it is: a handler that is dropped may say so when the place has another call already.
    pub(super) task: Option<(StreamId, AbortHandle)>,
    pub(super) metadata: Option<Box<Metadata>>,
}

/// What the driver has to know of an event before it moves it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    Ready,
    Draining,
    Call(StreamId),
    Other,
}

impl News {
    fn of(event: &Event) -> Self {
        match *event {
            Event::Ready => Self::Ready,
            Event::Draining => Self::Draining,
            Event::Call { id, .. } => Self::Call(id),
            _ => Self::Other,
        }
    }
}

impl State {
    pub(super) fn new(proto: Connection) -> Self {
        Self {
            proto,
            slots: Vec::new(),
            slot_waiters: Vec::new(),
            events: VecDeque::new(),
            batch: Batch::default(),
            writing: false,
            blocked: false,
            write_error: None,
            stalled_since: None,
            progressed: false,
            // The driver runs first of all.
            awake: true,
            kicked: false,
            driver: None,
            retired: false,
            armed: None,
        }
    }

    /// Takes the handle of the task that runs the call's handler; most handlers need none.
    pub(super) fn take_task(&mut self, id: StreamId) -> Option<AbortHandle> {
        let task = &mut self.slots.get_mut(usize::from(id.slot()))?.task;
        task.take_if(|(whose, _)| *whose == id).map(|(_, task)| task)
    }

    /// The place of a call, which it shares with those before and after it.
    pub(super) fn slot(&mut self, id: StreamId) -> &mut Slot {
        let index = usize::from(id.slot());
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        &mut self.slots[index]
    }

    /// Whether the kernel may take something.
    pub(super) fn can_write(&self) -> bool {
        !self.blocked && self.write_error.is_none()
    }

    /// Whether bytes wait to be written.
    pub(super) fn has_output(&self) -> bool {
        self.writing || !self.batch.is_empty() || self.proto.wants_transmit()
    }

    /// Takes the wakers of everyone for whom something has happened. Whatever queues or ends something must do this before
    /// the lock is given up: the machine says a thing once. What concerns the driver waits for it in `events`.
    #[inline]
    pub(super) fn take_wakers(&mut self, wakers: &mut Vec<Waker>) {
        if self.is_quiet() {
            return;
        }
        while self.news(wakers).is_some() {
            self.events.extend(self.proto.pop_event());
        }
    }

    /// What happened next that only the driver can deal with; takes the wakers of all that happened before it.
    pub(super) fn next_news(&mut self, wakers: &mut Vec<Waker>) -> Option<News> {
        match self.events.front() {
            Some(event) => Some(News::of(event)),
            None if self.is_quiet() => None,
            None => self.news(wakers),
        }
    }

    /// Whether reading left nothing to be written, told or closed, and the timer where it may stay: the only limit that a read
    /// can begin is that of a connection without calls.
    #[inline]
    pub(super) fn is_settled(&self) -> bool {
        let in_time = || match (self.armed, self.proto.idle_until()) {
            (Some(armed), Some(until)) => armed <= until,
            (None, Some(_)) => false,
            (_, None) => true,
        };
        self.is_quiet() && !self.retired && !self.proto.wants_transmit() && in_time()
    }

    /// Whether nothing has happened of which anybody would have to be told, as is usual.
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        !self.proto.has_events() && self.slot_waiters.is_empty()
    }

    /// Takes the event that [`next_news`](Self::next_news) was about.
    pub(super) fn take_news(&mut self) -> Option<Event> {
        if self.events.is_empty() { self.proto.pop_event() } else { self.events.pop_front() }
    }

    /// Takes the wakers of everyone for whom something has happened, up to what only the driver can deal with.
    fn news(&mut self, wakers: &mut Vec<Waker>) -> Option<News> {
        while let Some(event) = self.proto.peek_event() {
            match *event {
                Event::Readable(id) => wakers.extend(self.slot(id).reader.take()),
                Event::Writable(id) => wakers.extend(self.slot(id).writer.take()),
                Event::SlotFree => wakers.append(&mut self.slot_waiters),
                Event::Answer { .. } => {
                    if let Some(Event::Answer { id, metadata }) = self.proto.pop_event() {
                        self.slot(id).metadata = Some(metadata);
                    }
                    continue;
                }
                ref event => {
                    let news = News::of(event);
                    if news == News::Draining {
                        wakers.append(&mut self.slot_waiters);
                    }
                    return Some(news);
                }
            }
            self.proto.pop_event();
        }
        // Somebody may have begun to wait after the machine had said it.
        if !self.slot_waiters.is_empty() && self.proto.free_slots() > 0 {
            wakers.append(&mut self.slot_waiters);
        }
        None
    }

    /// Whether the connection is over, but for what was queued or sent before.
    pub(super) fn is_closing(&self) -> bool {
        self.proto.is_closed() || self.write_error.is_some()
    }

    pub(super) fn write_error(&self) -> Option<&Error> {
        self.write_error.as_ref()
    }

    /// Whether the kernel took something since this was last asked.
    pub(super) fn take_progressed(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
    use std::io::IoSlice;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::BytesMut;

    use super::*;
    use crate::proto::{Config, Open, Side};

    fn carry(from: &mut Connection, to: &mut Connection, now: Instant) {
        let (mut batch, mut bytes) = (Batch::default(), BytesMut::new());
        while from.wants_transmit() {
            from.transmit(&mut batch);
            let mut slices = [IoSlice::new(&[]); 4];
            let filled = batch.slices(&mut slices);
            let before = bytes.len();
            slices[..filled].iter().for_each(|slice| bytes.extend_from_slice(slice));
            batch.advance(bytes.len() - before);
        }
        to.receive(&mut bytes, now).unwrap();
    }

    /// A client whose handshake is done and told of, with its timer at the end of its idle time, and its server.
    fn settled(now: Instant) -> (State, Connection) {
        let idle = Config { idle_close: Some(Duration::from_secs(240)), ..Config::new(Side::Client) };
        let mut client = Connection::new(Arc::new(idle), now);
        let mut server = Connection::new(Arc::new(Config::new(Side::Server)), now);
        carry(&mut client, &mut server, now);
        carry(&mut server, &mut client, now);
        let mut state = State::new(client);
        while state.next_news(&mut Vec::new()).is_some() {
            state.take_news();
        }
        state.armed = Some(now + Duration::from_secs(240));
        assert!(state.is_settled(), "nothing is left to be done");
        (state, server)
    }

    #[test]
    fn a_reader_leaves_the_driver_asleep_only_if_it_has_nothing_to_do() {
        let now = Instant::now();
        let unsettled = |what: &str, change: fn(&mut State)| {
            let (mut state, _) = settled(now);
            change(&mut state);
            assert!(!state.is_settled(), "{what}");
        };
        unsettled("a connection without calls needs a timer", |state| state.armed = None);
        unsettled("and one that fires in time", |state| {
            state.armed = state.armed.map(|armed| armed + Duration::from_nanos(1));
        });
        unsettled("somebody waits for a place", |state| state.slot_waiters.push(Waker::noop().clone()));
        unsettled("nobody will use it again", |state| state.retired = true);
        unsettled("it is closed, and the peer is to hear why", |state| {
            state.proto.close(crate::proto::CloseReason::Idle, "enough");
        });
    }

    #[test]
    fn with_a_call_that_is_on_its_way_no_timer_is_needed() {
        let now = Instant::now();
        let (mut state, mut server) = settled(now);
        let head = Open { method: "add", deadline: None, idle: None, attempt: 0, metadata: None, end: true };
        state.proto.open(head, now, |_| Ok::<_, ()>(Vec::new())).unwrap();
        assert!(!state.is_settled(), "the call is to be written");
        carry(&mut state.proto, &mut server, now);
        state.armed = None;
        assert!(state.is_settled(), "until the answer comes there is nothing to do");
    }
}
