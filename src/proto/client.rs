//! What only a client does: open calls, take answers, give calls up.
//!
//! Owns the client's half of sections 5 and 6. It must never say that a call did not run unless that is certain. Look
//! next at `server.rs` for the other half.

use std::time::Instant;

use bytes::{Buf, BytesMut};

use super::connection::{Connection, Phase};
use super::error::{Error, OpenError, foreign};
use super::event::{Event, Failure, Open};
use super::first::{First, Short};
use super::outbox::{PlaceError, Placed};
use super::send::Ending;
use super::streams::{Idle, Sending};
use super::timers::after;
use crate::status::Status;
use crate::wire::close::parse_refused;
use crate::wire::frame::put_frame;
use crate::wire::head::{MAX_NAME, parse_metadata, put_call};
use crate::wire::load::{LOAD, Load, parse_load};
use crate::wire::{Apart, CloseReason, Flags, Frame, HEADER, Header, Kind, StreamId, WireStatus};

/// Bytes of a PING, which its PONG has too.
const PONG: usize = 8;
/// What is wrong with a report of load that does not have its bytes.
const SHORT_LOAD: &str = "a report of load is cut short";

impl Connection {
    /// Opens a call. `encode` appends its first message, without a prefix and without what
    /// it hands back to be put in by reference; if it fails or panics, nothing happened.
    pub(crate) fn open<E>(
        &mut self,
        head: Open<'_>,
        now: Instant,
        encode: impl FnOnce(&mut BytesMut) -> Result<Apart, E>,
    ) -> Result<StreamId, OpenError<E>> {
        if self.phase == Phase::Closed {
            return Err(OpenError::Closed);
        }
        if self.draining {
            return Err(OpenError::Draining);
        }
        let Some(id) = self.next_stream() else {
            self.slot_wanted = true;
            return Err(OpenError::Full);
        };
        if head.method.len() > MAX_NAME {
            return Err(OpenError::TooLarge { len: head.method.len(), limit: MAX_NAME });
        }
        let naming = self.given.resolve(head.method);
        let metadata = head.metadata.filter(|metadata| !metadata.is_empty());
        let flags = Flags::NONE.with(Flags::NAME, naming.named).with(Flags::META, metadata.is_some());
        let position = self.outbox.end();
        let limit = self.message_limit();
        let placed = self
            .outbox
            .message(
                (Kind::Call, flags, id),
                |bytes| {
                    let name = naming.named.then_some(head.method);
                    put_call(bytes, naming.number, name, remaining(head.deadline, now), head.attempt, metadata);
                },
                head.end,
                limit,
                encode,
            )
            .map_err(|error| match error {
                PlaceError::Encode(error) => OpenError::Encode(error),
                PlaceError::TooLarge(len) => OpenError::TooLarge { len, limit },
            })?;
        // From here on nothing can fail.
        if naming.defines() {
            self.given.define(head.method, naming.number);
        }
        self.calls += 1;
        if self.streams.len() == 0 {
            self.keepalive.busy(now);
        }
        let (receive, send) = (self.receive_window(), self.send_window());
        let stream = self.streams.occupy(id);
        stream.sequence = self.calls;
        // The outbox is at most a few megabytes long.
        stream.position = position as u32;
        stream.pinned = naming.defines();
        stream.receiving = true;
        stream.deadline = head.deadline;
        stream.sending = if head.end { Sending::Ended } else { Sending::Open };
        if let Some(limit) = head.idle {
            stream.body(receive, send).idle = Some(Idle { limit, since: now, moved: false });
        }
        if let Some(deadline) = head.deadline {
            self.look_at(deadline);
        }
        if let Some(limit) = head.idle {
            self.look_at(after(now, limit));
        }
        if let Placed::Body(message) = placed {
            if head.end {
                if let Some(stream) = self.streams.get_mut(id) {
                    stream.sending = Sending::Ending;
                    stream.body(receive, send).outgoing.ending = Ending::End;
                }
            }
            self.queue_parts(id, message);
        }
        Ok(id)
    }

    /// Gives a call up. Its slot is free at once; what came and was not read is thrown away.
    pub(crate) fn cancel(&mut self, id: StreamId) {
        if !self.is_client() || self.streams.get(id).is_none() {
            return;
        }
        self.abandon(id);
        self.free(id);
    }

