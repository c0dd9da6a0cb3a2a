//! The table of streams.
//!
//! Owns slots, generations and what a stream is. Entries are small, and what a unary call does not need is in a box that
//! it never makes. It must never know how frames change a stream: that is `connection.rs`, `client.rs` and `server.rs`.
//! Look next at `recv.rs` and `send.rs` for what is in the box.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::event::Failure;
use super::first::{First, Short};
use super::recv::Incoming;
use super::send::Outgoing;
use crate::wire::StreamId;

/// How far this side's direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// Server: the ANSWER has not begun.
    Unstarted,
    Open,
    /// The end waits behind pending bytes.
    Ending,
    Ended,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    generation: u16,
    in_use: bool,
    pub(super) sending: Sending,
    /// The peer's direction is open.
    pub(super) receiving: bool,
    /// The reader was told that there is something, or has not yet asked.
    pub(super) flagged: bool,
    /// The sender was told to wait.
    pub(super) waiting: bool,
    /// The sender wants to know when nobody wants more.
    pub(super) watching: bool,
    /// An ANSWER was received or queued.
    pub(super) answered: bool,
    /// Server: the layer above knows the call.
    pub(super) announced: bool,
    /// Server: the deadline has passed.
    pub(super) expired: bool,
    /// Client: the CALL cannot be taken back even if it is still in the outbox: something behind it refers to it.
    pub(super) pinned: bool,
    /// Client: where the CALL begins in the outbox, as long as it is there.
    pub(super) position: u32,
    /// Bytes of `first` that were read and not released: they came in a free frame.
    pub(super) free_handed: u32,
    /// The number of the CALL among all of this connection, from 1.
    pub(super) sequence: u64,
    pub(super) deadline: Option<Instant>,
    /// The body bytes of CALL or ANSWER.
    pub(super) first: First,
    pub(super) failure: Option<Box<Failure>>,
    pub(super) body: Option<Box<Body>>,
}

/// What a stream needs when its body does not fit the first frame.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) idle: Option<Idle>,
}

/// How long a stream may rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    pub(super) limit: Duration,
    pub(super) since: Instant,
    /// Something moved at a time that was not told; the next scan sets `since`.
    pub(super) moved: bool,
}

impl Stream {
    fn vacant() -> Self {
        Self {
            generation: 0,
            in_use: false,
            sending: Sending::Ended,
            receiving: false,
            flagged: false,
            waiting: false,
            watching: false,
            answered: false,
            announced: false,
            expired: false,
            pinned: false,
            position: 0,
            free_handed: 0,
            sequence: 0,
            deadline: None,
            first: First::Nothing,
            failure: None,
            body: None,
        }
    }

    /// Begins a stream in this place. What the one before it owned is gone since its end.
    fn begin(&mut self, generation: u16) {
        let Self { first, failure, body, .. } = self;
        debug_assert!(first.is_nothing() && failure.is_none() && body.is_none(), "an end leaves nothing");
        self.generation = generation;
        self.in_use = true;
        self.sending = Sending::Ended;
        self.receiving = false;
        self.flagged = false;
        self.waiting = false;
        self.watching = false;
        self.answered = false;
        self.announced = false;
        self.expired = false;
        self.pinned = false;
        self.position = 0;
        self.free_handed = 0;
        self.sequence = 0;
        self.deadline = None;
    }

    /// The box, made when it is first needed.
    pub(super) fn body(&mut self, receive_window: u32, send_credit: u32) -> &mut Body {
        self.body.get_or_insert_with(|| {
            Box::new(Body { incoming: Incoming::new(receive_window), outgoing: Outgoing::new(send_credit), idle: None })
        })
    }

    /// Client: takes an answer that is whole with this frame, as most are, and ends both directions. Not where anything else is
    /// to be done for that: then nothing has happened.
    pub(super) fn take_whole_answer(&mut self, body: impl FnOnce() -> First) -> bool {
        if self.body.is_some() || self.waiting || self.watching {
            return false;
        }
        self.first = body();
        self.receiving = false;
        self.deadline = None;
        self.sending = Sending::Ended;
        true
    }

    /// All that is to be read, if it came in the frame that ended a direction and nothing else is left.
    pub(super) fn take_only_chunk(&mut self) -> Option<Bytes> {
        if self.has_more_than_first() { None } else { self.first.take() }
    }

    /// The same, if it is short.
    pub(super) fn take_short(&mut self) -> Option<Short> {
        match self.first {
            First::Short(short) if !self.has_more_than_first() => {
                self.first = First::Nothing;
                Some(short)
            }
            _ => None,
        }
    }

    fn has_more_than_first(&self) -> bool {
        self.receiving || self.body.is_some() || self.failure.is_some()
    }

    pub(super) fn pending(&self) -> usize {
        self.body.as_ref().map_or(0, |body| body.outgoing.pending())
    }

    /// Whether body bytes wait to be read.
    pub(super) fn has_chunk(&self) -> bool {
        !self.first.is_nothing() || self.body.as_ref().is_some_and(|body| !body.incoming.is_empty())
    }

