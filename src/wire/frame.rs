//! The frame: eight bytes of header, then a payload whose kind the header names.
//!
//! Owns the header, the table of kinds with what each may carry, and [`FrameCodec`] for whoever wants frames one by one.
//! A header is checked here against everything that can be known without the state of the connection. It must never
//! look into a payload. Look next at `head` for the payloads of CALL and ANSWER, and at `proto/connection.rs`, which
//! reads headers without going through the codec.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::hello::MAX_HELLO;
use super::load::LOAD;

/// Bytes of a frame's header.
pub(crate) const HEADER: usize = 8;

/// Longest payload, in bytes: a 64 KiB chunk of an application's bytes and its prefixes fit one frame, and a receiver
/// never buffers more than this for one frame.
pub(crate) const MAX_PAYLOAD: usize = 66_560;

/// Longest text in CLOSE and REFUSED, in bytes: a sentence for a log, not a report.
pub(crate) const MAX_TEXT: usize = 256;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 0x01,
    Ping = 0x02,
    Pong = 0x03,
    Credit = 0x04,
    Drain = 0x05,
    Close = 0x06,
    Call = 0x08,
    Data = 0x09,
    Answer = 0x0a,
    Status = 0x0b,
    Cancel = 0x0c,
    Refused = 0x0d,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0x01 => Self::Hello,
            0x02 => Self::Ping,
            0x03 => Self::Pong,
            0x04 => Self::Credit,
            0x05 => Self::Drain,
            0x06 => Self::Close,
            0x08 => Self::Call,
            0x09 => Self::Data,
            0x0a => Self::Answer,
            0x0b => Self::Status,
            0x0c => Self::Cancel,
            0x0d => Self::Refused,
            _ => return None,
        })
    }

    /// The name that `docs/protocol.md` gives it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Hello => "HELLO",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::Credit => "CREDIT",
            Self::Drain => "DRAIN",
            Self::Close => "CLOSE",
            Self::Call => "CALL",
            Self::Data => "DATA",
            Self::Answer => "ANSWER",
            Self::Status => "STATUS",
            Self::Cancel => "CANCEL",
            Self::Refused => "REFUSED",
        }
    }

    /// The flags that this kind defines.
    const fn flags(self) -> u8 {
        match self {
            Self::Call => Flags::END.0 | Flags::NAME.0 | Flags::META.0,
            Self::Data => Flags::END.0,
            Self::Answer => Flags::END.0 | Flags::LOAD.0 | Flags::META.0,
            Self::Refused | Self::Pong => Flags::LOAD.0,
            _ => 0,
        }
    }

    /// Shortest and longest payload.
    const fn payload(self) -> (usize, usize) {
        match self {
            Self::Hello => (1, MAX_HELLO),
            Self::Ping | Self::Drain => (8, 8),
            Self::Pong => (8, LOAD + 8),
            Self::Credit => (4, 4),
            Self::Close => (1, 1 + MAX_TEXT),
            Self::Call => (7, MAX_PAYLOAD),
            Self::Data | Self::Answer => (0, MAX_PAYLOAD),
            Self::Status => (1, MAX_PAYLOAD),
            Self::Cancel => (0, 0),
            Self::Refused => (5, LOAD + 5 + MAX_TEXT),
        }
    }

    /// Whether the frame may belong to the connection, and whether to a call.
    const fn streams(self) -> (bool, bool) {
        match self {
            Self::Hello | Self::Ping | Self::Pong | Self::Drain | Self::Close => (true, false),
            Self::Credit => (true, true),
            Self::Call | Self::Data | Self::Answer | Self::Status | Self::Cancel | Self::Refused => (false, true),
        }
    }
}

/// The high three bits of a header's fourth byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Flags(pub(crate) u8);

impl Flags {
    pub(crate) const NONE: Self = Self(0);
    /// The body of this direction ends with this frame.
    pub(crate) const END: Self = Self(0x80);
    /// The method's name follows its number.
    pub(crate) const NAME: Self = Self(0x40);
    /// A report of the server's load precedes everything else; the bit of NAME, which only CALL has.
    pub(crate) const LOAD: Self = Self(0x40);
    /// A block of metadata precedes the body bytes.
    pub(crate) const META: Self = Self(0x20);
    const ALL: u8 = 0xe0;

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// These flags, with the other ones if asked.
    #[must_use]
    pub(crate) const fn with(self, other: Self, really: bool) -> Self {
        if really { Self(self.0 | other.0) } else { self }
    }
}

