//! The ways in which calls end before their time: early answers, statuses, refusals, cancels, deadlines, drains, losses.

use std::time::Duration;

use super::support::*;
use crate::proto::{Error, Event, Failure, Open, OpenError, Over, Read, SendError, SendState};
use crate::status::{Code, Status};
use crate::wire::{CloseReason, Kind, Refusal, StreamId};

fn kinds(bytes: &[u8]) -> Vec<Kind> {
    frames(bytes).iter().map(|frame| frame.kind).collect()
}

#[test]
fn an_early_answer_stops_the_upload() {
    let mut pair = Pair::ready();
    let id = pair.call("sum", b"", false);
    assert_eq!(pair.client.message(id, &[7; 1_000_000]), Ok(SendState::Full));
    pair.run();
    pair.server.answer(id, None, put(b"enough")).unwrap();
    pair.run();
    assert!(pair.client_events.contains(&Event::Writable(id)), "the sender learns it");
    assert_eq!(pair.client.message(id, b"more"), Err(Over));
    assert!(!pair.client.is_full(id));
    pair.client.finish(id);
    assert_eq!(read_messages(&mut pair.client, id), [b"enough"]);
    assert_eq!(pair.server.read(id, 0), Read::Failed(Failure::Truncated));
    pair.run();
    pair.assert_clean();
}

#[test]
fn empty_bodies_end_properly() {
    let mut pair = Pair::ready();
    let id = pair.call("nothing", b"", false);
    pair.client.finish(id);
    pair.run();
    assert_eq!(pair.server.read(id, 0), Read::Chunk { bytes: vec![0].into(), last: true });
    assert_eq!(pair.server.read(id, 1), Read::End);
    assert_eq!(pair.server.read(id, 0), Read::End, "however often it is asked");
    pair.server.start_answer(id, None);
    pair.server.finish(id);
    pair.run();
    assert_eq!(pair.client.read(id, 0), Read::End);
    assert_eq!(pair.client.read(id, 0), Read::Failed(Failure::Truncated), "the stream is no more");
    pair.assert_clean();
}

#[test]
fn a_late_end_is_a_frame_of_its_own() {
    let mut pair = Pair::ready();
    let id = pair.call("count", b"", true);
    pair.server.start_answer(id, None);
    pair.run();
    assert!(pair.client_events.is_empty(), "nothing can be read yet");
    assert_eq!(pair.client.read(id, 0), Read::Pending);
    pair.server.finish(id);
    assert_eq!(pair.server.open_calls(), 1, "until it is sent");
    pair.run();
    assert_eq!(pair.server.open_calls(), 0);
    assert_eq!(pair.client_events, [Event::Readable(id)]);
    assert_eq!(pair.client.read(id, 0), Read::End);
    pair.assert_clean();
}

#[test]
fn a_status_follows_the_items_before_it() {
    let mut pair = Pair::ready();
    for items in [0, 3, 1000] {
        let id = pair.call("count", b"", true);
        pair.server.start_answer(id, None);
        pair.run();
        for _ in 0..items {
            pair.server.message(id, b"item").unwrap();
        }
        let status = wire_status(Code::NotFound, "no more");
        pair.server.fail(id, &status);
        assert_eq!(pair.server.message(id, b"late"), Err(Over));
        pair.run();
        let (body, rest) = read_all(&mut pair.client, id);
        assert_eq!(messages(&body).len(), items);
        assert_eq!(rest, Rest::Failed(Failure::Status { status, answered: true }));
        pair.assert_clean();
        pair.client_events.clear();
    }
}

#[test]
fn a_status_instead_of_an_answer() {
    let mut pair = Pair::ready();
    let id = pair.call("divide", b"", true);
    let mut status = wire_status(Code::Unknown, "");
    status.app = true;
    status.details = Some(vec![1, 2, 3].into());
    status.retry_after = Some(70);
    status.ran = false;
    pair.server.fail(id, &status);
    pair.run();
    assert_eq!(pair.client.read(id, 0), Read::Failed(Failure::Status { status, answered: false }));
    pair.assert_clean();
}

