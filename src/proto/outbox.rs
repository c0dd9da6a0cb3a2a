//! Small frames that wait to be written, in the order of the wire.
//!
//! Owns the buffer into which heads and short messages are encoded in place. A closure that fails or panics leaves
//! no trace: what was committed is remembered, and the rest is cut off before the next use. It must never hold a long
//! body: those are handed back to `send.rs`, the place to look next.

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::frame::put_frame;
use crate::wire::prefix::encode_message;
use crate::wire::{Apart, Flags, HEADER, Header, Kind, StreamId};

/// Longest frame, in bytes, that goes here rather than to a stream's own queue: such a frame delays the ones behind it
/// by microseconds.
pub(super) const SMALL_FRAME: usize = 4096;

/// How many bytes may wait before no call is opened and nothing more is received: a peer that does not read must
/// not make this side grow.
pub(super) const CONGESTED: usize = 1024 * 1024;

/// With so many frames waiting, they are better written than joined by more: the peer then works on them while the next are
/// made. Waiting for everybody makes both sides take turns; 256 calls in flight between two cores are then 1.25 M calls a
/// second, and 2.07 M so. Fewer cost more system calls than they save waiting, more do not split 256 calls evenly.
pub(super) const PLENTY_FRAMES: usize = 128;

/// Fewer than these are not worth a system call of their own, however few calls there are.
const FEW_FRAMES: usize = 32;

/// The same in bytes: 64 calls of 1 KiB in flight are then 869,000 calls a second rather than 473,000.
const PLENTY_BYTES: usize = 32 * 1024;

/// Length, in bytes, from which an encoded message is cut out of the buffer rather than copied: the buffer's
/// allocation then goes with it.
pub(super) const CUT_OUT: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: BytesMut,
    /// Whole frames; what is behind them was left by a closure that did not come to its end.
    committed: usize,
    /// How many times something was appended since all was taken.
    frames: usize,
    /// The frame at the very end, if body bytes may still be added to it.
    tail: Option<(StreamId, usize)>,
}

/// Where a message went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// Into the frame.
    Frame,
    /// Nowhere yet: it is too long for a small frame. The prefix is included. In parts, because those that were given by
    /// reference stay so.
    Body(Vec<Bytes>),
}

