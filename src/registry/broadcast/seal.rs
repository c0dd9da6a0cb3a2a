//! What is around a datagram: the magic bytes, the version of the format, and the seal of a key.
//!
//! Owns the header and the cipher. A key must never reach a `Debug`, an error or a log. It must never know what is
//! sealed. Look next at `datagram.rs` for that, and at `table.rs` for the refusal of what was heard before.
//!
//! `p` `m`, version, flags, then the body: as it is, or with the flag 1 a nonce of 24 bytes, the sealed body, and a tag of 16
//! bytes that also covers the header.

use std::borrow::Cow;

use chacha20poly1305::aead::rand_core::RngCore;
use chacha20poly1305::aead::{AeadInPlace, KeyInit, OsRng};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};

use super::datagram::MAX_DATAGRAM;
use super::events::Refusal;
use crate::registry::settings::Hidden;

const MAGIC: [u8; 2] = *b"pm";
/// 2 since a datagram is two values, of which the second stays as it is.
const VERSION: u8 = 2;
const PLAIN: u8 = 0;
const SEALED: u8 = 1;
const HEADER: usize = 4;
const NONCE: usize = 24;
const TAG: usize = 16;

/// Length of a key, in bytes.
pub(super) const KEY: usize = 32;

pub(super) type Key = Hidden<[u8; KEY]>;

/// Seals and opens with one key, or does neither.
pub(super) struct Seal {
    cipher: Option<XChaCha20Poly1305>,
    /// 16 random bytes, which no other holder of the key has, and a counter.
    nonce: [u8; NONCE],
}

impl Seal {
    pub(super) fn new(key: Option<&Key>) -> Result<Self, String> {
        let mut nonce = [0; NONCE];
        if key.is_some() {
            let random = &mut nonce[..NONCE - 8];
            OsRng.try_fill_bytes(random).map_err(|error| format!("the system has no random numbers: {error}"))?;
        }
        Ok(Self { cipher: key.map(|key| XChaCha20Poly1305::new(&key.0.into())), nonce })
    }

    /// How many bytes are around a body.
    pub(super) const fn overhead(keyed: bool) -> usize {
        if keyed { HEADER + NONCE + TAG } else { HEADER }
    }

    pub(super) fn close(&mut self, body: &[u8]) -> Result<Vec<u8>, String> {
        let keyed = self.cipher.is_some();
        let mut out = Vec::with_capacity(Self::overhead(keyed) + body.len());
        out.extend(MAGIC);
        out.extend([VERSION, if keyed { SEALED } else { PLAIN }]);
        if let Some(cipher) = &self.cipher {
            count_up(&mut self.nonce[NONCE - 8..]);
            out.extend(self.nonce);
            out.extend(body);
            let (around, body) = out.split_at_mut(HEADER + NONCE);
            let tag = cipher
                .encrypt_in_place_detached(XNonce::from_slice(&self.nonce), &around[..HEADER], body)
                .map_err(|_| "the announcement cannot be sealed".to_owned())?;
            out.extend(tag);
        } else {
            out.extend(body);
        }
        Ok(out)
    }

    /// The body of what came from the network; of a longer datagram the first bytes past [`MAX_DATAGRAM`] suffice.
    pub(super) fn open<'a>(&self, datagram: &'a [u8]) -> Result<Cow<'a, [u8]>, Refusal> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Refusal::TooLong);
        }
        let Some((header, body)) = datagram.split_at_checked(HEADER).filter(|(header, _)| header[..2] == MAGIC) else {
            return Err(Refusal::Malformed);
        };
        if header[2] != VERSION {
            return Err(Refusal::OtherVersion);
        }
        match (header[3], &self.cipher) {
            (PLAIN, None) => Ok(Cow::Borrowed(body)),
            (PLAIN, Some(_)) => Err(Refusal::Unsealed),
            (SEALED, None) => Err(Refusal::Sealed),
            (SEALED, Some(cipher)) => {
                let (nonce, body) = body.split_at_checked(NONCE).ok_or(Refusal::Malformed)?;
                let at = body.len().checked_sub(TAG).ok_or(Refusal::Malformed)?;
                let (body, tag) = body.split_at(at);
                let mut body = body.to_vec();
                cipher
                    .decrypt_in_place_detached(XNonce::from_slice(nonce), header, &mut body, Tag::from_slice(tag))
                    .map_err(|_| Refusal::WrongKey)?;
                Ok(Cow::Owned(body))
            }
            _ => Err(Refusal::Malformed),
        }
    }
}

/// Never comes round: at a million a second it would take half a million years.
fn count_up(counter: &mut [u8]) {
    for digit in counter.iter_mut().rev() {
        *digit = digit.wrapping_add(1);
        if *digit != 0 {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn seal(key: Option<u8>) -> Seal {
        Seal::new(key.map(|byte| Hidden([byte; KEY])).as_ref()).unwrap()
    }

    #[test]
    fn what_is_closed_can_be_opened_and_has_the_stated_overhead() {
        for key in [None, Some(7)] {
            let (mut ours, theirs) = (seal(key), seal(key));
            for body in [&b""[..], b"x", &[0; 1000]] {
                let closed = ours.close(body).unwrap();
                assert_eq!(closed.len(), body.len() + Seal::overhead(key.is_some()));
                assert_eq!(&*theirs.open(&closed).unwrap(), body);
            }
        }
    }

    #[test]
    fn another_key_none_and_one_too_many_are_told_apart() {
        let sealed = seal(Some(7)).close(b"body").unwrap();
        let plain = seal(None).close(b"body").unwrap();
        assert_eq!(seal(Some(8)).open(&sealed).unwrap_err(), Refusal::WrongKey);
        assert_eq!(seal(None).open(&sealed).unwrap_err(), Refusal::Sealed);
        assert_eq!(seal(Some(7)).open(&plain).unwrap_err(), Refusal::Unsealed);
    }

    #[test]
    fn no_bit_of_a_sealed_datagram_can_be_changed() {
        let (mut ours, theirs) = (seal(Some(7)), seal(Some(7)));
        let sealed = ours.close(b"body").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(theirs.open(&forged).is_err(), "bit {bit} was changed without a trace");
        }
        for len in 0..sealed.len() {
            assert!(theirs.open(&sealed[..len]).is_err(), "cut at {len} without a trace");
        }
    }

    #[test]
    fn no_nonce_is_used_twice() {
        let mut ours = seal(Some(7));
        let mut nonces: Vec<_> = (0..1000).map(|_| ours.close(b"").unwrap()[HEADER..HEADER + NONCE].to_vec()).collect();
        nonces.extend((0..1000).map(|_| seal(Some(7)).close(b"").unwrap()[HEADER..HEADER + NONCE].to_vec()));
        let all = nonces.len();
        nonces.sort();
        nonces.dedup();
        assert_eq!(nonces.len(), all);
        let mut counter = [0, 0xff, 0xff];
        count_up(&mut counter);
        assert_eq!(counter, [1, 0, 0]);
    }

    #[test]
    fn a_datagram_at_the_limit_is_opened_and_one_byte_past_it_refused() {
        let mut ours = seal(None);
        let mut at_limit = ours.close(&vec![0; MAX_DATAGRAM - HEADER]).unwrap();
        assert!(ours.open(&at_limit).is_ok());
        at_limit.push(0);
        assert_eq!(ours.open(&at_limit).unwrap_err(), Refusal::TooLong);
        at_limit[2] = VERSION + 1;
        assert_eq!(ours.open(&at_limit[..10]).unwrap_err(), Refusal::OtherVersion);
    }
}
