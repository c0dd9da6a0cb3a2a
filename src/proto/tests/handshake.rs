//! Who is let in, and what the others are told.

use std::time::Duration;

use bytes::BytesMut;

use super::support::*;
use crate::proto::{Config, Connection, Error, Event, OpenError, Side};
use crate::wire::frame::put_frame;
use crate::wire::{CloseReason, Flags, Hello, Kind, PREFACE, Speaks, StreamId, close::parse_close};

/// What a fresh machine says to these bytes, and what it leaves to be sent.
fn knock(config: Config, bytes: &[u8]) -> (Result<(), Error>, Vec<u8>) {
    let pair = Pair::fresh(client_config(), server_config());
    let mut machine = Connection::new(config.into(), pair.now);
    transmit(&mut machine);
    let result = machine.receive(&mut BytesMut::from(bytes), pair.now);
    assert_eq!(machine.is_closed(), result.is_err());
    (result, transmit(&mut machine).to_vec())
}

fn hello() -> Hello {
    Hello {
        node: "n".into(),
        service: "calculator".into(),
        incarnation: 1,
        expect: None,
        max_calls: 0,
        stream_window: 65_536,
        connection_window: 65_536,
        max_message: 1000,
        idempotent: Vec::new(),
        load: false,
    }
}

fn greeting(hello: &Hello) -> Vec<u8> {
    let mut bytes = BytesMut::from(&PREFACE[..]);
    put_frame(&mut bytes, Kind::Hello, Flags::NONE, StreamId::CONNECTION, &hello.encode());
    bytes.to_vec()
}

/// The reason of the CLOSE that follows the preface.
fn close_after_preface(bytes: &[u8]) -> CloseReason {
    let frame = frames(bytes.strip_prefix(PREFACE).expect("a preface")).remove(0);
    assert_eq!(frame.kind, Kind::Close);
    parse_close(&frame.payload).0
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let client = Config { expect: Some(server_config().incarnation), ..client_config() };
    let server = Config { idempotent: vec!["add".into()], max_calls: 7, ..server_config() };
    let pair = Pair::with(client, server);
    let peer = pair.client.peer().unwrap();
    assert_eq!((&*peer.node, &*peer.service, peer.max_calls), ("host", "calculator", 7));
    assert_eq!(peer.incarnation, server_config().incarnation);
    assert!(peer.idempotent.contains("add"));
    assert_eq!(pair.client.free_slots(), 7);
    let peer = pair.server.peer().unwrap();
    assert_eq!((&*peer.node, peer.max_calls, peer.incarnation), ("caller", 0, client_config().incarnation));
}

#[test]
fn nothing_is_opened_before_the_handshake_is_done() {
    let mut pair = Pair::fresh(client_config(), server_config());
    assert_eq!(pair.client.open(call("add"), pair.now, put(b"")), Err(OpenError::Full));
    assert_eq!(pair.client.free_slots(), 0);
    pair.run();
    assert_eq!(pair.client_events, [Event::Ready, Event::SlotFree]);
    pair.open("add", b"", true);
}

