//! Credit and turns: who may send how much, and when.

use bytes::{Bytes, BytesMut};

use super::support::*;
use crate::proto::{Batch, Config, Error, Event, Open, OpenError, Read, SendState};
use crate::wire::frame::put_frame;
use crate::wire::{Flags, HEADER, Kind, MAX_PAYLOAD, StreamId};

/// A DATA frame with that many bytes of payload.
fn data(id: StreamId, len: usize) -> BytesMut {
    let mut bytes = BytesMut::new();
    put_frame(&mut bytes, Kind::Data, Flags::NONE, id, &vec![0; len]);
    bytes
}

fn credit(id: StreamId, credit: u32) -> BytesMut {
    let mut bytes = BytesMut::new();
    put_frame(&mut bytes, Kind::Credit, Flags::NONE, id, &credit.to_be_bytes());
    bytes
}

fn small_windows(stream: u32, connection: u32) -> Pair {
    let windows = |config| Config { stream_window: stream, connection_window: connection, ..config };
    Pair::with(windows(client_config()), windows(server_config()))
}

#[test]
fn a_stream_may_use_its_credit_to_the_last_byte_and_not_one_more() {
    for extra in [0, 1] {
        let mut pair = small_windows(10_000, 1_000_000);
        let id = pair.call("sum", b"", false);
        let mut input = data(id, 5000 - HEADER);
        input.unsplit(data(id, 5000 - HEADER + extra));
        let result = pair.server.receive(&mut input, pair.now);
        assert_eq!(result, if extra == 0 { Ok(()) } else { Err(Error::FlowControl) });
    }
}

#[test]
fn a_connection_may_use_its_credit_to_the_last_byte_and_not_one_more() {
    for extra in [0, 1] {
        let mut pair = small_windows(10_000, 10_000);
        let (one, two) = (pair.call("sum", b"", false), pair.call("sum", b"", false));
        let mut input = data(one, 5000 - HEADER);
        input.unsplit(data(two, 5000 - HEADER + extra));
        let result = pair.server.receive(&mut input, pair.now);
        assert_eq!(result, if extra == 0 { Ok(()) } else { Err(Error::FlowControl) });
    }
}

#[test]
fn credit_may_grow_to_its_limit_and_not_beyond() {
    for stream in [false, true] {
        let mut pair = small_windows(10_000, 10_000);
        let id = pair.call("sum", b"", false);
        let id = if stream { id } else { StreamId::CONNECTION };
        assert_eq!(pair.client.receive(&mut credit(id, 0x7fff_ffff - 10_000), pair.now), Ok(()));
        assert_eq!(pair.client.receive(&mut credit(id, 1), pair.now), Err(Error::FlowControl));
        let mut pair = small_windows(10_000, 10_000);
        let id = pair.call("sum", b"", false);
        let id = if stream { id } else { StreamId::CONNECTION };
        assert_eq!(pair.client.receive(&mut credit(id, u32::MAX), pair.now), Err(Error::FlowControl));
        assert_eq!(
            small_windows(4096, 4096).client.receive(&mut credit(id, 0), pair.now).unwrap_err().to_string(),
            "protocol error: CREDIT of 0"
        );
    }
}

#[test]
fn a_sender_stops_at_its_credit_and_goes_on_when_it_is_returned() {
    let mut pair = small_windows(20_000, 1_000_000);
    let id = pair.call("sum", b"", false);
    assert_eq!(pair.server.read(id, 0), Read::Chunk { bytes: vec![0].into(), last: false });
    assert_eq!(pair.server.read(id, 1), Read::Pending);
    pair.client.message(id, &[1; 60_000]).unwrap();
    pair.client.finish(id);
    let mut total = 0;
    for round in 0.. {
        pair.run();
        // Taken but not released: no credit comes back but for the headers.
        let Read::Chunk { bytes, last } = pair.server.read(id, 0) else { panic!("nothing in round {round}") };
        if round == 0 {
            assert_eq!(bytes.len(), 20_000 - HEADER);
        }
        total += bytes.len();
        pair.run();
        assert!(last || !pair.client.wants_transmit());
        assert_eq!(pair.server.read(id, bytes.len()), if last { Read::End } else { Read::Pending });
        if last {
            break;
        }
    }
    assert_eq!(total, 60_005);
    pair.server.answer(id, None, put(b"")).unwrap();
    pair.run();
    read_messages(&mut pair.client, id);
    pair.assert_clean();
}