/// The number of a stream: its slot and the slot's generation. 0 is the connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u32);

impl StreamId {
    /// The connection itself.
    pub(crate) const CONNECTION: Self = Self(0);

    pub(crate) fn new(slot: u16, generation: u16) -> Self {
        Self(u32::from(generation) << 16 | u32::from(slot))
    }

    pub(crate) const fn slot(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    pub(crate) const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot(), self.generation())
    }
}

/// The first eight bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len: usize,
    pub(crate) kind: Kind,
    pub(crate) flags: Flags,
    pub(crate) stream: StreamId,
}

impl Header {
    /// Reads and checks a header; `None` if its bytes are not all there.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(&[a, b, c, kind, s0, s1, s2, s3]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let flags = Flags(kind & Flags::ALL);
        let number = kind & !Flags::ALL;
        let stream = StreamId(u32::from_be_bytes([s0, s1, s2, s3]));
        if len > MAX_PAYLOAD {
            return Err(FrameError::TooLong { len });
        }
        let kind = Kind::from_number(number).ok_or(FrameError::UnknownKind { number })?;
        if flags.0 & !kind.flags() != 0 {
            return Err(FrameError::Flags { kind, flags: flags.0 });
        }
        let (shortest, longest) = kind.payload();
        if len < shortest || len > longest {
            return Err(FrameError::Size { kind, len });
        }
        let (connection, call) = kind.streams();
        // Generation 0 names no call, whatever the slot.
        if !(if stream.0 == 0 { connection } else { call && stream.generation() != 0 }) {
            return Err(FrameError::Stream { kind, stream: stream.0 });
        }
        Ok(Some(Self { len, kind, flags, stream }))
    }

    /// The header as bytes. A length that does not fit is cut; senders cut bodies before they come here.
    pub(crate) fn bytes(self) -> [u8; HEADER] {
        let [_, a, b, c] = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.0.to_be_bytes();
        [a, b, c, self.kind as u8 | self.flags.0, s0, s1, s2, s3]
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {len} bytes is longer than {MAX_PAYLOAD}")]
    TooLong { len: usize },
    #[error("there is no frame of kind {number:#04x}")]
    UnknownKind { number: u8 },
    #[error("{} does not have the flags {flags:#04x}", kind.name())]
    Flags { kind: Kind, flags: u8 },
    #[error("{} cannot have {len} bytes", kind.name())]
    Size { kind: Kind, len: usize },
    #[error("{} cannot belong to stream {stream:#x}", kind.name())]
    Stream { kind: Kind, stream: u32 },
    /// Only for the codec's traits, which demand it.
    #[error("{0}")]
    Io(String),
}

impl From<std::io::Error> for FrameError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// One frame with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) flags: Flags,
    pub(crate) stream: StreamId,
    pub(crate) payload: Bytes,
}

/// Cuts bytes into frames and back, without a preface.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FrameCodec;

impl FrameCodec {
    /// Cuts the frame that begins with this header off; `None` if it is not all there. Whoever reads makes the room, as
    /// bytes come: a length that is only announced reserves nothing.
    pub(crate) fn cut(header: Header, source: &mut BytesMut) -> Option<Frame> {
        let Header { len, kind, flags, stream } = header;
        if source.len() < HEADER + len {
            return None;
        }
        source.advance(HEADER);
        Some(Frame { kind, flags, stream, payload: source.split_to(len).freeze() })
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        Ok(Header::parse(source)?.and_then(|header| Self::cut(header, source)))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, target: &mut BytesMut) -> Result<(), FrameError> {
        let Frame { kind, flags, stream, payload } = frame;
        if payload.len() > MAX_PAYLOAD {
            return Err(FrameError::TooLong { len: payload.len() });
        }
        target.reserve(HEADER + payload.len());
        target.put_slice(&Header { len: payload.len(), kind, flags, stream }.bytes());
        target.put_slice(&payload);
        Ok(())
    }
}

/// Appends a whole frame.
pub(crate) fn put_frame(target: &mut BytesMut, kind: Kind, flags: Flags, stream: StreamId, payload: &[u8]) {
    target.reserve(HEADER + payload.len());
    target.put_slice(&Header { len: payload.len(), kind, flags, stream }.bytes());
    target.put_slice(payload);
}
