//! Limits, each at its value and one past it: messages, calls, connections, handshakes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt, stream};
use picom::registry::Fixed;
use picom::{Bytes, Code, Context, Execution, Methods, Picom, Status, Streaming, args};
use serde::Deserialize;
use support::eventually;
use support::nodes::{SERVICE, pair, pair_with};
use support::peer::{CLOSE, FIRST, HELLO, Hello, Peer, reason, unary};
use support::proxy::Proxy;
use tokio::sync::Semaphore;
use tokio::time::Instant;

const LIMIT: usize = 10_000;

#[picom::service]
trait Blobs {
    /// Says how long the data is.
    async fn length(&self, data: Bytes) -> usize;
    #[rpc(max_request = "1KiB")]
    async fn short(&self, data: Bytes) -> usize;
    async fn lengths(&self, items: Streaming<Bytes>) -> Result<Vec<usize>, Status>;
    #[rpc(max_request = "1KiB")]
    async fn short_items(&self, items: Streaming<Bytes>) -> Result<Vec<usize>, Status>;
    /// Answers with so many bytes.
    async fn make(&self, len: usize) -> Bytes;
    #[rpc(max_response = "1KiB")]
    async fn make_short(&self, len: usize) -> Bytes;
    /// Answers with a text, which is not sent by reference.
    async fn text(&self, len: usize) -> String;
    async fn make_items(&self, lens: Vec<usize>) -> Result<impl futures::Stream<Item = Bytes>, Status>;
}

#[derive(Default)]
struct Counted(Arc<AtomicUsize>);

async fn lengths(items: Streaming<Bytes>) -> Result<Vec<usize>, Status> {
    Ok(items.collect_vec(100).await?.iter().map(Bytes::len).collect())
}

impl Blobs for Counted {
    async fn length(&self, data: Bytes) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst);
        data.len()
    }

    async fn short(&self, data: Bytes) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst);
        data.len()
    }

    async fn lengths(&self, items: Streaming<Bytes>) -> Result<Vec<usize>, Status> {
        lengths(items).await
    }

    async fn short_items(&self, items: Streaming<Bytes>) -> Result<Vec<usize>, Status> {
        lengths(items).await
    }

    async fn make(&self, len: usize) -> Bytes {
        vec![1; len].into()
    }

    async fn make_short(&self, len: usize) -> Bytes {
        vec![1; len].into()
    }

    async fn text(&self, len: usize) -> String {
        "x".repeat(len)
    }

    async fn make_items(&self, lens: Vec<usize>) -> Result<impl futures::Stream<Item = Bytes>, Status> {
        Ok(stream::iter(lens).map(|len| vec![1; len].into()))
    }
}

fn data(len: usize) -> Bytes {
    vec![1; len].into()
}

/// A `bin` longer than 255 bytes costs three bytes beside its content.
const BIN: usize = 3;
/// The map `{"data": …}` costs six more.
const ARGS: usize = 6 + BIN;

/// The error says how much it was, how much it may be, and which option says so.
fn assert_names(error: &Status, code: Code, parts: &[&str]) {
    assert_eq!(error.code(), code, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "{part} is not in: {error}");
    }
    assert_eq!(error.attempts(), 1, "it would be too long everywhere: {error}");
}

#[tokio::test]
async fn requests_are_limited_by_the_server_and_by_the_method() {
    let ran = Arc::new(AtomicUsize::new(0));
    let service = BlobsServer::new(Counted(Arc::clone(&ran)));
    let pair = pair_with(service, |server| server.max_message(LIMIT), |client| client).await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let registry = Fixed::new([(SERVICE, [proxy.addr.to_string()])]);
    let client = Picom::builder("caller").registry(registry).build().unwrap();
    let blobs: BlobsClient = client.client(SERVICE);
    assert_eq!(blobs.length(data(LIMIT - ARGS)).await.unwrap(), LIMIT - ARGS);
    let error = blobs.length(data(LIMIT - ARGS + 1)).await.unwrap_err();
    assert_names(&error, Code::InvalidArgument, &["10001 bytes", "10000", "`max_message`"]);
    assert_eq!(error.execution(), Execution::Never, "{error}");
    assert_eq!(blobs.short(data(1024 - ARGS)).await.unwrap(), 1024 - ARGS);
    let error = blobs.short(data(1024 - ARGS + 1)).await.unwrap_err();
    assert_names(&error, Code::InvalidArgument, &["1025 bytes", "1024", "`max_request`"]);
    assert_eq!(error.execution(), Execution::Never, "{error}");
    assert_eq!(ran.load(Ordering::SeqCst), 2, "a handler ran with arguments that are too long");

    let at = stream::iter([data(5), data(LIMIT - BIN)]);
    assert_eq!(blobs.lengths(at).await.unwrap(), [5, LIMIT - BIN]);
    let error = blobs.lengths(stream::iter([data(5), data(LIMIT - BIN + 1)])).await.unwrap_err();
    assert_names(&error, Code::ResourceExhausted, &["10001 bytes", "10000", "`max_message`"]);
    assert_eq!(blobs.short_items(stream::iter([data(1024 - BIN)])).await.unwrap(), [1024 - BIN]);
    let error = blobs.short_items(stream::iter([data(1024 - BIN + 1)])).await.unwrap_err();
    assert_names(&error, Code::ResourceExhausted, &["1025 bytes", "1024", "`max_request`"]);
    assert_eq!(blobs.length(data(1)).await.unwrap(), 1);
    assert_eq!(proxy.connections(), 1, "the connection lives");
}

