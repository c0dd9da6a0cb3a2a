//! Peers that break the rules, on purpose or not.

use std::time::Duration;

use bytes::BytesMut;

use super::support::*;
use crate::proto::{Config, Connection, Error, Event};
use crate::wire::frame::put_frame;
use crate::wire::{CloseReason, Flags, Frame, FrameCodec, Header, Kind, MAX_PAYLOAD, StreamId, close::parse_close};
use tokio_util::codec::{Decoder, Encoder};

const CALL: &[u8] = b"\0\x01\x03add\0\0\0\0\0";

fn frame(kind: Kind, flags: Flags, stream: StreamId, payload: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    put_frame(&mut bytes, kind, flags, stream, payload);
    bytes
}

/// Says these bytes to a server that has one open call in slot 0, generation 1.
fn to_server(bytes: &[u8]) -> Result<(), Error> {
    let mut pair = Pair::ready();
    pair.call("add", b"", false);
    let result = pair.server.receive(&mut BytesMut::from(bytes), pair.now);
    if let Err(error) = &result {
        assert!(pair.server.is_closed());
        let last = frames(&transmit(&mut pair.server)).pop().unwrap();
        assert_eq!(parse_close(&last.payload).0, error.close_reason().unwrap());
    }
    result
}

fn to_client(bytes: &[u8]) -> Result<(), Error> {
    let mut pair = Pair::ready();
    pair.open("add", b"", true);
    transmit(&mut pair.client);
    pair.client.receive(&mut BytesMut::from(bytes), pair.now)
}

