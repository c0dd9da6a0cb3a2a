//! Calls of every shape, from the first byte to the last.

use super::support::*;
use crate::proto::{Event, Read, SendState};

#[test]
fn a_unary_call_takes_one_frame_each_way() {
    let mut pair = Pair::ready();
    let id = pair.call("add", b"args", true);
    assert_eq!(read_messages(&mut pair.server, id), [b"args"]);
    pair.server.answer(id, None, put(b"sum")).unwrap();
    pair.run();
    assert_eq!(pair.client_events.pop_front(), Some(Event::Readable(id)));
    assert_eq!(read_messages(&mut pair.client, id), [b"sum"]);
    assert_eq!((frames(&pair.sent.0).len(), frames(&pair.sent.1).len()), (1, 1));
    assert!(pair.client_events.is_empty() && pair.server_events.is_empty());
    pair.assert_clean();
}

#[test]
fn long_messages_are_cut_both_ways() {
    let mut pair = Pair::ready();
    for len in [254, 255, 4000, 4096, 5000, 16_384, 65_536, 70_000, 1_000_000, 3_000_000] {
        let request: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let response: Vec<u8> = (0..len).map(|n| (n >> 3) as u8).collect();
        let id = pair.open("echo", &request, true);
        let mut body = Vec::new();
        loop {
            pair.run();
            let (part, rest) = read_all(&mut pair.server, id);
            body.extend_from_slice(&part);
            if rest == Rest::End {
                break;
            }
        }
        assert_eq!(messages(&body), [request]);
        pair.server.answer(id, None, put(&response)).unwrap();
        body.clear();
        loop {
            pair.run();
            let (part, rest) = read_all(&mut pair.client, id);
            body.extend_from_slice(&part);
            if rest == Rest::End {
                break;
            }
        }
        assert_eq!(messages(&body), [response]);
        pair.run();
        pair.assert_clean();
    }
}

#[test]
fn items_stream_both_ways_and_are_packed() {
    let mut pair = Pair::ready();
    let id = pair.call("echo", b"", false);
    assert_eq!(read_all(&mut pair.server, id), (vec![0], Rest::Pending));
    for n in 0..100u8 {
        assert_eq!(pair.client.message(id, &[n; 100]), Ok(SendState::More));
    }
    pair.client.finish(id);
    pair.sent = Default::default();
    pair.run();
    assert_eq!(frames(&pair.sent.0).len(), 1, "a hundred items and the end in one frame");
    assert_eq!(pair.server_events.pop_front(), Some(Event::Readable(id)));
    assert_eq!(read_messages(&mut pair.server, id).len(), 100);
    pair.server.start_answer(id, None);
    for n in 0..100u8 {
        assert_eq!(pair.server.message(id, &[n; 10]), Ok(SendState::More));
    }
    pair.server.finish(id);
    pair.run();
    assert_eq!(frames(&pair.sent.1).len(), 1, "the head takes the items and the end along");
    assert_eq!(read_messages(&mut pair.client, id).len(), 100);
    pair.assert_clean();
}

#[test]
fn a_body_that_came_with_its_call_can_be_taken_whole_and_others_cannot() {
    let mut pair = Pair::ready();
    let id = pair.call("add", b"args", true);
    assert_eq!(pair.server.take_whole(id).as_deref(), Some(&b"\x04args"[..]));
    assert_eq!(pair.server.take_whole(id), None, "once");
    assert_eq!(pair.server.read(id, 0), Read::End);
    pair.server.answer(id, None, put(b"sum")).unwrap();
    pair.run();
    assert_eq!(read_messages(&mut pair.client, id), [b"sum"]);

    let id = pair.call("sum", b"args", false);
    assert_eq!(pair.server.take_whole(id), None, "more may come");
    pair.client.message(id, b"more").unwrap();
    pair.client.finish(id);
    pair.run();
    assert_eq!(pair.server.take_whole(id), None, "more came");
    assert_eq!(read_messages(&mut pair.server, id), [b"args", b"more"]);
    pair.server.answer(id, None, put(b"sum")).unwrap();
    pair.run();
    assert_eq!(read_messages(&mut pair.client, id), [b"sum"]);
    pair.assert_clean();
}

#[test]
fn half_of_a_few_open_calls_are_plenty_and_half_of_many_are_no_more_than_that() {
    let mut pair = Pair::ready();
    // How many calls are opened before what waits is better written, each time.
    let batches: Vec<usize> = (0..5)
        .map(|_| {
            let opened = (1..).find(|_| {
                pair.open("m", b"", true);
                pair.client.has_plenty()
            });
            transmit(&mut pair.client);
            opened.unwrap()
        })
        .collect();
    assert_eq!(batches, [32, 32, 64, 128, 128]);
}

#[test]
fn callers_that_call_again_leave_as_one_half_and_nobody_is_left_behind() {
    for half in [32, 64, 128] {
        let mut pair = Pair::ready();
        let calls: Vec<_> = (0..2 * half).map(|_| pair.call("m", b"", true)).collect();
        for id in &calls[..half] {
            pair.server.answer(*id, None, put(b"")).unwrap();
        }
        pair.run();
        for (n, id) in calls[..half].iter().enumerate() {
            assert!(pair.client.take_short_answer(*id).is_some());
            assert!(!pair.client.has_plenty(), "{half} are answered, and {n} would leave without the others");
            pair.open("m", b"", true);
        }
        assert!(pair.client.has_plenty(), "all {half} have called again");
    }
}