#[picom::service]
trait Wide {
    #[rpc(max_request = "1MiB")]
    async fn wide(&self, data: Bytes) -> usize;
    async fn narrow(&self, data: Bytes) -> usize;
}

struct Length;

impl Wide for Length {
    async fn wide(&self, data: Bytes) -> usize {
        data.len()
    }

    async fn narrow(&self, data: Bytes) -> usize {
        data.len()
    }
}

#[tokio::test]
async fn a_method_may_take_more_than_the_others() {
    let pair = pair_with(WideServer::new(Length), |server| server.max_message(LIMIT), |client| client).await;
    let client: WideClient = pair.client.client(SERVICE);
    assert_eq!(client.wide(data(10 * LIMIT)).await.unwrap(), 10 * LIMIT);
    let error = client.narrow(data(10 * LIMIT)).await.unwrap_err();
    assert_names(&error, Code::InvalidArgument, &["10000", "`max_message`"]);
    let error = client.wide(data(1 << 20)).await.unwrap_err();
    assert_names(&error, Code::InvalidArgument, &["1048576"]);
}

#[tokio::test]
async fn answers_are_limited_by_the_caller_and_by_the_method() {
    let service = BlobsServer::new(Counted::default());
    let pair = pair_with(service, |server| server, |client| client.max_message(LIMIT)).await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let registry = Fixed::new([(SERVICE, [proxy.addr.to_string()])]);
    let client = Picom::builder("caller").registry(registry).max_message(LIMIT).build().unwrap();
    let blobs: BlobsClient = client.client(SERVICE);
    assert_eq!(blobs.make(LIMIT - BIN).await.unwrap().len(), LIMIT - BIN);
    assert_eq!(blobs.text(LIMIT - BIN).await.unwrap().len(), LIMIT - BIN);
    for error in [blobs.make(LIMIT - BIN + 1).await.unwrap_err(), blobs.text(LIMIT - BIN + 1).await.unwrap_err()] {
        assert_names(&error, Code::ResourceExhausted, &["10001 bytes", "10000", "`max_message`"]);
        assert_eq!(error.execution(), Execution::Done, "{error}");
    }
    assert_eq!(blobs.make_short(1024 - BIN).await.unwrap().len(), 1024 - BIN);
    let error = blobs.make_short(1024 - BIN + 1).await.unwrap_err();
    assert_names(&error, Code::ResourceExhausted, &["1025 bytes", "1024", "`max_response`"]);
    assert_eq!(error.execution(), Execution::Done, "{error}");
    let mut items = blobs.make_items(vec![5, LIMIT - BIN, LIMIT - BIN + 1, 5]).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap().len(), 5);
    assert_eq!(items.next().await.unwrap().unwrap().len(), LIMIT - BIN);
    let error = items.next().await.expect("an item that is too long is no end").unwrap_err();
    assert_names(&error, Code::ResourceExhausted, &["10001 bytes", "10000", "`max_message`"]);
    assert!(items.next().await.is_none());
    assert_eq!(blobs.length(data(1)).await.unwrap(), 1);
    assert_eq!(proxy.connections(), 1, "the connection lives");
}

#[derive(Deserialize)]
struct N {
    n: usize,
}

