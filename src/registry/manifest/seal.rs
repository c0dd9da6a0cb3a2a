//! What keeps the frames of a connection what they were: each is followed by a proof, where there is a secret.
//!
//! Owns [`Seal`]. The key is made of the secret and of both hellos, one for each direction; the proof is over the number of
//! the frame and the frame, so that none can be changed, left out, repeated or taken from elsewhere. It hides nothing: whoever
//! can listen reads the table. Look next at `join.rs` for where the keys come from.

use bytes::{Bytes, BytesMut};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Length of a proof, in bytes: the left half of the HMAC-SHA256.
pub(super) const PROOF: usize = 16;

/// One direction of a connection.
pub(super) struct Seal {
    key: Option<Hmac<Sha256>>,
    frames: u64,
}

impl Seal {
    /// Without a key it does nothing.
    pub(super) const fn new(key: Option<Hmac<Sha256>>) -> Self {
        Self { key, frames: 0 }
    }

    fn mac(&mut self, frame: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = self.key.clone()?;
        mac.update(&self.frames.to_be_bytes());
        mac.update(frame);
        self.frames += 1;
        Some(mac)
    }

    /// Puts the proof behind the frame that begins at `start` with its length.
    pub(super) fn close(&mut self, out: &mut BytesMut, start: usize) {
        let body = start + size_of::<u32>();
        let Some(mac) = out.get(body..).and_then(|frame| self.mac(frame)) else { return };
        out.extend_from_slice(&mac.finalize().into_bytes()[..PROOF]);
        // A frame is far shorter than this can say.
        let len = u32::try_from(out.len() - body).unwrap_or(u32::MAX);
        out[start..body].copy_from_slice(&len.to_be_bytes());
    }

    /// The frame without its proof, if that is right.
    pub(super) fn open(&mut self, mut frame: Bytes) -> Option<Bytes> {
        if self.key.is_none() {
            return Some(frame);
        }
        let proof = frame.split_off(frame.len().checked_sub(PROOF)?);
        self.mac(&frame)?.verify_truncated_left(&proof).is_ok().then_some(frame)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn seal(key: &[u8]) -> Seal {
        Seal::new(Some(Hmac::new_from_slice(key).unwrap()))
    }

    fn closed(seal: &mut Seal, frame: &[u8]) -> Bytes {
        let mut out = BytesMut::from(&b"before"[..]);
        out.put_u32(u32::try_from(frame.len()).unwrap());
        out.extend_from_slice(frame);
        seal.close(&mut out, 6);
        let len = u32::from_be_bytes(out[6..10].try_into().unwrap());
        assert_eq!(len as usize, out.len() - 10);
        out.split_off(10).freeze()
    }

    #[test]
    fn frames_open_once_in_their_order_and_unchanged() {
        let (mut one, mut two) = (seal(b"key"), seal(b"key"));
        let (first, second) = (closed(&mut one, b"first"), closed(&mut one, b"second"));
        assert_eq!(two.open(first.clone()).unwrap(), "first");
        assert!(two.open(first.clone()).is_none(), "repeated");
        assert!(seal(b"key").open(second.clone()).is_none(), "left out");
        assert!(seal(b"kez").open(first.clone()).is_none(), "another key");
        for at in 0..first.len() {
            let mut changed = first.to_vec();
            changed[at] ^= 1;
            assert!(seal(b"key").open(changed.into()).is_none(), "byte {at} was changed");
        }
        assert!(seal(b"key").open(Bytes::from_static(&[0; PROOF - 1])).is_none());
        assert_eq!(Seal::new(None).open(closed(&mut Seal::new(None), b"x")).unwrap(), "x");
    }
}
