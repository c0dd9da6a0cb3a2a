//! Messages that are one number or truth value, written in one step.
//!
//! Owns the short way for the items of a long stream, of which each is hardly longer than its prefix. It must never write what
//! rmp-serde writes otherwise, so whatever is not plain is left to it. Look next at [`super::scalar`] for the way back.

use std::fmt::Display;
use std::mem::needs_drop;

use serde::ser::{self, Impossible, Serialize};

use super::scalar::Elsewhere;

/// A message of that kind.
pub(crate) struct Number {
    bytes: [u8; SIZE],
    len: usize,
}

/// A marker and eight bytes, and what makes it two words together with a byte before it.
const SIZE: usize = 15;

/// Longest values, in bytes, that are tried: a number, or a type around it.
const TRIED: usize = 8;

impl Number {
    /// The message, if the value is one number or truth value. Whatever is none is asked a second time by rmp-serde, so that a
    /// `Serialize` that does more than write may do it twice; but not where something is owned, as in a box, which is no number.
    #[inline]
    pub(crate) fn of<T: ?Sized + Serialize>(value: &T) -> Option<Self> {
        if size_of_val(value) > TRIED || needs_drop::<T>() {
            return None;
        }
        value.serialize(Writer).ok()
    }

    /// The message, then bytes that mean nothing.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8; SIZE] {
        &self.bytes
    }

    /// How many bytes the message has.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn plain(byte: u8) -> Self {
        let mut bytes = [0; SIZE];
        bytes[0] = byte;
        Self { bytes, len: 1 }
    }

    #[inline]
    fn marked<const N: usize>(marker: u8, value: [u8; N]) -> Self {
        const { assert!(N <= TRIED) };
        let mut bytes = [0; SIZE];
        bytes[0] = marker;
        bytes[1..=N].copy_from_slice(&value);
        Self { bytes, len: 1 + N }
    }
}

/// The serializer of these messages; an error means that rmp-serde has to write the value.
struct Writer;

impl ser::Error for Elsewhere {
    fn custom<T: Display>(_: T) -> Self {
        Self
    }
}

type Nothing = Impossible<Number, Elsewhere>;