    /// Notes that something of the stream moved at a known time.
    pub(super) fn moved_at(&mut self, now: Instant) {
        if let Some(Body { idle: Some(idle), .. }) = self.body.as_deref_mut() {
            idle.since = now;
            idle.moved = false;
        }
    }

    /// Notes that something of the stream moved since the last scan.
    pub(super) fn moved(&mut self) {
        if let Some(Body { idle: Some(idle), .. }) = self.body.as_deref_mut() {
            idle.moved = true;
        }
    }
}

/// What a stream leaves behind.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) body: Option<Box<Body>>,
    /// Its reader waits to be told that there is something, or nothing any more.
    pub(super) reader_waits: bool,
    /// The same for who sends.
    pub(super) sender_waits: bool,
}

/// What a frame's stream number refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Open,
    /// The last stream of its slot, which is over.
    Closed,
    Never,
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    /// Client: slots that were used and are free. The one used last is used again first, which keeps both tables short.
    free: Vec<u16>,
    in_use: usize,
}

impl Streams {
    /// How many streams are in use.
    pub(super) fn len(&self) -> usize {
        self.in_use
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.slots.get(usize::from(id.slot())).filter(|stream| stream.in_use && stream.generation == id.generation())
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.slots
            .get_mut(usize::from(id.slot()))
            .filter(|stream| stream.in_use && stream.generation == id.generation())
    }

    pub(super) fn known(&self, id: StreamId) -> Known {
        match self.slots.get(usize::from(id.slot())) {
            Some(stream) if stream.generation != id.generation() => Known::Never,
            Some(stream) if stream.in_use => Known::Open,
            Some(_) => Known::Closed,
            None => Known::Never,
        }
    }

    /// Client: the number that the next stream will have; `None` if `limit` streams are in use.
    pub(super) fn next(&self, limit: u16) -> Option<StreamId> {
        match self.free.last() {
            Some(&slot) => {
                let last = self.slots.get(usize::from(slot)).map_or(0, |stream| stream.generation);
                Some(StreamId::new(slot, last.checked_add(1).unwrap_or(1)))
            }
            None => {
                let slot = u16::try_from(self.slots.len()).ok().filter(|slot| *slot < limit)?;
                Some(StreamId::new(slot, 1))
            }
        }
    }

    /// Client: begins the stream that [`next`](Self::next) named.
    pub(super) fn occupy(&mut self, id: StreamId) -> &mut Stream {
        if self.free.last() == Some(&id.slot()) {
            self.free.pop();
        }
        self.begin(id)
    }

    /// Server: begins a stream that the peer named. The error is a text for people.
    pub(super) fn accept(&mut self, id: StreamId, limit: u16) -> Result<&mut Stream, &'static str> {
        if id.slot() >= limit {
            return Err("a CALL names a slot that is not offered");
        }
        match self.slots.get(usize::from(id.slot())) {
            Some(stream) if stream.in_use => Err("a CALL names a slot that is in use"),
            Some(stream) if stream.generation == id.generation() => Err("a CALL repeats the generation of its slot"),
            _ => Ok(self.begin(id)),
        }
    }

    fn begin(&mut self, id: StreamId) -> &mut Stream {
        let slot = usize::from(id.slot());
        if slot >= self.slots.len() {
            if slot == 0 {
                // Many connections never have a second; the vector alone would make room for four.
                self.slots.reserve_exact(1);
            }
            self.slots.resize_with(slot + 1, Stream::vacant);
        }
        let stream = &mut self.slots[slot];
        stream.begin(id.generation());
        self.in_use += 1;
        stream
    }

    /// Ends a stream and says what it leaves; `None` if there is no such stream.
    pub(super) fn end(&mut self, id: StreamId, reuse: bool) -> Option<Left> {
        let stream = self.get_mut(id)?;
        let left = Left {
            body: stream.body.take(),
            reader_waits: !stream.flagged,
            sender_waits: stream.waiting | stream.watching,
        };
        stream.in_use = false;
        if !stream.first.is_nothing() {
            stream.first = First::Nothing;
        }
        stream.failure = None;
        self.in_use -= 1;
        if reuse {
            self.free.push(id.slot());
        }
        Some(left)
    }

    /// The streams in use.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (StreamId, &mut Stream)> {
        self.slots.iter_mut().enumerate().filter(|(_, stream)| stream.in_use).map(|(slot, stream)| {
            // Tables have at most 65,535 slots.
            (StreamId::new(slot as u16, stream.generation), stream)
        })
    }

    /// The numbers of the streams in use.
    pub(super) fn ids(&self) -> Vec<StreamId> {
        let ids = self.slots.iter().enumerate().filter(|(_, stream)| stream.in_use);
        ids.map(|(slot, stream)| StreamId::new(slot as u16, stream.generation)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;
    use crate::proto::Connection;

    #[test]
    fn an_idle_connection_is_cheap() {
        assert!(size_of::<Stream>() <= 128, "{}", size_of::<Stream>());
        assert!(size_of::<Body>() <= 256, "{}", size_of::<Body>());
        assert!(size_of::<Connection>() <= 1024, "{}", size_of::<Connection>());
    }
}