fn text(result: Result<(), Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn headers_are_judged_before_their_payload_comes() {
    // Only the eight bytes of the header are there.
    for (header, error) in [
        ([0x01, 0x04, 0x01, 0x09, 0, 1, 0, 0], "a frame of 66561 bytes is too long"),
        ([0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0], "a frame of 16777215 bytes is too long"),
        ([0, 0, 9, 0x07, 0, 0, 0, 0], "protocol error: there is no frame of kind 0x07"),
        ([0, 0, 9, 0x00, 0, 0, 0, 0], "protocol error: there is no frame of kind 0x00"),
        ([0, 0, 9, 0x1f, 0, 0, 0, 0], "protocol error: there is no frame of kind 0x1f"),
        ([0, 0, 8, 0x82, 0, 0, 0, 0], "protocol error: PING does not have the flags 0x80"),
        ([0, 0, 8, 0x49, 0, 1, 0, 0], "protocol error: DATA does not have the flags 0x40"),
        ([0, 0, 9, 0x02, 0, 0, 0, 0], "protocol error: PING cannot have 9 bytes"),
        ([0, 0x40, 1, 0x01, 0, 0, 0, 0], "protocol error: HELLO cannot have 16385 bytes"),
        ([0, 0, 6, 0x08, 0, 1, 0, 1], "protocol error: CALL cannot have 6 bytes"),
        ([0, 0, 8, 0x02, 0, 1, 0, 0], "protocol error: PING cannot belong to stream 0x10000"),
        ([0, 0, 1, 0x09, 0, 0, 0, 0], "protocol error: DATA cannot belong to stream 0x0"),
        ([0, 0, 7, 0x08, 0, 0, 0, 5], "protocol error: CALL cannot belong to stream 0x5"),
        ([0, 0, 4, 0x04, 0, 0, 0, 5], "protocol error: CREDIT cannot belong to stream 0x5"),
        ([0, 0, 0, 0x09, 0, 1, 0, 0], "protocol error: a DATA frame without bytes and without END"),
        ([0, 0, 8, 0x05, 0, 0, 0, 0], "protocol error: DRAIN from the wrong side"),
        ([0, 0, 1, 0x0a, 0, 1, 0, 0], "protocol error: ANSWER from the wrong side"),
        ([0, 0, 5, 0x0d, 0, 1, 0, 0], "protocol error: REFUSED from the wrong side"),
    ] {
        assert_eq!(text(to_server(&header)), error);
    }
    for (header, error) in [
        ([0, 0, 7, 0x08, 0, 1, 0, 1], "protocol error: CALL from the wrong side"),
        ([0, 0, 0, 0x0c, 0, 1, 0, 0], "protocol error: CANCEL from the wrong side"),
    ] {
        assert_eq!(text(to_client(&header)), error);
    }
}

#[test]
fn streams_that_never_were_are_errors_at_the_server_and_nothing_to_the_client() {
    let never = [StreamId::new(0, 2), StreamId::new(0, 0xffff), StreamId::new(1, 1), StreamId::new(1024, 1)];
    for id in never {
        for (kind, payload) in
            [(Kind::Data, &b"x"[..]), (Kind::Credit, &[0, 0, 4, 0]), (Kind::Cancel, b""), (Kind::Status, b"x")]
        {
            let error = text(to_server(&frame(kind, Flags::NONE, id, payload)));
            assert_eq!(error, format!("protocol error: {} for stream {id:?}, which never was", kind.name()));
        }
        for (kind, payload) in
            [(Kind::Data, &b"x"[..]), (Kind::Credit, &[0, 0, 4, 0]), (Kind::Answer, b"x"), (Kind::Status, b"x")]
        {
            assert_eq!(to_client(&frame(kind, Flags::NONE, id, payload)), Ok(()));
        }
    }
}

#[test]
fn calls_that_break_a_rule_are_errors() {
    let call = |stream, flags, payload: &[u8]| text(to_server(&frame(Kind::Call, flags, stream, payload)));
    let free = StreamId::new(1, 1);
    assert_eq!(call(StreamId::new(0, 2), Flags::NONE, &[0; 7]), "protocol error: a CALL names a slot that is in use");
    assert_eq!(
        call(StreamId::new(1024, 1), Flags::NONE, &[0; 7]),
        "protocol error: a CALL names a slot that is not offered"
    );
    assert_eq!(call(free, Flags::NONE, &[0; 7]), "protocol error: a CALL names no method");
    assert_eq!(
        call(free, Flags::NONE, b"\0\x02\0\0\0\0\0"),
        "protocol error: a CALL has a method number that was not given"
    );
    assert_eq!(call(free, Flags::NAME, CALL), "protocol error: method numbers are not given in order");
    assert_eq!(call(free, Flags::NAME, b"\0\x02\x09add\0\0\0\0\0"), "protocol error: the head of a CALL is cut short");
    assert_eq!(
        call(free, Flags::NAME, b"\0\x02\x01\xff\0\0\0\0\0"),
        "protocol error: the name of a method is not UTF-8"
    );
    assert_eq!(call(free, Flags::NONE, b"\0\x01\xff\xff\xff\xff\0"), "protocol error: a deadline is out of range");
    assert_eq!(call(free, Flags::META, b"\0\x01\0\0\0\0\0\xff\xff"), "protocol error: a block of metadata is too long");
    let mut pair = Pair::ready();
    let id = pair.call("add", b"", true);
    pair.client.cancel(id);
    pair.run();
    let again = frame(Kind::Call, Flags::NONE, id, b"\0\x01\0\0\0\0\0");
    let result = pair.server.receive(&mut again.clone(), pair.now);
    assert_eq!(text(result), "protocol error: a CALL repeats the generation of its slot");
}

#[test]
fn bodies_that_break_a_rule_are_errors() {
    let id = StreamId::new(0, 1);
    let mut twice = frame(Kind::Data, Flags::END, id, b"x");
    twice.unsplit(frame(Kind::Data, Flags::END, id, b"x"));
    assert_eq!(text(to_server(&twice)), "protocol error: DATA after the end of the body");
    let mut status = frame(Kind::Data, Flags::END, id, b"x");
    status.unsplit(frame(Kind::Status, Flags::NONE, id, b"x"));
    assert_eq!(text(to_server(&status)), "protocol error: STATUS after the end of the body");
    let bad = frame(Kind::Status, Flags::NONE, id, b"\x80");
    assert!(text(to_server(&bad)).starts_with("protocol error: bad STATUS: missing field `code`"));
    assert_eq!(text(to_client(&frame(Kind::Data, Flags::NONE, id, b"x"))), "protocol error: DATA before ANSWER");
    let mut twice = frame(Kind::Answer, Flags::NONE, id, b"x");
    twice.unsplit(frame(Kind::Answer, Flags::NONE, id, b"x"));
    assert_eq!(text(to_client(&twice)), "protocol error: a second ANSWER");
    let mut refused = frame(Kind::Answer, Flags::NONE, id, b"x");
    refused.unsplit(frame(Kind::Refused, Flags::NONE, id, &[1, 0, 0, 0, 0]));
    assert_eq!(text(to_client(&refused)), "protocol error: REFUSED after ANSWER");
    // Whoever asked for them or not, reports of load have their four bytes.
    let short = "protocol error: a report of load is cut short";
    assert_eq!(text(to_client(&frame(Kind::Answer, Flags::LOAD, id, &[0, 1, 0]))), short);
    let refused = frame(Kind::Refused, Flags::LOAD, id, &[0, 1, 0, 2, 1, 0, 0, 0]);
    assert_eq!(text(to_client(&refused)), "protocol error: REFUSED is cut short");
    let drain = |count: u64| frame(Kind::Drain, Flags::NONE, StreamId::CONNECTION, &count.to_be_bytes());
    assert_eq!(text(to_client(&drain(2))), "protocol error: DRAIN counts more calls than there were");
    let mut twice = drain(1);
    twice.unsplit(drain(1));
    assert_eq!(text(to_client(&twice)), "protocol error: a second DRAIN");
}

#[test]
fn cancelling_too_often_before_the_answer_ends_the_connection() {
    let mut pair = Pair::ready();
    let cycle = |pair: &mut Pair, number: u16| {
        let id = StreamId::new(0, number);
        let flags = if number == 1 { Flags::NAME } else { Flags::NONE };
        let head = if number == 1 { CALL } else { b"\0\x01\0\0\0\0\0" };
        let mut bytes = frame(Kind::Call, flags, id, head);
        bytes.unsplit(frame(Kind::Cancel, Flags::NONE, id, b""));
        let result = pair.server.receive(&mut bytes, pair.now);
        pair.collect();
        result
    };
    for number in 1..=16_384 {
        assert_eq!(cycle(&mut pair, number), Ok(()));
    }
    assert!(pair.server_events.is_empty(), "no handler hears of them");
    // A thousandth of a second later sixteen more are allowed.
    pair.advance(Duration::from_millis(1));
    for number in 16_385..=16_400 {
        assert_eq!(cycle(&mut pair, number), Ok(()));
    }
    assert_eq!(cycle(&mut pair, 16_401), Err(Error::TooManyCancels));
    let close = frames(&transmit(&mut pair.server)).pop().unwrap();
    assert_eq!(parse_close(&close.payload).0, CloseReason::TooManyCancels);
}

#[test]
fn cancels_after_the_answer_has_begun_are_free() {
    let mut pair = Pair::with(client_config(), Config { cancel_budget: 3, ..server_config() });
    for _ in 0..100 {
        let id = pair.call("count", b"", true);
        pair.server.start_answer(id, None);
        pair.run();
        pair.client.cancel(id);
        pair.run();
        pair.server_events.clear();
    }
    pair.assert_clean();
}

#[test]
fn too_many_control_frames_end_the_connection() {
    let mut pair = Pair::ready();
    let id = pair.call("sum", b"", false);
    let ping = frame(Kind::Ping, Flags::NONE, StreamId::CONNECTION, b"8 bytes!");
    let credit = frame(Kind::Credit, Flags::NONE, id, &1023u32.to_be_bytes());
    let much = frame(Kind::Credit, Flags::NONE, id, &1024u32.to_be_bytes());
    for _ in 0..500 {
        for bytes in [&ping, &credit, &much] {
            assert_eq!(pair.server.receive(&mut bytes.clone(), pair.now), Ok(()));
        }
    }
    let pongs = frames(&transmit(&mut pair.server));
    assert_eq!(pongs.len(), 500);
    assert!(pongs.iter().all(|frame| frame.kind == Kind::Pong && &frame.payload[..] == b"8 bytes!"));
    pair.advance(Duration::from_millis(5));
    assert_eq!(pair.server.receive(&mut ping.clone(), pair.now), Ok(()));
    assert_eq!(pair.server.receive(&mut ping.clone(), pair.now), Err(Error::TooManyControl));
}

#[test]
fn the_codec_and_the_header_agree() {
    let id = StreamId::new(3, 4);
    let sent = Frame { kind: Kind::Data, flags: Flags::END, stream: id, payload: b"payload"[..].into() };
    let mut bytes = BytesMut::new();
    FrameCodec.encode(sent.clone(), &mut bytes).unwrap();
    assert_eq!(bytes, frame(Kind::Data, Flags::END, id, b"payload"));
    let header = Header::parse(&bytes).unwrap().unwrap();
    assert_eq!((header.len, header.kind, header.flags, header.stream), (7, Kind::Data, Flags::END, id));
    assert_eq!((header.stream.slot(), header.stream.generation()), (3, 4));
    for end in 0..bytes.len() {
        assert_eq!(FrameCodec.decode(&mut BytesMut::from(&bytes[..end])), Ok(None));
    }
    assert_eq!(FrameCodec.decode(&mut bytes), Ok(Some(sent)));
    let long = Frame { kind: Kind::Data, flags: Flags::END, stream: id, payload: vec![0; MAX_PAYLOAD + 1].into() };
    assert!(FrameCodec.encode(long, &mut bytes).is_err());
}

#[test]
fn a_table_grows_only_to_the_slot_that_is_named() {
    let mut pair = Pair::with(client_config(), Config { max_calls: 65_535, ..server_config() });
    for slot in [0, 3, 65_534] {
        let head = if slot == 0 { CALL } else { b"\0\x01\0\0\0\0\0" };
        let flags = if slot == 0 { Flags::NAME } else { Flags::NONE };
        let mut call = frame(Kind::Call, flags, StreamId::new(slot, 9), head);
        pair.server.receive(&mut call, pair.now).unwrap();
    }
    pair.collect();
    assert_eq!(pair.server_events.len(), 3);
    assert!(matches!(pair.server_events[2], Event::Call { id, .. } if id == StreamId::new(65_534, 9)));
}

#[test]
fn random_bytes_never_panic() {
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..3000 {
        let mut pair = if round % 3 == 0 { Pair::fresh(client_config(), server_config()) } else { Pair::ready() };
        if round % 3 != 0 {
            pair.open("add", b"", false);
            pair.open("add", b"", true);
            pair.run();
        }
        let machine: &mut Connection = if round % 2 == 0 { &mut pair.client } else { &mut pair.server };
        let mut input = BytesMut::new();
        for _ in 0..rng.usize(1..40) {
            garbage(&mut rng, &mut input);
            if machine.receive(&mut input, pair.now).is_err() {
                break;
            }
            // Never more is kept than one frame.
            assert!(input.len() < MAX_PAYLOAD + 8 + 300);
            while let Some(event) = machine.poll_event() {
                if let Event::Call { id, .. } | Event::Readable(id) = event {
                    read_all(machine, id);
                }
            }
        }
        transmit(machine);
        machine.lost(Error::Closed);
    }
}

/// Appends bytes that are likely to look like a frame.
fn garbage(rng: &mut fastrand::Rng, input: &mut BytesMut) {
    let mut payload = vec![0; if rng.u8(..) < 20 { rng.usize(..300) } else { rng.usize(..20) }];
    rng.fill(&mut payload);
    if rng.u8(..) < 30 {
        input.extend_from_slice(&payload);
        return;
    }
    let len = match rng.u8(..) {
        0..3 => rng.u32(..70_000),
        3..20 => 8,
        _ => payload.len() as u32,
    };
    payload.resize((len as usize).min(300), 0);
    input.extend_from_slice(&len.to_be_bytes()[1..]);
    let flags = if rng.bool() { 0 } else { rng.u8(..) & 0xe0 };
    input.extend_from_slice(&[rng.u8(..16) | flags]);
    let stream = if rng.u8(..) < 100 { 0 } else { rng.u32(1..4) << 16 | rng.u32(..3) };
    input.extend_from_slice(&stream.to_be_bytes());
    input.extend_from_slice(&payload);
}
