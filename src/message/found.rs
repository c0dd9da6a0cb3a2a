//! A value of which only the kind matters: what an error says was found.
//!
//! Owns the words for errors about arguments. It must never be used for values that matter. Look next at [`super`].

use std::fmt;

use serde::de::value::Error;
use serde::de::{Deserialize, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// Most characters of a text that are quoted in an error.
const QUOTED: usize = 32;

/// What was found where something else was expected.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    Bytes,
    Array,
    Map,
}

impl<'de> Deserialize<'de> for Found {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Kinds)
    }
}

struct Kinds;

impl<'de> Visitor<'de> for Kinds {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Nil)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Found, E> {
        Ok(Found::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Found, E> {
        Ok(Found::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Found, E> {
        Ok(Found::Signed(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Found, E> {
        Ok(Found::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Found, E> {
        Ok(Found::Text(value.chars().take(QUOTED).collect()))
    }

    fn visit_bytes<E>(self, _value: &[u8]) -> Result<Found, E> {
        Ok(Found::Bytes)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Found, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Map)
    }
}

impl<'de> IntoDeserializer<'de> for &Found {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for &Found {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Found::Nil => visitor.visit_unit(),
            Found::Bool(value) => visitor.visit_bool(*value),
            Found::Unsigned(value) => visitor.visit_u64(*value),
            Found::Signed(value) => visitor.visit_i64(*value),
            Found::Float(value) => visitor.visit_f64(*value),
            Found::Text(value) => visitor.visit_str(value),
            Found::Bytes => visitor.visit_bytes(&[]),
            Found::Array => visitor.visit_seq(serde::de::value::SeqDeserializer::new(std::iter::empty::<()>())),
            Found::Map => visitor.visit_map(serde::de::value::MapDeserializer::new(std::iter::empty::<(&str, &str)>())),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
