//! However bytes are cut on their way, they mean the same.

use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;

use super::support::*;
use crate::proto::{Config, Connection, Error, Event, Open, Read};
use crate::status::{Code, Status};
use crate::wire::{Refusal, StreamId};

/// What a machine made of its input: events, what could be read of each stream, and how it ended.
#[derive(Debug, PartialEq)]
struct Trace {
    events: Vec<Event>,
    reads: Vec<(StreamId, Vec<Read>)>,
    result: Result<(), Error>,
}

/// Feeds bytes to a machine, cut at these places.
fn feed(machine: &mut Connection, now: std::time::Instant, bytes: &[u8], cuts: &[usize]) -> Trace {
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    let mut result = Ok(());
    let mut from = 0;
    for to in cuts.iter().copied().chain([bytes.len()]) {
        input.extend_from_slice(&bytes[from..to]);
        from = to;
        result = machine.receive(&mut input, now);
        events.extend(std::iter::from_fn(|| machine.poll_event()));
        if result.is_err() {
            break;
        }
    }
    let mut reads = Vec::new();
    for (slot, generation) in [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)] {
        let id = StreamId::new(slot, generation);
        let mut read = Vec::new();
        loop {
            let next = machine.read(id, 0);
            let more = matches!(next, Read::Chunk { last: false, .. });
            read.push(next);
            if !more {
                break;
            }
        }
        reads.push((id, read));
    }
    Trace { events, reads, result }
}

/// A conversation that has every kind of frame; all that each side said, from the first byte on.
fn conversation() -> (Vec<u8>, Vec<u8>) {
    let mut pair = Pair::fresh(Config { wants_load: true, ..client_config() }, loaded(server_config()));
    pair.run();
    opens(&mut pair);
    pair.run();
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|slot| StreamId::new(slot, 1));
    pair.server.answer(a, None, put(&[1; 3000])).unwrap();
    read_all(&mut pair.server, b);
    pair.run();
    pair.server.answer(b, None, put(&[2; 150_000])).unwrap();
    pair.server.start_answer(c, None);
    for n in 0..50 {
        pair.client.message(c, &[n; 7]).unwrap();
        pair.server.message(c, &[n; 300]).unwrap();
        pair.run();
    }
    pair.client.finish(c);
    pair.server.fail(c, &wire_status(Code::Aborted, "enough"));
    pair.server.refuse(d, Refusal::Busy, None, "busy");
    pair.client.abort_body(e, &Status::aborted("gone"));
    pair.client.cancel(e);
    pair.server.drain();
    pair.advance(Duration::from_secs(3));
    pair.client.handle_timeout(pair.now).unwrap();
    pair.server.handle_timeout(pair.now).unwrap();
    pair.run();
    (pair.sent.0, pair.sent.1)
}

/// The calls of the conversation.
fn opens(pair: &mut Pair) {
    let mut metadata = crate::Metadata::new();
    metadata.insert("tenant", "acme").unwrap();
    pair.open_with(Open { metadata: Some(&metadata), ..call("one") }, b"args");
    pair.open("two", &[9; 200_000], true);
    pair.open("one", b"", false);
    pair.open("three", b"x", true);
    pair.open("three", b"y", false);
}

/// What a fresh server makes of what the client said, or the other way round.
fn replay(server: bool, bytes: &[u8], cuts: &[usize]) -> Trace {
    let mut pair = Pair::fresh(Config { wants_load: true, ..client_config() }, loaded(server_config()));
    let now = pair.now;
    let mut trace = if server {
        feed(&mut pair.server, now, bytes, cuts)
    } else {
        pair.run();
        opens(&mut pair);
        while pair.client.wants_transmit() {
            transmit(&mut pair.client);
        }
        let hello = frames_len(bytes, 1);
        let cuts: Vec<usize> = cuts.iter().filter(|cut| **cut > hello).map(|cut| cut - hello).collect();
        feed(&mut pair.client, now, &bytes[hello..], &cuts)
    };
    // Whether a call is heard of that is soon cancelled depends on when one listens.
    let cancelled = StreamId::new(4, 1);
    trace.events.retain(|event| !matches!(event, Event::Call { id, .. } | Event::Cancelled(id) if *id == cancelled));
    trace
}

/// How long the preface and that many frames are.
fn frames_len(bytes: &[u8], count: usize) -> usize {
    11 + frames(bytes).iter().take(count).map(|frame| 8 + frame.payload.len()).sum::<usize>()
}

#[test]
fn byte_by_byte_is_the_same_as_all_at_once() {
    let (to_server, to_client) = conversation();
    for (server, bytes) in [(true, to_server), (false, to_client)] {
        let whole = replay(server, &bytes, &[]);
        assert!(whole.events.len() >= 5, "{:?}", whole.events);
        let every: Vec<usize> = (1..bytes.len()).collect();
        assert_eq!(replay(server, &bytes, &every), whole);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cuts_are_the_same_as_none(places in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let (to_server, to_client) = conversation();
        for (server, bytes) in [(true, to_server), (false, to_client)] {
            let mut cuts: Vec<usize> = places.iter().map(|place| place.index(bytes.len())).collect();
            cuts.sort_unstable();
            prop_assert_eq!(replay(server, &bytes, &cuts), replay(server, &bytes, &[]));
        }
    }
}
