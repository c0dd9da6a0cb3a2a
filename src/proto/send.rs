//! The outgoing body of one stream: messages that wait for credit and for their turn.
//!
//! Owns the queue and how it is cut into DATA frames. It must never know about other streams: whose turn it is, is
//! decided by `connection.rs`, the place to look next.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::batch::Batch;
use super::credit::{Credit, cost};
use crate::wire::{Flags, HEADER, Header, Kind, MAX_PAYLOAD, StreamId};

/// Where a long message is cut, in bytes.
pub(super) const CHUNK: usize = 64 * 1024;

/// Payloads shorter than this, in bytes, are copied behind their header: one more slice in a vectored write costs more.
pub(super) const BY_REFERENCE: usize = 2048;

/// How many bytes of a stream may wait before its sender is told to: as many as leave in one batch if it is alone.
pub(crate) const FULL: usize = 256 * 1024;

/// With how many bytes left a sender that waits is woken.
pub(super) const LOW: usize = 128 * 1024;

/// Least credit, in bytes, for which a part of a body is sent; smaller windows would be spent on headers.
pub(super) const LEAST: usize = 1024;

/// What follows the pending bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Perhaps more bytes.
    Open,
    End,
    /// A whole STATUS frame.
    Status(Bytes),
}

#[derive(Debug)]
pub(super) struct Outgoing {
    pieces: VecDeque<Piece>,
    /// Short messages, behind the pieces.
    tail: BytesMut,
    /// Bytes in pieces and tail.
    pending: usize,
    pub(super) credit: Credit,
    pub(super) ending: Ending,
    /// The stream is among those that wait for their turn. It then has credit for a frame.
    pub(super) queued: bool,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// How many bytes from its beginning are kept in one frame if they fit one; 0 once some were sent, and for what follows.
    whole: usize,
}

impl Outgoing {
    pub(super) fn new(credit: u32) -> Self {
        Self {
            pieces: VecDeque::new(),
            tail: BytesMut::new(),
            pending: 0,
            credit: Credit::new(credit),
            ending: Ending::Open,
            queued: false,
        }
    }

    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending >= FULL
    }

    /// Whether anything waits to be sent.
    pub(super) fn has_work(&self) -> bool {
        self.pending > 0 || self.ending == Ending::End
    }

    /// How much credit the next frame must have.
    pub(super) fn need(&self) -> usize {
        (self.pending + HEADER).min(LEAST)
    }

    /// Appends messages, or a part of them. Short pieces are copied together, long ones are kept by reference.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.pending += bytes.len();
        if bytes.len() < BY_REFERENCE {
            self.tail.extend_from_slice(&bytes);
        } else {
            self.end_tail();
            self.pieces.push_back(Piece { whole: bytes.len(), bytes });
        }
    }

    /// Appends a long message in parts, which stay in one frame if they fit one.
    pub(super) fn push_parts(&mut self, parts: impl IntoIterator<Item = Bytes>) {
        self.end_tail();
        let (first, before) = (self.pieces.len(), self.pending);
        for bytes in parts {
            self.pending += bytes.len();
            self.pieces.push_back(Piece { bytes, whole: 0 });
        }
        if let Some(first) = self.pieces.get_mut(first) {
            first.whole = self.pending - before;
        }
    }

    /// Throws everything away.
    pub(super) fn clear(&mut self) {
        self.pieces = VecDeque::new();
        self.tail = BytesMut::new();
        self.pending = 0;
        self.ending = Ending::Open;
    }

    /// Puts one DATA frame into the batch and says how long its payload is. There is credit for at least a header and,
    /// unless only the END waits, one byte.
    pub(super) fn emit(&mut self, stream: StreamId, connection: &mut Credit, batch: &mut Batch) -> usize {
        let room = self.credit.get().min(connection.get()).saturating_sub(HEADER).min(MAX_PAYLOAD);
        let len = self.cut(room);
        let end = len == self.pending && self.ending == Ending::End;
        let header = Header { len, kind: Kind::Data, flags: Flags::NONE.with(Flags::END, end), stream };
        batch.put(&header.bytes());
        self.credit.spend(cost(len));
        connection.spend(cost(len));
        self.take(len, batch);
        if end {
            self.ending = Ending::Open;
        }
        len
    }

    /// How many bytes go into the next frame.
    fn cut(&self, room: usize) -> usize {
        let mut len = 0;
        for piece in &self.pieces {
            let splits = len + piece.whole > room;
            if len > 0 && splits && piece.whole <= MAX_PAYLOAD && piece.whole > 0 {
                return len;
            }
            if len + piece.bytes.len() > room {
                return room.min(CHUNK).max(len);
            }
            len += piece.bytes.len();
        }
        if len + self.tail.len() > room { room.min(CHUNK).max(len) } else { len + self.tail.len() }
    }

    /// Moves that many bytes into the batch.
    fn take(&mut self, mut len: usize, batch: &mut Batch) {
        self.pending -= len;
        let copy = len < BY_REFERENCE;
        while len > 0 {
            let Some(front) = self.pieces.front_mut() else { break };
            let bytes = if front.bytes.len() <= len {
                let Some(piece) = self.pieces.pop_front() else { break };
                piece.bytes
            } else {
                front.whole = 0;
                front.bytes.split_to(len)
            };
            len -= bytes.len();
            if copy || bytes.len() < BY_REFERENCE { batch.put(&bytes) } else { batch.put_bytes(bytes) }
        }
        if len == 0 {
            return;
        }
        // The pieces are used up: the rest comes from the tail.
        let all = len == self.tail.len();
        if all && len < BY_REFERENCE {
            batch.put(&self.tail);
            self.tail.clear();
        } else {
            batch.put_bytes(self.tail.split_to(len).freeze());
        }
    }

    /// Makes a piece of the tail, so that something can come behind it.
    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(Piece { bytes: self.tail.split().freeze(), whole: 0 });
        }
    }
}