#[test]
fn a_request_body_may_end_in_a_status() {
    for pending in [false, true] {
        let mut pair = Pair::ready();
        let id = pair.call("sum", b"", false);
        if pending {
            pair.client.message(id, b"item").unwrap();
        }
        pair.client.abort_body(id, &Status::aborted("the source failed"));
        assert_eq!(pair.client.message(id, b"late"), Err(Over));
        pair.run();
        let (body, rest) = read_all(&mut pair.server, id);
        assert_eq!(body.len(), if pending { 6 } else { 1 });
        let Rest::Failed(Failure::Status { status, answered: false }) = rest else { panic!("{rest:?}") };
        assert_eq!((status.code, &*status.message), (Code::Aborted.number(), "the source failed"));
        // The call goes on.
        pair.server.answer(id, None, put(b"0")).unwrap();
        pair.run();
        assert_eq!(read_messages(&mut pair.client, id), [b"0"]);
        pair.assert_clean();
    }
}

#[test]
fn a_refused_call_never_ran() {
    let mut pair = Pair::ready();
    let id = pair.call("add", b"", true);
    let wait = Some(Duration::from_millis(20));
    pair.server.refuse(id, Refusal::Busy, wait, "500 calls are running\n");
    pair.server.refuse(id, Refusal::Busy, None, "again");
    pair.run();
    let text = "500 calls are running\\u{a}".to_owned();
    let refused = Failure::Refused { reason: Refusal::Busy, retry_after: wait, text };
    assert_eq!(pair.client.read(id, 0), Read::Failed(refused));
    pair.assert_clean();
}

#[test]
fn a_call_that_was_not_emitted_is_taken_back() {
    let mut pair = Pair::ready();
    let known = pair.call("add", b"", true);
    pair.client.cancel(known);
    pair.run();
    pair.sent = Default::default();
    // Its number is known now, so nothing depends on the calls in the middle.
    let ids: Vec<StreamId> = (0..4u8).map(|n| pair.open("add", &[n; 10], true)).collect();
    let big = pair.open("add", &[9; 10_000], true);
    pair.client.cancel(ids[1]);
    pair.client.cancel(big);
    pair.client.cancel(ids[3]);
    pair.client.cancel(ids[3]);
    let again = pair.open("add", &[4; 10], true);
    pair.run();
    assert_eq!(kinds(&pair.sent.0), [Kind::Call; 3]);
    let bodies: Vec<u8> = [ids[0], ids[2], again].iter().map(|id| read_messages(&mut pair.server, *id)[0][0]).collect();
    assert_eq!(bodies, [0, 2, 4]);
    for id in [ids[0], ids[2], again] {
        pair.server.answer(id, None, put(b"")).unwrap();
        pair.run();
        read_messages(&mut pair.client, id);
    }
    pair.assert_clean();
}

#[test]
fn a_call_that_gives_a_number_is_cancelled_instead() {
    let mut pair = Pair::ready();
    let first = pair.open("add", b"", true);
    let second = pair.open("add", b"", true);
    pair.client.cancel(first);
    pair.run();
    assert_eq!(kinds(&pair.sent.0), [Kind::Call, Kind::Call, Kind::Cancel]);
    let call = pair.server_events.pop_front();
    let Some(Event::Call { id, method, .. }) = call else { panic!("{call:?}") };
    assert_eq!((id, method.name.as_deref()), (second, Some("add")), "the name comes with the first call reported");
    assert!(pair.server_events.is_empty(), "a call that came and went is not reported");
    pair.server.answer(second, None, put(b"")).unwrap();
    pair.run();
    read_messages(&mut pair.client, second);
    pair.assert_clean();
}

#[test]
fn a_call_whose_body_was_aborted_is_not_taken_back() {
    let mut pair = Pair::ready();
    let known = pair.call("sum", b"", true);
    pair.client.cancel(known);
    pair.run();
    let id = pair.open("sum", b"", false);
    pair.client.abort_body(id, &Status::aborted(""));
    pair.client.cancel(id);
    pair.run();
    pair.assert_clean();
}

