//! What only a server does: take calls, answer, fail or refuse them, and leave.
//!
//! Owns the server's half of sections 5 and 6. It must never let a peer hold more than it was offered. Look next at
//! `client.rs` for the other half.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::connection::{Connection, Phase};
use super::error::{Error, SendError};
use super::event::{Event, MethodRef};
use super::outbox::Placed;
use super::send::Ending;
use super::streams::Sending;
use super::transmit::refused;
use crate::metadata::Metadata;
use crate::wire::close::put_refused;
use crate::wire::frame::put_frame;
use crate::wire::head::{CallHead, parse_call, put_metadata};
use crate::wire::load::{LOAD, Load, put_load};
use crate::wire::{Apart, Flags, Frame, Kind, Refusal, StreamId, WireStatus};

impl Connection {
    /// Answers with one message. `encode` appends it without a prefix, and without what it hands back to be put in by
    /// reference; if it fails or panics, nothing happened.
    pub(crate) fn answer<E>(
        &mut self,
        id: StreamId,
        metadata: Option<&Metadata>,
        encode: impl FnOnce(&mut BytesMut) -> Result<Apart, E>,
    ) -> Result<(), SendError<E>> {
        self.check_unanswered(id)?;
        let limit = self.message_limit();
        let (flags, head) = self.answer_head(metadata);
        let placed = self
            .outbox
            .message((Kind::Answer, flags, id), head, true, limit, encode)
            .map_err(|error| refused(error, limit))?;
        match placed {
            Placed::Frame => self.sending_ended(id),
            Placed::Body(message) => {
                if let Some(stream) = self.streams.get_mut(id) {
                    stream.answered = true;
                    stream.sending = Sending::Ending;
                }
                if let Some(body) = self.body(id) {
                    body.outgoing.ending = Ending::End;
                }
                self.queue_parts(id, message);
            }
        }
        Ok(())
    }

    /// Begins an answer of many messages, which [`send`](Self::send) and [`finish`](Self::finish) continue.
    pub(crate) fn start_answer(&mut self, id: StreamId, metadata: Option<&Metadata>) {
        if self.check_unanswered::<()>(id).is_err() {
            return;
        }
        let (flags, head) = self.answer_head(metadata);
        self.outbox.head(Kind::Answer, flags, id, head);
        if let Some(stream) = self.streams.get_mut(id) {
            stream.answered = true;
            stream.sending = Sending::Open;
        }
    }

    /// Ends a call with a status, behind what is pending; after the deadline nobody waits for that, so it is dropped.
    pub(crate) fn fail(&mut self, id: StreamId, failure: &WireStatus) {
        let ready = self.phase == Phase::Ready && !self.is_client();
        let Some(stream) = self.streams.get_mut(id).filter(|_| ready) else { return };
        let ending = matches!(stream.sending, Sending::Ending | Sending::Ended);
        if ending && !stream.expired {
            return;
        }
        let payload = failure.encode();
        if stream.pending() == 0 || stream.expired {
            self.outbox.frame(Kind::Status, id, &payload);
            self.sending_ended(id);
            return;
        }
        stream.sending = Sending::Ending;
        if let Some(body) = stream.body.as_deref_mut() {
            let mut frame = BytesMut::new();
            put_frame(&mut frame, Kind::Status, Flags::NONE, id, &payload);
            body.outgoing.ending = Ending::Status(frame.freeze());
        }
    }

    /// Refuses a call that was not begun to be handled. One that is being answered cannot be refused any more.
    pub(crate) fn refuse(&mut self, id: StreamId, reason: Refusal, retry_after: Option<Duration>, text: &str) {
        if self.check_unanswered::<()>(id).is_err() {
            return;
        }
        let load = self.load_report(false);
        self.outbox.put(|bytes| put_refused(bytes, id, reason, retry_after, text, load));
        self.sending_ended(id);
    }

    /// Queues DRAIN, once; calls that come later are ignored, and the client knows it.
    pub(crate) fn drain(&mut self) {
        if self.is_client() || std::mem::replace(&mut self.draining, true) {
            return;
        }
        if self.phase == Phase::Ready {
            self.send_drain();
        }
    }

