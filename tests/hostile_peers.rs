//! Peers that break the rules: each is told why it is closed, costs little, and nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream;
use picom::registry::Fixed;
use picom::{Bytes, Code, Context, Execution, Methods, Picom, Status, Streaming};
use support::nodes::{Guards, Pair, SERVICE, pair_with, witness};
use support::peer::*;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A server, and a client of it that calls without pause and must never fail.
struct Scene {
    pair: Pair,
    guards: Guards,
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    good: JoinHandle<()>,
}

impl Scene {
    async fn new() -> Self {
        let (guards, _witness) = witness();
        let held = guards.clone();
        let methods = Methods::new()
            .unary("ping", |_cx: Context, (): ()| async move { Ok::<_, Status>(7u64) })
            .unary("wait", move |_cx: Context, (): ()| {
                let guard = held.guard();
                async move {
                    let _held = guard;
                    std::future::pending::<Result<u64, Status>>().await
                }
            })
            .client_streaming("unread", |_cx: Context, (): (), body: Streaming<Bytes>| async move {
                let _held = body;
                std::future::pending::<Result<u64, Status>>().await
            })
            .server_streaming(
                "flood",
                |_cx: Context, (): ()| async move { Ok(stream::repeat(Bytes::from(vec![1; 1000]))) },
            );
        let short = Duration::from_millis(400);
        let pair = pair_with(methods, |server| server.handshake_timeout(short).max_calls(64), |client| client).await;
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count, client) = (Arc::clone(&stop), Arc::clone(&calls), pair.client.clone());
        let good = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                let answer = client.fetch::<u64>(SERVICE, "ping", ()).retries(0).await;
                answer.expect("a good client noticed a bad one");
                count.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        });
        Self { pair, guards, stop, calls, good }
    }

    async fn silent(&self) -> Peer {
        Peer::silent(self.pair.exposed.local_addr()).await
    }

    async fn greeted(&self) -> Peer {
        Peer::connect(self.pair.exposed.local_addr(), &Hello::client(SERVICE)).await
    }

    /// Ends the good client, which must have been served all the time, and the server, which must have nothing left.
    async fn over(self) {
        let before = self.calls.load(Ordering::SeqCst);
        let served = timeout(support::PATIENCE, async {
            while self.calls.load(Ordering::SeqCst) < before + 10 {
                tokio::task::yield_now().await;
            }
        });
        served.await.expect("the good client is not served any more");
        self.stop.store(true, Ordering::SeqCst);
        self.good.await.unwrap();
        support::eventually("every handler of a bad peer is gone", async || self.guards.alive() == 0).await;
    }
}

#[tokio::test]
async fn an_http_client_is_told_that_this_is_not_http() {
    let scene = Scene::new().await;
    for request in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /add HTTP/1.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut browser = scene.silent().await;
        browser.send(request.as_bytes()).await;
        let answer = String::from_utf8(browser.rest().await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?} was answered with {answer:?}");
        assert!(answer.contains("picom"), "the answer does not say who is here: {answer:?}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole response");
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        assert_eq!(length, Some(body.len().to_string()), "{answer:?}");
    }
    scene.over().await;
}

#[tokio::test]
async fn a_tls_client_gets_an_alert_and_garbage_gets_nothing() {
    let scene = Scene::new().await;
    let mut tls = scene.silent().await;
    tls.send(&[&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 508]].concat()).await;
    assert_eq!(tls.rest().await, [0x15, 3, 1, 0, 2, 2, 0x46]);
    for garbage in [&b"SSH-2.0-OpenSSH_9.6\r\n"[..], &[0; 64], &[0xff; 4096], b"picom?1\r\n\r\n"] {
        let mut peer = scene.silent().await;
        peer.send(garbage).await;
        let answer = peer.rest().await;
        assert_eq!(answer, b"", "{:?} was answered", String::from_utf8_lossy(garbage));
    }
    scene.over().await;
}

#[tokio::test]
async fn another_version_service_or_process_is_told_so() {
    let scene = Scene::new().await;
    let mut newer = scene.silent().await;
    newer.send(b"picom/2\r\n\r\n").await;
    newer.expect_preface().await;
    assert_eq!(newer.closed().await.0, reason::VERSION);
    let wrong = [
        (Hello::client("another"), reason::WRONG_SERVICE),
        (Hello { expect: Some(1), ..Hello::client(SERVICE) }, reason::WRONG_INCARNATION),
        (Hello { max_calls: 1, ..Hello::client(SERVICE) }, reason::PROTOCOL),
    ];
    for (hello, expected) in wrong {
        let mut peer = scene.silent().await;
        peer.send(&hello.bytes()).await;
        peer.expect_preface().await;
        let (why, text) = peer.closed().await;
        assert_eq!(why, expected, "{hello:?}: {text}");
    }
    scene.over().await;
}

