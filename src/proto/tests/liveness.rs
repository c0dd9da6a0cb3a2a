//! Keepalive and idle connections, to the millisecond.

use std::time::Duration;

use super::support::*;
use crate::proto::{Config, Connection, Error, Open};
use crate::wire::{CloseReason, Kind, close::parse_close};

/// Lets time pass as a driver does, with nothing coming in, until the machine gives up.
fn silence(machine: &mut Connection, pair_now: std::time::Instant) -> (Vec<(Duration, Kind)>, Duration, Error) {
    let mut said = Vec::new();
    loop {
        let due = machine.timeout().expect("it never gives up");
        let result = machine.handle_timeout(due);
        let time = due - pair_now;
        said.extend(frames(&transmit(machine)).into_iter().map(|frame| (time, frame.kind)));
        if let Err(error) = result {
            return (said, time, error);
        }
        assert!(time < Duration::from_secs(100), "it never gives up");
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What is kept back, so that a busy machine notices in time too.
const SPARE: Duration = Duration::from_millis(100);

#[test]
fn a_dead_peer_is_noticed_within_six_seconds_while_calls_are_open() {
    let mut pair = Pair::ready();
    pair.call("slow", b"", true);
    for machine in [&mut pair.client, &mut pair.server] {
        let (said, end, error) = silence(machine, pair.now);
        assert_eq!(said, [(seconds(3), Kind::Ping)]);
        assert_eq!((end, error), (seconds(6) - SPARE, Error::KeepaliveTimeout));
        assert!(machine.is_closed());
    }
}

#[test]
fn a_dead_peer_is_noticed_within_eighteen_seconds_otherwise() {
    let mut pair = Pair::ready();
    for machine in [&mut pair.client, &mut pair.server] {
        let (said, end, error) = silence(machine, pair.now);
        assert_eq!(said, [(seconds(15), Kind::Ping)]);
        assert_eq!((end, error), (seconds(18) - SPARE, Error::KeepaliveTimeout));
    }
}

#[test]
fn the_silence_of_a_call_counts_from_its_beginning() {
    let mut pair = Pair::ready();
    pair.advance(seconds(10));
    pair.open("slow", b"", true);
    transmit(&mut pair.client);
    let (said, end, _) = silence(&mut pair.client, pair.now);
    assert_eq!((said, end), (vec![(seconds(3), Kind::Ping)], seconds(6) - SPARE));
}

#[test]
fn anything_that_comes_is_a_sign_of_life() {
    let mut pair = Pair::ready();
    pair.call("slow", b"", true);
    for _ in 0..10 {
        let due = pair.client.timeout().unwrap();
        assert_eq!(due - pair.now, seconds(3));
        pair.now = due;
        pair.client.handle_timeout(due).unwrap();
        pair.server.handle_timeout(due).unwrap();
        pair.run();
    }
    assert!(!pair.client.is_closed() && !pair.server.is_closed());
}

#[test]
fn an_idle_client_leaves_and_an_idle_server_asks_it_to() {
    let idle = |config| Config { idle_close: Some(seconds(10)), ..config };
    let mut pair = Pair::with(idle(client_config()), server_config());
    let (said, end, error) = silence(&mut pair.client, pair.now);
    assert_eq!((end, error), (seconds(10), Error::Idle));
    assert_eq!(said, [(seconds(10), Kind::Close)]);

    let mut pair = Pair::with(client_config(), idle(server_config()));
    let start = pair.now;
    let (said, end, error) = silence(&mut pair.server, start);
    assert_eq!((end, error), (seconds(18) - SPARE, Error::KeepaliveTimeout), "the client is dead, too");
    assert_eq!(said, [(seconds(10), Kind::Drain), (seconds(15), Kind::Ping)]);

    // A call that crosses the DRAIN is not lost: the client knows that it never ran.
    let mut pair = Pair::with(client_config(), idle(server_config()));
    pair.advance(seconds(10));
    let id = pair.open("add", b"", true);
    pair.server.handle_timeout(pair.now).unwrap();
    pair.reach_server().unwrap();
    pair.reach_client().unwrap();
    assert_eq!(read_all(&mut pair.client, id).1, Rest::Failed(crate::proto::Failure::NotAccepted));
    let close = frames(&transmit(&mut pair.client)).pop().unwrap();
    assert_eq!(parse_close(&close.payload).0, CloseReason::Done);
}

#[test]
fn limits_may_be_as_long_as_they_like() {
    let forever = |config| Config {
        ping_busy: Duration::MAX,
        ping_idle: Duration::MAX,
        ping_timeout: Duration::MAX,
        idle_close: Some(Duration::MAX),
        handshake_timeout: Duration::MAX,
        ..config
    };
    let mut pair = Pair::with(forever(client_config()), forever(server_config()));
    pair.open_with(Open { idle: Some(Duration::MAX), ..call("slow") }, b"");
    pair.run();
    pair.advance(Duration::from_secs(1_000_000));
    assert_eq!(pair.client.handle_timeout(pair.now), Ok(()));
    assert_eq!(pair.server.handle_timeout(pair.now), Ok(()));
    assert!(pair.client.timeout().is_some_and(|time| time > pair.now));
}

#[test]
fn a_connection_in_use_is_not_idle() {
    let idle = Config { idle_close: Some(seconds(2)), ..client_config() };
    let mut pair = Pair::with(idle, server_config());
    pair.advance(seconds(1));
    let id = pair.call("slow", b"", true);
    pair.advance(seconds(2));
    pair.client.handle_timeout(pair.now).unwrap();
    pair.server.answer(id, None, put(b"")).unwrap();
    pair.run();
    read_messages(&mut pair.client, id);
    assert_eq!(pair.client.timeout(), Some(pair.now + seconds(2)), "it counts from the end of the last call");
}
