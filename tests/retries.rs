//! Which failures are tried again elsewhere, how often, and what the error says in the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{Stream, stream};
use picom::balance::RoundRobin;
use picom::registry::Fixed;
use picom::{Builder, Bytes, Code, Context, Execution, Methods, Picom, Status, Streaming};
use support::nodes::{Pair, SERVICE, pair};
use support::peer::{ANSWER, CALL, CLOSE, DRAIN, END, Hello, Peer, Scripted, frame, message, nobody};
use support::proxy::Proxy;
use tokio::time::{Instant, timeout};

/// A server whose calls are counted.
struct Good {
    pair: Pair,
    ran: Arc<AtomicUsize>,
}

async fn good() -> Good {
    let ran = Arc::new(AtomicUsize::new(0));
    let (once, again, sum) = (Arc::clone(&ran), Arc::clone(&ran), Arc::clone(&ran));
    let methods = Methods::new()
        .unary("once", move |_cx: Context, (): ()| {
            once.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, Status>(7u64) }
        })
        .unary("again", move |cx: Context, (): ()| {
            again.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, Status>(u64::from(cx.attempt())) }
        })
        .idempotent()
        .client_streaming("length", move |_cx: Context, (): (), mut body: Streaming<Bytes>| {
            sum.fetch_add(1, Ordering::SeqCst);
            async move {
                let mut total = 0;
                while let Some(chunk) = body.message().await? {
                    total += chunk.len();
                }
                Ok(total)
            }
        })
        .server_streaming("items", |_cx: Context, (): ()| async move { Ok(stream::iter([1u64, 2])) });
    Good { pair: pair(methods).await, ran }
}

impl Good {
    fn addr(&self) -> SocketAddr {
        self.pair.exposed.local_addr()
    }

    fn ran(&self) -> usize {
        self.ran.load(Ordering::SeqCst)
    }
}

/// A node that knows these endpoints of the service.
fn caller(endpoints: &[SocketAddr]) -> Picom {
    caller_with(endpoints, |builder| builder)
}

fn caller_with(endpoints: &[SocketAddr], options: impl FnOnce(Builder) -> Builder) -> Picom {
    let registry = Fixed::new([(SERVICE, endpoints.iter().map(ToString::to_string).collect::<Vec<_>>())]);
    // In turn, so that each test soon meets the endpoint that it is about.
    options(Picom::builder("caller").registry(registry).balance(RoundRobin)).build().unwrap()
}

