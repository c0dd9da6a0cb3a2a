//! Messages out of a body: cutting them from frames as they arrive.
//!
//! Owns the step from frames to messages on both sides of a call. It must never decode a message (that is
//! [`crate::message`]). Look next at [`crate::pack`] for the other direction.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::metadata::Metadata;
use crate::proto::{Failure, Read};
use crate::transport::buffers;
use crate::transport::link::Link;
use crate::wire::{self, StreamId};

/// Why no further message comes.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// The stream ended abnormally.
    Failed(Failure),
    /// The body ended within a message.
    Truncated,
    /// A message is longer than allowed.
    TooLong { len: usize, limit: usize },
    /// Too many long messages of the connection are under way.
    NoRoom,
}

/// Room that a message which comes in several pieces has at first, in bytes, if it needs as much.
const FIRST_ROOM: usize = 2 * wire::MAX_PAYLOAD;

/// How often the bytes that came may be had as room: what is only announced is not held, and what came is moved twice at most.
const GROWTH: usize = 8;

/// How many bytes of small messages are read at once, before anybody asks for the second: the reader of many waits for each to be
/// asked for, and few cost little if nobody does. Neither the messages nor what they become, without what that owns elsewhere, may be
/// longer, but for one.
const AHEAD: usize = 4 << 10;

/// How many bytes the arguments of one connection's calls may have that are being put together from several pieces.
#[derive(Debug)]
pub(crate) struct Assembly {
    used: AtomicUsize,
    limit: usize,
}

impl Assembly {
    /// Room for messages of `limit` bytes in all, with their prefixes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit: limit.saturating_add(wire::LONG_PREFIX) }
    }

    /// Takes room for one message, if there is any.
    fn admit(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Share { assembly: Arc::clone(self), bytes })
    }
}

/// The room that one message takes until it is whole or given up.
#[derive(Debug)]
struct Share {
    assembly: Arc<Assembly>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.assembly.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Cuts messages from pieces of a body. A message within one piece is a slice of it; one that spans several is copied
/// together once.
#[derive(Debug)]
pub(crate) struct Cutter {
    piece: Bytes,
    /// A message or prefix that the last piece left unfinished.
    partial: BytesMut,
    /// Length of the message in `partial` with its prefix, once the prefix is complete.
    need: Option<usize>,
    limit: usize,
}

/// The bytes of a piece that were read; they are gone from it when this is dropped.
struct Used<'a> {
    piece: &'a mut Bytes,
    bytes: usize,
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        self.piece.advance(self.bytes);
    }
}

impl Cutter {
    /// Cuts messages of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { piece: Bytes::new(), partial: BytesMut::new(), need: None, limit }
    }

    /// Adds the next piece; the one before must be used up.
    pub(crate) fn feed(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "a piece was fed before the last one was used up");
        self.piece = piece;
    }

    /// The next complete message.
    pub(crate) fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.piece.is_empty() {
            return None;
        }
        if self.partial.is_empty() {
            match wire::parse_prefix(&self.piece) {
                Some((len, _)) if len > self.limit => return Some(Err(BodyError::TooLong { len, limit: self.limit })),
                Some((len, prefix)) if prefix + len <= self.piece.len() => {
                    self.piece.advance(prefix);
                    return Some(Ok(self.piece.split_to(len)));
                }
                _ => {}
            }
        }
        self.gather()
    }

    /// Reads messages where they are and counts them, as long as they are whole there, no more than `most`, and `read` takes
    /// them. The others are for [`next`](Self::next).
    fn read_in_place(&mut self, most: usize, mut read: impl FnMut(&[u8]) -> bool) -> usize {
        let mut used = Used { piece: &mut self.piece, bytes: 0 };
        let mut count = 0;
        while count < most && used.bytes < AHEAD && self.partial.is_empty() {
            let rest = used.piece.get(used.bytes..).unwrap_or_default();
            let Some((len, prefix)) = wire::parse_prefix(rest).filter(|(len, _)| *len <= self.limit) else { break };
            let Some(message) = rest.get(prefix..prefix + len) else { break };
            // Also if `read` panics: what was read before must not be read again.
            used.bytes += prefix + len;
            if !read(message) {
                used.bytes -= prefix + len;
                break;
            }
            count += 1;
        }
        count
    }

    /// Moves what belongs to the unfinished message out of the piece.
    fn gather(&mut self) -> Option<Result<Bytes, BodyError>> {
        while self.need.is_none() {
            if let Some((len, prefix)) = wire::parse_prefix(&self.partial) {
                if len > self.limit {
                    return Some(Err(BodyError::TooLong { len, limit: self.limit }));
                }
                self.need = Some(prefix + len);
            } else {
                if self.piece.is_empty() {
                    return None;
                }
                self.partial.put_u8(self.piece.get_u8());
            }
        }
        let need = self.need?;
        let missing = (need - self.partial.len()).min(self.piece.len());
        self.make_room(missing, need);
        self.partial.put(self.piece.split_to(missing));
        if self.partial.len() < need {
            return None;
        }
        self.need = None;
        // It may have been made for a longer message.
        let size = self.partial.capacity();
        let mut message = self.partial.split().freeze();
        buffers::keep(std::mem::take(&mut self.partial), size);
        let (_, prefix) = wire::parse_prefix(&message)?;
        message.advance(prefix);
        Some(Ok(message))
    }

    /// Makes room for `more` bytes of a message of `need` bytes.
    fn make_room(&mut self, more: usize, need: usize) {
        let have = self.partial.len() + more;
        if have <= self.partial.capacity() {
            return;
        }
        // The length is only announced: unless there is a buffer of that size already, the room grows with what really comes.
        let mut room = buffers::used(need)
            .unwrap_or_else(|| BytesMut::with_capacity(have.saturating_mul(GROWTH).max(FIRST_ROOM).min(need)));
        room.put_slice(&self.partial);
        self.partial = room;
    }

    /// The announced length of the message that is being put together.
    pub(crate) fn assembling(&self) -> Option<usize> {
        self.need
    }

    /// Whether everything fed so far made whole messages.
    pub(crate) fn is_whole(&self) -> bool {
        self.partial.is_empty() && self.piece.is_empty()
    }
}