#[test]
fn credit_comes_back_when_half_a_window_has_gathered() {
    let mut pair = small_windows(20_000, 1_000_000);
    let id = pair.call("sum", b"", false);
    read_all(&mut pair.server, id);
    pair.sent = Default::default();
    for n in 0..10 {
        pair.client.message(id, &[1; 1_990]).unwrap();
        pair.run();
        // 1,990 bytes, a long prefix and a header.
        assert_eq!(read_all(&mut pair.server, id).0.len(), 1_995, "{n}");
    }
    pair.run();
    let credits: Vec<Bytes> = frames(&pair.sent.1).into_iter().map(|frame| frame.payload).collect();
    assert_eq!(credits, [&10_015u32.to_be_bytes()[..]; 2], "five frames make a half");
}

#[test]
fn bytes_that_were_free_give_no_credit_back() {
    let mut pair = small_windows(4096, 1_000_000);
    let id = pair.call("sum", &[0; 3000], false);
    let Read::Chunk { bytes: first, .. } = pair.server.read(id, 0) else { panic!("nothing") };
    pair.client.message(id, &[0; 3000]).unwrap();
    pair.run();
    let Read::Chunk { bytes: second, .. } = pair.server.read(id, 0) else { panic!("nothing") };
    assert_eq!((first.len(), second.len()), (3005, 3005));
    pair.sent = Default::default();
    pair.server.read(id, first.len());
    pair.run();
    assert!(pair.sent.1.is_empty(), "it came with the CALL");
    pair.server.read(id, second.len());
    pair.run();
    assert_eq!(frames(&pair.sent.1)[0].payload, &3013u32.to_be_bytes()[..]);
}

#[test]
fn a_stream_that_nobody_reads_does_not_stop_the_others() {
    let mut pair = small_windows(60_000, 64_000);
    let (stuck, busy) = (pair.call("sum", b"", false), pair.call("sum", b"", false));
    pair.client.message(stuck, &[0; 200_000]).unwrap();
    pair.run();
    assert!(!pair.client.wants_transmit());
    let mut moved = 0;
    for _ in 0..100 {
        pair.client.message(busy, &[0; 1000]).unwrap();
        pair.run();
        moved += read_all(&mut pair.server, busy).0.len();
        pair.run();
    }
    assert!(moved > 95_000, "{moved}");
    pair.client.cancel(stuck);
    pair.client.cancel(busy);
    pair.run();
    pair.assert_clean();
}

#[test]
fn data_for_a_stream_that_is_over_gives_its_credit_back_at_once() {
    let mut pair = Pair::ready();
    let id = pair.call("sum", b"", false);
    pair.client.message(id, &[0; 100_000]).unwrap();
    // The answer and the upload cross.
    pair.server.answer(id, None, put(b"")).unwrap();
    pair.reach_server().unwrap();
    assert!(pair.server.window.is_whole());
    pair.run();
    read_messages(&mut pair.client, id);
    // The same towards the client.
    let id = pair.call("dump", b"", true);
    pair.server.answer(id, None, put(&[0; 100_000])).unwrap();
    pair.client.cancel(id);
    pair.reach_client().unwrap();
    assert!(pair.client.window.is_whole());
    pair.run();
    pair.assert_clean();
}