    /// The name that the client gave a number to.
    pub(crate) fn method_name(&self, number: u16) -> Option<&Arc<str>> {
        self.taken.name(number)
    }

    /// The body of a request that came with its CALL from beginning to end, unless some of it was read. `read` then says
    /// that it has ended; nothing has to be released, for CALL is free.
    pub(crate) fn take_whole(&mut self, id: StreamId) -> Option<Bytes> {
        self.streams.get_mut(id)?.take_only_chunk()
    }

    pub(super) fn send_drain(&mut self) {
        self.outbox.frame(Kind::Drain, StreamId::CONNECTION, &self.calls.to_be_bytes());
    }

    pub(super) fn receive_call(&mut self, frame: Frame) -> Result<(), Error> {
        let Frame { flags, stream: id, payload: mut body, .. } = frame;
        let (now, limit) = (self.now, self.config.max_calls.max(1));
        let first = self.streams.len() == 0;
        let stream = self.streams.accept(id, limit).map_err(Error::protocol)?;
        if self.draining {
            // It came after the count was told, so the client knows that it is not accepted.
            self.streams.end(id, false);
            return Ok(());
        }
        let (head, head_len) =
            parse_call(&body, flags.has(Flags::NAME), flags.has(Flags::META)).map_err(Error::protocol)?;
        let CallHead { method: number, name, deadline, attempt, metadata } = head;
        let name = self.taken.take(number, name).map_err(Error::protocol)?;
        let deadline = (deadline != 0).then(|| now.checked_add(Duration::from_millis(u64::from(deadline)))).flatten();
        stream.sending = Sending::Unstarted;
        stream.receiving = !flags.has(Flags::END);
        stream.flagged = true;
        stream.deadline = deadline;
        self.calls += 1;
        if let Some(deadline) = deadline {
            self.look_at(deadline);
        }
        if first {
            self.keepalive.busy(now);
        }
        let metadata = metadata.map(Box::new);
        self.events.push_back(Event::Call { id, method: MethodRef { number, name }, deadline, attempt, metadata });
        body.advance(head_len);
        self.take_first(id, body);
        Ok(())
    }

    pub(super) fn receive_cancel(&mut self, id: StreamId) -> Result<(), Error> {
        let Some(stream) = self.streams.get(id) else { return self.closed(id, Kind::Cancel) };
        if !stream.answered && !self.cancels.take(self.now) {
            return Err(Error::TooManyCancels);
        }
        self.cancel_stream(id);
        Ok(())
    }

    /// What an ANSWER begins with.
    fn answer_head<'a>(&self, metadata: Option<&'a Metadata>) -> (Flags, impl FnOnce(&mut BytesMut) + use<'a>) {
        let load = self.load_report(true);
        let metadata = metadata.filter(|metadata| !metadata.is_empty());
        let flags = Flags::NONE.with(Flags::META, metadata.is_some()).with(Flags::LOAD, load.is_some());
        let head = move |bytes: &mut BytesMut| {
            if let Some(load) = load {
                put_load(bytes, load);
            }
            if let Some(metadata) = metadata {
                put_metadata(bytes, metadata);
            }
        };
        (flags, head)
    }

    /// Answers a PING, whoever asks.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        let load = self.load_report(false);
        let flags = Flags::NONE.with(Flags::LOAD, load.is_some());
        let mut answer = BytesMut::with_capacity(LOAD + payload.len());
        if let Some(load) = load {
            put_load(&mut answer, load);
        }
        answer.extend_from_slice(payload);
        self.outbox.put(|bytes| put_frame(bytes, Kind::Pong, flags, StreamId::CONNECTION, &answer));
    }

    /// How busy this server is, if the client wants to know.
    fn load_report(&self, answers: bool) -> Option<Load> {
        self.peer.as_ref().filter(|peer| peer.wants_load)?;
        self.config.gauge.as_deref().map(|gauge| gauge.report(answers))
    }

    fn check_unanswered<E>(&self, id: StreamId) -> Result<(), SendError<E>> {
        let ready = self.phase == Phase::Ready && !self.is_client();
        match self.streams.get(id) {
            Some(stream) if ready && stream.sending == Sending::Unstarted => Ok(()),
            _ => Err(SendError::Over),
        }
    }
}
