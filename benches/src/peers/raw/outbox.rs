//! What waits to be sent, and what is being sent.
//!
//! Owns the order: small frames first, then a quantum of bulk. Must never write by itself. Next: `client`, `server`.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use super::frame::{HEAD, Head, Key, Kind};
use super::{BY_REFERENCE, FRAGMENT, QUANTUM};

/// Slices of one vectored write.
pub(crate) const SLICES: usize = 64;

/// Frames that nobody has begun to send.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    small: Vec<u8>,
    /// Small frames in it.
    pub(crate) frames: usize,
    bulk: VecDeque<Part>,
    bulk_bytes: usize,
}

#[derive(Debug)]
struct Part {
    head: [u8; HEAD],
    body: Bytes,
}

impl Outbox {
    /// Adds a small frame.
    #[inline]
    pub(crate) fn small(&mut self, kind: Kind, key: Key, body: &[u8]) {
        self.small.extend_from_slice(&Head::new(kind, key, body.len()).bytes());
        self.small.extend_from_slice(body);
        self.frames += 1;
    }

    /// Adds the body of a message that is not in parts yet; its last frame has the kind `end`.
    pub(crate) fn message(&mut self, part: Kind, end: Kind, key: Key, mut body: Bytes) {
        if body.len() < BY_REFERENCE {
            return self.small(end, key, &body);
        }
        while body.len() > FRAGMENT {
            let piece = body.split_to(FRAGMENT);
            self.part(part, key, piece);
        }
        self.part(end, key, body);
    }

    /// Adds bytes that must stay in order with other parts of the same key.
    pub(crate) fn bulk(&mut self, kind: Kind, key: Key, mut body: Bytes) {
        while body.len() > FRAGMENT {
            let piece = body.split_to(FRAGMENT);
            self.part(kind, key, piece);
        }
        self.part(kind, key, body);
    }

    fn part(&mut self, kind: Kind, key: Key, body: Bytes) {
        self.bulk_bytes += body.len();
        self.bulk.push_back(Part { head: Head::new(kind, key, body.len()).bytes(), body });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.bulk.is_empty()
    }

    /// Whether more bulk would only wait.
    pub(crate) fn is_full(&self) -> bool {
        self.bulk_bytes >= QUANTUM
    }

    /// The small frames, if nothing else is there.
    pub(crate) fn only_small(&mut self) -> Option<&mut Vec<u8>> {
        self.bulk.is_empty().then_some(&mut self.small)
    }
}

/// What has been handed over to be sent now, in this order.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    small: Vec<u8>,
    small_sent: usize,
    bulk: VecDeque<Part>,
    front_sent: usize,
}

impl Sending {
    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.bulk.is_empty()
    }

    /// Takes all small frames and a quantum of bulk. Nothing may be left of the last time.
    pub(crate) fn load(&mut self, out: &mut Outbox) {
        debug_assert!(self.is_empty(), "what was taken first goes first");
        std::mem::swap(&mut self.small, &mut out.small);
        out.frames = 0;
        let mut bytes = 0;
        while bytes < QUANTUM {
            let Some(part) = out.bulk.pop_front() else { break };
            bytes += part.body.len();
            self.bulk.push_back(part);
        }
        out.bulk_bytes -= bytes;
    }

    /// What is left, as far as one write takes it.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut count = 0;
        let mut push = |bytes: &'a [u8]| {
            if count < SLICES && !bytes.is_empty() {
                slices[count] = IoSlice::new(bytes);
                count += 1;
            }
        };
        push(&self.small[self.small_sent..]);
        let mut sent = self.front_sent;
        for part in self.bulk.iter().take(SLICES / 2) {
            push(&part.head[sent.min(HEAD)..]);
            push(&part.body[sent.saturating_sub(HEAD)..]);
            sent = 0;
        }
        count
    }

    /// That many bytes were written.
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        let small = bytes.min(self.small.len() - self.small_sent);
        self.small_sent += small;
        bytes -= small;
        if self.small_sent == self.small.len() {
            self.small.clear();
            self.small_sent = 0;
        }
        while let Some(front) = self.bulk.front() {
            let rest = HEAD + front.body.len() - self.front_sent;
            if bytes < rest {
                self.front_sent += bytes;
                return;
            }
            bytes -= rest;
            self.front_sent = 0;
            self.bulk.pop_front();
        }
    }
}
