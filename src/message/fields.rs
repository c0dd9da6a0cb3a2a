//! Structs, such as the arguments of a typed call, whose fields are mostly plain numbers.
//!
//! Owns the short way for the struct itself and those of its fields that are numbers; every other field is written by rmp-serde.
//! It must never write what rmp-serde would write otherwise. Look next at [`super::number`].

use std::fmt::Display;

use bytes::BufMut;
use rmp_serde::config::{DefaultConfig, StructMapConfig};
use rmp_serde::encode::Error;
use serde::ser::{self, Impossible, Serialize, SerializeStruct};

use super::number::{Number, elsewhere};
use super::shared::Writer;

/// What writes everything else, and behind what is written here.
pub(super) type Rmp<'a> = rmp_serde::Serializer<Writer<'a>, StructMapConfig<DefaultConfig>>;

/// Why this is not how a value is written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    /// It is no struct. Nothing was written.
    #[error("this is for rmp-serde")]
    Elsewhere,
    #[error(transparent)]
    Failed(#[from] Error),
}

impl ser::Error for Stopped {
    fn custom<T: Display>(message: T) -> Self {
        Self::Failed(Error::custom(message))
    }
}

/// Most fields, and longest name, that are announced in one byte.
const FIELDS: usize = 15;
/// See [`FIELDS`].
const NAME: usize = 31;

/// Writes one value, if it is a struct.
pub(super) struct Fields<'s, 'a>(pub(super) &'s mut Rmp<'a>);

impl SerializeStruct for Fields<'_, '_> {
    type Ok = ();
    type Error = Stopped;

    #[inline]
    fn serialize_field<T: ?Sized + Serialize>(&mut self, key: &'static str, value: &T) -> Result<(), Stopped> {
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
        Ok(value.serialize(&mut *self.0)?)
    }

    fn end(self) -> Result<(), Stopped> {
        Ok(())
    }
}

type Nothing = Impossible<(), Stopped>;

impl ser::Serializer for Fields<'_, '_> {
    type Ok = ();
    type Error = Stopped;
    type SerializeSeq = Nothing;
    type SerializeTuple = Nothing;
    type SerializeTupleStruct = Nothing;
    type SerializeTupleVariant = Nothing;
    type SerializeMap = Nothing;
    type SerializeStruct = Self;
    type SerializeStructVariant = Nothing;

    #[inline]
    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Self, Stopped> {
        if len > FIELDS {
            return Err(Stopped::Elsewhere);
        }
        self.0.get_mut().out().put_u8(0x80 | len as u8);
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn collect_str<T: ?Sized + Display>(self, _: &T) -> Result<(), Stopped> {
        Err(Stopped::Elsewhere)
    }

    fn serialize_some<T: ?Sized + Serialize>(self, _: &T) -> Result<(), Stopped> {
        Err(Stopped::Elsewhere)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, _: &T) -> Result<(), Stopped> {
        Err(Stopped::Elsewhere)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), Stopped> {
        Err(Stopped::Elsewhere)
    }

    elsewhere! { Stopped, Stopped::Elsewhere;
        serialize_bool(bool) -> ();
        serialize_i8(i8) -> ();
        serialize_i16(i16) -> ();
        serialize_i32(i32) -> ();
        serialize_i64(i64) -> ();
        serialize_u8(u8) -> ();
        serialize_u16(u16) -> ();
        serialize_u32(u32) -> ();
        serialize_u64(u64) -> ();
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_char(char) -> ();
        serialize_str(&str) -> ();
        serialize_bytes(&[u8]) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_unit_variant(&'static str, u32, &'static str) -> ();
        serialize_seq(Option<usize>) -> Nothing;
        serialize_tuple(usize) -> Nothing;
        serialize_tuple_struct(&'static str, usize) -> Nothing;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Nothing;
        serialize_map(Option<usize>) -> Nothing;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Nothing;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
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
