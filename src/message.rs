//! MessagePack: one value per message, structs as maps, bytes as `bin`.
//!
//! Owns how values become bytes and back, with the limits of the protocol (nesting, no trailing bytes). It must never
//! know frames, lengths or connections. Look next at [`crate::body`] for how messages are cut out of a body.

mod fields;
mod found;
mod number;
mod scalar;
mod shared;

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fields::Fields;
use found::Found;
use rmp_serde::decode::ReadRefReader;
use scalar::Scalar;
use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, IntoDeserializer};
use serde::{Deserialize, Serialize};

pub(crate) use number::Number;
pub(crate) use shared::Apart;
pub use shared::bytes_field;

/// How deep a message may be nested. rmp-serde's own limit of 1,024 overflows small stacks; 64 levels are far
/// more than any service's types have, and fit a 256 KiB stack of a debug build.
const MAX_DEPTH: usize = 64;

/// Nil, as an encoded message.
pub(crate) const NIL: u8 = 0xc0;

/// Why a value could not be encoded or a message not be decoded; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct MessageError(String);

/// Appends `value` as one MessagePack value.
pub(crate) fn encode<T: Serialize + 'static>(value: &T, out: &mut BytesMut) -> Result<(), MessageError> {
    if let Some(bytes) = as_bytes(value) {
        put_bin_header(bytes.len(), out)?;
        out.put_slice(bytes);
        return Ok(());
    }
    let mut serializer = rmp_serde::Serializer::new(Appending(out)).with_struct_map();
    value.serialize(&mut serializer).map_err(|error| MessageError(error.to_string()))
}

/// Appends a text as one MessagePack value.
pub(crate) fn encode_text(text: &str, out: &mut BytesMut) -> Result<(), MessageError> {
    if let Ok(len @ 0..=0x1f) = u8::try_from(text.len()) {
        out.put_u8(0xa0 | len);
        out.put_slice(text.as_bytes());
        return Ok(());
    }
    let mut serializer = rmp_serde::Serializer::new(Appending(out));
    text.serialize(&mut serializer).map_err(|error| MessageError(error.to_string()))
}

/// Writes behind what is there. Unlike the writer of `bytes` it takes everything at once, which counts: a value is many
/// writes of a few bytes.
struct Appending<'a>(&'a mut BytesMut);

impl io::Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends `value` as one MessagePack value, but for long `Bytes`: those come back with their places in what was appended.
pub(crate) fn encode_apart<T: Serialize + 'static>(value: &T, out: &mut BytesMut) -> Result<Apart, MessageError> {
    if let Some(bytes) = as_shared_bytes(value).filter(|bytes| bytes.len() >= shared::APART) {
        let start = out.len();
        put_bin_header(bytes.len(), out)?;
        return Ok(vec![(out.len() - start, bytes.clone())]);
    }
    if as_bytes(value).is_some() {
        return encode(value, out).map(|()| Apart::new());
    }
    if let Some(number) = Number::of(value) {
        out.put_slice(&number.bytes()[..number.len()]);
        return Ok(Apart::new());
    }
    let mut serializer = rmp_serde::Serializer::new(shared::Writer::new(out)).with_struct_map();
    match value.serialize(Fields(&mut serializer)) {
        Ok(()) => Ok(serializer.into_inner().apart),
        Err(error) => Err(MessageError(error.to_string())),
    }
}

/// The bytes of `value`, if it is a `Bytes` or a `Vec<u8>`, which travel as `bin`.
fn as_bytes<T: 'static>(value: &T) -> Option<&[u8]> {
    let value: &dyn Any = value;
    if let Some(bytes) = value.downcast_ref::<Bytes>() {
        return Some(bytes);
    }
    value.downcast_ref::<Vec<u8>>().map(Vec::as_slice)
}

/// The value as shared bytes, if it is a `Bytes`: such a body is queued by reference.
pub(crate) fn as_shared_bytes<T: 'static>(value: &T) -> Option<&Bytes> {
    let value: &dyn Any = value;
    value.downcast_ref::<Bytes>()
}

