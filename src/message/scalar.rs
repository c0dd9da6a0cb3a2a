//! Messages that are one number, truth value or short text, read in one step.
//!
//! Owns the short way for the items of a long stream, of which each is hardly longer than what its reader has to look at. It must
//! never read what rmp-serde reads otherwise, so whatever is not plain is left to it. Look next at [`super::decode_in_place`].

use std::fmt;

use serde::de::{self, Visitor};
use serde::forward_to_deserialize_any;

/// The value of such a message.
pub(super) enum Scalar<'a> {
    Unsigned(u64),
    Signed(i64),
    Single(f32),
    Double(f64),
    Bool(bool),
    Text(&'a str),
}

impl<'a> Scalar<'a> {
    /// The value, if the message is one and nothing else.
    #[inline(always)]
    pub(super) fn of(message: &'a [u8]) -> Option<Self> {
        Some(match *message {
            [small @ 0x00..=0x7f] => Self::Unsigned(u64::from(small)),
            [negative @ 0xe0..=0xff] => Self::Signed(i64::from(i8::from_be_bytes([negative]))),
            [0xcc, a] => Self::Unsigned(u64::from(a)),
            [0xcd, a, b] => Self::Unsigned(u64::from(u16::from_be_bytes([a, b]))),
            [0xce, a, b, c, d] => Self::Unsigned(u64::from(u32::from_be_bytes([a, b, c, d]))),
            [0xcf, a, b, c, d, e, f, g, h] => Self::Unsigned(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            [0xd0, a] => Self::Signed(i64::from(i8::from_be_bytes([a]))),
            [0xd1, a, b] => Self::Signed(i64::from(i16::from_be_bytes([a, b]))),
            [0xd2, a, b, c, d] => Self::Signed(i64::from(i32::from_be_bytes([a, b, c, d]))),
            [0xd3, a, b, c, d, e, f, g, h] => Self::Signed(i64::from_be_bytes([a, b, c, d, e, f, g, h])),
            [0xca, a, b, c, d] => Self::Single(f32::from_be_bytes([a, b, c, d])),
            [0xcb, a, b, c, d, e, f, g, h] => Self::Double(f64::from_be_bytes([a, b, c, d, e, f, g, h])),
            [0xc2] => Self::Bool(false),
            [0xc3] => Self::Bool(true),
            [head @ 0xa0..=0xbf, ref text @ ..] if text.len() == usize::from(head & 0x1f) => {
                Self::Text(std::str::from_utf8(text).ok()?)
            }
            _ => return None,
        })
    }
}

/// The value is not what was expected, or not here; rmp-serde can say.
#[derive(Debug)]
pub(super) struct Elsewhere;

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is for rmp-serde")
    }
}

impl std::error::Error for Elsewhere {}

impl de::Error for Elsewhere {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl<'de> de::Deserializer<'de> for Scalar<'de> {
    type Error = Elsewhere;

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Elsewhere> {
        match self {
            Self::Unsigned(value) => visitor.visit_u64(value),
            Self::Signed(value) => visitor.visit_i64(value),
            Self::Single(value) => visitor.visit_f32(value),
            Self::Double(value) => visitor.visit_f64(value),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Text(value) => visitor.visit_borrowed_str(value),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Elsewhere> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Elsewhere> {
        visitor.visit_newtype_struct(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;
    use serde::de::{DeserializeOwned, IgnoredAny};
    use serde::{Deserialize, Deserializer, Serialize};

    use crate::message::{decode, decode_in_place, encode};

    #[derive(Debug, Deserialize)]
    struct Newtype(#[allow(dead_code, reason = "only printed")] i16);

    #[derive(Debug, Deserialize)]
    struct Fields {
        #[allow(dead_code, reason = "only printed")]
        a: u8,
    }

    #[derive(Debug, Deserialize)]
    enum Enum {
        #[serde(rename = "x")]
        Unit,
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(#[allow(dead_code, reason = "only printed")] i8),
        Text(#[allow(dead_code, reason = "only printed")] String),
    }

    /// Reads differently for people.
    #[derive(Debug)]
    struct Readable(#[allow(dead_code, reason = "only printed")] bool, #[allow(dead_code, reason = "only printed")] u8);

    impl<'de> Deserialize<'de> for Readable {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Ok(Self(deserializer.is_human_readable(), u8::deserialize(deserializer)?))
        }
    }

    fn same<T: DeserializeOwned + Debug + 'static>(message: &Bytes) {
        // What is not read here is decoded.
        let Some(here) = decode_in_place::<T>(message) else { return };
        let (here, there) = (format!("{here:?}"), format!("{:?}", decode::<T>(message)));
        assert_eq!(format!("Ok({here})"), there, "{message:?} as {}", std::any::type_name::<T>());
    }

    fn same_for_all(message: &Bytes) {
        same::<u8>(message);
        same::<i8>(message);
        same::<u32>(message);
        same::<u64>(message);
        same::<i64>(message);
        same::<u128>(message);
        same::<i128>(message);
        same::<f32>(message);
        same::<f64>(message);
        same::<bool>(message);
        same::<char>(message);
        same::<()>(message);
        same::<String>(message);
        same::<Vec<u8>>(message);
        same::<Vec<String>>(message);
        same::<Option<u64>>(message);
        same::<Option<Option<String>>>(message);
        same::<(u8, u8)>(message);
        same::<BTreeMap<String, u8>>(message);
        same::<Newtype>(message);
        same::<Fields>(message);
        same::<Enum>(message);
        same::<Untagged>(message);
        same::<Readable>(message);
        same::<Result<u8, String>>(message);
        same::<IgnoredAny>(message);
    }

    fn encoded<T: Serialize + 'static>(value: &T) -> Bytes {
        let mut out = BytesMut::new();
        encode(value, &mut out).unwrap();
        out.freeze()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn what_is_read_in_place_is_what_decoding_reads(
            head in any::<u8>(), tail in proptest::collection::vec(any::<u8>(), 0..10),
            number in any::<i64>(), shift in 0..64_u32, float in any::<f64>(), text in "x|\\PC{0,40}",
        ) {
            let number: i64 = number >> shift;
            assert_eq!(decode_in_place::<i64>(&encoded(&number)), Some(number));
            assert_eq!(decode_in_place::<u64>(&encoded(&number.unsigned_abs())), Some(number.unsigned_abs()));
            assert_eq!(decode_in_place::<String>(&encoded(&text)).as_ref(), Some(&text));
            let whole = [encoded(&number), encoded(&number.unsigned_abs()), encoded(&float), encoded(&text)];
            for message in whole {
                same_for_all(&message);
                same_for_all(&message.slice(..message.len() - 1));
                same_for_all(&[message.as_ref(), &tail].concat().into());
            }
            same_for_all(&[&[head][..], &tail].concat().into());
        }
    }

    #[test]
    fn every_single_byte_is_read_as_decoding_reads_it() {
        for byte in 0..=u8::MAX {
            same_for_all(&Bytes::copy_from_slice(&[byte]));
        }
    }
}