/// Why a message was not taken; the buffer is as before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PlaceError<E> {
    Encode(E),
    TooLarge(usize),
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.committed == 0
    }

    pub(super) fn is_congested(&self) -> bool {
        self.committed >= CONGESTED
    }

    /// Whether so much waits that it should not wait for more: these frames, but neither too few nor more than plenty, or many
    /// bytes.
    pub(super) fn is_plenty(&self, frames: usize) -> bool {
        self.frames >= frames.clamp(FEW_FRAMES, PLENTY_FRAMES) || self.committed >= PLENTY_BYTES
    }

    /// Where the next frame will begin.
    pub(super) fn end(&self) -> usize {
        self.committed
    }

    /// The frames, to be swapped for an empty buffer by [`super::Batch::begin`].
    pub(super) fn take(&mut self) -> &mut BytesMut {
        self.clean();
        self.committed = 0;
        self.frames = 0;
        self.tail = None;
        &mut self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.take().clear();
    }

    /// Gives the buffer back if nothing is in it.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            self.bytes = BytesMut::new();
        }
    }

    /// Appends a whole frame.
    pub(super) fn frame(&mut self, kind: Kind, stream: StreamId, payload: &[u8]) {
        self.put(|bytes| put_frame(bytes, kind, Flags::NONE, stream, payload));
    }

    /// Appends whole frames, or a preface.
    pub(super) fn put(&mut self, put: impl FnOnce(&mut BytesMut)) {
        self.clean();
        put(&mut self.bytes);
        self.commit();
        self.tail = None;
    }

    /// Appends a frame with a head and no body bytes yet; [`extend`](Self::extend) and [`end_tail`](Self::end_tail)
    /// may add to it as long as it is the last one.
    pub(super) fn head(&mut self, kind: Kind, flags: Flags, stream: StreamId, head: impl FnOnce(&mut BytesMut)) {
        let start = self.begin(kind, flags, stream, head);
        self.seal(start);
        self.tail = Some((stream, start));
    }

    /// Appends a frame with a head and one message. The frame ends the body if `end` says so and the message went in.
    pub(super) fn message<E>(
        &mut self,
        (kind, flags, stream): (Kind, Flags, StreamId),
        head: impl FnOnce(&mut BytesMut),
        end: bool,
        limit: usize,
        encode: impl FnOnce(&mut BytesMut) -> Result<Apart, E>,
    ) -> Result<Placed, PlaceError<E>> {
        let before = self.tail;
        let start = self.begin(kind, flags, stream, head);
        let placed = match self.place(start, limit, encode) {
            Ok(placed) => placed,
            Err(error) => {
                self.tail = before;
                return Err(error);
            }
        };
        self.tail = Some((stream, start));
        if end && placed == Placed::Frame {
            self.end_tail(stream);
        }
        Ok(placed)
    }

    /// Adds body bytes to the last frame, if it is of this stream and stays a small one.
    pub(super) fn extend(&mut self, stream: StreamId, body: &[u8]) -> bool {
        self.clean();
        match self.tail {
            Some((tail, start)) if tail == stream && self.bytes.len() - start + body.len() <= SMALL_FRAME => {
                self.bytes.put_slice(body);
                self.seal(start);
                true
            }
            _ => false,
        }
    }

    /// Lets the last frame end the body, if it is of this stream.
    pub(super) fn end_tail(&mut self, stream: StreamId) -> bool {
        match self.tail {
            Some((tail, start)) if tail == stream => {
                self.bytes[start + 3] |= Flags::END.0;
                self.tail = None;
                true
            }
            _ => false,
        }
    }

    /// Removes the frame that begins there and says how long it was.
    pub(super) fn remove(&mut self, start: usize) -> usize {
        self.clean();
        let len = match Header::parse(&self.bytes[start..]) {
            Ok(Some(header)) => HEADER + header.len,
            // Not reached: only whole frames of our own making are here.
            _ => return 0,
        };
        self.bytes.copy_within(start + len.., start);
        self.bytes.truncate(self.committed - len);
        self.committed = self.bytes.len();
        self.frames = self.frames.saturating_sub(1);
        self.tail = match self.tail {
            Some((stream, tail)) if tail > start => Some((stream, tail - len)),
            Some((stream, tail)) if tail < start => Some((stream, tail)),
            _ => None,
        };
        len
    }

    fn clean(&mut self) {
        self.bytes.truncate(self.committed);
    }

    fn commit(&mut self) {
        self.frames += 1;
        self.committed = self.bytes.len();
    }

    /// Writes a header without its length, and a head.
    fn begin(&mut self, kind: Kind, flags: Flags, stream: StreamId, head: impl FnOnce(&mut BytesMut)) -> usize {
        self.clean();
        self.tail = None;
        let start = self.committed;
        self.bytes.put_slice(&Header { len: 0, kind, flags, stream }.bytes());
        head(&mut self.bytes);
        start
    }

    /// Encodes a message at the end of the frame that begins at `start`, or hands it back if it is too long for it.
    fn place<E>(
        &mut self,
        start: usize,
        limit: usize,
        encode: impl FnOnce(&mut BytesMut) -> Result<Apart, E>,
    ) -> Result<Placed, PlaceError<E>> {
        let at = self.bytes.len();
        let (message, apart) = match encode_message(&mut self.bytes, encode) {
            Ok(message) => message,
            Err(error) => {
                self.clean();
                return Err(PlaceError::Encode(error));
            }
        };
        if message > limit {
            self.clean();
            return Err(PlaceError::TooLarge(message));
        }
        let in_place = self.bytes.len() - at;
        let placed = if apart.is_empty() && self.bytes.len() - start <= SMALL_FRAME {
            Placed::Frame
        } else {
            let rest = if in_place >= CUT_OUT {
                self.bytes.split_off(at).freeze()
            } else {
                Bytes::copy_from_slice(&self.bytes[at..])
            };
            self.bytes.truncate(at);
            Placed::Body(join(rest, apart))
        };
        self.seal(start);
        Ok(placed)
    }

    /// Writes the length of the frame that begins at `start` and reaches to the end, and commits it.
    fn seal(&mut self, start: usize) {
        // Heads are at most 17 KiB and bodies are cut at `SMALL_FRAME`, so three bytes are enough.
        let [_, len @ ..] = ((self.bytes.len() - start - HEADER) as u32).to_be_bytes();
        self.bytes[start..start + 3].copy_from_slice(&len);
        self.commit();
    }
}

/// A message in parts: what was written, and between it what was left out.
fn join(mut written: Bytes, apart: Apart) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(2 * apart.len() + 1);
    let mut cut = 0;
    for (place, bytes) in apart {
        // Places come in their order and lie within what was written; others would be taken as the nearest that does.
        let place = place.clamp(cut, cut + written.len());
        parts.push(written.split_to(place - cut));
        parts.push(bytes);
        cut = place;
    }
    parts.push(written);
    parts.retain(|part| !part.is_empty());
    parts
}