/// Reads the messages of one direction of a call from its connection.
#[derive(Debug)]
pub(crate) struct BodyReader {
    link: Arc<Link>,
    id: StreamId,
    cutter: Cutter,
    /// Bytes of the piece that is being read; their credit is given back with the next one.
    held: usize,
    last: bool,
    /// Where the connection counts the messages under way; a client trusts the limit on each.
    assembly: Option<Arc<Assembly>>,
    share: Option<Share>,
    /// What came with the beginning of an answer.
    metadata: Option<Box<Metadata>>,
    /// What somebody else has read already.
    read: Option<Box<Read>>,
}

impl BodyReader {
    pub(crate) fn new(link: Arc<Link>, id: StreamId, limit: usize) -> Self {
        Self {
            link,
            id,
            cutter: Cutter::new(limit),
            held: 0,
            last: false,
            assembly: None,
            share: None,
            metadata: None,
            read: None,
        }
    }

    /// Reads a body that is all there.
    pub(crate) fn whole(link: Arc<Link>, id: StreamId, limit: usize, body: Bytes) -> Self {
        let mut reader = Self::new(link, id, limit);
        reader.cutter.feed(body);
        reader.last = true;
        reader
    }

    /// Counts the first message, if it comes in several pieces, against the connection's room for such.
    pub(crate) fn within(mut self, assembly: Arc<Assembly>) -> Self {
        self.assembly = Some(assembly);
        self
    }

    /// Goes on after what was read from the connection, and came with it.
    pub(crate) fn after(mut self, read: Read, metadata: Option<Box<Metadata>>) -> Self {
        self.read = Some(Box::new(read));
        self.metadata = metadata;
        self
    }