/// Everything that is not here.
macro_rules! elsewhere {
    ($($method:ident($($argument:ty),*) -> $output:ty;)*) => {
        $(#[inline] fn $method(self, $(_: $argument),*) -> Result<$output, Elsewhere> { Err(Elsewhere) })*
    };
}

impl ser::Serializer for Writer {
    type Ok = Number;
    type Error = Elsewhere;
    type SerializeSeq = Nothing;
    type SerializeTuple = Nothing;
    type SerializeTupleStruct = Nothing;
    type SerializeTupleVariant = Nothing;
    type SerializeMap = Nothing;
    type SerializeStruct = Nothing;
    type SerializeStructVariant = Nothing;

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<Number, Elsewhere> {
        Ok(Number::plain(if value { 0xc3 } else { 0xc2 }))
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result<Number, Elsewhere> {
        Ok(match value {
            0..=0x7f => Number::plain(value as u8),
            0x80..=0xff => Number::marked(0xcc, [value as u8]),
            0x100..=0xffff => Number::marked(0xcd, (value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => Number::marked(0xce, (value as u32).to_be_bytes()),
            _ => Number::marked(0xcf, value.to_be_bytes()),
        })
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result<Number, Elsewhere> {
        if let Ok(value) = u64::try_from(value) {
            return self.serialize_u64(value);
        }
        Ok(match value {
            -0x20..=-1 => Number::plain(value as u8),
            -0x80..-0x20 => Number::marked(0xd0, (value as i8).to_be_bytes()),
            -0x8000..-0x80 => Number::marked(0xd1, (value as i16).to_be_bytes()),
            -0x8000_0000..-0x8000 => Number::marked(0xd2, (value as i32).to_be_bytes()),
            _ => Number::marked(0xd3, value.to_be_bytes()),
        })
    }

    #[inline]
    fn serialize_u8(self, value: u8) -> Result<Number, Elsewhere> {
        self.serialize_u64(value.into())
    }

    #[inline]
    fn serialize_u16(self, value: u16) -> Result<Number, Elsewhere> {
        self.serialize_u64(value.into())
    }

    #[inline]
    fn serialize_u32(self, value: u32) -> Result<Number, Elsewhere> {
        self.serialize_u64(value.into())
    }

    #[inline]
    fn serialize_i8(self, value: i8) -> Result<Number, Elsewhere> {
        self.serialize_i64(value.into())
    }

    #[inline]
    fn serialize_i16(self, value: i16) -> Result<Number, Elsewhere> {
        self.serialize_i64(value.into())
    }

    #[inline]
    fn serialize_i32(self, value: i32) -> Result<Number, Elsewhere> {
        self.serialize_i64(value.into())
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<Number, Elsewhere> {
        Ok(Number::marked(0xca, value.to_be_bytes()))
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<Number, Elsewhere> {
        Ok(Number::marked(0xcb, value.to_be_bytes()))
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn collect_str<T: ?Sized + Display>(self, _: &T) -> Result<Number, Elsewhere> {
        Err(Elsewhere)
    }

    fn serialize_some<T: ?Sized + Serialize>(self, _: &T) -> Result<Number, Elsewhere> {
        Err(Elsewhere)
    }

    /// A type of its own around a number is written like the number, as long as its name has no meaning to rmp-serde.
    #[inline]
    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Number, Elsewhere> {
        if name == rmp_serde::MSGPACK_EXT_STRUCT_NAME { Err(Elsewhere) } else { value.serialize(self) }
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Number, Elsewhere> {
        Err(Elsewhere)
    }

    elsewhere! {
        serialize_char(char) -> Number;
        serialize_str(&str) -> Number;
        serialize_bytes(&[u8]) -> Number;
        serialize_none() -> Number;
        serialize_unit() -> Number;
        serialize_unit_struct(&'static str) -> Number;
        serialize_unit_variant(&'static str, u32, &'static str) -> Number;
        serialize_seq(Option<usize>) -> Nothing;
        serialize_tuple(usize) -> Nothing;
        serialize_tuple_struct(&'static str, usize) -> Nothing;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Nothing;
        serialize_map(Option<usize>) -> Nothing;
        serialize_struct(&'static str, usize) -> Nothing;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Nothing;
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use serde::{Serialize, Serializer};

    use super::*;
    use crate::message::encode;

    #[derive(Serialize)]
    struct Meters(u32);

    #[derive(Serialize)]
    struct Fields {
        a: u8,
    }

    #[derive(Serialize)]
    enum Enum {
        Unit,
        Newtype(u8),
    }

    #[derive(Serialize)]
    #[serde(rename = "_ExtStruct")]
    struct Extension(u8);

    /// Written differently for people.
    struct Readable;

    impl Serialize for Readable {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let readable = serializer.is_human_readable();
            serializer.serialize_bool(readable)
        }
    }

    /// Says whether the value was written here; then as rmp-serde does.
    fn is_written_here<T: Serialize + 'static>(value: &T) -> bool {
        let Some(number) = Number::of(value) else { return false };
        let mut there = BytesMut::new();
        assert!(encode(value, &mut there).is_ok(), "rmp-serde refuses it");
        assert_eq!(&number.bytes()[..number.len()], &there[..], "{}", std::any::type_name::<T>());
        true
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn numbers_are_written_as_rmp_serde_writes_them(bits in any::<u64>(), shift in 0..64_u32, truth in any::<bool>()) {
            let (unsigned, signed) = (bits >> shift, bits as i64 >> shift);
            for number in [unsigned, unsigned.wrapping_add(1), unsigned.wrapping_sub(1)] {
                assert!(is_written_here(&number) && is_written_here(&(number as u32)) && is_written_here(&(number as u16)));
                assert!(is_written_here(&(number as u8)) && is_written_here(&Meters(number as u32)));
                assert!(is_written_here(&f64::from_bits(number)) && is_written_here(&f32::from_bits(number as u32)));
            }
            for number in [signed, signed.wrapping_add(1), signed.wrapping_sub(1)] {
                assert!(is_written_here(&number) && is_written_here(&(number as i32)) && is_written_here(&(number as i16)));
                assert!(is_written_here(&(number as i8)));
            }
            assert!(is_written_here(&truth));
        }
    }

    #[test]
    fn numbers_are_written_as_rmp_serde_writes_them_at_every_change_of_length() {
        for power in 0..64 {
            for number in [(1_i64 << power).wrapping_sub(1), 1 << power, (1_i64 << power).wrapping_neg(), !(1 << power)]
            {
                assert!(is_written_here(&number) && is_written_here(&(number as u64)), "{number}");
            }
        }
        assert!(is_written_here(&Readable), "written for people");
    }

    /// Counts how often it is written.
    struct Counting(std::cell::Cell<u32>);

    impl Serialize for Counting {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.set(self.0.get() + 1);
            serializer.serialize_str("text")
        }
    }

    #[test]
    fn what_is_owned_is_written_once() {
        let boxed = Box::new(Counting(Default::default()));
        assert!(!is_written_here(&boxed));
        assert_eq!(boxed.0.get(), 0, "it was not even tried");
        assert!(!is_written_here(&Box::new(1_u8)), "a number in a box is written by rmp-serde");
    }

    #[test]
    fn whatever_is_no_number_is_left_to_rmp_serde() {
        assert!(!is_written_here(&'x') && !is_written_here(&()) && !is_written_here(&[1_u8, 2]));
        assert!(
            !is_written_here(&Fields { a: 1 }) && !is_written_here(&Enum::Unit) && !is_written_here(&Enum::Newtype(1))
        );
        assert!(
            !is_written_here(&Some(1_u8))
                && !is_written_here(&Extension(1))
                && !is_written_here(&Box::new(Fields { a: 1 }))
        );
        assert!(!is_written_here(&1_u128) && !is_written_here(&String::from("1")));
    }
}
