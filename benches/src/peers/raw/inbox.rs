//! The bytes that came, as frames.
//!
//! Owns the read buffer: it starts small, grows while reads fill it, and gives large bodies away without copying them. Must
//! never wait. Next: `frame`.

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{HEAD, Head};
use super::{BY_REFERENCE, QUANTUM};

const FIRST: usize = 4 << 10;

pub(crate) struct Inbox {
    buffer: BytesMut,
    /// How far the frames have been handled.
    at: usize,
    /// Room to offer to the next read.
    size: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { buffer: BytesMut::new(), at: 0, size: FIRST }
    }

    /// The buffer, with room for a read.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < self.size / 2 {
            self.buffer.reserve(self.size.max(self.missing()) - self.buffer.len().min(self.size / 2));
        }
        &mut self.buffer
    }

    /// A read of this many bytes has been appended.
    pub(crate) fn filled(&mut self) {
        if self.buffer.len() == self.buffer.capacity() && self.size < QUANTUM {
            self.size *= 2;
        }
    }

    /// What the frame lacks whose beginning is there.
    fn missing(&self) -> usize {
        self.buffer.first_chunk().map_or(0, |head| HEAD + Head::read(head).length)
    }

    /// The next whole frame; without one, what has been handled is given back.
    #[inline]
    pub(crate) fn frame(&mut self) -> Option<(Head, Body<'_>)> {
        let head = self.buffer[self.at..].first_chunk().map(Head::read);
        match head {
            Some(head) if self.buffer.len() >= self.at + HEAD + head.length => {
                Some((head, Body { inbox: self, length: head.length }))
            }
            _ => {
                self.buffer.advance(self.at);
                self.at = 0;
                None
            }
        }
    }
}

/// The body of a frame, to be looked at or taken, one of the two.
pub(crate) struct Body<'a> {
    inbox: &'a mut Inbox,
    length: usize,
}

impl<'a> Body<'a> {
    /// Looks at it.
    #[inline]
    pub(crate) fn look(self) -> &'a [u8] {
        let Self { inbox, length } = self;
        let start = inbox.at + HEAD;
        inbox.at = start + length;
        &inbox.buffer[start..start + length]
    }

    /// Takes it, by reference where that is cheaper than a copy.
    pub(crate) fn take(self) -> Bytes {
        let Self { inbox, length } = self;
        if length < BY_REFERENCE {
            let start = inbox.at + HEAD;
            let bytes = Bytes::copy_from_slice(&inbox.buffer[start..start + length]);
            inbox.at = start + length;
            return bytes;
        }
        inbox.buffer.advance(inbox.at + HEAD);
        inbox.at = 0;
        inbox.buffer.split_to(length).freeze()
    }
}
