//! Streamed bodies and answers: ends, errors, back-pressure, fairness.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use picom::registry::Fixed;
use picom::{Bytes, Code, Context, Methods, Picom, Status, Streaming, args};
use serde::Deserialize;
use support::eventually;
use support::nodes::{Guard, PROMPT, SERVICE, pair, pair_with, witness};
use support::proxy::{Mode, Proxy};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

const KIB: usize = 1024;

#[derive(Deserialize)]
struct Count {
    to: u64,
}

fn methods() -> Methods {
    Methods::new()
        .unary("ping", |_cx: Context, (): ()| async move { Ok::<_, Status>(()) })
        .server_streaming("count", |_cx: Context, Count { to }: Count| async move { Ok(stream::iter(0..to)) })
        .client_streaming("length", |_cx: Context, (): (), mut body: Streaming<Bytes>| async move {
            let mut total = 0;
            while let Some(chunk) = body.message().await? {
                total += chunk.len();
            }
            Ok(total)
        })
        .client_streaming("ignore", |_cx: Context, (): (), _body: Streaming<Bytes>| async move { Ok(7) })
        .bidi("echo", |_cx: Context, (): (), body: Streaming<Bytes>| async move { Ok(body) })
}

/// Chunks without end, counted, with a guard that is dropped with the stream.
fn endless(chunk: usize, count: Arc<AtomicUsize>, guard: Guard) -> impl Stream<Item = Bytes> + Send + 'static {
    let bytes = Bytes::from(vec![1; chunk]);
    stream::repeat_with(move || {
        let _held = &guard;
        count.fetch_add(1, Ordering::SeqCst);
        bytes.clone()
    })
}

/// Calls until a count stands still, which shows that the connection works and that nothing moves any more.
async fn stands_still(client: &Picom, count: &AtomicUsize) -> usize {
    let (mut before, mut still) = (count.load(Ordering::SeqCst), 0);
    while still < 50 {
        client.fetch::<()>(SERVICE, "ping", ()).await.expect("a small call beside a stream that is not read");
        let now = count.load(Ordering::SeqCst);
        still = if now == before && now > 0 { still + 1 } else { 0 };
        before = now;
    }
    before
}

#[tokio::test]
async fn empty_streams_and_empty_items_are_what_they_are() {
    let pair = pair(methods()).await;
    let none: Vec<u64> = pair.client.fetch(SERVICE, "count", args! { to: 0 }).multiple().await.unwrap();
    assert_eq!(none, [0; 0]);
    let length: usize = pair.client.fetch(SERVICE, "length", ()).body(stream::empty::<Bytes>()).await.unwrap();
    assert_eq!(length, 0);
    let echo = pair.client.fetch::<Bytes>(SERVICE, "echo", ()).body(stream::empty::<Bytes>()).multiple().await;
    assert!(echo.unwrap().is_empty());
    let empties = vec![Bytes::new(); 10_000];
    let echo: Vec<Bytes> =
        pair.client.fetch(SERVICE, "echo", ()).body(stream::iter(empties.clone())).multiple().await.unwrap();
    assert_eq!(echo, empties, "an item without bytes is an item all the same");
}

#[tokio::test]
async fn items_of_every_length_around_the_limits_of_frames_arrive_whole() {
    let pair = pair(methods()).await;
    let lengths = [0, 1, 252, 253, 254, 255, 256, 2047, 2048, 16_384, 65_535, 65_536, 65_537, 66_560, 66_561, 300_000];
    let chunks: Vec<Bytes> = lengths.iter().map(|&len| Bytes::from(vec![len as u8; len])).collect();
    let mixed: Vec<Bytes> = chunks.iter().chain(chunks.iter().rev()).cloned().collect();
    let echo: Vec<Bytes> =
        pair.client.fetch(SERVICE, "echo", ()).body(stream::iter(mixed.clone())).multiple().await.unwrap();
    assert!(echo == mixed, "{} of {} items came back", echo.len(), mixed.len());
}

#[tokio::test]
async fn both_directions_flow_at_the_same_time() {
    let pair = pair(methods()).await;
    let (sender, body) = picom::channel::<Bytes>();
    let mut echo = pair.client.stream::<Bytes>(SERVICE, "echo", ()).body(body).await.unwrap();
    for n in 0..100u8 {
        sender.send(Bytes::from(vec![n])).await.unwrap();
        let back = timeout(support::PATIENCE, echo.next()).await.expect("an item must not wait for the next one");
        assert_eq!(back.unwrap().unwrap(), [n][..]);
    }
    drop(sender);
    assert!(echo.next().await.is_none(), "the end of the body ends the echo");
}

#[tokio::test]
async fn an_early_answer_stops_the_body() {
    let (guards, mut witness) = witness();
    let pair = pair(methods()).await;
    let count = Arc::new(AtomicUsize::new(0));
    let body = endless(KIB, Arc::clone(&count), guards.guard());
    witness.began().await;
    let answer: u64 = pair.client.fetch(SERVICE, "ignore", ()).body(body).await.unwrap();
    let answered = Instant::now();
    assert_eq!(answer, 7);
    witness.ended_promptly(answered).await;
    let read = count.load(Ordering::SeqCst);
    assert!(read < 2 * KIB, "{read} KiB of a body that nobody reads were taken from its source");
}

