//! Why a connection ends, and why a call cannot be opened or continued.
//!
//! Owns [`Error`], which names one reason each, and how text of a peer is made harmless before it gets into one. It must
//! never decide what becomes of a call: that is the client's business. Look next at `connection.rs`, which makes them.

use std::io;

use crate::wire::{CloseReason, FrameError, Speaks};

/// Most bytes of a peer's text in an error, after escaping: enough for a sentence, too little to flood a log.
const FOREIGN_TEXT: usize = 128;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the peer speaks {speaks}")]
    NotPicom { speaks: Speaks },
    #[error("the peer speaks another version of picom")]
    Version,
    #[error("the handshake took too long")]
    HandshakeTimeout,
    #[error("the peer offers the service \"{offered}\", not \"{wanted}\"")]
    WrongService { wanted: String, offered: String },
    #[error("the peer is incarnation {found:016x}, not {wanted:016x}")]
    WrongIncarnation { wanted: u64, found: u64 },
    #[error("a frame of {len} bytes is too long")]
    FrameTooLong { len: usize },
    #[error("protocol error: {0}")]
    Protocol(String),
    #[error("the peer sent more than its credit")]
    FlowControl,
    #[error("the peer cancelled too many calls")]
    TooManyCancels,
    #[error("the peer sent too many control frames")]
    TooManyControl,
    #[error("the peer took nothing of what was written for {0:?}")]
    WriteStall(std::time::Duration),
    #[error("the peer does not answer")]
    KeepaliveTimeout,
    #[error("the peer closed the connection: {reason}{}{text}", if text.is_empty() { "" } else { ": " })]
    PeerClosed { reason: CloseReason, text: String },
    #[error("the connection was idle")]
    Idle,
    #[error("{text}")]
    Io { kind: io::ErrorKind, text: String },
    #[error("the connection is closed")]
    Closed,
}

impl Error {
    /// A protocol error.
    pub(crate) fn protocol(text: impl Into<String>) -> Self {
        Self::Protocol(text.into())
    }

    /// What to tell the peer, if anything: a peer that speaks something else or is dead is told nothing here.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        Some(match self {
            Self::Version => CloseReason::Version,
            Self::HandshakeTimeout => CloseReason::HandshakeTimeout,
            Self::WrongService { .. } => CloseReason::WrongService,
            Self::WrongIncarnation { .. } => CloseReason::WrongIncarnation,
            Self::FrameTooLong { .. } | Self::Protocol(_) => CloseReason::Protocol,
            Self::FlowControl => CloseReason::FlowControl,
            Self::TooManyCancels => CloseReason::TooManyCancels,
            Self::TooManyControl => CloseReason::TooManyControl,
            Self::Idle => CloseReason::Idle,
            Self::NotPicom { .. }
            | Self::KeepaliveTimeout
            | Self::WriteStall(_)
            | Self::PeerClosed { .. }
            | Self::Io { .. }
            | Self::Closed => {
                return None;
            }
        })
    }
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLong { len } => Self::FrameTooLong { len },
            other => Self::Protocol(other.to_string()),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io { kind: error.kind(), text: error.to_string() }
    }
}

/// Why a call was not opened. Nothing of it was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OpenError<E> {
    /// The closure failed.
    Encode(E),
    /// No slot is free, the handshake is not done, or too much waits to be written; [`super::Event::SlotFree`] will tell.
    Full,
    /// The peer is leaving.
    Draining,
    /// The connection is closed.
    Closed,
    /// The message or the method's name is longer than the peer accepts.
    TooLarge { len: usize, limit: usize },
}

/// The stream, or this direction of it, is over: nobody wants what was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over;

/// Why an answer was not taken. Nothing of it was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendError<E> {
    /// The closure failed.
    Encode(E),
    /// The stream, or its direction, is over.
    Over,
    /// The message is longer than the peer accepts.
    TooLarge { len: usize, limit: usize },
}

/// A peer's text, escaped and cut, fit for an error or a log.
pub(crate) fn foreign(text: &[u8]) -> String {
    let mut harmless = String::new();
    for part in text.utf8_chunks() {
        for char in part.valid().chars() {
            // Quotes and backslashes may stay: the text is for people, not for a parser.
            let plain = char == ' ' || char == '"' || char == '\'' || !(char.is_control() || char.is_whitespace());
            let before = harmless.len();
            if plain && !is_invisible(char) {
                harmless.push(char);
            } else {
                harmless.extend(char.escape_unicode());
            }
            if harmless.len() > FOREIGN_TEXT {
                harmless.truncate(before);
                return harmless;
            }
        }
        for byte in part.invalid() {
            if harmless.len() + 4 > FOREIGN_TEXT {
                return harmless;
            }
            harmless.push_str(&format!("\\x{byte:02x}"));
        }
    }
    harmless
}

/// Characters that change how the text around them is shown: marks of direction and of width zero.
fn is_invisible(char: char) -> bool {
    matches!(char, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn foreign_text_cannot_forge_or_flood_a_log() {
        assert_eq!(foreign(b"plain \"text\""), "plain \"text\"");
        assert_eq!(foreign(b"a\nb\x1b[31m\xff"), "a\\u{a}b\\u{1b}[31m\\xff");
        assert_eq!(foreign("\u{202e}".as_bytes()), "\\u{202e}");
        assert_eq!(foreign(&[b'x'; 1000]).len(), FOREIGN_TEXT);
        assert!(foreign(&[0xff; 1000]).len() <= FOREIGN_TEXT);
        assert!(foreign("ü".repeat(1000).as_bytes()).len() <= FOREIGN_TEXT);
    }
}