    /// Ends the request body with an error instead of its end; the call goes on.
    pub(crate) fn abort_body(&mut self, id: StreamId, status: &Status) {
        let ready = self.phase == Phase::Ready && self.is_client();
        let Some(stream) = self.streams.get_mut(id).filter(|stream| ready && stream.sending == Sending::Open) else {
            return;
        };
        let payload = WireStatus::from(status).encode();
        // The STATUS would have no stream if the CALL before it were taken back.
        stream.pinned = true;
        if stream.pending() == 0 {
            stream.sending = Sending::Ended;
            self.outbox.frame(Kind::Status, id, &payload);
            return;
        }
        stream.sending = Sending::Ending;
        if let Some(body) = stream.body.as_deref_mut() {
            let mut frame = BytesMut::new();
            put_frame(&mut frame, Kind::Status, Flags::NONE, id, &payload);
            body.outgoing.ending = Ending::Status(frame.freeze());
        }
    }

    /// Asks the server how busy it is. It says so if the client's hello has asked for that, and does not draw on its budget of
    /// control frames more often than those come back.
    pub(crate) fn ask_load(&mut self) {
        if self.phase == Phase::Ready && self.is_client() {
            // As keepalive does: what the PONG answers does not matter.
            self.outbox.frame(Kind::Ping, StreamId::CONNECTION, &self.calls.to_be_bytes());
        }
    }

    /// Takes a PONG: whatever it answers, something came, and the server may say how busy it is.
    pub(super) fn receive_pong(&mut self, flags: Flags, payload: &[u8]) -> Result<(), Error> {
        let (load, payload) = match flags.has(Flags::LOAD) {
            true if !self.is_client() => return Err(Error::protocol("PONG with LOAD from the wrong side")),
            true => (parse_load(payload), payload.get(LOAD..).unwrap_or_default()),
            false => (None, payload),
        };
        if payload.len() != PONG {
            return Err(Error::protocol(format!("PONG answers {} bytes", payload.len())));
        }
        self.load = load.or(self.load);
        self.growth.answered(payload, self.now);
        Ok(())
    }

    /// How busy the server said last that it is, if it has said so since this was asked.
    pub(crate) fn take_load(&mut self) -> Option<Load> {
        self.load.take()
    }