#[tokio::test]
async fn a_body_is_dropped_with_its_call_although_its_source_is_silent() {
    let (guards, mut witness) = witness();
    let pair = pair(methods()).await;
    // The second call takes the place of the first on the connection at once.
    for round in 0..10 {
        let guard = guards.guard();
        let silent = stream::iter([Bytes::from_static(b"x")]).chain(stream::pending()).map(move |chunk| {
            let _held = &guard;
            chunk
        });
        witness.began().await;
        let mut echo = pair.client.stream::<Bytes>(SERVICE, "echo", ()).body(silent).await.unwrap();
        assert_eq!(echo.next().await.unwrap().unwrap(), b"x"[..]);
        let dropped = Instant::now();
        drop(echo);
        let next = tokio::spawn(pair.client.fetch::<()>(SERVICE, "ping", ()).into_future());
        let took = timeout(PROMPT, witness.ended()).await;
        assert!(took.is_ok(), "round {round}: the source of the body lives on {:?} after its call", dropped.elapsed());
        next.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_caller_sends_no_more_than_the_window_to_a_handler_that_does_not_read() {
    const TOTAL: usize = 4 * 1024;
    let (go, read) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (wait, got) = (Arc::clone(&go), Arc::clone(&read));
    let methods = methods().client_streaming("late", move |_cx: Context, (): (), mut body: Streaming<Bytes>| {
        let (wait, got) = (Arc::clone(&wait), Arc::clone(&got));
        async move {
            wait.notified().await;
            while body.message().await?.is_some() {
                got.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        }
    });
    let pair = pair_with(methods, |server| server.stream_window(64 << 10), |client| client).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let (guards, _witness) = witness();
    let body = endless(KIB, Arc::clone(&sent), guards.guard()).take(TOTAL);
    let call = tokio::spawn(pair.client.fetch::<()>(SERVICE, "late", ()).body(body).into_future());
    let stopped = stands_still(&pair.client, &sent).await;
    // The window, what waits for it (256 KiB), and what is being packed.
    assert!(stopped <= 64 + 256 + 64, "{stopped} KiB were taken from the source for a window of 64 KiB");
    go.notify_one();
    timeout(support::PATIENCE, call).await.expect("the stream goes on once it is read").unwrap().unwrap();
    assert_eq!(read.load(Ordering::SeqCst), TOTAL, "everything arrives in the end");
}

#[tokio::test]
async fn a_handler_sends_no_more_than_the_window_to_a_caller_who_does_not_read() {
    const TOTAL: usize = 4 * 1024;
    let sent = Arc::new(AtomicUsize::new(0));
    let (guards, _witness) = witness();
    let count = Arc::clone(&sent);
    let methods = methods().server_streaming("flood", move |_cx: Context, (): ()| {
        let items = endless(KIB, Arc::clone(&count), guards.guard()).take(TOTAL);
        async move { Ok(items) }
    });
    let pair = pair_with(methods, |server| server, |client| client.stream_window(64 << 10)).await;
    let mut items = pair.client.stream::<Bytes>(SERVICE, "flood", ()).await.unwrap();
    assert!(items.next().await.unwrap().is_ok());
    let stopped = stands_still(&pair.client, &sent).await;
    assert!(stopped <= 64 + 256 + 64, "{stopped} KiB were taken from the handler's stream for a window of 64 KiB");
    let rest = timeout(support::PATIENCE, items.count()).await.expect("the stream goes on once it is read");
    assert_eq!(rest, TOTAL - 1, "everything arrives in the end");
}

#[tokio::test]
async fn streams_that_nobody_reads_hold_the_window_of_the_connection_and_no_more() {
    const STREAMS: usize = 40;
    let sent = Arc::new(AtomicUsize::new(0));
    let (guards, _witness) = witness();
    let count = Arc::clone(&sent);
    let methods = methods().server_streaming("flood", move |_cx: Context, (): ()| {
        let items = endless(16 * KIB, Arc::clone(&count), guards.guard());
        async move { Ok(items) }
    });
    let pair = pair_with(methods, |server| server, |client| client.connection_window(1 << 20)).await;
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        unread.push(pair.client.stream::<Bytes>(SERVICE, "flood", ()).await.unwrap());
    }
    let stopped = stands_still(&pair.client, &sent).await * 16;
    // The window of the connection; per stream what waits for it and what is being packed.
    let most = 1024 + STREAMS * (256 + 48);
    assert!(stopped <= most, "{stopped} KiB were taken from {STREAMS} streams; {most} at most were expected");
    drop(unread);
    let count: usize =
        pair.client.fetch::<u64>(SERVICE, "count", args! { to: 100_000 }).multiple().await.unwrap().len();
    assert_eq!(count, 100_000, "the window is whole again once the unread streams are gone");
}

#[tokio::test]
async fn a_sender_goes_on_as_soon_as_the_network_does() {
    const TOTAL: usize = 32 << 20;
    let wide = |builder: picom::Builder| builder.stream_window(64 << 20).connection_window(128 << 20);
    let pair = pair_with(methods(), wide, wide).await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let registry = Fixed::new([(SERVICE, [proxy.addr.to_string()])]);
    let client = wide(Picom::builder("caller").registry(registry)).build().unwrap();
    client.fetch::<()>(SERVICE, "ping", ()).await.unwrap();
    proxy.set(Mode::Hold);
    let sent = Arc::new(AtomicUsize::new(0));
    let (guards, _witness) = witness();
    let body = endless(8 * KIB, Arc::clone(&sent), guards.guard()).take(TOTAL / 8 / KIB);
    let call = tokio::spawn(client.fetch::<usize>(SERVICE, "length", ()).body(body).into_future());
    let mut before = 0;
    eventually("the kernel takes no more", async || {
        let now = sent.load(Ordering::SeqCst);
        std::mem::replace(&mut before, now) == now && now > 0
    })
    .await;
    proxy.set(Mode::Pass);
    // Less than the three seconds after which the peer would be asked whether it lives, and the silence end by that.
    let total = timeout(Duration::from_millis(2500), call).await;
    assert_eq!(total.expect("the stream stands still although its window is open").unwrap().unwrap(), TOTAL);
}

#[tokio::test]
async fn a_small_call_does_not_wait_for_a_bulk_stream() {
    const BULK: usize = 64 * 16;
    let (guards, _witness) = witness();
    let methods = methods().server_streaming("flood", move |_cx: Context, (): ()| {
        let items = endless(64 * KIB, Arc::default(), guards.guard()).take(BULK);
        async move { Ok(items) }
    });
    let pair = pair(methods).await;
    let bulk = pair.client.stream::<Bytes>(SERVICE, "flood", ()).await.unwrap();
    let read = Arc::new(AtomicUsize::new(0));
    let progress = Arc::clone(&read);
    let bulk = tokio::spawn(bulk.for_each(move |chunk| {
        chunk.unwrap();
        progress.fetch_add(1, Ordering::SeqCst);
        std::future::ready(())
    }));
    let flows = async {
        while read.load(Ordering::SeqCst) < 16 {
            tokio::task::yield_now().await;
        }
    };
    timeout(support::PATIENCE, flows).await.expect("the bulk stream flows");
    let mut worst = 0;
    let mut calls = 0;
    while read.load(Ordering::SeqCst) < BULK / 2 {
        let before = read.load(Ordering::SeqCst);
        pair.client.fetch::<()>(SERVICE, "ping", ()).await.unwrap();
        worst = worst.max(read.load(Ordering::SeqCst) - before);
        calls += 1;
    }
    bulk.await.unwrap();
    assert!(calls > 0, "the bulk stream was over before a small call could be made");
    assert!(worst <= 64, "a small call waited for {} KiB of another stream", worst * 64);
}

#[tokio::test]
async fn an_error_within_a_stream_comes_after_its_items_and_is_no_end() {
    let methods = methods().server_streaming("torn", |_cx: Context, Count { to }: Count| async move {
        let items = stream::iter(0..to).map(Ok::<u64, Status>);
        Ok(items.chain(stream::iter([Err(Status::aborted("enough")), Ok(99)])))
    });
    let pair = pair(methods).await;
    for to in [0, 3, 100_000] {
        let mut items = pair.client.stream::<u64>(SERVICE, "torn", args! { to: to }).await.unwrap();
        for n in 0..to {
            assert_eq!(items.next().await.unwrap().unwrap(), n);
        }
        let error = items.next().await.expect("an error, not the end").unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Aborted, "enough"));
        assert!(items.next().await.is_none(), "nothing comes after an error");
        let error = pair.client.fetch::<u64>(SERVICE, "torn", args! { to: to }).multiple().await.unwrap_err();
        assert_eq!(error.code(), Code::Aborted, "collecting must not hide the error: {error}");
    }
}

#[tokio::test]
async fn a_body_that_fails_reaches_the_handler_as_that_failure() {
    let pair = pair(methods()).await;
    let (sender, body) = picom::channel::<Bytes>();
    let call = tokio::spawn(pair.client.fetch::<usize>(SERVICE, "length", ()).body(body).into_future());
    sender.send(Bytes::from_static(b"abc")).await.unwrap();
    sender.abort(Status::out_of_range("the source ran dry")).await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::OutOfRange, "the source ran dry"));
}

#[tokio::test]
async fn the_answer_of_one_call_can_be_the_body_of_another() {
    let pair = pair(methods()).await;
    let first =
        pair.client.stream::<Bytes>(SERVICE, "echo", ()).body(stream::iter(vec![Bytes::from_static(b"abc"); 9]));
    let first = first.await.unwrap();
    let length: usize = pair.client.fetch(SERVICE, "length", ()).body(first).await.unwrap();
    assert_eq!(length, 27);
}