#[tokio::test]
async fn calls_beyond_the_limit_of_a_connection_wait_and_go_on() {
    const LIMIT: usize = 8;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let permits = Arc::new(Semaphore::new(0));
    let (now, peak, wait) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&permits));
    let methods = Methods::new().unary("work", move |_cx: Context, N { n }: N| {
        let (now, peak, wait) = (Arc::clone(&now), Arc::clone(&peak), Arc::clone(&wait));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            wait.acquire().await.unwrap().forget();
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Status>(n)
        }
    });
    let one = |client: picom::Builder| client.max_connections_per_endpoint(1);
    let pair = pair_with(methods, |server| server.max_calls(LIMIT as u16), one).await;
    let calls: Vec<_> = (0..100usize)
        .map(|n| {
            let client = pair.client.clone();
            tokio::spawn(async move { client.fetch::<usize>(SERVICE, "work", args! { n: n }).await })
        })
        .collect();
    eventually("the connection is full", async || running.load(Ordering::SeqCst) == LIMIT).await;
    permits.add_permits(100);
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap(), n);
    }
    assert_eq!(most.load(Ordering::SeqCst), LIMIT, "more calls ran at once than one connection may have");
}

#[tokio::test]
async fn calls_beyond_the_limit_of_a_server_are_refused_and_go_elsewhere() {
    const LIMIT: usize = 4;
    let (permits, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (wait, now) = (Arc::clone(&permits), Arc::clone(&running));
    let methods = || {
        let (wait, now) = (Arc::clone(&wait), Arc::clone(&now));
        Methods::new().unary("work", move |_cx: Context, N { n }: N| {
            let (wait, now) = (Arc::clone(&wait), Arc::clone(&now));
            async move {
                now.fetch_add(1, Ordering::SeqCst);
                wait.acquire().await.unwrap().forget();
                Ok::<_, Status>(n)
            }
        })
    };
    let busy = pair_with(methods(), |server| server.max_running(LIMIT), |client| client).await;
    let addr = busy.exposed.local_addr();
    let call = |client: &Picom, n: usize| {
        tokio::spawn(client.fetch::<usize>(SERVICE, "work", args! { n: n }).on(addr).retries(0).into_future())
    };
    // From as many connections as calls.
    let mut calls: Vec<_> = (0..LIMIT).map(|n| call(&busy.client, n)).collect();
    eventually("the server is full", async || running.load(Ordering::SeqCst) == LIMIT).await;
    let error = call(&busy.client, LIMIT).await.unwrap().unwrap_err();
    assert_names(&error, Code::ResourceExhausted, &["busy", "running calls"]);
    assert_eq!((running.load(Ordering::SeqCst), error.execution()), (LIMIT, Execution::Never), "{error}");
    let free = support::nodes::builder(SERVICE, &busy.registry).build().unwrap();
    free.expose(methods()).await.unwrap();
    calls.extend(
        (0..2).map(|n| tokio::spawn(busy.client.fetch::<usize>(SERVICE, "work", args! { n: LIMIT + n }).into_future())),
    );
    eventually("the other server has taken both", async || running.load(Ordering::SeqCst) == LIMIT + 2).await;
    permits.add_permits(100);
    for (n, answer) in calls.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().unwrap(), n);
    }
    assert_eq!(call(&busy.client, 9).await.unwrap().unwrap(), 9, "there is room again");
}

fn ping() -> Methods {
    Methods::new().unary("ping", |_cx: Context, (): ()| async move { Ok::<_, Status>(7u64) })
}

/// What a further connection is told.
async fn refusal(peer: &mut Peer) -> (u8, String) {
    peer.send(&Hello::client(SERVICE).bytes()).await;
    peer.expect_preface().await;
    peer.closed().await
}

