//! Bytes that pass through serde without being copied.
//!
//! serde knows bytes only as slices. This module owns the two ways around that, both without a trace in the bytes: while a
//! `Bytes` field is written, its handle lies beside, and the writer that is given exactly its slice keeps the handle; while a
//! message is read, its handle lies beside, and a field that is given a part of it takes a slice of the handle. Where
//! either does not fit, bytes are copied. It must never decide what a message means. Look next at [`super`].

use std::any::{Any, TypeId};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::thread::LocalKey;

use bytes::{Bytes, BytesMut};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::recast;

/// Bytes that belong into an encoded message but were left out of it, and where: before that byte of what was written. In
/// their order.
pub(crate) type Apart = Vec<(usize, Bytes)>;

/// From this length on bytes are left out of a message rather than copied into it: with less the message goes into the small
/// frames of a connection, which are copied anyway.
pub(super) const APART: usize = 4 << 10;

/// From this length on a field is a slice of its message. The message lies in a read buffer of up to 128 KiB, so who keeps the
/// field keeps at most eight times as much.
pub(super) const SHARED: usize = 16 << 10;

/// How many times longer than the field the message may be, for the same reason.
const MOST_KEPT: usize = 8;

/// Capacity that an announced length may reserve before the elements have been seen.
const MAX_RESERVE: usize = 4096;

thread_local! {
    /// The bytes whose slice is being serialized.
    static OFFERED: Cell<Option<Bytes>> = const { Cell::new(None) };
    /// The message that is being deserialized.
    static MESSAGE: Cell<Option<Bytes>> = const { Cell::new(None) };
}

/// A handle that lies beside as long as this lives.
struct Beside {
    place: &'static LocalKey<Cell<Option<Bytes>>>,
    before: Option<Bytes>,
}

impl Beside {
    fn put(place: &'static LocalKey<Cell<Option<Bytes>>>, bytes: &Bytes) -> Self {
        // While a thread ends there may be no place any more. Then bytes are copied.
        let before = place.try_with(|place| place.replace(Some(bytes.clone()))).ok().flatten();
        Self { place, before }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let before = self.before.take();
        // As above.
        let _ = self.place.try_with(|place| place.set(before));
    }
}

/// Writes into a buffer, but for the bytes that are offered beside: those are left out.
pub(super) struct Writer<'a> {
    out: &'a mut BytesMut,
    start: usize,
    pub(super) apart: Apart,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut BytesMut) -> Self {
        Self { start: out.len(), out, apart: Apart::new() }
    }

    /// For short bytes, which are never left out.
    #[inline]
    pub(super) fn out(&mut self) -> &mut BytesMut {
        self.out
    }
}

impl io::Write for Writer<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    /// Takes everything at once, which counts: a value is many writes of a few bytes.
    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= APART {
            let offered = OFFERED.try_with(Cell::take).ok().flatten();
            if let Some(offered) = offered.filter(|offered| std::ptr::eq::<[u8]>(&**offered, bytes)) {
                self.apart.push((self.out.len() - self.start, offered));
                return Ok(());
            }
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a value of this message, whose long bytes may become slices of it.
pub(super) fn within<T>(message: &Bytes, read: impl FnOnce() -> T) -> T {
    let _beside = (message.len() >= SHARED).then(|| Beside::put(&MESSAGE, message));
    read()
}

/// A handle for a part of the message that is being read, if it is one and worth keeping the message for.
fn slice_of_message(part: &[u8]) -> Option<Bytes> {
    if part.len() < SHARED {
        return None;
    }
    let message = MESSAGE.try_with(Cell::take).ok().flatten()?;
    let (whole, range) = (message.as_ptr_range(), part.as_ptr_range());
    let inside = whole.start <= range.start && range.end <= whole.end;
    let slice = (inside && message.len() / MOST_KEPT <= part.len()).then(|| message.slice_ref(part));
    let _ = MESSAGE.try_with(|place| place.set(Some(message)));
    slice
}

/// serde's `with` for fields whose type is written `Bytes` or `Vec<u8>`, whatever it is: real bytes are written as `bin`, and
/// read from `bin`, text or an array of numbers; other types are left to themselves.
#[doc(hidden)]
pub mod bytes_field {
    use super::{APART, TypeId, recast};
    use super::{Any, Beside, Bytes, BytesVisitor, Deserialize, Deserializer, Error, OFFERED, Serialize, Serializer};

    /// Writes the field.
    pub fn serialize<T: Serialize + 'static, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        let any: &dyn Any = value;
        if let Some(bytes) = any.downcast_ref::<Bytes>() {
            let _beside = (bytes.len() >= APART).then(|| Beside::put(&OFFERED, bytes));
            return serializer.serialize_bytes(bytes);
        }
        match any.downcast_ref::<Vec<u8>>() {
            Some(bytes) => serializer.serialize_bytes(bytes),
            None => value.serialize(serializer),
        }
    }

    /// Reads the field.
    pub fn deserialize<'de, T: Deserialize<'de> + 'static, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        if TypeId::of::<T>() == TypeId::of::<Bytes>() {
            let bytes: Bytes = deserializer.deserialize_byte_buf(BytesVisitor::new())?;
            return recast(bytes).map_err(D::Error::custom);
        }
        if TypeId::of::<T>() == TypeId::of::<Vec<u8>>() {
            let bytes: Vec<u8> = deserializer.deserialize_byte_buf(BytesVisitor::new())?;
            return recast(bytes).map_err(D::Error::custom);
        }
        T::deserialize(deserializer)
    }
}

