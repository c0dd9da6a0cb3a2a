//! The one line that a server says: a slot, or why there is none.
//!
//! Owns how it is written and read. It must never take a byte behind the line: those belong to the application. Look next
//! at [`super::listener`], which writes it, and [`super::probe`], which reads it.

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Longest line, in bytes with its end: enough for words that say why, little enough for a wrong peer.
pub const MAX_LINE: usize = 128;

/// What a refusal begins with, so that it is neither a number nor the greeting of another protocol.
const REFUSED: &str = "refused: ";

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Slot(u32),
    /// Why there is none, in words.
    Refused(String),
    /// Something else; this is what came, fit to be shown.
    Wrong(String),
    /// The peer closed the connection without a byte.
    Nothing,
}

/// The line for a slot: in decimal digits, then CR LF, as callosum has it.
pub(super) fn slot(slot: u32) -> String {
    format!("{slot}\r\n")
}

/// The line for a refusal. What does not fit a line of printable ASCII is escaped or cut.
pub(super) fn refusal(words: &str) -> String {
    let mut line = REFUSED.to_owned() + &words.as_bytes().escape_ascii().to_string();
    line.truncate(MAX_LINE - 2);
    line + "\r\n"
}

/// Reads one line, which may come in any number of pieces, and not a byte more.
pub(super) async fn read(stream: &mut TcpStream) -> std::io::Result<Line> {
    let mut line = [0; MAX_LINE];
    let mut len = 0;
    loop {
        // A look first: a read would take what is behind the line.
        let seen = stream.peek(&mut line[len..]).await?;
        if seen == 0 {
            return Ok(if len == 0 { Line::Nothing } else { wrong(&line[..len]) });
        }
        let end = line[len..len + seen].iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(seen, |end| end + 1);
        stream.read_exact(&mut line[len..len + taken]).await?;
        len += taken;
        if end.is_some() {
            return Ok(parse(&line[..len]));
        }
        if len == MAX_LINE {
            return Ok(wrong(&line));
        }
    }
}

fn parse(line: &[u8]) -> Line {
    let text = line.strip_suffix(b"\r\n").and_then(|text| std::str::from_utf8(text).ok());
    match text {
        // Parsing alone would take a sign, too.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().map_or_else(|_| wrong(line), Line::Slot)
        }
        Some(text) if text.starts_with(REFUSED) => Line::Refused(shown(&text.as_bytes()[REFUSED.len()..])),
        _ => wrong(line),
    }
}

fn wrong(came: &[u8]) -> Line {
    Line::Wrong(shown(came))
}

/// A peer's bytes, fit for an error or a log: at most a line, and four times that when all of it has to be escaped.
fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(came: &str) -> Line {
        Line::Wrong(came.to_owned())
    }

    #[test]
    fn a_line_of_digits_is_a_slot() {
        for (line, number) in [("0\r\n", 0), ("13\r\n", 13), ("007\r\n", 7), ("4294967295\r\n", u32::MAX)] {
            assert_eq!(parse(line.as_bytes()), Line::Slot(number), "{line:?}");
        }
        assert_eq!((slot(0), slot(13)), ("0\r\n".to_owned(), "13\r\n".to_owned()));
    }

    #[test]
    fn nothing_else_is_a_slot_and_what_came_is_named() {
        let lines = ["\r\n", "13\n", "+13\r\n", "-1\r\n", "4294967296\r\n", "1e3\r\n", " 1\r\n", "undefined\r\n"];
        for line in lines {
            assert_eq!(parse(line.as_bytes()), wrong(&line.escape_default().to_string()), "{line:?}");
        }
        assert_eq!(parse(b"\xff\x00\r\n"), wrong("\\xff\\x00\\r\\n"));
    }

    #[test]
    fn a_refusal_says_why_and_fits_one_line() {
        assert_eq!(parse(refusal("full").as_bytes()), Line::Refused("full".to_owned()));
        assert_eq!(refusal("13\r\n14"), "refused: 13\\r\\n14\r\n", "it stays one line");
        for len in [MAX_LINE - 11, MAX_LINE - 10] {
            let line = refusal(&"x".repeat(len));
            assert_eq!(line.len(), MAX_LINE, "{len} letters");
            assert!(matches!(parse(line.as_bytes()), Line::Refused(_)), "{line:?}");
        }
    }
}