#[test]
fn cancels_are_told_and_stale_ones_ignored() {
    let mut pair = Pair::ready();
    let id = pair.call("count", b"", false);
    pair.server.start_answer(id, None);
    pair.server.message(id, &[1; 500_000]).unwrap();
    assert!(pair.server.is_full(id));
    pair.reach_client().unwrap();
    pair.client.cancel(id);
    pair.client.cancel(id);
    pair.run();
    assert!(pair.server_events.contains(&Event::Cancelled(id)));
    assert!(pair.server_events.contains(&Event::Writable(id)));
    assert_eq!(pair.server.message(id, b""), Err(Over));
    assert_eq!(pair.server.answer(id, None, put(b"")), Err(SendError::Over));
    pair.server.fail(id, &wire_status(Code::Internal, ""));
    pair.server.finish(id);
    pair.assert_clean();
    pair.server_events.clear();
    // The slot is used again, and the old number means nothing.
    let next = pair.call("count", b"", true);
    assert_eq!(next.slot(), id.slot());
    pair.client.cancel(id);
    assert_eq!(pair.client.read(id, 0), Read::Failed(Failure::Truncated));
    assert_eq!(pair.client.open_calls(), 1);
    pair.client.cancel(next);
    pair.run();
    pair.assert_clean();
}

#[test]
fn a_cancel_that_crosses_the_answer_is_ignored() {
    let mut pair = Pair::ready();
    let id = pair.call("add", b"", true);
    pair.server.answer(id, None, put(b"sum")).unwrap();
    pair.client.cancel(id);
    pair.run();
    assert!(pair.server_events.is_empty() && pair.client_events.is_empty());
    pair.assert_clean();
}

#[test]
fn a_finished_call_that_is_not_read_keeps_its_slot_until_it_is_dropped() {
    let mut pair = Pair::ready();
    let id = pair.call("add", b"", true);
    pair.server.answer(id, None, put(b"sum")).unwrap();
    pair.run();
    assert_eq!((pair.client.open_calls(), pair.server.open_calls()), (1, 0));
    pair.sent = Default::default();
    pair.client.cancel(id);
    pair.run();
    assert!(pair.sent.0.is_empty(), "the server need not know");
    pair.assert_clean();
}

#[test]
fn deadlines_travel_as_remaining_time_and_end_calls_on_both_sides() {
    let mut pair = Pair::ready();
    let deadline = pair.now + Duration::from_micros(499_001);
    let id = pair.open_with(Open { deadline: Some(deadline), ..call("slow") }, b"");
    pair.run();
    let event = pair.server_events.pop_front();
    let Some(Event::Call { deadline: told, .. }) = event else { panic!("{event:?}") };
    assert_eq!(told, Some(pair.now + Duration::from_millis(500)), "rounded up");
    assert_eq!(pair.client.timeout(), Some(deadline));
    pair.now = deadline - Duration::from_micros(1);
    pair.client.handle_timeout(pair.now).unwrap();
    pair.collect();
    assert!(pair.client_events.is_empty());
    pair.now = deadline;
    pair.client.handle_timeout(pair.now).unwrap();
    pair.collect();
    assert_eq!(pair.client_events.pop_front(), Some(Event::Readable(id)));
    let failed = Read::Failed(Failure::Deadline { sent: true, answered: false });
    assert_eq!(pair.client.read(id, 0), failed);
    pair.now += Duration::from_millis(1);
    pair.server.handle_timeout(pair.now).unwrap();
    pair.collect();
    assert_eq!(pair.server_events.pop_front(), Some(Event::Expired(id)));
    pair.server.fail(id, &wire_status(Code::DeadlineExceeded, ""));
    pair.run();
    pair.assert_clean();
}

#[test]
fn a_deadline_that_has_passed_is_not_none() {
    let mut pair = Pair::ready();
    let deadline = pair.now - Duration::from_millis(1);
    let id = pair.open_with(Open { deadline: Some(deadline), ..call("slow") }, b"");
    pair.reach_server().unwrap();
    let event = pair.server_events.pop_front();
    let Some(Event::Call { deadline: Some(_), .. }) = event else { panic!("{event:?}") };
    pair.client.handle_timeout(pair.now).unwrap();
    assert_eq!(pair.client.read(id, 0), Read::Failed(Failure::Deadline { sent: true, answered: false }));
}

#[test]
fn a_deadline_before_the_first_byte_left_means_that_the_call_never_ran() {
    let mut pair = Pair::ready();
    let known = pair.call("slow", b"", true);
    pair.client.cancel(known);
    pair.run();
    pair.sent = Default::default();
    let deadline = pair.now + Duration::from_millis(5);
    let id = pair.open_with(Open { deadline: Some(deadline), ..call("slow") }, b"");
    let large = pair.open_with(Open { deadline: Some(deadline), ..call("slow") }, &[0; 100_000]);
    pair.now = deadline;
    pair.client.handle_timeout(deadline).unwrap();
    for id in [id, large] {
        assert_eq!(pair.client.read(id, 0), Read::Failed(Failure::Deadline { sent: false, answered: false }));
    }
    pair.run();
    assert!(pair.sent.0.is_empty());
    pair.assert_clean();
}