/// Appends the header of a `bin` of `len` bytes.
pub(crate) fn put_bin_header(len: usize, out: &mut BytesMut) -> Result<(), MessageError> {
    if let Ok(len) = u8::try_from(len) {
        out.put_u8(0xc4);
        out.put_u8(len);
    } else if let Ok(len) = u16::try_from(len) {
        out.put_u8(0xc5);
        out.put_u16(len);
    } else {
        let len =
            u32::try_from(len).map_err(|_| MessageError(format!("{len} bytes are more than MessagePack can say")))?;
        out.put_u8(0xc6);
        out.put_u32(len);
    }
    Ok(())
}

/// Reads one message as `T`. `Bytes` are slices of the message, not copies.
pub(crate) fn decode<T: DeserializeOwned + 'static>(message: &Bytes) -> Result<T, MessageError> {
    if TypeId::of::<T>() == TypeId::of::<Bytes>() {
        return recast(decode_bytes(message)?);
    }
    if TypeId::of::<T>() == TypeId::of::<Vec<u8>>() {
        return recast(decode_bytes(message)?.to_vec());
    }
    let mut deserializer = deserializer(message);
    let value = shared::within(message, || T::deserialize(&mut deserializer));
    let value = value.map_err(|error| explain::<T>(message, &error))?;
    expect_end(&mut deserializer)?;
    Ok(value)
}

/// Decodes once more, slowly, to say where it fails and what was expected there.
fn explain<T: DeserializeOwned>(message: &Bytes, error: &rmp_serde::decode::Error) -> MessageError {
    if let Err(error) = serde_path_to_error::deserialize::<_, T>(&mut deserializer(message)) {
        if error.path().iter().next().is_some() {
            return MessageError(format!("`{}`: {}", error.path(), error.inner()));
        }
    }
    // MessagePack's reader does not name the type expected, serde does.
    let found = Found::deserialize(&mut deserializer(message)).ok();
    let expected = found
        .and_then(|found| T::deserialize(IntoDeserializer::<serde::de::value::Error>::into_deserializer(&found)).err());
    let expected = expected.map(|error| error.to_string()).filter(|text| text.starts_with("invalid"));
    MessageError(expected.unwrap_or_else(|| error.to_string()))
}

/// Reads the map of arguments as `A`. Nil and an empty array stand for an empty map. The error names the argument.
pub(crate) fn decode_args<A: DeserializeOwned + 'static>(message: &Bytes) -> Result<A, MessageError> {
    const EMPTY_MAP: &[u8] = &[0x80];
    let message = match message.as_ref() {
        [] | [NIL | 0x90] => &Bytes::from_static(EMPTY_MAP),
        _ => message,
    };
    if TypeId::of::<A>() == TypeId::of::<()>() {
        // A method without arguments ignores those it is given, as it would ignore unknown ones beside its own.
        return decode::<IgnoredAny>(message).and_then(|_| recast(()));
    }
    let mut deserializer = deserializer(message);
    match shared::within(message, || A::deserialize(&mut deserializer)) {
        Ok(args) => expect_end(&mut deserializer).map(|()| args),
        Err(_) => Err(explain_args::<A>(message)),
    }
}

/// Decodes once more, slowly, to say at which argument it fails.
fn explain_args<A: DeserializeOwned>(message: &Bytes) -> MessageError {
    let (path, error) = match serde_path_to_error::deserialize::<_, A>(&mut deserializer(message)) {
        Ok(_) => return MessageError("the arguments are not readable".to_owned()),
        Err(error) => (error.path().to_string(), error.into_inner().to_string()),
    };
    let given: BTreeMap<String, Found> = decode(message).unwrap_or_default();
    if path != "." {
        let expected = given.get(&path).and_then(|found| expected::<A>(&path, found));
        return MessageError(format!("argument `{path}`: {}", expected.unwrap_or(error)));
    }
    if given.is_empty() {
        return MessageError(error);
    }
    let names: Vec<_> = given.keys().map(|name| format!("`{}`", name.escape_default())).collect();
    MessageError(format!("{error}; given were {}", names.join(", ")))
}