/// A scripted server that shakes hands and then gets every call.
async fn answering<F>(on_call: impl Fn(Peer, u32) -> F + Clone + Send + Sync + 'static) -> Scripted
where
    F: Future<Output = Peer> + Send + 'static,
{
    let hello = Hello { idempotent: vec!["again".into()], stream_window: 4 << 20, ..Hello::server(SERVICE) };
    Scripted::start(move |mut peer, _| {
        let (hello, on_call) = (hello.clone(), on_call.clone());
        async move {
            peer.greet(&hello).await;
            while let Some(frame) = peer.frame().await {
                if frame.kind == CALL {
                    peer = on_call(peer, frame.stream).await;
                }
            }
        }
    })
    .await
}

/// One that takes a call and dies of it.
async fn deadly() -> Scripted {
    let hello = Hello { idempotent: vec!["again".into()], ..Hello::server(SERVICE) };
    Scripted::start(move |mut peer, _| {
        let hello = hello.clone();
        async move {
            peer.greet(&hello).await;
            peer.next(CALL).await;
        }
    })
    .await
}

/// Calls until the turn of the endpoint that fails has come; endpoints take turns, so that is soon.
async fn until_it_was_tried_twice(client: &Picom, method: &str) {
    for _ in 0..4 {
        let (_, info) = client.fetch::<u64>(SERVICE, method, ()).with_info().await.unwrap();
        if info.attempts() == 2 {
            return;
        }
        assert_eq!(info.attempts(), 1, "there are only two endpoints");
    }
    panic!("four calls in turn never met the endpoint that fails");
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    let good = good().await;
    let client = caller(&[nobody().await, good.addr()]);
    until_it_was_tried_twice(&client, "once").await;
    let before = good.ran();
    for n in 1..=20 {
        client.fetch::<u64>(SERVICE, "once", ()).await.unwrap();
        assert_eq!(good.ran(), before + n, "each call runs once");
    }
}

#[tokio::test]
async fn a_peer_that_is_not_the_service_is_left_for_another() {
    let good = good().await;
    let other = Scripted::start(|mut peer, _| async move { peer.greet(&Hello::server("another")).await }).await;
    let client = caller(&[other.addr, good.addr()]);
    until_it_was_tried_twice(&client, "once").await;
    let error = caller(&[other.addr]).fetch::<u64>(SERVICE, "once", ()).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");
    assert!(error.message().contains("another") && error.message().contains(SERVICE), "{error}");
}

#[tokio::test]
async fn a_call_that_was_refused_is_tried_elsewhere_whatever_the_method() {
    for (reason, text) in [(1, "busy"), (2, "leaving")] {
        let good = good().await;
        let refusing = answering(move |mut peer, stream| async move {
            peer.refuse(stream, reason, 0, "not now").await;
            peer
        })
        .await;
        until_it_was_tried_twice(&caller(&[refusing.addr, good.addr()]), "once").await;
        let error = caller(&[refusing.addr]).fetch::<u64>(SERVICE, "once", ()).retries(1).await.unwrap_err();
        assert_eq!(error.execution(), Execution::Never, "{error}");
        assert_eq!(error.attempts(), 2, "{error}");
        assert!(error.message().contains(text) && error.message().contains("not now"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_says_when_to_come_back_is_obeyed() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let busy_once = answering(move |mut peer, stream| {
        let count = Arc::clone(&count);
        async move {
            match count.fetch_add(1, Ordering::SeqCst) {
                0 => peer.refuse(stream, 1, 200, "").await,
                _ => peer.answer(stream, &[7]).await,
            }
            peer
        }
    })
    .await;
    let begun = Instant::now();
    assert_eq!(caller(&[busy_once.addr]).fetch::<u64>(SERVICE, "once", ()).await.unwrap(), 7);
    assert!(begun.elapsed() >= Duration::from_millis(200), "came back after {:?}", begun.elapsed());
}

#[tokio::test]
async fn what_one_busy_server_asks_for_delays_no_call_that_another_can_take() {
    const HOUR: u32 = 3_600_000;
    let good = good().await;
    let busy = answering(|mut peer, stream| async move {
        peer.refuse(stream, 1, HOUR, "").await;
        peer
    })
    .await;
    let client = caller(&[busy.addr, good.addr()]);
    let begun = Instant::now();
    until_it_was_tried_twice(&client, "once").await;
    for n in 0..10 {
        let (_, info) = client.fetch::<u64>(SERVICE, "once", ()).with_info().await.unwrap();
        assert_eq!(info.attempts(), 1, "call {n} asked a server that had just refused");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "the calls took {:?}", begun.elapsed());
    // Nobody else can take it, and no deadline ends the wait.
    let call = caller(&[busy.addr]).fetch::<u64>(SERVICE, "once", ()).multiple().into_future();
    let error = timeout(Duration::from_secs(2), call).await.expect("a call waits an hour because a server says so");
    let error = error.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::ResourceExhausted, Execution::Never), "{error}");
    assert_eq!(error.retry_after(), Some(Duration::from_millis(HOUR.into())), "{error}");
}

#[tokio::test]
async fn calls_behind_a_drain_are_tried_elsewhere_and_calls_before_it_finish() {
    let good = good().await;
    // The drain says that no call was accepted.
    let leaving = answering(|mut peer, _| async move {
        peer.send(&frame(DRAIN, 0, 0, &0u64.to_be_bytes())).await;
        peer
    })
    .await;
    until_it_was_tried_twice(&caller(&[leaving.addr, good.addr()]), "once").await;
    let finishing = answering(|mut peer, stream| async move {
        peer.send(&frame(DRAIN, 0, 0, &1u64.to_be_bytes())).await;
        peer.answer(stream, &[9]).await;
        peer
    })
    .await;
    let client = caller(&[finishing.addr]);
    for n in 1..=2 {
        let (answer, info) = client.fetch::<u64>(SERVICE, "once", ()).with_info().await.unwrap();
        assert_eq!((answer, info.attempts()), (9, 1));
        assert_eq!(finishing.accepted(), n, "a server that leaves gets no further call on its old connection");
    }
}

#[tokio::test]
async fn a_lost_connection_is_tried_again_only_where_that_is_safe() {
    let good = good().await;
    let deadly = deadly().await;
    let client = caller(&[deadly.addr, good.addr()]);
    // Idempotent by the word of the server's hello.
    until_it_was_tried_twice(&client, "again").await;
    // By the word of the caller.
    let alone = caller(&[deadly.addr]);
    let error = alone.fetch::<u64>(SERVICE, "once", ()).idempotent().retries(2).await.unwrap_err();
    assert_eq!(error.attempts(), 3, "{error}");
    // Not at all.
    let (ran, died) = (good.ran(), deadly.accepted());
    let error = loop {
        match client.fetch::<u64>(SERVICE, "once", ()).await {
            Ok(answer) => assert_eq!(answer, 7),
            Err(error) => break error,
        }
        assert!(good.ran() < ran + 50, "the endpoint that fails was never tried again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        (error.code(), error.execution(), error.attempts()),
        (Code::Unavailable, Execution::Maybe, 1),
        "{error}"
    );
    assert!(error.to_string().contains("the handler may have run"), "{error}");
    assert_eq!(deadly.accepted(), died + 1, "the call that failed was sent more than once");
}

#[tokio::test]
async fn the_error_of_a_last_attempt_that_never_ran_does_not_hide_one_that_may_have() {
    let hello = Hello::server(SERVICE);
    let once_alive = Scripted::start(move |mut peer, number| {
        let hello = hello.clone();
        async move {
            // Whoever connects again finds nobody.
            if number == 0 {
                peer.greet(&hello).await;
                peer.next(CALL).await;
            }
        }
    })
    .await;
    let client = caller(&[once_alive.addr]);
    let error = client.fetch::<u64>(SERVICE, "once", ()).idempotent().await.unwrap_err();
    assert_eq!((error.code(), error.attempts()), (Code::Unavailable, 4), "{error}");
    assert_eq!(error.execution(), Execution::Maybe, "{error}");
}

#[tokio::test]
async fn an_answer_that_has_begun_is_never_begun_again() {
    let good = good().await;
    let torn = answering(|mut peer, stream| async move {
        peer.send(&frame(ANSWER, 0, stream, &message(&[1]))).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut peer.socket).await;
        peer
    })
    .await;
    let client = caller(&[torn.addr, good.addr()]);
    let mut failed = 0;
    for _ in 0..4 {
        let mut items = client.stream::<u64>(SERVICE, "items", ()).idempotent().await.unwrap();
        assert_eq!(items.next().await.unwrap().unwrap(), 1);
        match items.next().await.expect("a lost connection is no end of a stream") {
            Ok(second) => assert_eq!(second, 2, "the beginning of another answer"),
            Err(error) => {
                assert_eq!((error.code(), error.attempts()), (Code::Unavailable, 1), "{error}");
                failed += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(failed > 0, "the endpoint that fails was never called");
}

#[tokio::test]
async fn the_number_of_attempts_is_limited_and_said() {
    let dead = nobody().await;
    let client = caller(&[dead]);
    for (retries, attempts) in [(0, 1), (1, 2), (3, 4), (99, 5)] {
        let error = client.fetch::<u64>(SERVICE, "once", ()).retries(retries).await.unwrap_err();
        assert_eq!(error.attempts(), attempts, "{error}");
        let expected = format!(
            "unavailable: {SERVICE}.once at {dead}: connection refused (attempt {attempts} of {attempts}; the handler never ran)"
        );
        assert_eq!(error.to_string(), expected);
    }
    let error = client.fetch::<u64>(SERVICE, "once", ()).await.unwrap_err();
    assert_eq!(error.attempts(), 4, "the default is three retries: {error}");
    let none = caller_with(&[dead], |builder| builder.retries(0));
    assert_eq!(none.fetch::<u64>(SERVICE, "once", ()).await.unwrap_err().attempts(), 1);
}

#[tokio::test]
async fn what_the_handler_or_the_caller_did_wrong_is_not_tried_again() {
    let methods = Methods::new()
        .unary("fail", |_cx: Context, (): ()| async move { Err::<u64, _>(Status::unavailable("closed on sundays")) })
        .idempotent();
    let pair = pair(methods).await;
    let error = pair.client.fetch::<u64>(SERVICE, "fail", ()).await.unwrap_err();
    assert_eq!((error.attempts(), error.execution()), (1, Execution::Done), "{error}");
    let error = pair.client.fetch::<u64>(SERVICE, "fial", ()).idempotent().await.unwrap_err();
    assert_eq!((error.code(), error.attempts()), (Code::Unimplemented, 1), "{error}");
}

/// A server that answers with these errors, one after the other, and then well.
async fn failing(errors: Vec<Status>) -> (Pair, Arc<AtomicUsize>) {
    let ran = Arc::new(AtomicUsize::new(0));
    let (unary, items, first) = (Arc::clone(&ran), Arc::clone(&ran), Arc::clone(&ran));
    let errors = Arc::new(errors);
    let (errors_of_items, errors_of_first) = (Arc::clone(&errors), Arc::clone(&errors));
    let next = |ran: &AtomicUsize, errors: &[Status]| errors.get(ran.fetch_add(1, Ordering::SeqCst)).cloned();
    let methods = Methods::new()
        .unary("work", move |_cx: Context, (): ()| {
            let error = next(&unary, &errors);
            async move { error.map_or(Ok(7u64), Err) }
        })
        .server_streaming("items", move |_cx: Context, (): ()| {
            let error = next(&items, &errors_of_items);
            async move { error.map_or(Ok(stream::iter([7u64])), Err) }
        })
        .server_streaming("first", move |_cx: Context, (): ()| {
            let error = next(&first, &errors_of_first);
            async move { Ok(stream::iter([error.map_or(Ok(7u64), Err)])) }
        });
    (pair(methods).await, ran)
}

fn conflict() -> Status {
    Status::aborted("lost against another one").retryable()
}

#[tokio::test]
async fn a_call_is_tried_again_if_its_handler_says_that_it_may_be() {
    // Not idempotent.
    for method in ["work", "items"] {
        let (pair, ran) = failing(vec![conflict(), conflict()]).await;
        let (answer, info) = pair.client.fetch::<u64>(SERVICE, method, ()).with_info().await.unwrap();
        assert_eq!((answer, info.attempts(), ran.load(Ordering::SeqCst)), (7, 3, 3), "{method}");
    }
    let (pair, ran) = failing(vec![conflict(); 9]).await;
    let error = pair.client.fetch::<u64>(SERVICE, "work", ()).await.unwrap_err();
    assert_eq!((error.code(), error.execution(), error.attempts()), (Code::Aborted, Execution::Done, 4), "{error}");
    assert!(error.is_retryable(), "the caller is not told: {error}");
    assert_eq!(ran.load(Ordering::SeqCst), 4);

    // One past it: no such word, or with an item, when the answer has begun.
    for (error, method) in [(Status::aborted("lost"), "work"), (conflict(), "first")] {
        let (pair, ran) = failing(vec![error]).await;
        let error = pair.client.fetch::<u64>(SERVICE, method, ()).await.unwrap_err();
        assert_eq!((error.code(), error.attempts(), ran.load(Ordering::SeqCst)), (Code::Aborted, 1, 1), "{error}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
enum BookingError {
    Conflict,
    Taken,
}

#[picom::service]
trait Booking {
    async fn book(&self, cx: &Context, seat: u32) -> Result<u32, BookingError>;
    async fn seats(&self, cx: &Context, row: u32) -> Result<impl Stream<Item = u32>, BookingError>;
    async fn offers(&self, cx: &Context) -> Result<impl Stream<Item = Result<u32, BookingError>>, BookingError>;
}

/// Fails with these errors, one after the other, and then not; conflicts may be tried again.
struct Theatre {
    errors: Vec<BookingError>,
    ran: Arc<AtomicUsize>,
}

impl Theatre {
    fn next(&self, cx: &Context) -> Result<(), BookingError> {
        let Some(error) = self.errors.get(self.ran.fetch_add(1, Ordering::SeqCst)) else { return Ok(()) };
        if *error == BookingError::Conflict {
            cx.allow_retry();
        }
        Err(*error)
    }
}

impl Booking for Theatre {
    async fn book(&self, cx: &Context, seat: u32) -> Result<u32, BookingError> {
        self.next(cx).map(|()| seat)
    }

    async fn seats(&self, cx: &Context, row: u32) -> Result<impl Stream<Item = u32>, BookingError> {
        self.next(cx).map(|()| stream::iter([row]))
    }

    async fn offers(&self, cx: &Context) -> Result<impl Stream<Item = Result<u32, BookingError>>, BookingError> {
        Ok(stream::iter([self.next(cx).map(|()| 7)]))
    }
}

async fn theatre(errors: &[BookingError]) -> (Pair, BookingClient, Arc<AtomicUsize>) {
    let ran = Arc::new(AtomicUsize::new(0));
    let pair = pair(BookingServer::new(Theatre { errors: errors.to_vec(), ran: Arc::clone(&ran) })).await;
    let client = pair.client.client(SERVICE);
    (pair, client, ran)
}

#[tokio::test]
async fn a_method_with_an_error_type_of_its_own_can_say_that_it_may_be_tried_again() {
    use BookingError::{Conflict, Taken};
    // None of them is idempotent.
    let (_pair, client, ran) = theatre(&[Conflict, Conflict]).await;
    let (seat, info) = client.book(12).with_info().await.unwrap();
    assert_eq!((seat, info.attempts(), ran.load(Ordering::SeqCst)), (12, 3, 3));
    let (_pair, client, ran) = theatre(&[Conflict]).await;
    let mut seats = client.seats(3).await.unwrap();
    assert_eq!((seats.next().await.unwrap().unwrap(), ran.load(Ordering::SeqCst)), (3, 2));

    // The error is the caller's as it is, however often it was tried.
    let (pair, client, ran) = theatre(&[Conflict; 9]).await;
    assert_eq!(client.book(12).await.unwrap_err().app(), Some(&Conflict));
    assert_eq!(ran.load(Ordering::SeqCst), 4);
    let error = pair.client.fetch::<u32>(SERVICE, "book", picom::args! { seat: 12 }).retries(1).await.unwrap_err();
    assert_eq!(
        (error.attempts(), error.application_error(), error.is_retryable()),
        (2, Some(Conflict), true),
        "{error}"
    );

    // One past it: nothing was said, or it was said of an answer that had begun.
    let (_pair, client, ran) = theatre(&[Conflict, Taken]).await;
    assert_eq!(client.book(12).await.unwrap_err().app(), Some(&Taken));
    assert_eq!(ran.load(Ordering::SeqCst), 2, "what was said of one attempt holds for the next one");
    let (_pair, client, ran) = theatre(&[Conflict]).await;
    let mut offers = client.offers().await.unwrap();
    assert_eq!(offers.next().await.unwrap().unwrap_err().app(), Some(&Conflict));
    assert_eq!(ran.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_says_when_is_obeyed_up_to_thirty_seconds() {
    const LONGEST: Duration = Duration::from_secs(30);
    let millisecond = Duration::from_millis(1);
    for (after, attempts) in [(70 * millisecond, 2), (LONGEST, 2), (LONGEST + millisecond, 1)] {
        let registry = picom::registry::Memory::new();
        let node = || Picom::builder(SERVICE).registry(registry.clone()).in_memory().build().unwrap();
        let nodes = [node(), node()];
        let ran = Arc::new(AtomicUsize::new(0));
        for node in &nodes {
            let ran = Arc::clone(&ran);
            let work = move |_cx: Context, (): ()| {
                let fails = ran.fetch_add(1, Ordering::SeqCst) == 0;
                async move { if fails { Err(conflict().with_retry_after(after)) } else { Ok(7u64) } }
            };
            node.expose(Methods::new().unary("work", work)).await.unwrap();
        }
        let client = Picom::builder("caller").registry(registry).build().unwrap();
        let begun = Instant::now();
        let answer = client.fetch::<u64>(SERVICE, "work", ()).timeout(2 * LONGEST).with_info().await;
        // It speaks of what it works on and not of itself, so another host is no faster.
        match answer {
            Ok((_, info)) => assert_eq!((info.attempts(), begun.elapsed() >= after), (attempts, true), "{after:?}"),
            Err(error) => assert_eq!((error.attempts(), error.retry_after()), (attempts, Some(after)), "{error}"),
        }
    }
    // Beyond the deadline nobody waits.
    let (pair, _) = failing(vec![conflict().with_retry_after(LONGEST)]).await;
    let begun = Instant::now();
    let call = pair.client.fetch::<u64>(SERVICE, "work", ()).timeout(LONGEST - millisecond);
    let error = call.await.unwrap_err();
    assert_eq!((error.code(), error.attempts()), (Code::Aborted, 1), "{error}");
    assert!(begun.elapsed() < LONGEST / 2, "it waited {:?} for nothing", begun.elapsed());
}

#[tokio::test]
async fn what_was_tried_again_by_one_caller_is_not_tried_again_by_its_own() {
    let (inner, ran) = failing(vec![conflict(); 99]).await;
    let caller = inner.client.clone();
    let methods = Methods::new().unary("outer", move |_cx: Context, (): ()| {
        let caller = caller.clone();
        async move { caller.fetch::<u64>(SERVICE, "work", ()).await }
    });
    let outer = pair(methods).await;
    let error = outer.client.fetch::<u64>(SERVICE, "outer", ()).await.unwrap_err();
    assert_eq!((error.code(), error.attempts(), error.is_retryable()), (Code::Aborted, 1, false), "{error}");
    assert_eq!(ran.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_call_can_be_tied_to_an_endpoint() {
    let (first, second) = (good().await, good().await);
    let client = caller(&[first.addr(), second.addr()]);
    for n in 1..=5 {
        let (_, info) = client.fetch::<u64>(SERVICE, "once", ()).on(second.addr()).with_info().await.unwrap();
        assert_eq!(info.endpoint(), second.addr());
        assert_eq!((first.ran(), second.ran()), (0, n));
    }
    let unlisted = good().await;
    let proxy = Proxy::start(unlisted.addr()).await;
    for n in 1..=5 {
        client.fetch::<u64>(SERVICE, "once", ()).on(proxy.addr).await.unwrap();
        assert_eq!((unlisted.ran(), proxy.connections()), (n, 1), "calls tied to one endpoint share a connection");
    }
    let dead = nobody().await;
    let error = client.fetch::<u64>(SERVICE, "once", ()).on(dead).await.unwrap_err();
    assert_eq!(error.endpoint(), Some(dead.to_string().as_str()), "a tied call goes nowhere else: {error}");
    assert_eq!((first.ran(), second.ran()), (0, 5));
}

/// Refuses each call after its body has come, or more of it than a caller remembers.
async fn refuses_late() -> Scripted {
    answering(|mut peer, stream| async move {
        let mut seen = 0;
        while let Some(frame) = peer.frame().await {
            seen += frame.payload.len();
            if frame.flags & END != 0 || seen > 700 << 10 || frame.kind == CLOSE {
                break;
            }
        }
        peer.refuse(stream, 1, 0, "not now").await;
        peer
    })
    .await
}

#[tokio::test]
async fn a_short_body_is_sent_again_and_a_long_one_is_not() {
    let good = good().await;
    let refusing = refuses_late().await;
    let client = caller(&[refusing.addr, good.addr()]);
    for turn in 0.. {
        let body = stream::iter(vec![Bytes::from(vec![1; 1000]); 60]);
        let (length, info) = client.fetch::<usize>(SERVICE, "length", ()).body(body).with_info().await.unwrap();
        assert_eq!(length, 60_000, "the whole body is there in attempt {}", info.attempts());
        if info.attempts() == 2 {
            break;
        }
        assert!(turn < 4, "calls in turn never met the server that refuses");
    }
    let long = stream::iter(vec![Bytes::from(vec![1; 1000]); 2000]);
    let error = caller(&[refusing.addr]).fetch::<usize>(SERVICE, "length", ()).body(long).await.unwrap_err();
    assert_eq!((error.attempts(), error.execution()), (1, Execution::Never), "{error}");
    let body = stream::empty::<Bytes>();
    let error = caller(&[refusing.addr]).fetch::<usize>(SERVICE, "length", ()).body(body).retries(1).await.unwrap_err();
    assert_eq!(error.attempts(), 2, "{error}");
}

#[tokio::test]
async fn retries_end_when_their_budget_does() {
    let client = caller(&[nobody().await]);
    let calls = (0..200).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.fetch::<u64>(SERVICE, "once", ()).await.unwrap_err() })
    });
    let mut attempts = 0;
    let mut exhausted = 0;
    for call in calls.collect::<Vec<_>>() {
        let error = call.await.unwrap();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains("connection refused"), "the reason stays: {error}");
        attempts += error.attempts() - 1;
        exhausted += usize::from(error.message().contains("retry budget"));
    }
    // A fifth of the calls, and ten a second over the ten seconds that are looked back over.
    assert_eq!(attempts, 200 / 5 + 100, "retries of 200 calls that all fail");
    assert!(exhausted > 0, "nobody was told that the budget is used up");
}