/// Reads bytes of either type in any of the forms in which peers send them.
struct BytesVisitor<T>(std::marker::PhantomData<T>);

impl<T> BytesVisitor<T> {
    fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

/// `Bytes` or `Vec<u8>`.
trait AnyBytes: From<Vec<u8>> {
    /// From a part of the message that is being read.
    fn of_message(part: &[u8]) -> Self {
        part.to_vec().into()
    }
}

impl AnyBytes for Vec<u8> {}

impl AnyBytes for Bytes {
    fn of_message(part: &[u8]) -> Self {
        slice_of_message(part).unwrap_or_else(|| Self::copy_from_slice(part))
    }
}

impl<'de, T: AnyBytes> Visitor<'de> for BytesVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<T, E> {
        Ok(T::of_message(bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<T, E> {
        Ok(bytes.to_vec().into())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<T, E> {
        Ok(bytes.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok(text.as_bytes().to_vec().into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<T, A::Error> {
        let mut bytes = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(MAX_RESERVE));
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::{decode_args, encode, encode_apart};
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Blob {
        name: String,
        #[serde(with = "bytes_field")]
        data: Bytes,
        #[serde(with = "bytes_field")]
        list: Vec<u8>,
        /// What a type alias or a user's own type of that name may be.
        #[serde(with = "bytes_field")]
        other: u16,
    }

    fn blob(len: usize) -> Blob {
        Blob { name: "n".to_owned(), data: vec![7; len].into(), list: vec![1, 2], other: 300 }
    }

    fn joined(apart: &Apart, out: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        let mut cut = 0;
        for (place, bytes) in apart {
            whole.extend_from_slice(&out[cut..*place]);
            whole.extend_from_slice(bytes);
            cut = *place;
        }
        whole.extend_from_slice(&out[cut..]);
        whole
    }

    #[test]
    fn long_bytes_are_left_out_and_belong_where_they_would_have_been() {
        for len in [0, APART - 1, APART, 70_000] {
            let blob = blob(len);
            let (mut whole, mut out) = (BytesMut::new(), BytesMut::from(&b"before"[..]));
            encode(&blob, &mut whole).unwrap();
            // Again and again, as for another attempt.
            for _ in 0..2 {
                out.truncate(6);
                let apart = encode_apart(&blob, &mut out).unwrap();
                assert_eq!(apart.len(), usize::from(len >= APART), "{len}");
                assert!(apart.iter().all(|(_, bytes)| bytes.as_ptr() == blob.data.as_ptr()), "{len} bytes were copied");
                assert_eq!(joined(&apart, &out[6..]), whole);
            }
            let mut out = BytesMut::new();
            let apart = encode_apart(&blob.data, &mut out).unwrap();
            whole.clear();
            encode(&blob.data, &mut whole).unwrap();
            assert_eq!(joined(&apart, &out), whole);
            assert!(OFFERED.take().is_none(), "nothing stays behind");
        }
    }

    #[test]
    fn a_long_field_is_a_slice_of_its_message_and_others_are_copies() {
        for (len, shared) in [(10, false), (SHARED - 1, false), (SHARED, true), (70_000, true)] {
            let mut message = BytesMut::new();
            encode(&blob(len), &mut message).unwrap();
            let message = message.freeze();
            let back: Blob = decode_args(&message).unwrap();
            assert_eq!((back.data.len(), &back.list[..], back.other, &*back.name), (len, &[1, 2][..], 300, "n"));
            assert_eq!(message.as_ptr_range().contains(&back.data.as_ptr()), shared, "{len}");
            assert!(MESSAGE.take().is_none(), "nothing stays behind");
        }
    }

    #[test]
    fn a_field_does_not_keep_a_message_that_is_much_longer() {
        let mut message = BytesMut::new();
        encode(&(blob(SHARED), vec![Bytes::from(vec![1; MOST_KEPT * SHARED])]), &mut message).unwrap();
        let message = message.freeze();
        let (back, _): (Blob, Vec<Bytes>) = decode_args(&message).unwrap();
        assert!(!message.as_ptr_range().contains(&back.data.as_ptr()));
    }

    #[test]
    fn what_is_no_part_of_the_message_is_copied() {
        // Text that comes through another reader, as it does when an error is explained.
        let deserializer = serde::de::value::BytesDeserializer::<serde::de::value::Error>::new(&[7; SHARED]);
        let message = Bytes::from(vec![7; SHARED]);
        let back: Bytes = within(&message, || bytes_field::deserialize(deserializer)).unwrap();
        assert_eq!(back, message);
        assert_ne!(back.as_ptr(), message.as_ptr());
    }
}
