//! The connection as a pure state machine: bytes and times in, bytes and events out.
//!
//! Owns the meaning of frames: handshake, stream table, credit, budgets, liveness, scheduling, drain. It must never touch a
//! socket, a task, a waker or a clock; whoever drives it passes bytes and `Instant`s and carries its events. That makes
//! every interleaving reproducible. The rooms inside:
//!
//! - [`connection`]: the machine itself and its end; [`receive`] and [`transmit`]: bytes in and out; [`timers`]: what time
//!   does; [`client`] and [`server`]: what each side adds
//! - [`streams`]: the table; [`first`]: what comes with a stream's first frame; [`recv`]: the incoming body of a stream; [`send`]: the outgoing one; [`outbox`] and
//!   [`batch`]: small frames and what one write takes
//! - [`credit`], [`growth`], [`budget`], [`keepalive`], [`names`], [`handshake`]: one rule each
//! - [`config`], [`event`], [`error`]: what it says to the layers above
//!
//! Whoever drives a [`Connection`] does this, in any order and as often as it likes:
//!
//! - passes what was read to `receive`, unless `is_congested`; and calls `handle_timeout` when `timeout` says so
//! - after each of these, and after each `transmit`, takes events with `peek_event` and `pop_event` until there are none
//! - while `wants_transmit`, fills an empty [`Batch`], writes it, and says `wrote` after the first write that took a byte
//! - after an error of `receive` or `handle_timeout`, or once `is_closed`: writes what is left to transmit, ends the I/O, and
//!   says `lost`, so that every stream that is still open fails

mod batch;
mod budget;
mod client;
mod config;
mod connection;
mod credit;
mod error;
mod event;
mod first;
mod growth;
mod handshake;
mod keepalive;
mod load;
mod names;
mod outbox;
mod receive;
mod recv;
mod send;
mod server;
mod streams;
#[cfg(test)]
mod tests;
mod timers;
mod transmit;

pub(crate) use crate::wire::load::Load;
pub(crate) use crate::wire::{CloseReason, Refusal};
pub(crate) use batch::Batch;
pub(crate) use config::{CONNECTION_WINDOW, Config, HANDSHAKE_TIMEOUT, MAX_CALLS, MAX_MESSAGE, STREAM_WINDOW, Side};
pub(crate) use connection::Connection;
pub(crate) use error::{Error, OpenError, Over, SendError};
pub(crate) use event::{Event, Failure, MethodRef, Open, Peer, Read, SendState};
pub(crate) use first::Short;
pub(crate) use load::Gauge;
pub(crate) use send::FULL;