#[test]
fn an_expired_answer_does_not_wait_for_its_pending_bytes() {
    let mut pair = Pair::ready();
    let deadline = Some(pair.now + Duration::from_millis(10));
    let id = pair.open_with(Open { deadline, ..call("dump") }, b"");
    pair.run();
    pair.server.answer(id, None, put(&[0; 3_000_000])).unwrap();
    pair.run();
    assert_eq!(pair.server.open_calls(), 1, "the window is full");
    pair.advance(Duration::from_millis(10));
    pair.server.handle_timeout(pair.now).unwrap();
    let status = wire_status(Code::DeadlineExceeded, "too late");
    pair.server.fail(id, &status);
    assert_eq!(pair.server.open_calls(), 0);
    pair.run();
    let (_, rest) = read_all(&mut pair.client, id);
    assert_eq!(rest, Rest::Failed(Failure::Status { status, answered: true }));
    pair.run();
    pair.assert_clean();
}

#[test]
fn a_stream_that_rests_too_long_fails() {
    let mut pair = Pair::ready();
    let limit = Duration::from_secs(1);
    let id = pair.open_with(Open { idle: Some(limit), end: false, ..call("chat") }, b"");
    pair.run();
    pair.server.start_answer(id, None);
    pair.advance(Duration::from_millis(600));
    pair.server.message(id, b"hello").unwrap();
    pair.run();
    // What waits to be read is not the peer's fault.
    pair.advance(Duration::from_secs(2));
    pair.client.handle_timeout(pair.now).unwrap();
    let (body, rest) = read_all(&mut pair.client, id);
    assert_eq!((messages(&body).len(), rest), (1, Rest::Pending));
    // Movement that no time was told for counts from the next look.
    let due = pair.client.timeout().unwrap();
    assert!(due <= pair.now + limit);
    pair.now = due;
    pair.client.handle_timeout(pair.now).unwrap();
    assert_eq!(pair.client.read(id, 0), Read::Pending);
    pair.now += limit - Duration::from_millis(1);
    pair.client.handle_timeout(pair.now).unwrap();
    assert_eq!(pair.client.read(id, 0), Read::Pending);
    pair.now += Duration::from_millis(1);
    pair.client.handle_timeout(pair.now).unwrap();
    assert_eq!(pair.client.read(id, 0), Read::Failed(Failure::Idle { sent: true, answered: true }));
    pair.run();
    assert!(pair.server_events.contains(&Event::Cancelled(id)));
    pair.assert_clean();
}

#[test]
fn a_drain_keeps_what_was_accepted_and_frees_the_rest_for_others() {
    let mut pair = Pair::ready();
    let accepted = pair.call("add", b"1", false);
    let late = pair.open("add", b"2", false);
    pair.client.message(late, &[0; 100_000]).unwrap();
    pair.server.drain();
    pair.server.drain();
    assert!(pair.server.is_draining() && !pair.client.is_draining());
    // The late call crosses the DRAIN.
    pair.reach_server().unwrap();
    assert!(pair.server_events.is_empty());
    pair.reach_client().unwrap();
    assert!(pair.client.is_draining());
    assert_eq!(pair.client_events, [Event::Draining, Event::Readable(late)]);
    assert_eq!(pair.client.open(call("add"), pair.now, put(b"")), Err(OpenError::Draining));
    assert_eq!(pair.client.read(late, 0), Read::Failed(Failure::NotAccepted));
    assert!(!pair.client.is_closed());
    pair.client.message(accepted, b"more").unwrap();
    pair.client.finish(accepted);
    pair.run();
    assert_eq!(read_messages(&mut pair.server, accepted).len(), 2);
    pair.server.answer(accepted, None, put(b"3")).unwrap();
    pair.reach_client().unwrap();
    assert_eq!(read_messages(&mut pair.client, accepted), [b"3"]);
    pair.assert_clean();
    assert!(pair.client.is_closed(), "the client leaves after its last call");
    let error = pair.reach_server().unwrap_err();
    assert_eq!(error, Error::PeerClosed { reason: CloseReason::Done, text: String::new() });
}

