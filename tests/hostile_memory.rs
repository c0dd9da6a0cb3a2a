//! What peers can make a server hold by announcing much and sending little. Alone in its process, whose memory it measures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![cfg(target_os = "linux")]

mod support;

use picom::{Bytes, Context, Methods, Status, Streaming};
use support::nodes::{SERVICE, pair_with};
use support::peer::{ANSWER, CALL, DATA, FIRST, Hello, NAME, Peer, REFUSED, STATUS, call, frame, message, unary};

const PEERS: usize = 200;

/// What a connection may cost whose peer announces without sending.
const PER_PEER: usize = 64 << 10;

/// What may be reserved without being touched: a first chunk for each peer, and a heap that grows by large steps.
const RESERVED: usize = 128 << 20;

/// Memory of this process in bytes: what is reserved, and what is really there.
fn memory() -> (usize, usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    // The size of a page on every platform that CI has; were it larger, the numbers would only be too small alike.
    let mut pages = statm.split_whitespace().map(|pages| pages.parse::<usize>().unwrap() * 4096);
    (pages.next().unwrap(), pages.next().unwrap())
}

/// The prefix of a message of 4 GiB less one byte, and its beginning.
const HUGE: &[u8] = &[255, 255, 255, 255, 255, 0xc6, 255, 255, 255, 250, 1, 2, 3];

/// A CALL of `unread` whose metadata, arguments or first item announce more than comes.
fn announcing(how: usize) -> Vec<u8> {
    let nil = message(&[0xc0]);
    match how {
        // Arguments of 4 GiB.
        0 => call(FIRST, 0, "unread", HUGE),
        // An item of 4 GiB.
        1 => [call(FIRST, 0, "unread", &nil), frame(DATA, 0, FIRST, HUGE)].concat(),
        // Arguments that are an array of 4 G elements.
        2 => call(FIRST, 0, "unread", &message(&[0xdd, 255, 255, 255, 255])),
        // An item that is a bin of 4 GiB, in a message that is short.
        3 => [call(FIRST, 0, "unread", &nil), frame(DATA, 0, FIRST, &message(&HUGE[5..]))].concat(),
        // A frame of the largest size that is allowed, of which only the header comes.
        _ => [&[1, 4, 0, CALL | NAME][..], &FIRST.to_be_bytes()].concat(),
    }
}

#[tokio::test]
async fn what_is_only_announced_is_not_held() {
    let methods = Methods::new()
        .unary("ping", |_cx: Context, (): ()| async move { Ok::<_, Status>(7u64) })
        .client_streaming("unread", |_cx: Context, _args: Vec<u64>, mut body: Streaming<Bytes>| async move {
            while body.message().await?.is_some() {}
            Ok(0u64)
        });
    // With a limit of its own the server would refuse most of this at once; here it believes that it may come.
    let believing = |server: picom::Builder| server.max_message(usize::MAX >> 1).max_assembly(usize::MAX >> 4);
    let pair = pair_with(methods, believing, |client| client).await;
    let addr = pair.exposed.local_addr();
    let mut first = Peer::connect(addr, &Hello::client(SERVICE)).await;
    first.send(&unary(FIRST, "ping")).await;
    assert_eq!(first.frame().await.unwrap().kind, ANSWER);
    for how in 0..5 {
        let mut peers = Vec::new();
        for _ in 0..PEERS {
            peers.push(Peer::connect(addr, &Hello::client(SERVICE)).await);
        }
        let before = memory();
        for peer in &mut peers {
            peer.send(&announcing(how)).await;
        }
        // The server has seen it all once it has answered what came last.
        for peer in &mut peers {
            if how < 4 {
                peer.send(&unary(FIRST + 1, "ping")).await;
                loop {
                    let frame = peer.frame().await.expect("the connection lives");
                    match frame.kind {
                        ANSWER => break,
                        STATUS | REFUSED => {}
                        other => panic!("{how}: a frame of kind {other:#x}"),
                    }
                }
            }
        }
        assert_eq!(pair.client.fetch::<u64>(SERVICE, "ping", ()).await.unwrap(), 7);
        let now = memory();
        let grown = now.1.saturating_sub(before.1) / PEERS;
        assert!(grown <= PER_PEER, "case {how}: each peer made the server hold {grown} bytes");
        let reserved = now.0.saturating_sub(before.0);
        assert!(reserved <= RESERVED, "case {how}: {PEERS} peers made the server reserve {reserved} bytes");
    }
}
