//! The connection as a pure state machine: bytes and times in, bytes and events out.
//!
//! Owns the meaning of frames: handshake, stream table, credit, budgets, liveness, scheduling, drain. It must never touch a
//! socket, a task, a waker or a clock; whoever drives it passes bytes and `Instant`s and carries its events. That makes
//! every interleaving reproducible. The rooms inside:
//!
//! - [`connection`]: the machine itself, its frames in and its ends; [`client`] and [`server`]: what each side adds
//! - [`streams`]: the table; [`recv`]: the incoming body of a stream; [`send`]: the outgoing one; [`outbox`] and
//!   [`batch`]: small frames and what one write takes
//! - [`credit`], [`budget`], [`keepalive`], [`names`], [`handshake`]: one rule each
//! - [`config`], [`event`], [`error`]: what it says to the layers above

mod batch;
mod config;
mod connection;
mod error;
mod event;

pub(crate) use batch::Batch;
pub(crate) use config::{Config, Side};
pub(crate) use connection::Connection;
pub(crate) use error::{Error, OpenError, SendError};
pub(crate) use event::{Event, Failure, MethodRef, Open, Peer, Read, SendState};
