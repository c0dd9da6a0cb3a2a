//! The first bytes of a connection, and what else a peer's first bytes may be.
//!
//! Owns the preface and the replies to peers that speak something else. It must never close a connection. Look next at
//! `proto/handshake.rs`.

use std::fmt;

/// What each side sends first.
pub(crate) const PREFACE: &[u8; 11] = b"picom/1\r\n\r\n";

/// The part of the preface that every version begins with.
const FAMILY: &[u8] = b"picom/";

/// How HTTP requests begin.
const HTTP_REQUESTS: [&[u8]; 10] =
    [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PRI * HTTP/2"];

/// How HTTP responses begin.
const HTTP_RESPONSES: [&[u8]; 1] = [b"HTTP/"];

/// How TLS records begin: a handshake from a client, an alert or a handshake from a server.
const TLS: [&[u8]; 2] = [&[0x16, 0x03], &[0x15, 0x03]];

/// What a server says to HTTP before it closes.
const HTTP_REPLY: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 58\r\nConnection: close\r\n\r\n\
This port speaks picom/1, a binary RPC protocol, no HTTP.\n";

/// What a server says to TLS before it closes: the fatal alert "protocol version".
const TLS_REPLY: &[u8] = &[0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x46];

/// What a peer seems to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Another version of picom.
    OtherVersion,
    Http,
    Tls,
    Unknown,
}

impl Speaks {
    /// What a server sends to such a peer, apart from another picom, which gets the preface and a CLOSE.
    pub(crate) fn reply(self) -> &'static [u8] {
        match self {
            Self::Http => HTTP_REPLY,
            Self::Tls => TLS_REPLY,
            Self::OtherVersion | Self::Unknown => &[],
        }
    }
}

impl fmt::Display for Speaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherVersion => "another version of picom",
            Self::Http => "HTTP",
            Self::Tls => "TLS",
            Self::Unknown => "something that is not picom",
        })
    }
}

/// What the first bytes say so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The whole preface is there.
    Picom,
    /// Not enough bytes to tell.
    Unclear,
    /// Not this protocol.
    Other(Speaks),
}

/// Judges the first bytes of a peer. The verdict does not depend on how many bytes came at once.
pub(crate) fn judge(bytes: &[u8]) -> Verdict {
    if bytes.starts_with(PREFACE) {
        return Verdict::Picom;
    }
    if bytes.starts_with(FAMILY) && !PREFACE.starts_with(bytes) {
        return Verdict::Other(Speaks::OtherVersion);
    }
    let whole = |patterns: &[&[u8]]| patterns.iter().any(|pattern| bytes.starts_with(pattern));
    if whole(&HTTP_REQUESTS) || whole(&HTTP_RESPONSES) {
        return Verdict::Other(Speaks::Http);
    }
    if whole(&TLS) {
        return Verdict::Other(Speaks::Tls);
    }
    let begun = |patterns: &[&[u8]]| patterns.iter().any(|pattern| pattern.starts_with(bytes));
    if PREFACE.starts_with(bytes) || begun(&HTTP_REQUESTS) || begun(&HTTP_RESPONSES) || begun(&TLS) {
        return Verdict::Unclear;
    }
    Verdict::Other(Speaks::Unknown)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    /// The verdict when the bytes come one by one.
    fn slowly(bytes: &[u8]) -> Verdict {
        (0..=bytes.len()).map(|end| judge(&bytes[..end])).find(|v| *v != Verdict::Unclear).unwrap_or(Verdict::Unclear)
    }

    #[test]
    fn peers_are_told_apart_however_their_bytes_come() {
        for (bytes, verdict) in [
            (&PREFACE[..], Verdict::Picom),
            (b"picom/1\r\n\r\n\0\0\0", Verdict::Picom),
            (b"picom/2\r\n\r\n", Verdict::Other(Speaks::OtherVersion)),
            (b"picom/10\r\n\r\n", Verdict::Other(Speaks::OtherVersion)),
            (b"GET / HTTP/1.1\r\n", Verdict::Other(Speaks::Http)),
            (b"PRI * HTTP/2.0\r\n", Verdict::Other(Speaks::Http)),
            (b"HTTP/1.1 400 Bad", Verdict::Other(Speaks::Http)),
            (b"\x16\x03\x01\x02\x00", Verdict::Other(Speaks::Tls)),
            (b"\x15\x03\x03\x00\x02\x02\x46", Verdict::Other(Speaks::Tls)),
            (b"PROXY TCP4", Verdict::Other(Speaks::Unknown)),
            (b"\0\0\0\0", Verdict::Other(Speaks::Unknown)),
            (b"picom", Verdict::Unclear),
            (b"", Verdict::Unclear),
        ] {
            assert_eq!(judge(bytes), verdict, "{bytes:?}");
            assert_eq!(slowly(bytes), verdict, "{bytes:?}");
        }
    }

    #[test]
    fn the_reply_to_http_states_its_length() {
        let text = std::str::from_utf8(HTTP_REPLY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
