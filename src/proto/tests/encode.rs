//! Closures that fail or panic while they encode leave no trace.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{BufMut, BytesMut};

use super::support::*;
use crate::proto::{Config, OpenError, SendError};
use crate::wire::Apart;

fn fails(target: &mut BytesMut) -> Result<Apart, &'static str> {
    target.put_slice(&[0xee; 300]);
    Err("no")
}

fn panics(target: &mut BytesMut) -> Result<Apart, &'static str> {
    target.put_slice(&[0xee; 70_000]);
    std::panic::resume_unwind(Box::new("no"))
}

/// Runs a closure that panics.
fn survive<T>(run: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
}

#[test]
fn an_open_that_fails_leaves_no_trace() {
    let mut pair = Pair::ready();
    let mut other = Pair::ready();
    for n in 0..3u8 {
        assert_eq!(pair.client.open(call("bad"), pair.now, fails), Err(OpenError::Encode("no")));
        survive(|| pair.client.open(call("bad"), pair.now, panics));
        let id = pair.open("add", &[n], n != 1);
        assert_eq!(id, other.open("add", &[n], n != 1));
    }
    assert_eq!(pair.client.open_calls(), 3);
    assert_eq!(transmit(&mut pair.client), transmit(&mut other.client));
}

#[test]
fn an_answer_that_fails_leaves_the_call_to_be_answered() {
    let mut pair = Pair::ready();
    let id = pair.call("add", b"", true);
    assert_eq!(pair.server.answer(id, None, fails), Err(SendError::Encode("no")));
    survive(|| pair.server.answer(id, None, panics));
    assert!(!pair.server.wants_transmit());
    pair.server.answer(id, None, put(b"sum")).unwrap();
    pair.run();
    assert_eq!(read_messages(&mut pair.client, id), [b"sum"]);
    pair.assert_clean();
}

#[test]
fn a_message_longer_than_the_peer_accepts_is_not_taken() {
    let mut pair = Pair::with(client_config(), Config { max_message: 1000, ..server_config() });
    let too_large = |len| OpenError::TooLarge { len, limit: 1000 };
    assert_eq!(pair.client.open(call("add"), pair.now, put(&[0; 1001])), Err(too_large(1001)));
    assert_eq!(pair.client.open(call("add"), pair.now, put(&[0; 100_000])), Err(too_large(100_000)));
    let name = "x".repeat(256);
    assert_eq!(pair.client.open(call(&name), pair.now, put(b"")), Err(OpenError::TooLarge { len: 256, limit: 255 }));
    let id = pair.open("add", &[0; 1000], false);
    pair.client.finish(id);
    pair.run();
    assert_eq!(read_messages(&mut pair.server, id), [[0; 1000]]);
}
