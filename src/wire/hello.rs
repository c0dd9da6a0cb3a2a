//! HELLO: who a side is and what it accepts.
//!
//! Owns the map of section 4 and the limits of its numbers. It must never compare a HELLO with what was wanted: that is
//! `proto/handshake.rs`, the place to look next.

use serde::{Deserialize, Serialize};

use super::strict;

/// Longest HELLO, in bytes: some hundred names of idempotent methods fit.
pub(crate) const MAX_HELLO: usize = 16 * 1024;

/// Smallest window, in bytes: half of it, which is what a receiver gathers before it returns credit, is then above the
/// 1,024 bytes below which a CREDIT counts as a control frame.
pub(crate) const MIN_WINDOW: u32 = 4096;

/// Largest credit, in bytes, as in HTTP/2: sums of two fit 32 bits.
pub(crate) const MAX_CREDIT: u32 = 0x7fff_ffff;

/// What a side says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: String,
    pub(crate) service: String,
    pub(crate) incarnation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expect: Option<u64>,
    pub(crate) max_calls: u32,
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
    pub(crate) max_message: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) idempotent: Vec<String>,
    /// Client: whether answers and refusals shall say how busy the server is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) load: bool,
}

impl Hello {
    /// The payload of a HELLO frame. Names of idempotent methods that do not fit are left out: the list may be incomplete.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let bytes = strict::encode(self);
        if bytes.len() <= MAX_HELLO || self.idempotent.is_empty() {
            return bytes;
        }
        let mut shorter = self.clone();
        shorter.idempotent.truncate(self.idempotent.len() / 2);
        shorter.encode()
    }

    /// Reads a payload and checks the ranges that hold for both sides.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let hello: Self = strict::decode(payload)?;
        for (key, window) in [("stream_window", hello.stream_window), ("connection_window", hello.connection_window)] {
            if !(MIN_WINDOW..=MAX_CREDIT).contains(&window) {
                return Err(format!("{key} is {window}, not {MIN_WINDOW} to {MAX_CREDIT}"));
            }
        }
        if hello.max_calls > u32::from(u16::MAX) {
            return Err(format!("max_calls is {}, not at most {}", hello.max_calls, u16::MAX));
        }
        Ok(hello)
    }
}
