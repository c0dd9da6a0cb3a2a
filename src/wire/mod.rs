//! Bytes: how frames, heads and messages are laid out, exactly as `docs/protocol.md` says.
//!
//! Owns every number that appears on the wire. It must never know the state of a call or of a connection, a task or a
//! clock: each function here turns values into bytes or bytes into values. Look next at [`frame`] for the unit that
//! travels and at `proto` for the machine that gives frames a meaning.

pub(crate) mod close;
pub(crate) mod frame;
pub(crate) mod head;
pub(crate) mod hello;
pub(crate) mod preface;
pub(crate) mod prefix;
pub(crate) mod status;
mod strict;

pub(crate) use close::{CloseReason, Refusal};
pub(crate) use frame::{Flags, Frame, FrameCodec, FrameError, HEADER, Header, Kind, MAX_PAYLOAD, StreamId};
pub(crate) use hello::Hello;
pub(crate) use preface::{PREFACE, Speaks};
pub(crate) use prefix::{Apart, LONG_PREFIX, encode_message, parse_prefix, put_prefix, put_short};
pub(crate) use status::WireStatus;
