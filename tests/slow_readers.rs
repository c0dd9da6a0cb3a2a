//! Peers that do not read what they have asked for, or send long messages in odd pieces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::{Context, Methods, Status};
use support::nodes::{SERVICE, pair_with, witness};
use support::peer::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// Length of an answer; some hundreds of them are more than a server lets wait on one connection.
const ANSWER: usize = 3900;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_answers_were_not_read_goes_on_as_soon_as_they_are() {
    let long = "x".repeat(ANSWER);
    let methods = Methods::new().unary("text", move |_cx: Context, (): ()| {
        let long = long.clone();
        async move { Ok::<_, Status>(long) }
    });
    let pair = pair_with(methods, |server| server.max_calls(10_000), |client| client).await;
    let mut buffer = vec![0; 1 << 20];
    for round in 0..4 {
        let peer = Peer::connect(pair.exposed.local_addr(), &Hello::client(SERVICE)).await;
        let (mut read, mut write) = peer.socket.into_split();
        let calls = 3000;
        let writing = tokio::spawn(async move {
            for number in 0..calls {
                write.write_all(&unary(FIRST + number, "text")).await.unwrap();
            }
            write
        });
        // Long enough for the server to fill the socket and its own queue; shorter would only prove less.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let (mut total, mut gap) = (0, Duration::ZERO);
        while total < calls as usize * ANSWER {
            let begun = Instant::now();
            let read = timeout(Duration::from_secs(20), read.read(&mut buffer)).await;
            let count = read.expect("the server must go on").unwrap();
            assert_ne!(count, 0, "the connection ended after {total} bytes");
            gap = gap.max(begun.elapsed());
            total += count;
        }
        assert!(gap < Duration::from_secs(1), "round {round}: the server paused for {gap:?} although it was read");
        drop(writing.await.unwrap());
    }
}

#[tokio::test]
async fn long_messages_are_counted_however_they_are_cut() {
    const LONG: usize = 1 << 20;
    let methods = Methods::new().unary("take", |_cx: Context, (): ()| async move { Ok::<_, Status>(1u8) });
    // Room for one message of the longest kind, with its prefix, and for no other.
    let pair = pair_with(methods, |server| server.max_message(LONG).max_assembly(LONG), |client| client).await;
    let prefix = [&[255][..], &u32::try_from(LONG).unwrap().to_be_bytes()].concat();
    for first in [0, 1, 4, 5] {
        let mut peer = Peer::connect(pair.exposed.local_addr(), &Hello::client(SERVICE)).await;
        for slot in 0..6 {
            peer.send(&call(FIRST + slot, 0, "take", &prefix[..first])).await;
            let rest = [&prefix[first..], &[0; 60_000]].concat();
            peer.send(&frame(DATA, 0, FIRST + slot, &rest)).await;
        }
        let mut refused = 0;
        while refused < 5 {
            let next = timeout(support::PATIENCE, peer.frame()).await;
            let frame = next.unwrap_or_else(|_| panic!("only {refused} of 6 refused, with {first} bytes in the CALL"));
            let frame = frame.expect("the connection lives");
            assert_ne!(frame.kind, STATUS, "{}", String::from_utf8_lossy(&frame.payload));
            refused += usize::from(frame.kind == REFUSED);
        }
        // The one that was let in is still waited for.
        let more = timeout(Duration::from_millis(100), peer.next(REFUSED)).await;
        assert!(more.is_err(), "one message of the longest kind must fit, with {first} bytes in the CALL");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_are_cut_end_at_once_although_their_peer_does_not_read_that_they_were() {
    let (guards, mut witness) = witness();
    let watched = guards.clone();
    let methods = Methods::new()
        .unary("text", |_cx: Context, (): ()| async move { Ok::<_, Status>("x".repeat(ANSWER)) })
        .unary("wait", move |_cx: Context, (): ()| {
            let guard = watched.guard();
            async move {
                let _guard = guard;
                std::future::pending::<Result<(), Status>>().await
            }
        });
    let options = |server: picom::Builder| {
        server.max_calls(10_000).drain_delay(Duration::ZERO).drain_timeout(Duration::from_millis(100))
    };
    let pair = pair_with(methods, options, |client| client).await;
    let mut peer = Peer::connect(pair.exposed.local_addr(), &Hello::client(SERVICE)).await;
    peer.send(&unary(FIRST, "wait")).await;
    witness.began().await;
    let (_read, mut write) = peer.socket.into_split();
    let writing = tokio::spawn(async move {
        for number in 1..=5000 {
            write.write_all(&unary(FIRST + number, "text")).await.unwrap();
        }
        write
    });
    // Long enough for the server to fill the socket and its own queue; shorter would only prove less.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let ended = pair.server.end().await;
    assert!(ended.is_err(), "the call that never ends was not cut");
    assert_eq!(guards.alive(), 0, "a handler runs on although its call was cut");
    writing.abort();
}