#[tokio::test]
async fn connections_are_limited_and_the_next_one_is_told_so() {
    for (text, per_peer) in [("limit of 3 connections", false), ("from one address", true)] {
        let limited = |server: picom::Builder| match per_peer {
            true => server.max_connections_per_peer(3),
            false => server.max_connections(3),
        };
        let pair = pair_with(ping(), limited, |client| client).await;
        let addr = pair.exposed.local_addr();
        let mut peers = Vec::new();
        for _ in 0..3 {
            peers.push(Peer::connect(addr, &Hello::client(SERVICE)).await);
        }
        let (why, said) = refusal(&mut Peer::silent(addr).await).await;
        assert_eq!(why, reason::BUSY, "{said}");
        assert!(said.contains(text), "{said}");
        let error = pair.client.fetch::<u64>(SERVICE, "ping", ()).retries(0).await.unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");
        assert!(error.message().contains(text), "the caller learns why: {error}");
        for (n, peer) in peers.iter_mut().enumerate() {
            peer.send(&unary(FIRST, "ping")).await;
            assert!(peer.frame().await.is_some(), "connection {n} noticed that another one was refused");
        }
        drop(peers.pop());
        eventually("a place is free again", async || {
            pair.client.fetch::<u64>(SERVICE, "ping", ()).retries(0).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn of_too_many_connections_without_hello_the_oldest_goes() {
    let pair = pair_with(ping(), |server| server.max_handshakes(3), |client| client).await;
    let addr = pair.exposed.local_addr();
    let mut greeted = Peer::connect(addr, &Hello::client(SERVICE)).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(Peer::silent(addr).await);
    }
    // Those who have said hello do not count; three may be silent, and the fourth ends the first.
    silent.push(Peer::silent(addr).await);
    let mut oldest = silent.remove(0);
    oldest.expect_preface().await;
    let (why, said) = oldest.closed().await;
    assert_eq!(why, reason::BUSY, "{said}");
    assert!(said.contains("hello"), "{said}");
    for peer in &mut silent {
        peer.send(&Hello::client(SERVICE).bytes()).await;
        peer.expect_preface().await;
        assert_eq!(peer.frame().await.map(|frame| frame.kind), Some(HELLO), "the younger ones may go on");
    }
    greeted.send(&unary(FIRST, "ping")).await;
    assert!(greeted.frame().await.is_some(), "one that had said hello was closed");
}

#[tokio::test]
async fn hello_has_its_time_and_no_more() {
    let limit = Duration::from_millis(300);
    let pair = pair_with(ping(), |server| server.handshake_timeout(limit), |client| client).await;
    let addr = pair.exposed.local_addr();
    let hello = Hello::client(SERVICE).bytes();
    for said in [0, 1, 11, 12, hello.len() - 1] {
        let begun = Instant::now();
        let mut slow = Peer::silent(addr).await;
        slow.send(&hello[..said]).await;
        slow.expect_preface().await;
        let close = slow.next(CLOSE).await;
        let took = begun.elapsed();
        assert_eq!(close.payload[0], reason::HANDSHAKE, "after {said} bytes");
        assert!(took >= limit && took < limit + Duration::from_secs(1), "after {said} bytes it took {took:?}");
    }
    // One that is greeted in time may be silent afterwards.
    let mut greeted = Peer::connect(addr, &Hello::client(SERVICE)).await;
    tokio::time::sleep(limit + limit / 2).await;
    greeted.send(&unary(FIRST, "ping")).await;
    assert!(greeted.frame().await.is_some(), "the limit of the handshake ended a connection after it");
}

#[tokio::test]
async fn long_messages_under_way_are_limited_per_connection() {
    let service = BlobsServer::new(Counted::default());
    let pair = pair_with(service, |server| server.max_message(1 << 20).max_assembly(1 << 20), |client| client).await;
    let blobs: BlobsClient = pair.client.client(SERVICE);
    assert_eq!(blobs.length(data((1 << 20) - 100)).await.unwrap(), (1 << 20) - 100, "one message always fits");
    // Two that come piece by piece at the same time do not, so one of them is refused, and comes back later.
    let both = futures::future::join_all((0..4).map(|_| async { blobs.length(data(900_000)).await })).await;
    for answer in both {
        assert_eq!(answer.expect("a refused call is tried again"), 900_000);
    }
}

#[tokio::test]
async fn metadata_of_the_answer_is_limited_where_it_is_set() {
    let methods = Methods::new().unary("set", |cx: Context, N { n }: N| async move {
        let set = cx.set_answer_metadata("k", &"v".repeat(n));
        Ok::<_, Status>(set.err().map(|error| error.to_string()))
    });
    let pair = pair(methods).await;
    let set = |n: usize| pair.client.fetch::<Option<String>>(SERVICE, "set", args! { n: n }).with_info();
    let (problem, info) = set(16 * 1024 - 4).await.unwrap();
    assert_eq!(problem, None);
    assert_eq!(info.metadata().get("k").map(str::len), Some(16 * 1024 - 4));
    let (problem, info) = set(16 * 1024 - 3).await.unwrap();
    assert!(problem.unwrap().contains("16384"), "the handler is told the limit");
    assert!(info.metadata().is_empty());
}
