//! Bytes in: frames are cut off the input and change the streams.
//!
//! Owns `receive`, `read` and the frames that both sides get. Payloads are taken by reference. It must never trust a number
//! of the peer that it has not checked. Look next at `client.rs` and `server.rs` for the frames of one side.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::connection::{Connection, Phase};
use super::credit::cost;
use super::error::{Error, foreign};
use super::event::{Failure, Read};
use super::growth::Look;
use super::streams::Known;
use crate::wire::close::parse_close;
use crate::wire::{Flags, Frame, FrameCodec, Header, Kind, StreamId, WireStatus};

/// CREDIT below this, in bytes, counts as a control frame: nobody needs to return so little.
const SMALL_CREDIT: u32 = 1024;

impl Connection {
    /// Takes every complete frame off the front of the input. On `Err` a CLOSE may be left to transmit; the streams fail
    /// when the driver then says [`lost`](Self::lost). A closed connection throws its input away.
    pub(crate) fn receive(&mut self, input: &mut BytesMut, now: Instant) -> Result<(), Error> {
        self.now = now;
        if !input.is_empty() {
            self.keepalive.hear(now);
        }
        let result = self.receive_all(input);
        if let Err(error) = &result {
            self.give_up(error);
        }
        if self.phase == Phase::Closed {
            input.clear();
        }
        result
    }

    /// Gives back the credit of `release` bytes that were taken earlier, and takes the next chunk.
    pub(crate) fn read(&mut self, id: StreamId, release: usize) -> Read {
        let client = self.is_client();
        let Some(stream) = self.streams.get_mut(id) else { return Read::Failed(Failure::Truncated) };
        if let Some(bytes) = client.then(|| stream.take_only_chunk()).flatten() {
            self.free(id);
            return Read::Chunk { bytes, last: true };
        }
        let free = (stream.free_handed as usize).min(release);
        stream.free_handed -= free as u32;
        let mut released = 0;
        if let Some(body) = stream.body.as_deref_mut() {
            released = body.incoming.release(release - free);
        }
        let chunk = if let Some(first) = stream.first.take() {
            stream.free_handed = first.len() as u32;
            Some(first)
        } else {
            let popped = stream.body.as_deref_mut().and_then(|body| body.incoming.pop());
            popped.map(|(bytes, overhead)| {
                released += overhead;
                bytes
            })
        };
        if chunk.is_some() || released > 0 {
            stream.moved();
        }
        let over = !stream.receiving && !stream.has_chunk();
        let read = match chunk {
            Some(bytes) => Read::Chunk { bytes, last: over && stream.failure.is_none() },
            None if !over => {
                stream.flagged = false;
                Read::Pending
            }
            None => match &stream.failure {
                Some(failure) => Read::Failed((**failure).clone()),
                None => Read::End,
            },
        };
        if released > 0 {
            self.window.release(released);
            self.return_credit();
            self.return_stream_credit(id);
        }
        let done = matches!(read, Read::Chunk { last: true, .. } | Read::End | Read::Failed(_));
        if client && done {
            self.free(id);
        }
        read
    }

    fn receive_all(&mut self, input: &mut BytesMut) -> Result<(), Error> {
        if self.phase == Phase::Preface && !self.receive_preface(input)? {
            return Ok(());
        }
        while self.phase != Phase::Closed {
            let Some(header) = Header::parse(input)? else { break };
            self.check(&header)?;
            if header.kind == Kind::Answer && self.receive_short_answer(&header, input) {
                continue;
            }
            let Some(frame) = FrameCodec::cut(header, input) else { break };
            self.receive_frame(frame)?;
        }
        Ok(())
    }

    /// Checks that a frame may come now, and from this peer.
    fn check(&self, header: &Header) -> Result<(), Error> {
        let early = self.phase == Phase::Hello && !matches!(header.kind, Kind::Hello | Kind::Close);
        let foreign = match header.kind {
            Kind::Drain | Kind::Answer | Kind::Refused => !self.is_client(),
            Kind::Call | Kind::Cancel => self.is_client(),
            _ => false,
        };
        if early || foreign {
            let when = if early { "before HELLO" } else { "from the wrong side" };
            return Err(Error::protocol(format!("{} {when}", header.kind.name())));
        }
        if header.kind == Kind::Data && header.len == 0 && !header.flags.has(Flags::END) {
            return Err(Error::protocol("a DATA frame without bytes and without END"));
        }
        Ok(())
    }

    fn receive_frame(&mut self, frame: Frame) -> Result<(), Error> {
        let payload = &*frame.payload;
        match frame.kind {
            Kind::Call => self.receive_call(frame)?,
            Kind::Answer => self.receive_answer(frame)?,
            Kind::Data => self.receive_data(frame)?,
            Kind::Hello => self.receive_hello(payload)?,
            Kind::Ping => {
                self.count_control()?;
                self.pong(payload);
            }
            Kind::Credit => self.receive_credit(frame.stream, payload)?,
            Kind::Drain => self.receive_drain(payload)?,
            Kind::Close => {
                let (reason, text) = parse_close(payload);
                return Err(Error::PeerClosed { reason, text: foreign(text) });
            }
            Kind::Status => self.receive_status(frame.stream, payload)?,
            Kind::Cancel => self.receive_cancel(frame.stream)?,
            Kind::Refused => self.receive_refused(frame.stream, frame.flags, payload)?,
            Kind::Pong => self.receive_pong(frame.flags, payload)?,
        }
        Ok(())
    }

