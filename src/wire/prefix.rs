//! The prefix of a message: its length in one byte, or 255 and four.
//!
//! Owns that layout and the trick by which a message is encoded in place behind a prefix whose size is not known yet.
//! It must never look into a message. Look next at `proto/send.rs`, which encodes with it, and at the readers of bodies
//! above `proto`, which cut messages out of chunks.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of the long prefix.
pub(crate) const LONG_PREFIX: usize = 5;

/// Longest message that the one-byte prefix can name.
const SHORT_MAX: usize = 254;

/// Appends the prefix of a message. Lengths above 32 bits are cut; senders refuse such messages before they come here.
pub(crate) fn put_prefix(target: &mut BytesMut, message: usize) {
    match u8::try_from(message) {
        Ok(short) if message <= SHORT_MAX => target.put_u8(short),
        _ => {
            target.put_u8(u8::MAX);
            target.put_u32(u32::try_from(message).unwrap_or(u32::MAX));
        }
    }
}

/// Appends a message of at most 15 bytes, the first `len` of those given, behind its prefix. All are copied and the rest is cut
/// off again: a known number of bytes is two moves.
#[inline]
pub(crate) fn put_short(target: &mut BytesMut, message: &[u8; 15], len: usize) {
    let len = len.min(message.len());
    let end = target.len() + 1 + len;
    let mut whole = [0; 16];
    whole[0] = len as u8;
    whole[1..].copy_from_slice(message);
    target.extend_from_slice(&whole);
    target.truncate(end);
}

/// The length of the message at the front and of its prefix; `None` if the prefix is not all there.
pub(crate) fn parse_prefix(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes {
        [] => None,
        [u8::MAX, a, b, c, d, ..] => Some((usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?, LONG_PREFIX)),
        [u8::MAX, ..] => None,
        [short, ..] => Some((usize::from(short), 1)),
    }
}

/// Long parts of a message that were not copied into it, and where they belong: before that byte of what was written.
pub(crate) type Apart = Vec<(usize, Bytes)>;

/// Appends a message behind its prefix, encoded in place, and says how long the message is without it and what `encode` left
/// out. The places of that are counted from the prefix on.
///
/// On `Err` the target may end in rubbish, and after a panic too: the caller truncates it to what it was before.
pub(crate) fn encode_message<E>(
    target: &mut BytesMut,
    encode: impl FnOnce(&mut BytesMut) -> Result<Apart, E>,
) -> Result<(usize, Apart), E> {
    let start = target.len();
    target.put_u8(0);
    let mut apart = encode(target)?;
    let message = target.len().saturating_sub(start + 1) + apart.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    let prefix = match u8::try_from(message) {
        Ok(short) if message <= SHORT_MAX => {
            if let Some(prefix) = target.get_mut(start) {
                *prefix = short;
            }
            1
        }
        _ => {
            let end = target.len();
            target.put_bytes(0, LONG_PREFIX - 1);
            target.copy_within(start + 1..end, start + LONG_PREFIX);
            let length = u32::try_from(message).unwrap_or(u32::MAX).to_be_bytes();
            target[start] = u8::MAX;
            target[start + 1..start + LONG_PREFIX].copy_from_slice(&length);
            LONG_PREFIX
        }
    };
    apart.iter_mut().for_each(|(place, _)| *place += prefix);
    Ok((message, apart))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn lengths_survive_the_round_trip_in_place_and_apart() {
        for len in [0, 1, 253, 254, 255, 256, 70_000] {
            let mut apart = BytesMut::from(&b"before"[..]);
            put_prefix(&mut apart, len);
            assert_eq!(apart.len(), 6 + (if len <= SHORT_MAX { 1 } else { LONG_PREFIX }));
            apart.put_bytes(7, len);
            let mut in_place = BytesMut::from(&b"before"[..]);
            let told = encode_message(&mut in_place, |target| {
                target.put_bytes(7, len);
                Ok::<_, ()>(Apart::new())
            });
            assert_eq!(told, Ok((len, Apart::new())));
            assert_eq!(apart, in_place);
            assert_eq!(parse_prefix(&apart[6..]), Some((len, if len <= SHORT_MAX { 1 } else { LONG_PREFIX })));
        }
    }

    #[test]
    fn a_short_message_has_up_to_15_bytes_behind_its_prefix() {
        let message: [u8; 15] = std::array::from_fn(|at| at as u8 + 1);
        for len in 0..=17 {
            let mut short = BytesMut::from(&b"before"[..]);
            put_short(&mut short, &message, len);
            let there = len.min(message.len());
            assert_eq!(parse_prefix(&short[6..]), Some((there, 1)), "{len}: more than there is cannot be announced");
            assert_eq!((&short[..6], &short[7..]), (&b"before"[..], &message[..there]), "{len}");
        }
    }

    #[test]
    fn a_prefix_that_is_not_all_there_is_not_guessed() {
        assert_eq!(parse_prefix(&[]), None);
        for len in 1..5 {
            assert_eq!(parse_prefix(&[255, 0, 0, 0, 0][..len]), None);
        }
    }
}
