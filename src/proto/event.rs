//! What a connection says to the layer above, and what it is asked.
//!
//! Owns the vocabulary: [`Event`], [`Read`], [`Failure`], [`Open`]. No logic. Look next at `connection.rs`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::Error;
use crate::metadata::Metadata;
use crate::wire::{Refusal, StreamId, WireStatus};

/// Who is at the other end, from its HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) node: String,
    pub(crate) service: String,
    pub(crate) incarnation: u64,
    /// How many calls the peer accepts at once; 0 from a client.
    pub(crate) max_calls: u16,
    /// Longest message that the peer accepts, in bytes.
    pub(crate) max_message: u64,
    /// First credit of each stream that the peer receives, in bytes.
    pub(crate) stream_window: u32,
    /// Names of methods that are idempotent; may be incomplete.
    pub(crate) idempotent: HashSet<String>,
    /// Whether the peer, a client, wants to know how busy this side is.
    pub(crate) wants_load: bool,
}

/// A call about to be opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open<'a> {
    pub(crate) method: &'a str,
    pub(crate) deadline: Option<Instant>,
    /// How long the stream may rest in both directions before it fails.
    pub(crate) idle: Option<Duration>,
    /// 0 for the first.
    pub(crate) attempt: u8,
    pub(crate) metadata: Option<&'a Metadata>,
    /// No request body follows the message given to `open`.
    pub(crate) end: bool,
}

/// Which method is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MethodRef {
    /// The number that the client gave to the name; 0: none, the name is in `name`.
    pub(crate) number: u16,
    /// The name, with the first call that is reported for a number and with every call without one. Calls that ended
    /// before they were reported leave gaps, so numbers need not come in order.
    pub(crate) name: Option<Arc<str>>,
}

/// What happened.
// With a tag in a word of its own, what moves is whole words: a tag within a field makes every move of a call wait for
// parts of words that were just written.
#[derive(Clone, Debug, PartialEq)]
#[repr(u64)]
pub(crate) enum Event {
    /// The handshake is done.
    Ready,
    /// Server: a call came. Its request is read with `read`; no [`Event::Readable`] follows until `read` said `Pending`.
    Call { id: StreamId, method: MethodRef, deadline: Option<Instant>, attempt: u8, metadata: Option<Box<Metadata>> },
    /// Client: the answer began, with metadata. Comes before the first [`Event::Readable`] of the stream.
    Answer { id: StreamId, metadata: Box<Metadata> },
    /// A chunk, the end or a failure can be read. Not repeated until `read` said `Pending`.
    Readable(StreamId),
    /// After `Full`: there is room again, or the stream is over.
    Writable(StreamId),
    /// Server: the caller gave up, or the connection is lost; the stream is gone.
    Cancelled(StreamId),
    /// Server: the deadline of the call passed. The stream stays until it is answered or failed.
    Expired(StreamId),
    /// Client: after `OpenError::Full` a call can be opened again.
    SlotFree,
    /// Client: the peer is leaving; new calls go elsewhere.
    Draining,
}

/// What `read` found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Read {
    /// Body bytes, cut at will. `last`: the body ends with them, and on the client the stream is freed.
    Chunk { bytes: Bytes, last: bool },
    /// Nothing yet; [`Event::Readable`] will tell.
    Pending,
    /// The body has ended properly; on the client the stream is freed.
    End,
    /// The body ended otherwise; on the client the stream is freed.
    Failed(Failure),
}

/// Why a stream ended otherwise than by its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// The peer said so. `answered`: an answer had begun before.
    Status { status: WireStatus, answered: bool },
    /// The server did not take the call; it never ran.
    Refused { reason: Refusal, retry_after: Option<Duration>, text: String },
    /// The call came after the server's DRAIN; it never ran.
    NotAccepted,
    /// The connection was lost. `sent`: some of the call may have reached the peer; otherwise it provably never ran.
    Lost { error: Arc<Error>, sent: bool, answered: bool },
    /// The deadline passed on this side; `sent` as above.
    Deadline { sent: bool, answered: bool },
    /// Nothing moved for the time that `Open::idle` allows; `sent` as above.
    Idle { sent: bool, answered: bool },
    /// Server: the request body ended because its stream is gone. Also what `read` says of streams that are no more.
    Truncated,
}

/// Whether more may be sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendState {
    More,
    /// Wait for [`Event::Writable`] before the next message.
    Full,
}
