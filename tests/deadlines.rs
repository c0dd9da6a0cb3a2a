//! Deadlines and idle limits: who sets them, who enforces them, what they cost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt, stream};
use picom::registry::{Fixed, Memory};
use picom::{Code, Context, Execution, Methods, Picom, Status};
use support::nodes::{Guards, PROMPT, SERVICE, builder, pair, pair_with, witness};
use support::peer::{CALL, END, FIRST, Hello, NAME, Peer, STATUS, Scripted, frame, idle, message};
use tokio::time::{Instant, sleep};

const SHORT: Duration = Duration::from_millis(150);

#[picom::service]
trait Slow {
    #[rpc(deadline = "150ms")]
    async fn limited(&self) -> u64;
    async fn unlimited(&self) -> u64;
    async fn items(&self) -> Result<impl Stream<Item = u64>, Status>;
    /// An item every 50 ms, six in all.
    async fn steady(&self) -> Result<impl Stream<Item = u64>, Status>;
    async fn quick(&self) -> u64;
}

struct Waits(Guards);

impl Slow for Waits {
    async fn limited(&self) -> u64 {
        let _held = self.0.guard();
        std::future::pending().await
    }

    async fn unlimited(&self) -> u64 {
        let _held = self.0.guard();
        std::future::pending().await
    }

    async fn items(&self) -> Result<impl Stream<Item = u64>, Status> {
        let guard = self.0.guard();
        Ok(stream::iter([1]).chain(stream::pending()).map(move |item| {
            let _held = &guard;
            item
        }))
    }

    async fn steady(&self) -> Result<impl Stream<Item = u64>, Status> {
        Ok(stream::iter(0..6).then(|n| async move {
            sleep(SHORT / 3).await;
            n
        }))
    }

    async fn quick(&self) -> u64 {
        let _held = self.0.guard();
        7
    }
}

/// The error says that the time was over, and it came when it was.
fn assert_deadline(error: &Status, since: Instant, limit: Duration) {
    let took = since.elapsed();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(took >= limit && took < limit + Duration::from_secs(2), "took {took:?} instead of {limit:?}: {error}");
    assert_eq!(error.attempts(), 1, "what ran out of time is not tried again: {error}");
}

#[tokio::test]
async fn the_earliest_of_call_method_and_node_counts_and_ends_the_handler() {
    let (guards, mut witness) = witness();
    let pair = pair_with(SlowServer::new(Waits(guards)), |server| server, |client| client.deadline(SHORT)).await;
    let slow: SlowClient = pair.client.client(SERVICE);
    slow.quick().await.unwrap();
    witness.began().await;
    witness.ended().await;
    for what in ["the method's", "the node's", "the call's timeout", "the call's deadline", "the earlier of two"] {
        let begun = Instant::now();
        let call = match what {
            "the method's" => slow.limited().into_future().boxed(),
            "the node's" => slow.unlimited().into_future().boxed(),
            "the call's timeout" => slow.unlimited().timeout(SHORT).into_future().boxed(),
            "the call's deadline" => slow.unlimited().deadline(begun + SHORT).into_future().boxed(),
            _ => slow.unlimited().deadline(begun + SHORT).timeout(Duration::from_secs(9)).into_future().boxed(),
        };
        let error = call.await.unwrap_err();
        witness.began().await;
        assert_deadline(&error, begun, SHORT);
        assert_eq!(error.execution(), Execution::Maybe, "{what}: {error}");
        witness.ended_promptly(begun + SHORT).await;
    }
    let begun = Instant::now();
    let error = slow.limited().timeout(2 * SHORT).await.unwrap_err();
    assert_deadline(&error, begun, 2 * SHORT);
    assert!(error.message().contains("no answer within"), "{error}");
}