#[test]
fn a_drain_before_the_handshake_comes_with_it() {
    let mut pair = Pair::fresh(client_config(), server_config());
    pair.server.drain();
    pair.reach_server().unwrap();
    pair.reach_client().unwrap();
    assert_eq!(pair.client_events, [Event::Ready, Event::Draining]);
    assert!(pair.client.is_closed());
}

#[test]
fn a_lost_connection_says_what_may_have_run() {
    let mut pair = Pair::ready();
    let answered = pair.call("count", b"", true);
    pair.server.start_answer(answered, None);
    pair.server.message(answered, b"item").unwrap();
    let done = pair.call("add", b"", true);
    pair.server.answer(done, None, put(b"sum")).unwrap();
    pair.run();
    let sent = pair.open("add", b"", true);
    assert!(!transmit(&mut pair.client).is_empty());
    let batched = pair.open("add", b"", true);
    let mut batch = crate::proto::Batch::default();
    pair.client.transmit(&mut batch);
    let queued = pair.open("add", b"", false);
    assert_eq!(pair.client.message(queued, &[0; 300_000]), Ok(SendState::Full));
    pair.client_events.clear();
    pair.client.lost(Error::KeepaliveTimeout);
    pair.server.lost(Error::KeepaliveTimeout);
    pair.collect();
    assert_eq!(pair.server_events, [Event::Cancelled(answered)]);
    assert!(!pair.client.wants_transmit());
    assert!(pair.client_events.contains(&Event::Writable(queued)));
    for (id, was_sent, was_answered) in
        [(sent, true, false), (batched, false, false), (queued, false, false), (answered, true, true)]
    {
        let Rest::Failed(Failure::Lost { error, sent, answered }) = read_all(&mut pair.client, id).1 else {
            panic!("{id:?}")
        };
        assert_eq!((sent, answered, &*error), (was_sent, was_answered, &Error::KeepaliveTimeout), "{id:?}");
    }
    assert_eq!(read_messages(&mut pair.client, done), [b"sum"], "what came in full stays whole");
    assert_eq!(pair.client.open(call("add"), pair.now, put(b"")), Err(OpenError::Closed));
    assert_eq!((pair.client.open_calls(), pair.server.open_calls()), (0, 0));
    assert_eq!((pair.client.timeout(), pair.server.timeout()), (None, None));
}

#[test]
fn what_was_opened_after_the_last_batch_was_not_written_with_it() {
    let mut pair = Pair::ready();
    let written = pair.open("add", b"", true);
    let mut batch = crate::proto::Batch::default();
    pair.client.transmit(&mut batch);
    let queued = pair.open("add", b"", true);
    pair.client.wrote();
    pair.client.lost(Error::Closed);
    for (id, was_sent) in [(written, true), (queued, false)] {
        let Rest::Failed(Failure::Lost { sent, .. }) = read_all(&mut pair.client, id).1 else { panic!("{id:?}") };
        assert_eq!(sent, was_sent);
    }
}

#[test]
fn the_last_frame_goes_on_growing_after_one_before_it_was_taken_back() {
    let mut pair = Pair::ready();
    let known = pair.call("sum", b"", true);
    pair.client.cancel(known);
    pair.run();
    let back = pair.open("sum", &[1; 50], true);
    let kept = pair.open("sum", b"2", false);
    pair.client.cancel(back);
    pair.client.message(kept, b"3").unwrap();
    pair.client.finish(kept);
    pair.sent = Default::default();
    pair.run();
    assert_eq!(kinds(&pair.sent.0), [Kind::Call]);
    assert_eq!(read_messages(&mut pair.server, kept), [b"2", b"3"]);
}

#[test]
fn nothing_follows_a_close() {
    let mut pair = Pair::ready();
    let id = pair.call("count", b"", true);
    pair.server.start_answer(id, None);
    pair.server.message(id, &[0; 100_000]).unwrap();
    pair.server.close(CloseReason::ShuttingDown, "now");
    pair.server.close(CloseReason::Done, "again");
    pair.server.drain();
    assert_eq!(pair.server.message(id, b""), Err(Over));
    pair.server.fail(id, &wire_status(Code::Internal, ""));
    pair.sent = Default::default();
    let error = pair.reach_client().unwrap_err();
    assert_eq!(error.to_string(), "the peer closed the connection: shutting down: now");
    assert_eq!(kinds(&pair.sent.1).last(), Some(&Kind::Close));
    assert!(!pair.server.wants_transmit());
}