#[tokio::test]
async fn frames_against_the_rules_close_their_connection_and_say_why() {
    let scene = Scene::new().await;
    let open = unary(FIRST, "wait");
    let streaming = call(FIRST, 0, "unread", &message(&[0xc0]));
    let head = |len: u32, kind: u8, stream: u32| [&len.to_be_bytes()[1..], &[kind], &stream.to_be_bytes()].concat();
    let cases: Vec<(&str, u8, Vec<u8>)> = vec![
        ("a frame longer than allowed", reason::PROTOCOL, head(66_561, DATA, FIRST)),
        ("the longest length there is", reason::PROTOCOL, head(0xff_ffff, DATA, FIRST)),
        ("an unknown kind", reason::PROTOCOL, frame(0x1f, 0, 0, b"")),
        ("kind 0", reason::PROTOCOL, frame(0, 0, 0, b"")),
        ("a flag that PING has not", reason::PROTOCOL, frame(PING, END, 0, &[0; 8])),
        ("a PING that is too short", reason::PROTOCOL, frame(PING, 0, 0, &[0; 7])),
        ("a PING on a stream", reason::PROTOCOL, frame(PING, 0, FIRST, &[0; 8])),
        ("a second HELLO", reason::PROTOCOL, Hello::client(SERVICE).bytes()[PREFACE.len()..].to_vec()),
        ("an ANSWER from a client", reason::PROTOCOL, frame(ANSWER, END, FIRST, b"")),
        ("a REFUSED from a client", reason::PROTOCOL, frame(REFUSED, 0, FIRST, &[1, 0, 0, 0, 0])),
        ("a DRAIN from a client", reason::PROTOCOL, frame(DRAIN, 0, 0, &[0; 8])),
        ("DATA on a stream that never was", reason::PROTOCOL, frame(DATA, END, FIRST, b"x")),
        ("CREDIT on a stream that never was", reason::PROTOCOL, frame(CREDIT, 0, FIRST, &[0, 0, 8, 0])),
        ("CANCEL on a stream that never was", reason::PROTOCOL, frame(CANCEL, 0, FIRST, b"")),
        ("CREDIT of nothing", reason::PROTOCOL, frame(CREDIT, 0, 0, &[0; 4])),
        ("CREDIT beyond 2^31-1", reason::FLOW_CONTROL, frame(CREDIT, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("a CALL on stream 0", reason::PROTOCOL, unary(0, "ping")),
        ("a CALL beyond max_calls", reason::PROTOCOL, unary(FIRST | 64, "ping")),
        ("a CALL in a slot that is taken", reason::PROTOCOL, [open.clone(), unary(2 << 16, "ping")].concat()),
        ("a CALL with a method never named", reason::PROTOCOL, frame(CALL, END, FIRST, &[0, 9, 0, 0, 0, 0, 0])),
        ("a CALL whose name is cut off", reason::PROTOCOL, frame(CALL, END | NAME, FIRST, &[0, 0, 9, b'x'])),
        (
            "a CALL with bad metadata",
            reason::PROTOCOL,
            frame(CALL, END | NAME | META, FIRST, &[0, 0, 1, b'p', 0, 0, 0, 0, 0, 0, 9, 1]),
        ),
        ("DATA after the END", reason::PROTOCOL, [open.clone(), frame(DATA, END, FIRST, b"x")].concat()),
        ("an empty DATA without END", reason::PROTOCOL, [streaming.clone(), frame(DATA, 0, FIRST, b"")].concat()),
        ("a STATUS that is no map", reason::PROTOCOL, [streaming.clone(), frame(STATUS, 0, FIRST, &[0xc1])].concat()),
        (
            "DATA beyond the credit",
            reason::FLOW_CONTROL,
            [streaming, frame(DATA, 0, FIRST, &[7; 65_536]).repeat(picom::options::STREAM_WINDOW as usize / 65_536)]
                .concat(),
        ),
    ];
    for (what, expected, bytes) in cases {
        let mut peer = scene.greeted().await;
        peer.send(&bytes).await;
        let (why, text) = peer.closed().await;
        assert_eq!(why, expected, "{what} was closed because: {text}");
        assert!(!text.is_empty(), "{what}: the reason has no words");
    }
    scene.over().await;
}

#[tokio::test]
async fn frames_before_hello_are_refused() {
    let scene = Scene::new().await;
    for (what, bytes) in [("a CALL", unary(FIRST, "ping")), ("a PING", frame(PING, 0, 0, &[0; 8]))] {
        let mut peer = scene.silent().await;
        peer.send(&[PREFACE, &bytes].concat()).await;
        peer.expect_preface().await;
        let (why, text) = peer.closed().await;
        assert_eq!(why, reason::PROTOCOL, "{what}: {text}");
    }
    scene.over().await;
}

#[tokio::test]
async fn half_a_frame_and_a_byte_at_a_time_end_in_time() {
    let scene = Scene::new().await;
    let mut torn = scene.greeted().await;
    torn.send(&unary(FIRST, "ping")[..10]).await;
    torn.socket.shutdown().await.unwrap();
    assert_eq!(torn.frame().await, None, "half a call was answered");
    let mut slow = scene.silent().await;
    let hello = Hello::client(SERVICE).bytes();
    let (mut read, mut write) = slow.socket.split();
    let trickle = async {
        for byte in hello {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer);
    let closed = timeout(Duration::from_secs(3), async {
        tokio::select! {
            read = read => drop(read),
            () = trickle => panic!("a hello of many seconds was waited for"),
        }
    });
    closed.await.expect("a peer that sends a byte at a time keeps its connection");
    assert!(answer.starts_with(PREFACE) && answer[PREFACE.len() + 3] == CLOSE, "{answer:?}");
    assert_eq!(answer[PREFACE.len() + 8], reason::HANDSHAKE);
    scene.over().await;
}

#[tokio::test]
async fn floods_end_at_their_budget() {
    let scene = Scene::new().await;
    let cancels: Vec<u8> = (1..=100_000u32)
        .flat_map(|n| [unary((n % 60_000 + 1) << 16, "wait"), frame(CANCEL, 0, (n % 60_000 + 1) << 16, b"")].concat())
        .collect();
    let floods = [
        ("cancelled calls", reason::TOO_MANY_CANCELS, cancels),
        ("PINGs", reason::TOO_MANY_CONTROL, frame(PING, 0, 0, &[0; 8]).repeat(10_000)),
        ("small CREDITs", reason::TOO_MANY_CONTROL, frame(CREDIT, 0, 0, &[0, 0, 0, 1]).repeat(10_000)),
        (
            "tiny DATA frames",
            reason::FLOW_CONTROL,
            [call(FIRST, 0, "unread", &message(&[0xc0])), frame(DATA, 0, FIRST, &[0]).repeat(100_000)].concat(),
        ),
    ];
    for (what, expected, bytes) in floods {
        let peer = scene.greeted().await;
        let (read, mut write) = peer.socket.into_split();
        let flood = tokio::spawn(async move {
            let _ = write.write_all(&bytes).await;
            write
        });
        let mut read = read;
        let mut answer = Vec::new();
        // The server may reset what it no longer reads, after its last words.
        let _ =
            timeout(support::PATIENCE, tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer)).await.expect(what);
        drop(flood.await);
        let mut rest = &answer[..];
        let mut last = None;
        while rest.len() >= 8 {
            let len = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
            last = Some((rest[3], rest.get(8).copied()));
            rest = rest.get(8 + len..).unwrap_or_default();
        }
        assert_eq!(last, Some((CLOSE, Some(expected))), "{what}: the last words are not the reason");
    }
    scene.over().await;
}

#[tokio::test]
async fn a_call_in_the_place_of_one_that_was_given_up_can_be_given_up_too() {
    let scene = Scene::new().await;
    let second = FIRST + (1 << 16);
    let mut peer = scene.greeted().await;
    peer.send(&unary(FIRST, "wait")).await;
    support::eventually("the first handler waits", async || scene.guards.alive() == 1).await;
    // Read at once, so that the first handler is dropped when the second is there already.
    peer.send(&[frame(CANCEL, 0, FIRST, b""), unary(second, "wait")].concat()).await;
    support::eventually("the second handler waits", async || scene.guards.made() == 2).await;
    support::eventually("the first handler is gone", async || scene.guards.alive() == 1).await;
    peer.send(&frame(CANCEL, 0, second, b"")).await;
    support::eventually("the second handler is gone", async || scene.guards.alive() == 0).await;
    scene.over().await;
}

/// A node that knows only this endpoint.
fn caller(server: &Scripted) -> Picom {
    let registry = Fixed::new([(SERVICE, [server.addr.to_string()])]);
    Picom::builder("caller").registry(registry).connect_timeout(Duration::from_millis(300)).build().unwrap()
}

#[tokio::test]
async fn a_caller_learns_what_a_server_speaks_that_is_not_picom() {
    let cases: [(&[u8], &str); 5] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (&[0x15, 3, 1, 0, 2, 2, 0x46], "TLS"),
        (b"picom/2\r\n\r\n", "version"),
        (b"SSH-2.0-x\r\n", "speaks"),
        (b"", "closed"),
    ];
    for (bytes, text) in cases {
        let server = Scripted::start(move |mut peer, _| async move { peer.send(bytes).await }).await;
        let error = caller(&server).fetch::<u64>(SERVICE, "ping", ()).retries(0).await.unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");
        assert!(error.message().contains(text), "{text} is not in: {error}");
    }
}

/// A server that shakes hands and answers each call with these bytes; zeros where the number of the stream belongs.
async fn answers(bytes: Vec<u8>, then_close: bool) -> Scripted {
    Scripted::start(move |mut peer, _| {
        let bytes = bytes.clone();
        async move {
            peer.greet(&Hello::server(SERVICE)).await;
            while let Some(frame) = peer.frame().await {
                if frame.kind == CALL {
                    peer.send(&bytes).await;
                    if then_close {
                        return;
                    }
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_an_error_and_never_an_end() {
    let part = frame(ANSWER, 0, FIRST, &[message(&[1]), vec![5, 1]].concat());
    let cut = [part.clone(), frame(DATA, END, FIRST, &[2])].concat();
    let cases = [
        ("the connection closes between items", frame(ANSWER, 0, FIRST, &message(&[1])), true, Code::Unavailable),
        ("the connection closes within an item", part, true, Code::Unavailable),
        ("END comes within an item", cut, false, Code::DataLoss),
        ("half a frame", frame(ANSWER, END, FIRST, &message(&[1]))[..9].to_vec(), true, Code::Unavailable),
    ];
    for (what, bytes, close, code) in cases {
        let server = answers(bytes, close).await;
        let mut items = caller(&server).stream::<u64>(SERVICE, "items", ()).retries(0).await.unwrap();
        let mut got = Vec::new();
        let error = loop {
            match items.next().await.unwrap_or_else(|| panic!("{what}: taken for the end after {got:?}")) {
                Ok(item) => got.push(item),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), code, "{what}: {error}");
        assert_eq!(error.execution(), Execution::Maybe, "{what}: {error}");
        assert!(items.next().await.is_none());
    }
}

#[tokio::test]
async fn frames_of_a_server_against_the_rules_end_the_connection_and_its_calls() {
    let cases = [
        ("a CALL from a server", unary(FIRST, "ping")),
        ("DATA before ANSWER", frame(DATA, END, FIRST, &message(&[1]))),
        ("two ANSWERs", frame(ANSWER, 0, FIRST, b"").repeat(2)),
        ("a frame longer than allowed", vec![1, 4, 1, DATA, 0, 1, 0, 0]),
        ("a STATUS that is no map", frame(STATUS, 0, FIRST, &[0xc1])),
        ("a STATUS with code 0", frame(STATUS, 0, FIRST, &map(&[("code", vec![0]), ("message", text(""))]))),
        ("a DRAIN of more calls than there were", frame(DRAIN, 0, 0, &9u64.to_be_bytes())),
        ("CREDIT beyond 2^31-1", frame(CREDIT, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("an unknown kind", frame(0x1f, 0, 0, b"")),
    ];
    for (what, bytes) in cases {
        let server = answers(bytes, false).await;
        let call = caller(&server).fetch::<u64>(SERVICE, "ping", ()).retries(0).into_future();
        let error =
            timeout(support::PATIENCE, call).await.unwrap_or_else(|_| panic!("{what}: waited for")).unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Maybe), "{what}: {error}");
        assert!(error.message().contains("connection lost"), "{what}: {error}");
    }
}

#[tokio::test]
async fn frames_for_other_generations_are_ignored() {
    let stale = [(9 << 16), FIRST + 1, 0xffff_0000]
        .map(|stream| frame(ANSWER, END, stream, &message(&[9])))
        .into_iter()
        .chain([frame(STATUS, 0, 9 << 16, &map(&[("code", vec![5]), ("message", text("no"))]))])
        .chain([frame(DATA, END, 9 << 16, &[9]), frame(CREDIT, 0, 9 << 16, &[0, 0, 8, 0])]);
    let bytes = stale.chain([frame(ANSWER, END, FIRST, &message(&[7]))]).collect::<Vec<_>>().concat();
    let server = answers(bytes, false).await;
    assert_eq!(caller(&server).fetch::<u64>(SERVICE, "ping", ()).await.unwrap(), 7);
}

#[tokio::test]
async fn text_of_a_peer_is_harmless_in_an_error() {
    let text = format!("\u{1b}[31m\nfake line\r\u{202e}{}", "x".repeat(200));
    let close = [&[1][..], text.as_bytes()].concat();
    let server = answers(frame(CLOSE, 0, 0, &close), true).await;
    let error = caller(&server).fetch::<u64>(SERVICE, "ping", ()).retries(0).await.unwrap_err().to_string();
    assert!(!error.chars().any(|char| char.is_control() || char == '\u{202e}'), "{error:?}");
    assert!(error.len() < 400, "{} bytes of a peer's text: {error}", error.len());
}
