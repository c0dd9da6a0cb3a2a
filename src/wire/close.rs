//! Why a connection is closed and why a call is refused, as numbers, and the texts that go with them.
//!
//! Owns the payloads of CLOSE and REFUSED. It must never decide to close anything. Look next at `proto/error.rs` for
//! the errors that lead to a CLOSE.

use std::fmt;
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::frame::{Flags, HEADER, Header, Kind, MAX_TEXT, StreamId};
use super::load::{LOAD, Load, put_load};

/// Why a side closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    Done,
    Protocol,
    Version,
    WrongService,
    WrongIncarnation,
    FlowControl,
    Busy,
    TooManyCancels,
    TooManyControl,
    ShuttingDown,
    HandshakeTimeout,
    Idle,
    /// A number that this version does not know.
    Unknown(u8),
}

impl CloseReason {
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Protocol => 1,
            Self::Version => 2,
            Self::WrongService => 3,
            Self::WrongIncarnation => 4,
            Self::FlowControl => 5,
            Self::Busy => 6,
            Self::TooManyCancels => 7,
            Self::TooManyControl => 8,
            Self::ShuttingDown => 9,
            Self::HandshakeTimeout => 10,
            Self::Idle => 11,
            Self::Unknown(number) => number,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Done,
            1 => Self::Protocol,
            2 => Self::Version,
            3 => Self::WrongService,
            4 => Self::WrongIncarnation,
            5 => Self::FlowControl,
            6 => Self::Busy,
            7 => Self::TooManyCancels,
            8 => Self::TooManyControl,
            9 => Self::ShuttingDown,
            10 => Self::HandshakeTimeout,
            11 => Self::Idle,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Protocol => "protocol error",
            Self::Version => "version not supported",
            Self::WrongService => "wrong service",
            Self::WrongIncarnation => "wrong incarnation",
            Self::FlowControl => "flow control",
            Self::Busy => "busy",
            Self::TooManyCancels => "too many cancelled calls",
            Self::TooManyControl => "too many control frames",
            Self::ShuttingDown => "shutting down",
            Self::HandshakeTimeout => "handshake took too long",
            Self::Idle => "idle",
            Self::Unknown(number) => return write!(f, "reason {number}"),
        })
    }
}

/// Why a server refuses a call, which then never runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Busy,
    Draining,
    /// Only the method has no place; others are served.
    MethodBusy,
    /// A number that this version does not know.
    Unknown(u8),
}

impl Refusal {
    const fn number(self) -> u8 {
        match self {
            Self::Busy => 1,
            Self::Draining => 2,
            Self::MethodBusy => 3,
            Self::Unknown(number) => number,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Busy,
            2 => Self::Draining,
            3 => Self::MethodBusy,
            other => Self::Unknown(other),
        }
    }
}

/// The longest beginning of a text that fits and ends at a character.
fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Appends a CLOSE frame; a text that is too long is cut.
pub(crate) fn put_close(target: &mut BytesMut, reason: CloseReason, text: &str) {
    let text = cut(text, MAX_TEXT);
    let header = Header { len: 1 + text.len(), kind: Kind::Close, flags: Flags::NONE, stream: StreamId::CONNECTION };
    target.reserve(HEADER + header.len);
    target.put_slice(&header.bytes());
    target.put_u8(reason.number());
    target.put_slice(text.as_bytes());
}

/// The reason and the text of a CLOSE; the text is foreign and not checked.
pub(crate) fn parse_close(payload: &[u8]) -> (CloseReason, &[u8]) {
    match payload {
        [reason, text @ ..] => (CloseReason::from_number(*reason), text),
        [] => (CloseReason::Done, &[]),
    }
}

/// Appends a REFUSED frame, with a report of the load if there is one; a text that is too long is cut, and so is a time above 49 days.
pub(crate) fn put_refused(
    target: &mut BytesMut,
    stream: StreamId,
    reason: Refusal,
    retry_after: Option<Duration>,
    text: &str,
    load: Option<Load>,
) {
    let text = cut(text, MAX_TEXT);
    let flags = Flags::NONE.with(Flags::LOAD, load.is_some());
    let len = load.map_or(0, |_| LOAD) + 5 + text.len();
    let header = Header { len, kind: Kind::Refused, flags, stream };
    target.reserve(HEADER + header.len);
    target.put_slice(&header.bytes());
    if let Some(load) = load {
        put_load(target, load);
    }
    target.put_u8(reason.number());
    // 0 means that no time is named, so a time that is named is at least one millisecond.
    target.put_u32(retry_after.map_or(0, |after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX).max(1)));
    target.put_slice(text.as_bytes());
}

/// Reason, time to wait and text of a REFUSED, which follow the report of the load; `None` if it is too short for them.
pub(crate) fn parse_refused(payload: &[u8]) -> Option<(Refusal, Option<Duration>, &[u8])> {
    let (&[reason, a, b, c, d], text) = payload.split_first_chunk::<5>()?;
    let millis = u32::from_be_bytes([a, b, c, d]);
    let retry_after = (millis != 0).then(|| Duration::from_millis(u64::from(millis)));
    Some((Refusal::from_number(reason), retry_after, text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn numbers_and_texts_survive_the_round_trip() {
        for number in 0..=u8::MAX {
            assert_eq!(CloseReason::from_number(number).number(), number);
            assert_eq!(Refusal::from_number(number).number(), number);
        }
        let mut bytes = BytesMut::new();
        put_close(&mut bytes, CloseReason::Busy, &"ü".repeat(200));
        let header = Header::parse(&bytes).unwrap().unwrap();
        assert_eq!((header.kind, header.len), (Kind::Close, 257));
        let (reason, text) = parse_close(&bytes[HEADER..]);
        assert_eq!((reason, std::str::from_utf8(text).unwrap().len()), (CloseReason::Busy, 256));
        bytes.clear();
        let id = StreamId::new(1, 1);
        put_refused(&mut bytes, id, Refusal::Draining, Some(Duration::from_micros(1)), "text", None);
        let wait = Some(Duration::from_millis(1));
        assert_eq!(parse_refused(&bytes[HEADER..]), Some((Refusal::Draining, wait, &b"text"[..])));
    }
}