#[test]
fn small_frames_leave_before_bulk() {
    let mut pair = Pair::ready();
    let bulk = pair.open("upload", &[0; 3_000_000], true);
    let mut batch = Batch::default();
    pair.client.transmit(&mut batch);
    assert!(batch.len() <= 256 * 1024 + MAX_PAYLOAD + 100, "one batch takes a quantum: {}", batch.len());
    drain(&mut batch);
    let small = pair.open("add", b"args", true);
    let streams: Vec<StreamId> = frames(&transmit(&mut pair.client)).iter().map(|frame| frame.stream).collect();
    assert_eq!(streams[0], small);
    assert!(streams[1..].iter().all(|stream| *stream == bulk));
}

#[test]
fn bulk_streams_take_turns() {
    let mut pair = Pair::ready();
    let one = pair.open("upload", &[0; 200_000], true);
    let two = pair.open("upload", &[0; 200_000], true);
    let bytes = transmit(&mut pair.client);
    let data: Vec<StreamId> =
        frames(&bytes).iter().filter(|frame| frame.kind == Kind::Data).map(|frame| frame.stream).collect();
    assert_eq!(data, [one, two, one, two]);
}

#[test]
fn long_messages_stay_whole_in_their_frames() {
    let mut pair = Pair::ready();
    let id = pair.call("upload", b"", false);
    let payload = Bytes::from(vec![7; 64 * 1024]);
    for _ in 0..3 {
        pair.client.parts(id, b"\xc6\0\x01\0\0", payload.clone()).unwrap();
    }
    let mut batch = Batch::default();
    pair.client.transmit(&mut batch);
    let mut slices = [std::io::IoSlice::new(&[]); 16];
    let filled = batch.slices(&mut slices);
    let by_reference = slices[..filled].iter().filter(|slice| slice.as_ptr() == payload.as_ptr()).count();
    assert_eq!(by_reference, 3, "payloads are not copied");
    let lens: Vec<usize> = frames(&drain(&mut batch)).iter().map(|frame| frame.payload.len()).collect();
    assert_eq!(lens, [65_546; 3]);
}

#[test]
fn who_watches_a_stream_is_told_when_it_is_over_and_not_before() {
    let mut pair = Pair::ready();
    let id = pair.call("chat", b"", false);
    for _ in 0..3 {
        pair.client.message(id, &[0; 5000]).unwrap();
        assert!(pair.client.is_sending(id));
        pair.run();
        assert!(pair.client_events.is_empty(), "every batch would wake it for nothing");
    }
    pair.server.answer(id, None, put(b"enough")).unwrap();
    pair.run();
    assert_eq!(pair.client_events, [Event::Writable(id), Event::Readable(id)]);
    assert!(!pair.client.is_sending(id));
}

#[test]
fn a_sender_is_told_when_it_is_full_and_when_there_is_room() {
    let mut pair = Pair::ready();
    let id = pair.call("upload", b"", false);
    let mut sent = 0;
    while pair.client.message(id, &[0; 1000]).unwrap() == SendState::More {
        sent += 1;
    }
    assert!((200..300).contains(&sent), "{sent}");
    assert!(pair.client.is_full(id));
    pair.collect();
    assert!(pair.client_events.is_empty());
    pair.run();
    assert_eq!(pair.client_events, [Event::Writable(id)], "once");
    assert!(!pair.client.is_full(id));
}

#[test]
fn slots_are_few_and_a_free_one_is_told() {
    let mut pair = Pair::with(client_config(), Config { max_calls: 2, ..server_config() });
    let (one, _two) = (pair.call("add", b"", true), pair.call("add", b"", true));
    assert_eq!(pair.client.open(call("add"), pair.now, put(b"")), Err(OpenError::Full));
    pair.server.answer(one, None, put(b"")).unwrap();
    pair.run();
    pair.client_events.clear();
    read_messages(&mut pair.client, one);
    pair.collect();
    assert_eq!(pair.client_events, [Event::SlotFree]);
    let three = pair.open("add", b"", true);
    assert_eq!((three.slot(), three.generation()), (one.slot(), one.generation() + 1));
}

