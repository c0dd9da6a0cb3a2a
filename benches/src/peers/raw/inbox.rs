//! The bytes that came, as frames.
//!
//! Owns the read buffer: it starts small, grows while reads fill it, and gives large bodies away without copying them. The
//! memory of those that nobody holds any more is used again. Must never wait. Next: `frame`.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{HEAD, Head};
use super::{BY_REFERENCE, QUANTUM};

const FIRST: usize = 4 << 10;
/// Large buffers that are remembered while others hold parts of them: fresh memory costs a fault for each page.
const SPARES: usize = 64;

pub(crate) struct Inbox {
    buffer: BytesMut,
    /// How far the frames have been handled.
    at: usize,
    /// Room to offer to the next read.
    size: usize,
    spares: VecDeque<BytesMut>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { buffer: BytesMut::new(), at: 0, size: FIRST, spares: VecDeque::new() }
    }

    /// The buffer, with room for a read.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < self.size / 2 {
            let more = self.size.max(self.missing()) - self.buffer.len().min(self.size / 2);
            if !self.buffer.try_reclaim(more) {
                let mut next = self.spare(self.buffer.len() + more);
                next.extend_from_slice(&self.buffer);
                let used = std::mem::replace(&mut self.buffer, next);
                self.remember(used);
            }
        }
        &mut self.buffer
    }

    /// A buffer of at least this size, of those that are free again if there is one.
    fn spare(&mut self, size: usize) -> BytesMut {
        let free = self.spares.iter_mut().position(|spare| spare.try_reclaim(size));
        free.and_then(|at| self.spares.remove(at)).unwrap_or_else(|| BytesMut::with_capacity(size))
    }

    /// Keeps a buffer for `spare`, unless only small ones have been needed so far.
    fn remember(&mut self, mut used: BytesMut) {
        if self.size < QUANTUM {
            return;
        }
        used.clear();
        self.spares.push_back(used);
        if self.spares.len() > SPARES {
            self.spares.pop_front();
        }
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

/// The body of a frame, to be looked at, taken or joined, one of the three.
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
    /// Appends it to the earlier parts of a message of about this size.
    pub(crate) fn join(self, message: &mut BytesMut, size: usize) {
        if message.capacity() == 0 {
            *message = self.inbox.spare(size);
        }
        message.extend_from_slice(self.look());
    }

    /// The message that ends with it.
    pub(crate) fn end(self, mut message: BytesMut) -> Bytes {
        if message.is_empty() {
            return self.take();
        }
        let Self { inbox, length } = self;
        message.extend_from_slice(Body { inbox: &mut *inbox, length }.look());
        let whole = message.split().freeze();
        inbox.remember(message);
        whole
    }
}
