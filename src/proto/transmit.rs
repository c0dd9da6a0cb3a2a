//! Bytes out: the next batch, and what is queued for it by either side.
//!
//! Owns the order of the wire: all small frames first, then a quantum of bulk in which streams take turns, one frame each.
//! It must never let a frame pass one of the same stream. Look next at `outbox.rs` and `send.rs` for the two queues.

use bytes::Bytes;

use super::batch::Batch;
use super::connection::{Connection, Phase};
use super::error::{Over, SendError};
use super::event::{Event, SendState};
use super::outbox::PLENTY_FRAMES;
use super::outbox::PlaceError;
use super::send::{Ending, LOW};
use super::streams::{Sending, Stream};
use crate::wire::StreamId;

/// How many bytes of bulk one batch takes: what a small frame that comes right after it has to wait for, a quarter of a
/// millisecond at 10 Gbit/s.
pub(crate) const QUANTUM: usize = 256 * 1024;

impl Connection {
    /// Whether [`transmit`](Self::transmit) has something to give.
    pub(crate) fn wants_transmit(&self) -> bool {
        !self.outbox.is_empty() || self.bulk_can_go()
    }

    /// Whether so many small frames wait that they should not wait for more. Where few calls are open, half of them are many:
    /// the server then works on one half while the callers of the other take their answers, and 64 calls in flight are
    /// 700,000 calls a second rather than 500,000. The server's own answers gain nothing by that. It is the larger half of an odd number,
    /// as it is while the last caller of a half has its answer and has not called again: if the others left then, that one call
    /// would cost a write and a read of its own, which of 256 in flight is 6 % of the calls in a second.
    pub(crate) fn has_plenty(&self) -> bool {
        self.outbox.is_plenty(if self.is_client() { self.open_calls().div_ceil(2) } else { PLENTY_FRAMES })
    }

    /// Fills an empty batch: all small frames, then a quantum of bulk. May produce events.
    pub(crate) fn transmit(&mut self, batch: &mut Batch) {
        if !batch.is_empty() {
            return;
        }
        let congested = self.outbox.is_congested();
        batch.begin(self.outbox.take());
        self.batched = self.calls;
        if congested {
            self.offer_slot();
        }
        let mut left = QUANTUM;
        while left > 0 && self.bulk_can_go() {
            let Some(id) = self.turns.pop_front() else { break };
            left = left.saturating_sub(self.turn(id, batch));
        }
    }

    /// Gives back the memory that a burst needed.
    pub(crate) fn rest(&mut self) {
        self.outbox.rest();
    }

    /// Some byte of the last batch was taken by the kernel; before that, its calls provably never ran.
    pub(crate) fn wrote(&mut self) {
        self.written = self.batched;
    }

    /// Server: so much waits to be written that nothing more should be received until it is. A client goes on receiving, so
    /// that two sides never wait for each other.
    pub(crate) fn is_congested(&self) -> bool {
        !self.is_client() && self.outbox.is_congested()
    }

    /// Queues messages that carry their prefixes already, or a part of them. `Full` asks to wait for [`Event::Writable`]
    /// before the next.
    pub(crate) fn send(&mut self, id: StreamId, packed: Bytes) -> Result<SendState, Over> {
        let stream = self.streams.get(id).filter(|stream| self.may_send(stream)).ok_or(Over)?;
        // The head of this direction may still be the last frame: then the first items travel with it.
        if stream.pending() == 0 && self.outbox.extend(id, &packed) {
            return Ok(SendState::More);
        }
        Ok(self.queue(id, packed))
    }

    /// Queues one long message: `head`, with its prefix, and `body`, both by reference.
    pub(crate) fn send_parts(&mut self, id: StreamId, head: Bytes, body: Bytes) -> Result<SendState, Over> {
        self.streams.get(id).filter(|stream| self.may_send(stream)).ok_or(Over)?;
        self.body(id).ok_or(Over)?.outgoing.push_parts([head, body]);
        Ok(self.queued(id))
    }

    fn may_send(&self, stream: &Stream) -> bool {
        self.phase == Phase::Ready && stream.sending == Sending::Open
    }

    /// Whether this side's direction of the stream goes on; whoever asks is told by [`Event::Writable`] when it is over.
    pub(crate) fn is_sending(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        let open = stream.sending == Sending::Open;
        stream.watching |= open;
        open
    }