    /// The next message, `None` at the proper end. After an error or the end it must not be asked again. Cancel safe.
    pub(crate) fn poll_message(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            match self.cutter.next() {
                Some(message) => {
                    // Only arguments are counted: they can be refused and tried elsewhere, an item of a stream cannot.
                    self.assembly = None;
                    self.share = None;
                    return Poll::Ready(Some(message));
                }
                None if self.last && self.cutter.is_whole() => return Poll::Ready(None),
                None if self.last => return Poll::Ready(Some(Err(BodyError::Truncated))),
                None => {}
            }
            if let (Some(bytes), Some(assembly), None) = (self.cutter.assembling(), &self.assembly, &self.share) {
                match assembly.admit(bytes) {
                    Some(share) => self.share = Some(share),
                    None => return Poll::Ready(Some(Err(BodyError::NoRoom))),
                }
            }
            let release = std::mem::take(&mut self.held);
            let read = match self.read.take() {
                Some(read) => Poll::Ready(*read),
                None => self.link.poll_read(self.id, release, &mut self.metadata, cx),
            };
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Read::Pending) => return Poll::Pending,
                Poll::Ready(Read::Chunk { bytes, last }) => {
                    self.held = bytes.len();
                    self.last = last;
                    self.cutter.feed(bytes);
                }
                Poll::Ready(Read::End) => self.last = true,
                Poll::Ready(Read::Failed(failure)) => return Poll::Ready(Some(Err(BodyError::Failed(failure)))),
            }
        }
    }

    /// Reads the messages that need no waiting and no work but `read`, but not many of them; [`poll_message`](Self::poll_message)
    /// explains why there are none. Says whether there were any.
    pub(crate) fn read_in_place<T>(
        &mut self,
        items: &mut VecDeque<T>,
        mut read: impl FnMut(&[u8]) -> Option<T>,
    ) -> bool {
        // The first message may have to be counted.
        if self.assembly.is_some() {
            return false;
        }
        let most = (AHEAD / size_of::<T>().max(1)).max(1);
        let read = |message: &[u8]| read(message).map(|item| items.push_back(item)).is_some();
        self.cutter.read_in_place(most, read) > 0
    }

    /// See [`BodyReader::poll_message`].
    pub(crate) async fn message(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Whether the body is at its end, so that no further message comes.
    pub(crate) fn is_at_end(&self) -> bool {
        self.last && self.cutter.is_whole()
    }

    /// What came with the beginning of an answer, once some of it was read.
    pub(crate) fn metadata(&self) -> Metadata {
        self.metadata.as_deref().cloned().unwrap_or_default()
    }

    /// The longest message that it takes.
    pub(crate) fn limit(&self) -> usize {
        self.cutter.limit
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(crate) fn id(&self) -> StreamId {
        self.id
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_counts_as_long_as_it_is_after_a_shorter_message() {
        /// No other test of this process asks for this size.
        const SIZE: usize = 9_000_000;
        let _alone = buffers::ALONE.lock();
        for len in [SIZE, SIZE / 8 * 7] {
            let mut body = BytesMut::new();
            wire::put_prefix(&mut body, len);
            body.resize(body.len() + len, 7);
            let mut cutter = Cutter::new(SIZE);
            cutter.feed(body.split_to(1000).freeze());
            assert!(cutter.next().is_none());
            cutter.feed(body.freeze());
            assert_eq!(cutter.next().unwrap().unwrap().len(), len);
        }
        assert!(buffers::used(SIZE).is_some(), "the buffer of the first is taken for a shorter one");
    }

    /// A piece of messages that are this long, and of half of one more.
    fn piece_of(lens: &[usize]) -> Bytes {
        let mut body = BytesMut::new();
        for len in lens {
            wire::put_prefix(&mut body, *len);
            body.resize(body.len() + len, 7);
        }
        wire::put_prefix(&mut body, 2);
        body.put_u8(7);
        body.freeze()
    }

    fn read(cutter: &mut Cutter, most: usize) -> Vec<usize> {
        let mut lens = Vec::new();
        let count = cutter.read_in_place(most, |message| {
            lens.push(message.len());
            true
        });
        assert_eq!(count, lens.len());
        lens
    }

    #[test]
    fn reading_ahead_stops_at_its_limits_and_leaves_the_rest() {
        let mut cutter = Cutter::new(AHEAD);
        cutter.feed(piece_of(&[1; AHEAD]));
        assert_eq!(read(&mut cutter, 3), [1; 3], "no more than asked for");
        assert_eq!(read(&mut cutter, usize::MAX), [1; AHEAD / 2], "no more bytes, with their prefixes");
        while !read(&mut cutter, usize::MAX).is_empty() {}
        assert!(cutter.next().is_none(), "the last one is not whole");
        cutter.feed(piece_of(&[]).slice(1..));
        assert_eq!(cutter.next().unwrap().unwrap().as_ref(), [7, 7], "it was lost");

        let mut cutter = Cutter::new(AHEAD);
        cutter.feed(piece_of(&[1, AHEAD, AHEAD, AHEAD + 1, 1]));
        assert_eq!(read(&mut cutter, usize::MAX), [1, AHEAD], "one that is long ends it");
        assert_eq!(read(&mut cutter, usize::MAX), [AHEAD]);
        assert!(read(&mut cutter, usize::MAX).is_empty(), "one that is too long is not read");
        assert!(matches!(cutter.next(), Some(Err(BodyError::TooLong { .. }))));
    }

    #[test]
    fn what_cannot_be_read_in_place_is_left_where_it_is() {
        let mut cutter = Cutter::new(AHEAD);
        cutter.feed(piece_of(&[1, 2, 3]));
        assert_eq!(cutter.read_in_place(usize::MAX, |message| message.len() < 2), 1);
        assert_eq!(cutter.next().unwrap().unwrap().len(), 2);
        assert_eq!(read(&mut cutter, usize::MAX), [3]);
    }

    #[test]
    fn what_was_read_before_a_panic_is_not_read_again() {
        let mut cutter = Cutter::new(AHEAD);
        cutter.feed(piece_of(&[1, 2, 3, 4]));
        let mut lens = Vec::new();
        for _ in 0..2 {
            let reading = std::panic::AssertUnwindSafe(|| {
                cutter.read_in_place(usize::MAX, |message| {
                    assert_ne!(message.len(), 3, "this one panics");
                    lens.push(message.len());
                    true
                })
            });
            let _ = std::panic::catch_unwind(reading);
        }
        assert_eq!(lens, [1, 2, 4]);
    }
}
