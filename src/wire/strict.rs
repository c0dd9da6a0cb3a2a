//! MessagePack maps of the protocol itself, read strictly.
//!
//! Owns how HELLO and STATUS are encoded and decoded: one value, no bytes behind it, no deep nesting. It must never
//! read an application's messages. Look next at `hello` and `status`, its two users.

use std::io::Cursor;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Deepest nesting, in levels: unknown keys are skipped by recursion, and a debug build overflows a 2 MiB stack at 512.
const MAX_DEPTH: usize = 64;

/// Encodes a struct as a map from field name to value.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // The structs given here hold strings, numbers and bytes only: none of them can fail to encode into memory.
    rmp_serde::to_vec_named(value).unwrap_or_default()
}

/// Decodes exactly one value; the error is a text for people.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut decoder = rmp_serde::Deserializer::new(Cursor::new(bytes));
    decoder.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut decoder).map_err(|error| error.to_string())?;
    let read = usize::try_from(decoder.position()).unwrap_or(usize::MAX);
    if read != bytes.len() {
        return Err(format!("{} bytes follow the value", bytes.len().saturating_sub(read)));
    }
    Ok(value)
}
