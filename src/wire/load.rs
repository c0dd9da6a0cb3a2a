//! How busy a server is, as it travels with its answers.
//!
//! Owns the four bytes in front of what an ANSWER or a REFUSED with the flag LOAD carries. It must never count anything: that
//! is `proto/load.rs`, the place to look next.

use bytes::{BufMut, BytesMut};

/// Bytes of a report.
pub(crate) const LOAD: usize = 4;

/// A server's own word on how busy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// The lowest number that no busy work of the server has: how many calls it has running or waiting, without the one that
    /// is answered. A server with more says 65,535.
    pub(crate) slot: u16,
    /// How many calls the server would run at once at this moment, likewise at most 65,535.
    pub(crate) capacity: u16,
}

/// Appends a report.
pub(crate) fn put_load(target: &mut BytesMut, load: Load) {
    target.put_u16(load.slot);
    target.put_u16(load.capacity);
}

/// Reads the report at the beginning of a payload; `None` if it is cut short.
pub(crate) fn parse_load(payload: &[u8]) -> Option<Load> {
    let &[a, b, c, d] = payload.first_chunk::<LOAD>()?;
    Some(Load { slot: u16::from_be_bytes([a, b]), capacity: u16::from_be_bytes([c, d]) })
}
