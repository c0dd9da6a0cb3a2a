//! Structs, such as the arguments of a typed call, whose fields are mostly plain numbers.
//!
//! Owns the short way for the struct itself and those of its fields that are numbers; everything else is written by rmp-serde.
//! It must never write what rmp-serde would write otherwise. Look next at [`super::number`].

use std::fmt::Display;

use bytes::BufMut;
use rmp_serde::config::{DefaultConfig, StructMapConfig};
use rmp_serde::encode::Error;
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::number::Number;
use super::shared::Writer;

/// What writes everything else, and behind what is written here.
type Rmp<'a> = rmp_serde::Serializer<Writer<'a>, StructMapConfig<DefaultConfig>>;

/// Most fields, and longest name, that are announced in one byte.
const FIELDS: usize = 15;
/// See [`FIELDS`].
const NAME: usize = 31;

/// Writes one value.
pub(super) struct Fields<'s, 'a>(pub(super) &'s mut Rmp<'a>);

impl SerializeStruct for Fields<'_, '_> {
    type Ok = ();
    type Error = Error;

    #[inline]
    fn serialize_field<T: ?Sized + Serialize>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
        if key.len() <= NAME {
            let out = self.0.get_mut().out();
            out.put_u8(0xa0 | key.len() as u8);
            out.put_slice(key.as_bytes());
        } else {
            key.serialize(&mut *self.0)?;
        }
        if let Some(number) = Number::of(value) {
            self.0.get_mut().out().put_slice(&number.bytes()[..number.len()]);
            return Ok(());
        }
        value.serialize(&mut *self.0)
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

/// What rmp-serde writes.
macro_rules! as_rmp {
    ($($method:ident($($name:ident: $argument:ty),*) -> $output:ident;)*) => {
        $(#[inline] fn $method(self, $($name: $argument),*) -> Result<Self::$output, Error> { self.0.$method($($name),*) })*
    };
}

impl<'s, 'a> Serializer for Fields<'s, 'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = <&'s mut Rmp<'a> as Serializer>::SerializeSeq;
    type SerializeTuple = <&'s mut Rmp<'a> as Serializer>::SerializeTuple;
    type SerializeTupleStruct = <&'s mut Rmp<'a> as Serializer>::SerializeTupleStruct;
    type SerializeTupleVariant = <&'s mut Rmp<'a> as Serializer>::SerializeTupleVariant;
    type SerializeMap = <&'s mut Rmp<'a> as Serializer>::SerializeMap;
    type SerializeStruct = Self;
    type SerializeStructVariant = <&'s mut Rmp<'a> as Serializer>::SerializeStructVariant;

    #[inline]
    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self, Error> {
        if len <= FIELDS {
            self.0.get_mut().out().put_u8(0x80 | len as u8);
        } else {
            // Its beginning; what comes then is the same.
            self.0.serialize_struct(name, len)?;
        }
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn collect_str<T: ?Sized + Display>(self, value: &T) -> Result<(), Error> {
        self.0.collect_str(value)
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Error> {
        self.0.serialize_some(value)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, name: &'static str, value: &T) -> Result<(), Error> {
        self.0.serialize_newtype_struct(name, value)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.0.serialize_newtype_variant(name, index, variant, value)
    }

    as_rmp! {
        serialize_bool(value: bool) -> Ok;
        serialize_i8(value: i8) -> Ok;
        serialize_i16(value: i16) -> Ok;
        serialize_i32(value: i32) -> Ok;
        serialize_i64(value: i64) -> Ok;
        serialize_i128(value: i128) -> Ok;
        serialize_u8(value: u8) -> Ok;
        serialize_u16(value: u16) -> Ok;
        serialize_u32(value: u32) -> Ok;
        serialize_u64(value: u64) -> Ok;
        serialize_u128(value: u128) -> Ok;
        serialize_f32(value: f32) -> Ok;
        serialize_f64(value: f64) -> Ok;
        serialize_char(value: char) -> Ok;
        serialize_str(value: &str) -> Ok;
        serialize_bytes(value: &[u8]) -> Ok;
        serialize_none() -> Ok;
        serialize_unit() -> Ok;
        serialize_unit_struct(name: &'static str) -> Ok;
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str) -> Ok;
        serialize_seq(len: Option<usize>) -> SerializeSeq;
        serialize_tuple(len: usize) -> SerializeTuple;
        serialize_tuple_struct(name: &'static str, len: usize) -> SerializeTupleStruct;
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, len: usize) -> SerializeTupleVariant;
        serialize_map(len: Option<usize>) -> SerializeMap;
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, len: usize) -> SerializeStructVariant;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;
    use serde::Serialize;

    use crate::message::{bytes_field, encode, encode_apart};

    /// Both ways write the same.
    fn same<T: Serialize + 'static>(value: &T) {
        let (mut there, mut here) = (BytesMut::from("before"), BytesMut::from("before"));
        encode(value, &mut there).unwrap();
        assert!(encode_apart(value, &mut here).unwrap().is_empty(), "nothing here is long");
        assert_eq!(here, there, "{}", std::any::type_name::<T>());
    }

    #[derive(Clone, Serialize)]
    struct Inner {
        x: i8,
        text: String,
    }

    #[derive(Clone, Serialize)]
    struct Outer {
        number: i64,
        float: f64,
        truth: bool,
        text: String,
        option: Option<u16>,
        letter: char,
        inner: Inner,
        list: Vec<Inner>,
        map: BTreeMap<String, u8>,
        #[serde(with = "bytes_field")]
        bytes: Bytes,
        #[serde(skip_serializing_if = "Option::is_none")]
        left_out: Option<u8>,
        a_name_of_thirty_one_bytes_abcd: u8,
        a_name_of_thirty_two_bytes_abcde: u8,
        unit: (),
        wide: u128,
    }

    proptest! {
        #[test]
        fn structs_are_written_as_rmp_serde_writes_them(
            number: i64, float: f64, truth: bool, text in ".{0,40}", option: Option<u16>, letter: char,
            keys in proptest::collection::btree_map(".{0,4}", any::<u8>(), 0..3), left_out: Option<u8>,
        ) {
            let inner = Inner { x: number as i8, text: text.clone() };
            same(&inner);
            same(&Outer {
                number, float, truth, option, letter, left_out,
                text: text.clone(),
                list: vec![inner.clone(), inner.clone()],
                inner,
                map: keys,
                bytes: Bytes::from(text),
                a_name_of_thirty_one_bytes_abcd: 1,
                a_name_of_thirty_two_bytes_abcde: 2,
                unit: (),
                wide: number.unsigned_abs().into(),
            });
            same(&(number, truth));
            same(&option);
            same(&float);
        }
    }

    #[derive(Serialize)]
    struct Flat {
        a: u8,
        #[serde(flatten)]
        inner: Inner,
    }

    #[derive(Serialize)]
    #[serde(transparent)]
    struct Around(Inner);

    #[derive(Serialize)]
    enum Enum {
        Unit,
        Struct { a: u8 },
        Newtype(Inner),
    }

    #[test]
    fn what_is_no_struct_is_written_as_rmp_serde_writes_it() {
        let inner = || Inner { x: -1, text: "x".into() };
        same(&Flat { a: 1, inner: inner() });
        same(&Around(inner()));
        same(&Enum::Unit);
        same(&Enum::Struct { a: 1 });
        same(&Enum::Newtype(inner()));
        same(&Some(inner()));
        same(&vec![inner()]);
        same(&"text");
        same(&BTreeMap::from([(1, 2)]));
    }

    #[test]
    fn fifteen_fields_are_announced_in_one_byte_and_one_more_is_not() {
        macro_rules! of {
            ($($field:ident)*) => {{
                #[derive(Serialize)]
                struct Wide { $($field: u8),* }
                same(&Wide { $($field: 1),* });
            }};
        }
        of!(a b c d e f g h i j k l m n o);
        of!(a b c d e f g h i j k l m n o p);
    }

    /// Text that can be had once, as that of an iterator.
    struct Once(Cell<Option<String>>);

    impl Serialize for Once {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.take().unwrap().serialize(serializer)
        }
    }

    #[test]
    fn a_value_that_is_no_struct_is_asked_once() {
        let mut out = BytesMut::new();
        assert!(encode_apart(&Once(Cell::new(Some("x".into()))), &mut out).unwrap().is_empty());
        assert_eq!(&out[..], b"\xa1x");
    }

    #[derive(Serialize)]
    struct Failing {
        a: u8,
        #[serde(serialize_with = "fail")]
        b: u8,
    }

    fn fail<S: serde::Serializer>(_: &u8, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("no such luck"))
    }

    #[test]
    fn what_a_field_says_when_it_fails_is_the_error() {
        let error = encode_apart(&Failing { a: 1, b: 2 }, &mut BytesMut::new()).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
    }
}
