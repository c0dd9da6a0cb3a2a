//! The exchanges in section 11 of `docs/protocol.md` are what two machines really say.
//!
//! When a block is wrong the test prints what belongs there, so that the document can be corrected on purpose.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::*;
use crate::metadata::Metadata;
use crate::proto::{Config, Event, Gauge, Load, Open};
use crate::status::Code;
use crate::wire::{HEADER, PREFACE, Refusal, StreamId};

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");

/// One frame or preface, and who sent it.
type Line = (char, Vec<u8>);

/// A pair whose bytes are noted line by line.
struct Scribe {
    pair: Pair,
    blocks: Vec<(&'static str, Vec<Line>)>,
}

impl Scribe {
    fn block(&mut self, name: &'static str) {
        self.blocks.push((name, Vec::new()));
    }

    fn say(&mut self, from: char) {
        self.pair.sent = Default::default();
        // The last frame of a connection is an error to who receives it.
        if from == '>' { self.pair.reach_server() } else { self.pair.reach_client() }.ok();
        let bytes = if from == '>' { &self.pair.sent.0 } else { &self.pair.sent.1 };
        let lines = &mut self.blocks.last_mut().unwrap().1;
        let mut rest = &bytes[..];
        if let Some(after) = rest.strip_prefix(PREFACE) {
            lines.push((from, PREFACE.to_vec()));
            rest = after;
        }
        for frame in frames(rest) {
            let (line, after) = rest.split_at(HEADER + frame.payload.len());
            lines.push((from, line.to_vec()));
            rest = after;
        }
    }