#[tokio::test]
async fn the_server_ends_a_handler_at_the_deadline_although_its_caller_says_nothing() {
    let (guards, mut witness) = witness();
    let pair = pair(SlowServer::new(Waits(guards))).await;
    let mut caller = Peer::connect(pair.exposed.local_addr(), &Hello::client(SERVICE)).await;
    let name = b"unlimited";
    let head = [&[0, 0, name.len() as u8][..], name, &150u32.to_be_bytes(), &[0], &message(&[0xc0])].concat();
    let sent = Instant::now();
    caller.send(&frame(CALL, END | NAME, FIRST, &head)).await;
    witness.began().await;
    let status = caller.next(STATUS).await;
    assert!(sent.elapsed() >= SHORT, "the deadline was {SHORT:?}, the answer came after {:?}", sent.elapsed());
    witness.ended_promptly(sent + SHORT).await;
    let code = status.payload.windows(6).find(|part| &part[..5] == b"\xa4code").map(|part| part[5]);
    assert_eq!(code, Some(4), "{:?}", String::from_utf8_lossy(&status.payload));
}

#[tokio::test]
async fn a_call_whose_time_is_over_before_it_begins_is_not_sent() {
    let (guards, _witness) = witness();
    let pair = pair(SlowServer::new(Waits(guards.clone()))).await;
    let slow: SlowClient = pair.client.client(SERVICE);
    for connected in [false, true] {
        let past = Instant::now() - Duration::from_secs(1);
        for call in [slow.quick().timeout(Duration::ZERO), slow.quick().deadline(past)] {
            let error = call.await.unwrap_err();
            assert_eq!(error.code(), Code::DeadlineExceeded, "connected: {connected}: {error}");
            assert_eq!(error.execution(), Execution::Never, "connected: {connected}: {error}");
        }
        assert_eq!(guards.made(), usize::from(connected), "connected: {connected}: a handler ran");
        if !connected {
            slow.quick().await.unwrap();
        }
    }
}

#[tokio::test]
async fn connecting_takes_no_longer_than_the_deadline() {
    let mute = Scripted::start(|peer, _| idle(peer)).await;
    let registry = Fixed::new([(SERVICE, [mute.addr.to_string()])]);
    let client = Picom::builder("caller").registry(registry).build().unwrap();
    let begun = Instant::now();
    let error = client.fetch::<u64>(SERVICE, "quick", ()).timeout(SHORT).await.unwrap_err();
    assert_deadline(&error, begun, SHORT);
    assert_eq!(error.execution(), Execution::Never, "{error}");
    assert!(error.message().contains("connecting"), "{error}");
}

#[tokio::test]
async fn waiting_for_a_place_takes_no_longer_than_the_deadline() {
    let (guards, mut witness) = witness();
    let service = SlowServer::new(Waits(guards.clone()));
    let one = |client: picom::Builder| client.max_connections_per_endpoint(1);
    let pair = pair_with(service, |server| server.max_calls(1), one).await;
    let slow: SlowClient = pair.client.client(SERVICE);
    let first = tokio::spawn(slow.unlimited().into_future());
    witness.began().await;
    let begun = Instant::now();
    let error = slow.quick().timeout(SHORT).await.unwrap_err();
    assert_deadline(&error, begun, SHORT);
    assert_eq!(error.execution(), Execution::Never, "{error}");
    assert!(error.message().contains("limit of open calls"), "{error}");
    first.abort();
    assert_eq!(slow.quick().await.unwrap(), 7);
}

#[tokio::test]
async fn a_nested_call_ends_with_its_callers_deadline() {
    let (guards, mut witness) = witness();
    let registry = Memory::new();
    let inner = builder("inner", &registry).build().unwrap();
    inner.expose(SlowServer::new(Waits(guards))).await.unwrap();
    let outer = builder(SERVICE, &registry).build().unwrap();
    let slow: SlowClient = outer.client("inner");
    let methods = Methods::new().unary("nested", move |_cx: Context, (): ()| {
        let call = slow.unlimited();
        async move { call.await }
    });
    outer.expose(methods).await.unwrap();
    let client = builder("caller", &registry).build().unwrap();
    let begun = Instant::now();
    let error = client.fetch::<u64>(SERVICE, "nested", ()).timeout(SHORT).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    witness.began().await;
    witness.ended_promptly(begun + SHORT).await;
}