#[test]
fn a_server_tells_other_protocols_apart_and_answers_in_their_language() {
    let (result, reply) = knock(server_config(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(result, Err(Error::NotPicom { speaks: Speaks::Http }));
    assert!(reply.starts_with(b"HTTP/1.1 400 ") && String::from_utf8_lossy(&reply).contains("picom"));
    let (result, reply) = knock(server_config(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(result, Err(Error::NotPicom { speaks: Speaks::Http }));
    assert!(reply.starts_with(b"HTTP/1.1 400 "));
    let (result, reply) = knock(server_config(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert_eq!(result, Err(Error::NotPicom { speaks: Speaks::Tls }));
    assert_eq!(reply, b"\x15\x03\x01\x00\x02\x02\x46");
    let (result, reply) = knock(server_config(), b"SSH-2.0-OpenSSH_9.9\r\n");
    assert_eq!(result, Err(Error::NotPicom { speaks: Speaks::Unknown }));
    assert!(reply.is_empty());
    let (result, reply) = knock(server_config(), b"picom/2\r\n\r\n");
    assert_eq!(result, Err(Error::Version));
    assert_eq!(close_after_preface(&reply), CloseReason::Version);
}

#[test]
fn a_client_tells_what_answers_it() {
    for (bytes, speaks) in [
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], Speaks::Http),
        (b"\x15\x03\x03\x00\x02\x02\x46", Speaks::Tls),
        (b"220 mail ESMTP\r\n", Speaks::Unknown),
    ] {
        let (result, reply) = knock(client_config(), bytes);
        assert_eq!(result, Err(Error::NotPicom { speaks }));
        assert!(reply.is_empty(), "a client says nothing to a stranger");
    }
}

#[test]
fn a_wrong_service_and_a_wrong_incarnation_are_refused_by_either_side() {
    let (result, reply) = knock(server_config(), &greeting(&Hello { service: "other\n".into(), ..hello() }));
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "the peer offers the service \"calculator\", not \"other\\u{a}\"");
    assert_eq!(close_after_preface(&reply), CloseReason::WrongService);

    let (result, reply) = knock(server_config(), &greeting(&Hello { expect: Some(5), ..hello() }));
    assert_eq!(result, Err(Error::WrongIncarnation { wanted: 5, found: server_config().incarnation }));
    assert_eq!(close_after_preface(&reply), CloseReason::WrongIncarnation);

    let config = Config { expect: Some(5), ..client_config() };
    let (result, _) = knock(config, &greeting(&Hello { max_calls: 1, ..hello() }));
    assert_eq!(result, Err(Error::WrongIncarnation { wanted: 5, found: 1 }));

    let (result, _) = knock(client_config(), &greeting(&Hello { service: "other".into(), max_calls: 1, ..hello() }));
    assert_eq!(result, Err(Error::WrongService { wanted: "calculator".into(), offered: "other".into() }));
}

#[test]
fn a_refused_client_learns_the_reason() {
    let server = Config { service: "other".into(), ..server_config() };
    let mut pair = Pair::fresh(client_config(), server);
    assert!(pair.reach_server().is_err());
    let Err(Error::PeerClosed { reason, text }) = pair.reach_client() else { panic!("no reason") };
    assert_eq!(reason, CloseReason::WrongService);
    assert_eq!(text, "the peer offers the service \"other\", not \"calculator\"");
}

#[test]
fn numbers_of_a_hello_out_of_their_range_are_refused() {
    for (bad, text) in [
        (Hello { stream_window: 4095, ..hello() }, "protocol error: bad HELLO: stream_window is 4095"),
        (Hello { connection_window: 1 << 31, ..hello() }, "protocol error: bad HELLO: connection_window is 2147483648"),
        (Hello { max_calls: 1, ..hello() }, "protocol error: bad HELLO: max_calls of a client is not 0"),
        (Hello { max_calls: 65_536, ..hello() }, "protocol error: bad HELLO: max_calls is 65536"),
    ] {
        let (result, reply) = knock(server_config(), &greeting(&bad));
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
        assert_eq!(close_after_preface(&reply), CloseReason::Protocol);
    }
    let (result, _) = knock(client_config(), &greeting(&hello()));
    assert_eq!(result, Err(Error::protocol("bad HELLO: max_calls is 0")));
}

#[test]
fn a_hello_is_one_map_and_its_unknown_keys_are_ignored() {
    let mut bytes = hello().encode();
    assert_eq!(bytes[0] & 0xf0, 0x80, "a small map");
    bytes[0] += 1;
    bytes.extend_from_slice(b"\xa6future\x93\x01\x02\x03");
    assert_eq!(Hello::decode(&bytes), Ok(hello()));
    bytes.push(0);
    assert_eq!(Hello::decode(&bytes), Err("1 bytes follow the value".into()));
    // Nested deeper than anyone may ask for.
    let mut deep = hello().encode();
    deep[0] += 1;
    deep.extend_from_slice(b"\xa6future");
    deep.extend_from_slice(&[0x91; 2000]);
    deep.push(0);
    assert!(Hello::decode(&deep).is_err());
}

#[test]
fn names_of_idempotent_methods_that_do_not_fit_are_left_out() {
    let idempotent: Vec<String> = (0..1000).map(|n| format!("a_rather_long_name_of_a_method_{n}")).collect();
    let pair = Pair::with(client_config(), Config { idempotent, ..server_config() });
    let known = &pair.client.peer().unwrap().idempotent;
    assert!(known.len() >= 250, "{}", known.len());
}

#[test]
fn only_a_hello_or_a_close_may_come_first() {
    let mut bytes = BytesMut::from(&PREFACE[..]);
    put_frame(&mut bytes, Kind::Call, Flags::END, StreamId::new(0, 1), &[0; 7]);
    let (result, reply) = knock(server_config(), &bytes);
    assert_eq!(result, Err(Error::protocol("CALL before HELLO")));
    assert_eq!(close_after_preface(&reply), CloseReason::Protocol);
    let mut twice = greeting(&hello());
    twice.extend_from_slice(&greeting(&hello())[PREFACE.len()..]);
    assert_eq!(knock(server_config(), &twice).0, Err(Error::protocol("a second HELLO")));
}

#[test]
fn a_slow_handshake_ends_after_five_seconds() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::fresh(client_config(), server_config());
        let start = pair.now;
        let machine = if side == Side::Client { &mut pair.client } else { &mut pair.server };
        transmit(machine);
        assert_eq!(machine.timeout(), Some(start + Duration::from_secs(5)));
        // One byte a second does not help.
        let mut input = BytesMut::new();
        for (second, byte) in (1..5).zip(PREFACE) {
            input.extend_from_slice(&[*byte]);
            assert_eq!(machine.receive(&mut input, start + Duration::from_secs(second)), Ok(()));
        }
        assert_eq!(machine.handle_timeout(start + Duration::from_millis(4999)), Ok(()));
        assert_eq!(machine.handle_timeout(start + Duration::from_secs(5)), Err(Error::HandshakeTimeout));
        assert!(machine.is_closed());
        let reply = transmit(machine);
        match side {
            Side::Client => assert!(reply.is_empty()),
            Side::Server => assert_eq!(close_after_preface(&reply), CloseReason::HandshakeTimeout),
        }
    }
}

#[test]
fn a_server_that_is_busy_says_so_before_the_handshake() {
    let mut pair = Pair::fresh(client_config(), server_config());
    pair.server.close(CloseReason::Busy, "10000 connections");
    let error = pair.reach_client().unwrap_err();
    assert_eq!(error.to_string(), "the peer closed the connection: busy: 10000 connections");
}