    /// Takes the rest of a free frame: the first body bytes of a direction.
    pub(super) fn take_first(&mut self, id: StreamId, body: Bytes) {
        if let Some(stream) = self.streams.get_mut(id).filter(|_| !body.is_empty()) {
            stream.first = body.into();
        }
    }

    fn receive_data(&mut self, frame: Frame) -> Result<(), Error> {
        let Frame { flags, stream: id, payload, .. } = frame;
        let len = payload.len();
        let (client, now) = (self.is_client(), self.now);
        let (receive, send) = (self.receive_window(), self.send_window());
        self.window.charge(cost(len))?;
        match self.streams.get_mut(id) {
            Some(stream) if stream.receiving => {
                if client && !stream.answered {
                    return Err(Error::protocol("DATA before ANSWER"));
                }
                stream.body(receive, send).incoming.push(payload)?;
                stream.moved_at(now);
                if len == 0 {
                    self.window.release(cost(len));
                    self.return_credit();
                }
                if flags.has(Flags::END) {
                    self.end_receiving(id);
                } else {
                    self.return_stream_credit(id);
                }
                self.notify(id);
            }
            // The client has given the stream up, or knows no such stream; the server sent it without knowing.
            _ if client => self.ignore_data(len),
            Some(_) => return Err(Error::protocol("DATA after the end of the body")),
            None => {
                self.closed(id, Kind::Data)?;
                self.ignore_data(len);
            }
        }
        Ok(())
    }

    /// Gives the credit of a DATA frame that nobody wants back at once.
    fn ignore_data(&mut self, len: usize) {
        self.window.release(cost(len));
        self.return_credit();
    }

    /// The peer's direction has ended properly.
    pub(super) fn end_receiving(&mut self, id: StreamId) {
        if self.is_client() {
            self.end_response(id);
        } else if let Some(stream) = self.streams.get_mut(id) {
            stream.receiving = false;
        }
    }

    fn receive_status(&mut self, id: StreamId, payload: &[u8]) -> Result<(), Error> {
        let client = self.is_client();
        let Some(stream) = self.streams.get_mut(id) else {
            return if client { Ok(()) } else { self.closed(id, Kind::Status) };
        };
        if !stream.receiving {
            return if client { Ok(()) } else { Err(Error::protocol("STATUS after the end of the body")) };
        }
        let status = WireStatus::decode(payload)
            .map_err(|error| Error::protocol(format!("bad STATUS: {}", foreign(error.as_bytes()))))?;
        let answered = client && stream.answered;
        stream.failure = Some(Box::new(Failure::Status { status, answered }));
        self.end_receiving(id);
        self.notify(id);
        Ok(())
    }

    fn receive_credit(&mut self, id: StreamId, payload: &[u8]) -> Result<(), Error> {
        let granted = payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        if granted == 0 {
            return Err(Error::protocol("CREDIT of 0"));
        }
        if granted < SMALL_CREDIT {
            self.count_control()?;
        }
        if id == StreamId::CONNECTION {
            return self.credit.add(granted);
        }
        if self.streams.get(id).is_none() {
            return if self.is_client() { Ok(()) } else { self.closed(id, Kind::Credit) };
        }
        let now = self.now;
        if let Some(body) = self.body(id) {
            body.outgoing.credit.add(granted)?;
        }
        if let Some(stream) = self.streams.get_mut(id) {
            stream.moved_at(now);
        }
        self.take_turn(id);
        Ok(())
    }

    fn count_control(&mut self) -> Result<(), Error> {
        if self.control.take(self.now) { Ok(()) } else { Err(Error::TooManyControl) }
    }

    /// Server: lets a frame pass that comes for the last stream of its slot after that was over.
    pub(super) fn closed(&self, id: StreamId, kind: Kind) -> Result<(), Error> {
        match self.streams.known(id) {
            Known::Never => Err(Error::protocol(format!("{} for stream {id:?}, which never was", kind.name()))),
            Known::Open | Known::Closed => Ok(()),
        }
    }

    /// Returns credit of the connection if enough has gathered.
    pub(super) fn return_credit(&mut self) {
        if self.phase != Phase::Ready {
            return;
        }
        if let Some(credit) = self.window.due() {
            self.outbox.frame(Kind::Credit, StreamId::CONNECTION, &credit.to_be_bytes());
        }
    }

    /// Returns credit of a stream if enough has gathered and more may come, and more than that if its window is too small
    /// for the path.
    fn return_stream_credit(&mut self, id: StreamId) {
        let ready = self.phase == Phase::Ready;
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.receiving && ready) else { return };
        let Some(incoming) = stream.body.as_deref_mut().map(|body| &mut body.incoming) else { return };
        let Some(mut credit) = incoming.window.due() else { return };
        let look = self.growth.look(id, incoming, self.now);
        if let Look::Grown(by) = look {
            credit += by;
        }
        self.outbox.frame(Kind::Credit, id, &credit.to_be_bytes());
        if let Look::Ask(payload) = look {
            self.outbox.frame(Kind::Ping, StreamId::CONNECTION, &payload);
        }
    }
}