/// What serde says when this argument is what was found: unlike MessagePack's reader it names the type expected.
fn expected<A: DeserializeOwned>(name: &str, found: &Found) -> Option<String> {
    let only = MapDeserializer::<_, serde::de::value::Error>::new(std::iter::once((name, found)));
    A::deserialize(only).err().map(|error| error.to_string()).filter(|text| text.starts_with("invalid"))
}

/// Reads one message as a `T` that keeps nothing of it; `None` where [`decode`] has to do it, or to say what is wrong.
#[inline(always)]
pub(crate) fn decode_in_place<T: DeserializeOwned + 'static>(message: &[u8]) -> Option<T> {
    if let Some(Ok(value)) = Scalar::of(message).map(T::deserialize) {
        return Some(value);
    }
    decode_here(message)
}

/// The long way, kept out of the loop that reads items.
#[inline(never)]
fn decode_here<T: DeserializeOwned + 'static>(message: &[u8]) -> Option<T> {
    if message.len() >= shared::SHARED || TypeId::of::<T>() == TypeId::of::<Bytes>() {
        return None;
    }
    let mut deserializer = deserializer(message);
    let value = T::deserialize(&mut deserializer).ok()?;
    expect_end(&mut deserializer).ok()?;
    Some(value)
}

fn deserializer(message: &[u8]) -> rmp_serde::Deserializer<ReadRefReader<'_, [u8]>> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(message);
    // The counter of rmp-serde is taken down before it is compared with 0.
    deserializer.set_max_depth(MAX_DEPTH + 1);
    deserializer
}

/// Refuses bytes after the value: two readers could otherwise see two different messages.
fn expect_end(deserializer: &mut rmp_serde::Deserializer<ReadRefReader<'_, [u8]>>) -> Result<(), MessageError> {
    match IgnoredAny::deserialize(deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(()),
        _ => Err(MessageError("the message has bytes after its value".to_owned())),
    }
}

/// `value` as a `T` that the caller has compared with its type.
fn recast<T: 'static, U: 'static>(value: U) -> Result<T, MessageError> {
    let mut value = Some(value);
    let any: &mut dyn Any = &mut value;
    any.downcast_mut::<Option<T>>()
        .and_then(Option::take)
        .ok_or_else(|| MessageError("the type is not the one asked for".to_owned()))
}

fn decode_bytes(message: &Bytes) -> Result<Bytes, MessageError> {
    let mut rest = message.clone();
    let header = match message.first() {
        Some(0xc4 | 0xd9) => 2,
        Some(0xc5 | 0xda) => 3,
        Some(0xc6 | 0xdb) => 5,
        _ => return decode::<ByteArray>(message).map(|array| Bytes::from(array.0)),
    };
    if rest.len() < header {
        return Err(MessageError("the message ends within the length of its bytes".to_owned()));
    }
    rest.advance(1);
    let len = rest.get_uint(header - 1);
    if rest.len() as u64 != len {
        return Err(MessageError(format!("{len} bytes are announced, {} follow", rest.len())));
    }
    Ok(rest)
}

/// Bytes in any of the forms in which peers send them; see [`bytes_field`].
struct ByteArray(Vec<u8>);

impl<'de> Deserialize<'de> for ByteArray {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes_field::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn encoded<T: Serialize + 'static>(value: &T) -> Bytes {
        let mut out = BytesMut::new();
        encode(value, &mut out).unwrap();
        out.freeze()
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Add {
        a: i64,
        b: i64,
    }

    #[test]
    fn structs_travel_as_maps_and_are_read_in_either_form() {
        assert_eq!(encoded(&Add { a: 2, b: 5 }).as_ref(), b"\x82\xa1a\x02\xa1b\x05");
        assert_eq!(decode::<Add>(&encoded(&(2, 5))).unwrap(), Add { a: 2, b: 5 });
    }

