//! What one write takes: small bytes copied together, large payloads by reference, in the order of the wire.
//!
//! Owns [`Batch`], which the driver keeps and reuses. It must never know what the bytes mean. Look next at `send.rs`,
//! which fills it.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Capacity, in bytes, above which an emptied buffer is given back at once. Below, it is kept for the next batch of a
/// connection in use: a buffer that grows anew is copied several times.
const KEEP: usize = 256 * 1024;

/// Bytes to be written, in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Headers and small payloads.
    arena: BytesMut,
    /// How much of the arena was written.
    written: usize,
    segments: VecDeque<Segment>,
    len: usize,
}

#[derive(Debug)]
enum Segment {
    /// That many next bytes of the arena.
    Arena(usize),
    Payload(Bytes),
}

impl Batch {
    /// Whether everything was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes are left.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All that is left, if it is in one piece, as most is.
    #[inline]
    pub(crate) fn only(&self) -> Option<&[u8]> {
        let mut segments = self.segments.iter();
        match (segments.next()?, segments.next()) {
            (Segment::Arena(len), None) => self.arena.get(self.written..self.written + len),
            (Segment::Payload(bytes), None) => Some(bytes),
            _ => None,
        }
    }

    /// Fills slices for a vectored write and says how many.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut arena = &self.arena[self.written..];
        let mut filled = 0;
        for (segment, slice) in self.segments.iter().zip(slices) {
            let bytes = match segment {
                Segment::Arena(len) => {
                    let (bytes, rest) = arena.split_at(*len);
                    arena = rest;
                    bytes
                }
                Segment::Payload(bytes) => bytes,
            };
            *slice = IoSlice::new(bytes);
            filled += 1;
        }
        filled
    }

    /// Takes bytes that were written off the front.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let Some(front) = self.segments.front_mut() else { break };
            let taken = match front {
                Segment::Arena(len) => {
                    let taken = count.min(*len);
                    *len -= taken;
                    self.written += taken;
                    if *len == 0 {
                        self.segments.pop_front();
                    }
                    taken
                }
                Segment::Payload(bytes) => {
                    let taken = count.min(bytes.len());
                    bytes.advance(taken);
                    if bytes.is_empty() {
                        self.segments.pop_front();
                    }
                    taken
                }
            };
            count -= taken;
            self.len -= taken;
        }
        if self.len == 0 {
            self.clear();
        }
    }

    /// Gives back what a burst needed, which an idle connection does not keep.
    pub(crate) fn rest(&mut self) {
        if self.is_empty() {
            self.arena = BytesMut::new();
            self.segments = VecDeque::new();
        }
    }

    /// Swaps the emptied arena for a buffer of frames that precede all others.
    pub(super) fn begin(&mut self, small: &mut BytesMut) {
        self.clear();
        std::mem::swap(&mut self.arena, small);
        self.note_arena(self.arena.len());
    }

    /// Appends bytes by copy.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.arena.put_slice(bytes);
        self.note_arena(bytes.len());
    }

    /// Appends bytes by reference.
    pub(super) fn put_bytes(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.segments.push_back(Segment::Payload(bytes));
        }
    }

    fn note_arena(&mut self, added: usize) {
        if added == 0 {
            return;
        }
        self.len += added;
        match self.segments.back_mut() {
            Some(Segment::Arena(len)) => *len += added,
            _ => self.segments.push_back(Segment::Arena(added)),
        }
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.len = 0;
        self.written = 0;
        if self.arena.capacity() > KEEP {
            self.arena = BytesMut::new();
        } else {
            self.arena.clear();
        }
    }
}