    /// Whether the stream is still in the table.
    pub(crate) fn is_open(&self, id: StreamId) -> bool {
        self.streams.get(id).is_some()
    }

    /// Whether a sender should wait for [`Event::Writable`]; its last `send` has said so, too.
    pub(crate) fn is_full(&self, id: StreamId) -> bool {
        let open = self.streams.get(id).filter(|stream| stream.sending == Sending::Open);
        open.and_then(|stream| stream.body.as_ref()).is_some_and(|body| body.outgoing.is_full())
    }

    /// Ends this side's direction properly, behind what is pending.
    pub(crate) fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.sending == Sending::Open) else { return };
        if stream.pending() == 0 && self.outbox.end_tail(id) {
            self.sending_ended(id);
            return;
        }
        stream.sending = Sending::Ending;
        if let Some(body) = self.body(id) {
            body.outgoing.ending = Ending::End;
        }
        self.take_turn(id);
    }

    /// Queues one encoded message that comes in parts.
    pub(super) fn queue_parts(&mut self, id: StreamId, parts: Vec<Bytes>) {
        if let Some(body) = self.body(id) {
            body.outgoing.push_parts(parts);
        }
        self.queued(id);
    }

    /// Queues encoded messages.
    fn queue(&mut self, id: StreamId, message: Bytes) -> SendState {
        if let Some(body) = self.body(id) {
            body.outgoing.push(message);
        }
        self.queued(id)
    }

    /// Lets a stream take turns if it has something to send, and the credit for it.
    pub(super) fn take_turn(&mut self, id: StreamId) {
        if self.phase != Phase::Ready {
            return;
        }
        let Some(stream) = self.streams.get_mut(id) else { return };
        let Some(body) = stream.body.as_deref_mut() else { return };
        let outgoing = &mut body.outgoing;
        if !outgoing.queued && outgoing.has_work() && outgoing.credit.get() >= outgoing.need() {
            outgoing.queued = true;
            self.turns.push_back(id);
        }
    }

    /// This side's direction was ended in the order of the wire. On the server that is the end of the stream.
    pub(super) fn sending_ended(&mut self, id: StreamId) {
        if !self.is_client() {
            self.free(id);
        } else if let Some(stream) = self.streams.get_mut(id) {
            stream.sending = Sending::Ended;
        }
    }

    fn queued(&mut self, id: StreamId) -> SendState {
        self.take_turn(id);
        if !self.is_full(id) {
            return SendState::More;
        }
        if let Some(stream) = self.streams.get_mut(id) {
            stream.waiting = true;
        }
        SendState::Full
    }

    /// Whether the stream whose turn it is can send: it has credit of its own, or would not be there.
    fn bulk_can_go(&self) -> bool {
        let next = self.turns.front().and_then(|id| self.streams.get(*id)).and_then(|stream| stream.body.as_ref());
        next.is_some_and(|body| self.credit.get() >= body.outgoing.need())
    }

    /// Gives one stream its turn and says how many bytes it took.
    fn turn(&mut self, id: StreamId, batch: &mut Batch) -> usize {
        let Some(stream) = self.streams.get_mut(id) else { return 0 };
        stream.moved();
        let Some(body) = stream.body.as_deref_mut() else { return 0 };
        let outgoing = &mut body.outgoing;
        outgoing.queued = false;
        let len = outgoing.emit(id, &mut self.credit, batch);
        let mut ended = stream.sending == Sending::Ending && outgoing.pending() == 0;
        if ended {
            match &mut outgoing.ending {
                Ending::Status(frame) => {
                    batch.put(frame);
                    outgoing.ending = Ending::Open;
                }
                Ending::Open => (),
                Ending::End => ended = false,
            }
        }
        if outgoing.pending() < LOW && std::mem::take(&mut stream.waiting) {
            self.events.push_back(Event::Writable(id));
        }
        if ended {
            self.sending_ended(id);
        } else {
            self.take_turn(id);
        }
        len.max(1)
    }
}

/// Says why a message was not taken.
pub(super) fn refused<E>(error: PlaceError<E>, limit: usize) -> SendError<E> {
    match error {
        PlaceError::Encode(error) => SendError::Encode(error),
        PlaceError::TooLarge(len) => SendError::TooLarge { len, limit },
    }
}