    fn both(&mut self) {
        self.say('>');
        self.say('<');
    }
}

/// What section 11 shows, from the first byte of a connection to its last.
fn exchanges() -> Vec<(&'static str, Vec<Line>)> {
    let client = Config { stream_window: 4096, connection_window: 65_536, ..client_config() };
    let server = Config { max_calls: 100, idempotent: vec!["add".into()], ..server_config() };
    let server = Config { stream_window: 4096, connection_window: 65_536, ..server };
    let expect = Some(server.incarnation);
    let mut scribe = Scribe { pair: Pair::fresh(Config { expect, ..client }, server), blocks: Vec::new() };

    scribe.block("hello");
    scribe.both();

    scribe.block("first-call");
    let sum = |scribe: &mut Scribe, id| {
        scribe.say('>');
        read_all(&mut scribe.pair.server, id);
        scribe.pair.server.answer(id, None, put(b"\x07")).unwrap();
        scribe.say('<');
        assert_eq!(read_messages(&mut scribe.pair.client, id), [b"\x07"]);
    };
    let id = scribe.pair.open("add", b"\x82\xa1a\x02\xa1b\x05", true);
    sum(&mut scribe, id);

    scribe.block("second-call");
    let mut metadata = Metadata::new();
    metadata.insert("tenant", "acme").unwrap();
    metadata.insert_inherited("trace", "17").unwrap();
    let deadline = Some(scribe.pair.now + Duration::from_millis(500));
    let head = Open { deadline, attempt: 1, metadata: Some(&metadata), ..call("add") };
    let id = scribe.pair.open_with(head, b"\x82\xa1a\x02\xa1b\x05");
    sum(&mut scribe, id);

    scribe.block("streams");
    let id = scribe.pair.open("echo", b"\x80", false);
    scribe.say('>');
    read_all(&mut scribe.pair.server, id);
    scribe.pair.server.start_answer(id, None);
    scribe.say('<');
    let mut item = b"\xc5\x08\x00".to_vec();
    item.resize(2051, 0x2a);
    scribe.pair.client.message(id, &item).unwrap();
    scribe.pair.client.message(id, b"\xc4\x01\x2b").unwrap();
    scribe.say('>');
    read_all(&mut scribe.pair.server, id);
    scribe.pair.server.message(id, b"\xc4\x01\x2a").unwrap();
    scribe.pair.server.message(id, b"\xc4\x01\x2b").unwrap();
    scribe.say('<');
    scribe.pair.client.finish(id);
    scribe.say('>');
    read_all(&mut scribe.pair.server, id);
    scribe.pair.server.finish(id);
    scribe.say('<');
    assert_eq!(read_messages(&mut scribe.pair.client, id).len(), 2);

    scribe.block("status");
    let id = scribe.pair.open("divide", b"\x82\xa1a\x01\xa1b\x00", true);
    scribe.say('>');
    let mut status = wire_status(Code::Unknown, "by zero");
    status.details = Some(b"\xa6ByZero"[..].into());
    status.app = true;
    scribe.pair.server.fail(id, &status);
    scribe.say('<');
    read_all(&mut scribe.pair.client, id);

    scribe.block("refused");
    let id = scribe.pair.open("divide", b"\x82\xa1a\x01\xa1b\x02", true);
    scribe.say('>');
    scribe.pair.server.refuse(id, Refusal::Busy, Some(Duration::from_millis(50)), "100 calls are running");
    scribe.say('<');
    read_all(&mut scribe.pair.client, id);

    scribe.block("cancel");
    let slow = scribe.pair.open("add", b"\x82\xa1a\x02\xa1b\x05", true);
    scribe.say('>');
    scribe.pair.client.cancel(slow);
    let id = scribe.pair.open("add", b"\x82\xa1a\x02\xa1b\x05", true);
    sum(&mut scribe, id);

    scribe.block("ping");
    scribe.pair.advance(Duration::from_secs(15));
    scribe.pair.client.handle_timeout(scribe.pair.now).unwrap();
    scribe.both();

    scribe.block("drain");
    let accepted = scribe.pair.open("add", b"\x82\xa1a\x02\xa1b\x05", true);
    scribe.say('>');
    scribe.pair.server.drain();
    let late = scribe.pair.open("add", b"\x82\xa1a\x03\xa1b\x05", true);
    assert_eq!(late, StreamId::new(1, 1));
    scribe.both();
    read_all(&mut scribe.pair.client, late);
    scribe.pair.server.answer(accepted, None, put(b"\x07")).unwrap();
    scribe.say('<');
    assert_eq!(read_messages(&mut scribe.pair.client, accepted), [b"\x07"]);
    scribe.say('>');
    assert!(scribe.pair.client_events.contains(&Event::Draining));
    scribe.pair.assert_clean();
    scribe.blocks.extend(with_load());
    scribe.blocks
}

/// The same for a client that wants to know how busy the server is.
fn with_load() -> Vec<(&'static str, Vec<Line>)> {
    let client = Config { stream_window: 4096, connection_window: 65_536, wants_load: true, ..client_config() };
    let gauge = Arc::new(Gauge::new(100));
    gauge.running.store(3, Ordering::Relaxed);
    let server = Config { max_calls: 100, gauge: Some(Arc::clone(&gauge)), ..server_config() };
    let server = Config { stream_window: 4096, connection_window: 65_536, ..server };
    let mut scribe = Scribe { pair: Pair::fresh(client, server), blocks: Vec::new() };

    scribe.block("load-hello");
    scribe.both();

    scribe.block("load-answer");
    let id = scribe.pair.open("add", b"\x82\xa1a\x02\xa1b\x05", true);
    scribe.say('>');
    read_all(&mut scribe.pair.server, id);
    let mut metadata = Metadata::new();
    metadata.insert("trace", "17").unwrap();
    scribe.pair.server.answer(id, Some(&metadata), put(b"\x07")).unwrap();
    scribe.say('<');
    assert_eq!(scribe.pair.client.take_load(), Some(Load { slot: 2, capacity: 100 }));
    assert_eq!(read_messages(&mut scribe.pair.client, id), [b"\x07"]);

    scribe.block("load-refused");
    gauge.running.store(100, Ordering::Relaxed);
    let id = scribe.pair.open("add", b"\x82\xa1a\x02\xa1b\x05", true);
    scribe.say('>');
    scribe.pair.server.refuse(id, Refusal::Busy, Some(Duration::from_millis(50)), "100 calls are running");
    scribe.say('<');
    assert_eq!(scribe.pair.client.take_load(), Some(Load { slot: 100, capacity: 100 }));
    assert_eq!(scribe.pair.client.take_load(), None, "it is taken once");
    read_all(&mut scribe.pair.client, id);

    scribe.block("load-pong");
    gauge.running.store(7, Ordering::Relaxed);
    scribe.pair.client.ask_load();
    scribe.both();
    assert_eq!(scribe.pair.client.take_load(), Some(Load { slot: 7, capacity: 100 }));
    scribe.pair.assert_clean();
    scribe.blocks
}

/// A line as the document has it.
fn show((from, bytes): &Line) -> String {
    let mut text = format!("{from} ");
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER>().filter(|_| bytes != PREFACE) else {
        put_hex(&mut text, bytes);
        return text;
    };
    put_hex(&mut text, &header[..3]);
    text.push(' ');
    put_hex(&mut text, &header[3..4]);
    text.push(' ');
    put_hex(&mut text, &header[4..]);
    if !payload.is_empty() {
        text.push(' ');
        put_hex(&mut text, payload);
    }
    text
}

/// Hex in which many equal bytes are written as one and their count.
fn put_hex(text: &mut String, bytes: &[u8]) {
    for run in bytes.chunk_by(|a, b| a == b) {
        if run.len() > 16 {
            write!(text, " {:02x}*{} ", run[0], run.len()).unwrap();
        } else {
            run.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        }
    }
}

/// The bytes of a line.
fn parse(line: &str) -> Line {
    let from = line.chars().next().unwrap();
    let mut bytes = Vec::new();
    for word in line[1..].split(';').next().unwrap().split_whitespace() {
        let (hex, count) = word.split_once('*').unwrap_or((word, "1"));
        for _ in 0..count.parse::<usize>().unwrap() {
            bytes.extend((0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()));
        }
    }
    (from, bytes)
}

/// The blocks of the document, each with its name.
fn documented() -> Vec<(&'static str, Vec<Line>)> {
    let blocks = DOCUMENT.split("```vector ").skip(1);
    blocks
        .map(|block| {
            let (name, rest) = block.split_once('\n').unwrap();
            let lines = rest.split("```").next().unwrap().lines().map(parse).collect();
            (name, lines)
        })
        .collect()
}

#[test]
fn the_document_shows_what_two_machines_say() {
    let real = exchanges();
    let documented = documented();
    if real != documented {
        for (name, lines) in &real {
            println!("```vector {name}");
            lines.iter().for_each(|line| println!("{}", show(line)));
            println!("```\n");
        }
        panic!("docs/protocol.md should show the blocks above");
    }
}

#[test]
fn blocks_are_read_as_they_are_written() {
    for (_, lines) in exchanges() {
        for line in lines {
            assert_eq!(parse(&show(&line)), line);
        }
    }
    assert_eq!(parse("< 00ff 2a*3 01 ; comment"), ('<', vec![0, 255, 42, 42, 42, 1]));
}