#[tokio::test]
async fn a_stream_ends_when_nothing_moves_and_not_before() {
    let (guards, mut witness) = witness();
    let service = SlowServer::new(Waits(guards));
    let pair = pair_with(service, |server| server, |client| client.deadline(SHORT).stream_idle(SHORT)).await;
    let slow: SlowClient = pair.client.client(SERVICE);
    let steady = slow.steady().await.unwrap().collect_vec(9).await;
    assert_eq!(steady.expect("a stream that moves lives longer than its idle limit"), [0, 1, 2, 3, 4, 5]);
    for call in [slow.items(), slow.items().idle_timeout(SHORT / 2)] {
        let mut items = call.await.unwrap();
        witness.began().await;
        assert_eq!(items.next().await.unwrap().unwrap(), 1);
        let moved = Instant::now();
        let error = items.next().await.expect("an idle limit is no end").unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(error.message().contains("idle_timeout"), "the error names the option: {error}");
        // When the last item came is known only to within one limit.
        assert!(moved.elapsed() < 2 * SHORT + PROMPT, "took {:?}", moved.elapsed());
        witness.ended_promptly(Instant::now()).await;
    }
    let forever = slow.items().idle_timeout(Duration::MAX).await.unwrap();
    let mut forever = Box::pin(forever.skip(1));
    tokio::select! {
        item = forever.next() => panic!("{item:?} although the stream may rest for ever"),
        () = sleep(2 * SHORT) => {}
    }
}

#[tokio::test]
async fn a_reader_that_takes_its_time_is_not_an_idle_peer() {
    let methods =
        Methods::new().server_streaming("much", |_cx: Context, (): ()| async move { Ok(stream::iter(0..100_000u64)) });
    let pair = pair_with(methods, |server| server, |client| client.stream_idle(SHORT).stream_window(16 << 10)).await;
    let mut items = pair.client.stream::<u64>(SERVICE, "much", ()).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), 0);
    sleep(2 * SHORT).await;
    let rest = items.collect_vec(100_000).await.expect("what waits to be read is not idle");
    assert_eq!(rest.len(), 99_999);
}

#[tokio::test]
async fn a_stream_has_a_deadline_only_if_one_is_asked_for() {
    let (guards, mut witness) = witness();
    let service = SlowServer::new(Waits(guards));
    let pair = pair_with(service, |server| server, |client| client.deadline(SHORT)).await;
    let slow: SlowClient = pair.client.client(SERVICE);
    let begun = Instant::now();
    let mut items = slow.items().timeout(SHORT).await.unwrap();
    witness.began().await;
    assert_eq!(items.next().await.unwrap().unwrap(), 1);
    let error = items.next().await.expect("a deadline is no end").unwrap_err();
    assert_deadline(&error, begun, SHORT);
    assert!(begun.elapsed() < SHORT + PROMPT + PROMPT, "took {:?}", begun.elapsed());
    witness.ended_promptly(begun + SHORT).await;
    assert_eq!(slow.steady().await.unwrap().count().await, 6, "the node's deadline is not for streams");
}

#[tokio::test]
async fn the_longest_times_that_can_be_written_are_for_ever() {
    let (guards, _witness) = witness();
    let forever = [Duration::MAX, Duration::MAX - Duration::from_nanos(1), Duration::from_secs(u64::MAX / 2)];
    for long in forever {
        let options = |builder: picom::Builder| {
            let builder = builder.deadline(long).stream_idle(long).resolve_wait(long).connect_timeout(long);
            builder.handshake_timeout(long).drain_delay(Duration::ZERO).drain_timeout(long)
        };
        let pair = pair_with(SlowServer::new(Waits(guards.clone())), options, options).await;
        let slow: SlowClient = pair.client.client(SERVICE);
        assert_eq!(slow.quick().await.unwrap(), 7, "{long:?}");
        assert_eq!(slow.quick().timeout(long).await.unwrap(), 7, "{long:?}");
        let items = slow.steady().timeout(long).idle_timeout(long).await.unwrap();
        assert_eq!(items.collect_vec(9).await.unwrap().len(), 6, "{long:?}");
        let nobody = pair.client.fetch::<u64>("nobody", "quick", ()).timeout(SHORT).await.unwrap_err();
        assert_eq!(nobody.execution(), Execution::Never, "{long:?}: {nobody}");
        pair.server.end().await.unwrap();
    }
}