    #[test]
    fn bytes_travel_as_bin_and_arrive_as_a_slice_of_the_message() {
        for len in [0, 255, 256, 65_535, 65_536] {
            let bytes = Bytes::from(vec![7; len]);
            let message = encoded(&bytes);
            assert_eq!(message, encoded(&bytes.to_vec()), "Vec<u8> and Bytes are the same on the wire");
            let back: Bytes = decode(&message).unwrap();
            assert_eq!(back, bytes);
            let start = message.len() - len;
            assert_eq!(back.as_ptr(), message[start..].as_ptr(), "{len} bytes were copied");
        }
        assert_eq!(decode::<Vec<u8>>(&encoded(&vec![1u16, 2, 3])).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn falsy_and_extreme_values_survive() {
        assert_eq!(decode::<i64>(&encoded(&0i64)).unwrap(), 0);
        assert!(!decode::<bool>(&encoded(&false)).unwrap());
        assert_eq!(decode::<String>(&encoded(&String::new())).unwrap(), "");
        assert_eq!(decode::<Option<u8>>(&encoded(&None::<u8>)).unwrap(), None);
        decode::<()>(&encoded(&())).unwrap();
        assert_eq!(decode::<u64>(&encoded(&u64::MAX)).unwrap(), u64::MAX);
        assert_eq!(decode::<i64>(&encoded(&i64::MIN)).unwrap(), i64::MIN);
        assert!(decode::<f64>(&encoded(&f64::NAN)).unwrap().is_nan());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let error = decode::<i64>(&Bytes::from_static(&[1, 2])).unwrap_err();
        assert!(error.to_string().contains("after its value"), "{error}");
        assert!(decode::<Bytes>(&Bytes::from_static(&[0xc4, 1, 7, 7])).is_err());
        assert!(decode::<i64>(&Bytes::from_static(&[1, 0xc1])).is_err());
    }

    #[test]
    fn reading_in_place_leaves_alone_what_keeps_the_message() {
        let message = encoded(&Bytes::from_static(b"kept"));
        assert!(decode_in_place::<Bytes>(&message).is_none());
        assert_eq!(decode_in_place::<Vec<u8>>(&message).unwrap(), b"kept");
    }

    #[test]
    fn nesting_is_capped_at_64() {
        fn nested(depth: usize) -> Bytes {
            let mut bytes = vec![0x91; depth];
            bytes.push(NIL);
            bytes.into()
        }
        decode::<IgnoredAny>(&nested(MAX_DEPTH)).unwrap();
        let error = decode::<IgnoredAny>(&nested(MAX_DEPTH + 1)).unwrap_err();
        assert!(error.to_string().contains("depth"), "{error}");
    }

    #[test]
    fn a_wrong_argument_is_named() {
        let wrong = encoded(&BTreeMap::from([("a", "x"), ("b", "y")]));
        let error = decode_args::<Add>(&wrong).unwrap_err().to_string();
        assert!(error.contains("`a`") && error.contains("i64"), "{error}");
        let misspelt = encoded(&BTreeMap::from([("a", 1), ("bb", 2)]));
        let error = decode_args::<Add>(&misspelt).unwrap_err().to_string();
        assert!(error.contains("missing field `b`") && error.contains("`bb`"), "{error}");
    }

    #[test]
    fn nil_an_empty_array_and_an_empty_map_stand_for_no_arguments() {
        #[derive(Deserialize)]
        struct Nothing {}
        for empty in [&b"\xc0"[..], b"\x90", b"\x80", b""] {
            decode_args::<()>(&Bytes::copy_from_slice(empty)).unwrap();
            decode_args::<Nothing>(&Bytes::copy_from_slice(empty)).unwrap();
        }
    }

    #[test]
    fn an_announced_length_without_data_reserves_nothing() {
        assert!(decode::<Vec<u64>>(&Bytes::from_static(&[0xdd, 0xff, 0xff, 0xff, 0xff])).is_err());
        assert!(decode::<Vec<u8>>(&Bytes::from_static(&[0xdd, 0xff, 0xff, 0xff, 0xff])).is_err());
        assert!(decode::<Bytes>(&Bytes::from_static(&[0xc6, 0xff, 0xff, 0xff, 0xff])).is_err());
    }
}