    /// How many calls were opened so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// Whether as many calls are open as the server allows.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.streams.len() >= self.max_calls()
    }

    /// How many more calls can be opened now.
    pub(crate) fn free_slots(&self) -> usize {
        if self.phase != Phase::Ready || self.draining || self.outbox.is_congested() {
            return 0;
        }
        self.max_calls().saturating_sub(self.streams.len())
    }

    /// Takes a call that is not over back, so that nothing more of it is sent. Says whether some of it may reach the
    /// server nevertheless.
    pub(super) fn abandon(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get(id) else { return false };
        let (sequence, position) = (stream.sequence, stream.position);
        let taken_back = sequence > self.batched && !stream.pinned;
        if !stream.receiving || self.phase != Phase::Ready {
            return sequence <= self.written;
        }
        self.stop_sending(id);
        if taken_back {
            let len = self.outbox.remove(position as usize) as u32;
            self.calls -= 1;
            for (_, later) in self.streams.iter_mut().filter(|(_, stream)| stream.sequence > sequence) {
                later.sequence -= 1;
                later.position -= len;
            }
        } else {
            self.outbox.frame(Kind::Cancel, id, &[]);
        }
        !taken_back
    }

    /// Takes an answer that is whole with this frame and short, as most are. `false`: nothing has happened.
    pub(super) fn receive_short_answer(&mut self, header: &Header, input: &mut BytesMut) -> bool {
        let frame = HEADER..HEADER + header.len;
        let short = input.get(frame.clone()).filter(|_| header.flags == Flags::END).and_then(Short::of);
        let Some(short) = short else { return false };
        let stream = self.streams.get_mut(header.stream).filter(|stream| stream.receiving && !stream.answered);
        let Some(stream) = stream else { return false };
        if !stream.take_whole_answer(|| First::Short(short)) {
            return false;
        }
        stream.answered = true;
        if !std::mem::replace(&mut stream.flagged, true) {
            self.events.push_back(Event::Readable(header.stream));
        }
        input.advance(frame.end);
        true
    }

    /// The whole answer, if it is there and short; the stream is freed then.
    pub(crate) fn take_short_answer(&mut self, id: StreamId) -> Option<Short> {
        let short = self.streams.get_mut(id)?.take_short()?;
        self.free(id);
        Some(short)
    }

    pub(super) fn receive_answer(&mut self, frame: Frame) -> Result<(), Error> {
        let Frame { flags, stream: id, payload: mut body, .. } = frame;
        let now = self.now;
        if flags.has(Flags::LOAD) {
            self.load = Some(parse_load(&body).ok_or_else(|| Error::protocol(SHORT_LOAD))?);
            body.advance(LOAD);
        }
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.receiving) else {
            return Ok(());
        };
        if std::mem::replace(&mut stream.answered, true) {
            return Err(Error::protocol("a second ANSWER"));
        }
        stream.moved_at(now);
        if flags.has(Flags::META) {
            let (metadata, len) = parse_metadata(&body).map_err(Error::protocol)?;
            body.advance(len);
            self.events.push_back(Event::Answer { id, metadata: Box::new(metadata) });
        }
        let has_body = !body.is_empty();
        if flags.has(Flags::END) && stream.take_whole_answer(|| std::mem::take(&mut body).into()) {
            if !std::mem::replace(&mut stream.flagged, true) {
                self.events.push_back(Event::Readable(id));
            }
            return Ok(());
        }
        self.take_first(id, body);
        if flags.has(Flags::END) {
            self.end_response(id);
        } else if has_body {
            self.notify(id);
        }
        Ok(())
    }

    pub(super) fn receive_refused(&mut self, id: StreamId, flags: Flags, mut payload: &[u8]) -> Result<(), Error> {
        if flags.has(Flags::LOAD) {
            self.load = Some(parse_load(payload).ok_or_else(|| Error::protocol(SHORT_LOAD))?);
            payload = payload.get(LOAD..).unwrap_or_default();
        }
        let Some((reason, retry_after, text)) = parse_refused(payload) else {
            return Err(Error::protocol("REFUSED is cut short"));
        };
        if self.streams.get(id).is_some_and(|stream| stream.receiving && stream.answered) {
            return Err(Error::protocol("REFUSED after ANSWER"));
        }
        self.fail_stream(id, Failure::Refused { reason, retry_after, text: foreign(text) });
        Ok(())
    }

    pub(super) fn receive_drain(&mut self, payload: &[u8]) -> Result<(), Error> {
        let accepted = payload.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if self.draining {
            return Err(Error::protocol("a second DRAIN"));
        }
        if accepted > self.calls {
            return Err(Error::protocol("DRAIN counts more calls than there were"));
        }
        self.draining = true;
        self.events.push_back(Event::Draining);
        for id in self.streams.ids() {
            if self.streams.get(id).is_some_and(|stream| stream.sequence > accepted) {
                self.fail_stream(id, Failure::NotAccepted);
            }
        }
        self.close_if_drained();
        Ok(())
    }

    /// Closes a connection that the server is leaving, once its last call is over.
    pub(super) fn close_if_drained(&mut self) {
        if self.draining && self.streams.len() == 0 && self.phase == Phase::Ready {
            self.close(CloseReason::Done, "");
        }
    }

    /// Says once that a call can be opened again, if somebody waits for that.
    pub(super) fn offer_slot(&mut self) {
        if self.slot_wanted && self.free_slots() > 0 {
            self.slot_wanted = false;
            self.events.push_back(Event::SlotFree);
        }
    }

    fn max_calls(&self) -> usize {
        self.peer.as_ref().map_or(0, |peer| usize::from(peer.max_calls))
    }

    fn next_stream(&self) -> Option<StreamId> {
        if self.free_slots() == 0 {
            return None;
        }
        let limit = self.peer.as_ref().map_or(0, |peer| peer.max_calls);
        self.streams.next(limit)
    }
}

/// A deadline as it travels: milliseconds that remain, rounded up. One that has passed is not "none".
fn remaining(deadline: Option<Instant>, now: Instant) -> u32 {
    let Some(deadline) = deadline else { return 0 };
    let left = deadline.saturating_duration_since(now);
    let millis = left.as_secs().saturating_mul(1000).saturating_add(u64::from(left.subsec_nanos().div_ceil(1_000_000)));
    u32::try_from(millis).unwrap_or(u32::MAX).max(1)
}
