//! Tests of the machine, by topic. Look at `support.rs` for how two machines are joined.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod basics;
mod cuts;
mod encode;
mod ends;
mod flow;
mod growth;
mod handshake;
mod hostile;
mod ledger;
mod liveness;
mod simulation;
mod support;
mod vectors;
