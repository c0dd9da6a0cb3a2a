//! The heads of CALL and ANSWER: what precedes the body bytes.
//!
//! Owns the layout of section 6. It must never resolve a method number. Look next at `proto/names.rs` for who does, and at
//! [`Metadata`] for the limits of its block.

use bytes::{BufMut, BytesMut};

use crate::metadata::{MAX_BYTES, Metadata};

/// The bit of an entry's first byte that says that calls inherit it.
const INHERITED: u8 = 0x80;

/// Longest deadline, in milliseconds.
const MAX_DEADLINE: u32 = u32::MAX - 1;

/// Longest name of a method, in bytes.
pub(crate) const MAX_NAME: usize = 255;

/// A CALL head as it came.
#[derive(Debug, PartialEq)]
pub(crate) struct CallHead<'a> {
    pub(crate) method: u16,
    pub(crate) name: Option<&'a str>,
    /// Milliseconds that remain; 0 means none.
    pub(crate) deadline: u32,
    pub(crate) attempt: u8,
    pub(crate) metadata: Option<Metadata>,
}

/// Appends a CALL head; `name` is at most [`MAX_NAME`] bytes long.
pub(crate) fn put_call(
    target: &mut BytesMut,
    method: u16,
    name: Option<&str>,
    deadline: u32,
    attempt: u8,
    metadata: Option<&Metadata>,
) {
    target.put_u16(method);
    if let Some(name) = name {
        // Checked by the caller; a longer one would be cut rather than shift what follows.
        let name = &name.as_bytes()[..name.len().min(MAX_NAME)];
        target.put_u8(name.len() as u8);
        target.put_slice(name);
    }
    target.put_u32(deadline.min(MAX_DEADLINE));
    target.put_u8(attempt);
    if let Some(metadata) = metadata {
        put_metadata(target, metadata);
    }
}

/// Reads a CALL head and says how long it was; the error is a text for people.
pub(crate) fn parse_call(payload: &[u8], named: bool, meta: bool) -> Result<(CallHead<'_>, usize), &'static str> {
    const SHORT: &str = "the head of a CALL is cut short";
    let mut rest = payload;
    let method = take(&mut rest).map(u16::from_be_bytes).ok_or(SHORT)?;
    let mut name = None;
    if named {
        let [len] = take(&mut rest).ok_or(SHORT)?;
        let bytes = take_slice(&mut rest, usize::from(len)).ok_or(SHORT)?;
        name = Some(std::str::from_utf8(bytes).map_err(|_| "the name of a method is not UTF-8")?);
    }
    let deadline = take(&mut rest).map(u32::from_be_bytes).ok_or(SHORT)?;
    if deadline > MAX_DEADLINE {
        return Err("a deadline is out of range");
    }
    let [attempt] = take(&mut rest).ok_or(SHORT)?;
    let metadata = if meta { Some(take_metadata(&mut rest)?) } else { None };
    Ok((CallHead { method, name, deadline, attempt, metadata }, payload.len() - rest.len()))
}

/// Appends a block of metadata with its length.
pub(crate) fn put_metadata(target: &mut BytesMut, metadata: &Metadata) {
    target.reserve(2 + metadata.size());
    // A `Metadata` is at most 16 KiB long and its parts with it.
    target.put_u16(metadata.size() as u16);
    for (key, value, inherited) in metadata.spans() {
        target.put_u8(key.len() as u8 | if inherited { INHERITED } else { 0 });
        target.put_slice(key.as_bytes());
        target.put_u16(value.len() as u16);
        target.put_slice(value.as_bytes());
    }
}

/// Reads a block of metadata and says how long it was with its length.
pub(crate) fn parse_metadata(payload: &[u8]) -> Result<(Metadata, usize), &'static str> {
    let mut rest = payload;
    let metadata = take_metadata(&mut rest)?;
    Ok((metadata, payload.len() - rest.len()))
}

fn take_metadata(rest: &mut &[u8]) -> Result<Metadata, &'static str> {
    const SHORT: &str = "a block of metadata is cut short";
    let len = usize::from(take(rest).map(u16::from_be_bytes).ok_or(SHORT)?);
    if len > MAX_BYTES {
        return Err("a block of metadata is too long");
    }
    let mut block = take_slice(rest, len).ok_or(SHORT)?;
    let mut metadata = Metadata::new();
    while !block.is_empty() {
        let [first] = take(&mut block).ok_or(SHORT)?;
        let key = take_slice(&mut block, usize::from(first & !INHERITED)).ok_or(SHORT)?;
        let len = usize::from(take(&mut block).map(u16::from_be_bytes).ok_or(SHORT)?);
        let value = take_slice(&mut block, len).ok_or(SHORT)?;
        let (Ok(key), Ok(value)) = (std::str::from_utf8(key), std::str::from_utf8(value)) else {
            return Err("metadata is not UTF-8");
        };
        let before = metadata.len();
        if first & INHERITED == 0 { metadata.insert(key, value) } else { metadata.insert_inherited(key, value) }
            .map_err(|_| "metadata breaks its limits")?;
        if metadata.len() == before {
            return Err("metadata has a key twice");
        }
    }
    Ok(metadata)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_slice<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn heads_survive_the_round_trip_and_no_cut_one_is_read() {
        let mut metadata = Metadata::new();
        metadata.insert("tenant", "acme").unwrap();
        metadata.insert_inherited("trace", "0af7651916cd43dd").unwrap();
        let mut bytes = BytesMut::new();
        put_call(&mut bytes, 3, Some("add"), 500, 1, Some(&metadata));
        let head_len = bytes.len();
        for end in 0..head_len {
            assert!(parse_call(&bytes[..end], true, true).is_err(), "{end}");
        }
        bytes.put_slice(b"body");
        let (head, len) = parse_call(&bytes, true, true).unwrap();
        assert_eq!(len, head_len);
        let same = CallHead { method: 3, name: Some("add"), deadline: 500, attempt: 1, metadata: Some(metadata) };
        assert_eq!(head, same);
    }

    #[test]
    fn metadata_that_breaks_a_rule_is_refused() {
        for (block, why) in [
            (&b"\x01k\0\0\x01k\0\0"[..], "metadata has a key twice"),
            (b"\x01K\0\0", "metadata breaks its limits"),
            (b"\x00\0\0", "metadata breaks its limits"),
            (b"\x01k\0\x01", "a block of metadata is cut short"),
            (b"\x01k\0\x01\xff", "metadata is not UTF-8"),
        ] {
            let mut bytes = (block.len() as u16).to_be_bytes().to_vec();
            bytes.extend_from_slice(block);
            assert_eq!(parse_metadata(&bytes).unwrap_err(), why);
        }
        assert_eq!(parse_metadata(&[0xff, 0xff]).unwrap_err(), "a block of metadata is too long");
    }
}
