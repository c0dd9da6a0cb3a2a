//! The body bytes that come with a CALL or an ANSWER.
//!
//! Owns the choice between a share of the buffer that they were read into and a copy: of a short answer the copy is cheaper, because
//! a share is counted by all who hold one. It must never hold more than one frame's. Look next at [`super::streams`].

use std::num::NonZeroU8;

use bytes::Bytes;

/// Longest answer that is copied, in bytes: with its length it takes the room of a `Bytes`.
pub(crate) const SHORT: usize = 31;

/// The bytes of a short answer. Aligned, and with a length that is never 0, so that it is moved in whole words wherever it is put.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(8))]
pub struct Short {
    bytes: [u8; SHORT],
    len: NonZeroU8,
}

impl Short {
    /// A copy, if it is short and there is anything.
    pub(super) fn of(body: &[u8]) -> Option<Self> {
        let len = u8::try_from(body.len()).ok().and_then(NonZeroU8::new)?;
        let mut bytes = [0; SHORT];
        bytes.get_mut(..body.len())?.copy_from_slice(body);
        Some(Self { bytes, len })
    }
}

impl std::ops::Deref for Short {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len.get())]
    }
}

/// What there is of it.
#[derive(Debug, Default)]
pub(super) enum First {
    #[default]
    Nothing,
    Short(Short),
    Shared(Bytes),
}

impl First {
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Takes it, if there is any.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        match std::mem::take(self) {
            Self::Nothing => None,
            Self::Short(short) => Some(Bytes::copy_from_slice(&short)),
            Self::Shared(bytes) => Some(bytes),
        }
    }
}

impl From<Bytes> for First {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Nothing } else { Self::Shared(bytes) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_31_bytes_is_copied_and_one_more_is_not() {
        let body = [7; SHORT + 1];
        assert_eq!(&*Short::of(&body[..SHORT]).unwrap(), &body[..SHORT]);
        assert_eq!(Short::of(&body), None);
        assert_eq!(Short::of(&[]), None, "nothing is no body");
        assert_eq!(Short::of(&[0; 300]), None, "a length that does not fit a byte");
    }
}