#[test]
fn generations_begin_again_after_the_last() {
    let mut pair = Pair::ready();
    let mut generations = std::collections::HashSet::new();
    for n in 0..65_540u32 {
        let id = pair.client.open(call("add"), pair.now, put(b"")).unwrap();
        assert_eq!(id.slot(), 0);
        assert_ne!(id.generation(), 0);
        assert_eq!(generations.insert(id.generation()), n < 65_535);
        // Taken back before it left, but for the one that gives the number.
        pair.client.cancel(id);
    }
    pair.run();
}

#[test]
fn much_that_waits_stops_new_calls_until_it_is_written() {
    let mut pair = Pair::with(client_config(), Config { max_calls: 2000, ..server_config() });
    let mut opened = 0;
    while pair.client.open(call("add"), pair.now, put(&[0; 4000])).is_ok() {
        opened += 1;
    }
    assert!((200..300).contains(&opened), "{opened}");
    assert!(!pair.client.is_congested(), "a client goes on receiving");
    pair.reach_server().unwrap();
    assert_eq!(pair.client_events, [Event::SlotFree]);
    for event in std::mem::take(&mut pair.server_events) {
        if let Event::Call { id, .. } = event {
            pair.server.answer(id, None, put(&[0; 4080])).unwrap();
        }
    }
    assert!(pair.server.is_congested());
    transmit(&mut pair.server);
    assert!(!pair.server.is_congested());
}

#[test]
fn unread_tiny_frames_cost_no_more_memory_than_their_credit() {
    let mut pair = Pair::ready();
    let id = pair.call("sum", b"", false);
    read_all(&mut pair.server, id);
    for _ in 0..20_000 {
        // Each in a read buffer of its own, which it would pin.
        pair.server.receive(&mut data(id, 1), pair.now).unwrap();
    }
    assert_eq!(pair.server.window.parts().1, 8 * 1024 * 1024 - 20_000 * 9);
    let Read::Chunk { bytes, .. } = pair.server.read(id, 0) else { panic!("nothing") };
    assert_eq!(bytes.len(), 20_000, "all in one piece");
}

#[test]
fn a_batch_is_taken_in_any_portions() {
    let mut pair = Pair::ready();
    let id = pair.call("upload", b"", false);
    let all = |pair: &mut Pair| {
        pair.client.parts(id, b"head", Bytes::from(vec![1; 5000])).unwrap();
        pair.client.message(id, &[2; 10]).unwrap();
        pair.client.parts(id, b"head", Bytes::from(vec![3; 5000])).unwrap();
        let mut batch = Batch::default();
        pair.client.transmit(&mut batch);
        batch
    };
    let whole = drain(&mut all(&mut pair));
    assert_eq!(frames(&whole).len(), 1);
    for portion in [1, 7, 4999] {
        let mut batch = all(&mut pair);
        let mut taken = Vec::new();
        while !batch.is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); 2];
            let filled = batch.slices(&mut slices);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            let count = portion.min(bytes.len());
            taken.extend_from_slice(&bytes[..count]);
            batch.advance(count);
        }
        assert_eq!(taken, whole);
    }
}

#[test]
fn metadata_travels_both_ways() {
    let mut pair = Pair::ready();
    let mut metadata = crate::Metadata::new();
    metadata.insert("tenant", "acme").unwrap();
    metadata.insert_inherited("trace", "17").unwrap();
    let id = pair.open_with(Open { metadata: Some(&metadata), attempt: 2, ..call("add") }, b"args");
    pair.run();
    let Some(Event::Call { metadata: Some(came), attempt: 2, .. }) = pair.server_events.pop_front() else { panic!() };
    assert_eq!(*came, metadata);
    assert_eq!(read_messages(&mut pair.server, id), [b"args"]);
    pair.server.answer(id, Some(&metadata), put(b"sum")).unwrap();
    pair.run();
    assert_eq!(pair.client_events, [Event::Answer { id, metadata: Box::new(metadata) }, Event::Readable(id)]);
    assert_eq!(read_messages(&mut pair.client, id), [b"sum"]);
}
