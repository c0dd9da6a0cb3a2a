//! Calls of every kind, typed and by name, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt, stream};
use picom::registry::{Fixed, Memory};
use picom::{Bytes, CallError, Code, Context, Execution, Methods, Picom, Status, Streaming, args};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use support::nodes::{SERVICE, pair, pair_with};
use support::proxy::Proxy;
use tokio::sync::Barrier;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum MathError {
    DivisionByZero,
}

#[picom::service]
trait Calculator {
    #[rpc(idempotent, deadline = "500ms")]
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status>;
    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status>;
    async fn sum(&self, numbers: Streaming<i64>) -> Result<i64, Status>;
    async fn echo(
        &self,
        cx: &Context,
        body: Streaming<Bytes>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status>;
    async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError>;
    async fn now(&self) -> u64;
}

struct Calc;

impl Calculator for Calc {
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status> {
        Ok(a + b)
    }

    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status> {
        Ok(stream::iter(0..to))
    }

    async fn sum(&self, mut numbers: Streaming<i64>) -> Result<i64, Status> {
        let mut sum = 0;
        while let Some(number) = numbers.message().await? {
            sum += number;
        }
        Ok(sum)
    }

    async fn echo(
        &self,
        _cx: &Context,
        body: Streaming<Bytes>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status> {
        Ok(body)
    }

    async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError> {
        a.checked_div(b).ok_or(MathError::DivisionByZero)
    }

    async fn now(&self) -> u64 {
        7
    }
}

#[derive(Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

#[derive(Deserialize)]
struct Count {
    to: u64,
}

fn node(name: &str, registry: &Memory) -> Picom {
    Picom::builder(name).registry(registry.clone()).bind("127.0.0.1").build().unwrap()
}

async fn typed() -> (Picom, Picom, CalculatorClient) {
    let registry = Memory::new();
    let server = node("service1", &registry);
    server.expose(CalculatorServer::new(Calc)).await.unwrap();
    let client = node("service2", &registry);
    let calc = client.client("service1");
    (server, client, calc)
}

#[tokio::test]
async fn typed_calls_of_every_kind() {
    let (server, _client, calc) = typed().await;
    assert_eq!(calc.add(2, 5).await.unwrap(), 7);
    assert_eq!(calc.now().await.unwrap(), 7);
    let items: Vec<u64> = calc.count(3).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(items, [0, 1, 2]);
    assert_eq!(calc.sum(stream::iter(1..=10)).await.unwrap(), 55);
    let chunks = vec![Bytes::from_static(b"a"), Bytes::from(vec![7; 100_000]), Bytes::new()];
    let echoed: Vec<Bytes> = calc.echo(stream::iter(chunks.clone())).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(echoed, chunks);
    let error: CallError<MathError> = calc.divide(1, 0).await.unwrap_err();
    assert_eq!(error.app(), Some(&MathError::DivisionByZero), "{error}");
    server.end().await.unwrap();
}

#[tokio::test]
async fn the_same_by_name() {
    let registry = Memory::new();
    let server = node("service1", &registry);
    server
        .expose(
            Methods::new()
                .unary("add", |_cx: Context, Add { a, b }: Add| async move { Ok::<_, Status>(a + b) })
                .server_streaming("count", |_cx: Context, Count { to }: Count| async move { Ok(stream::iter(0..to)) })
                .client_streaming("sum", |_cx: Context, (): (), mut body: Streaming<i64>| async move {
                    let mut sum = 0;
                    while let Some(number) = body.message().await? {
                        sum += number;
                    }
                    Ok(sum)
                })
                .bidi("echo", |_cx: Context, (): (), body: Streaming<Bytes>| async move { Ok(body) }),
        )
        .await
        .unwrap();
    let client = node("service2", &registry);
    let mut items = client.stream::<u64>("service1", "count", args! { to: 3 }).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), 0);
    drop(items);
    let sum: i64 = client.fetch("service1", "add", args! { a: 2, b: 5 }).await.unwrap();
    assert_eq!(sum, 7);
    let all: Vec<u64> = client.fetch("service1", "count", args! { to: 3 }).multiple().await.unwrap();
    assert_eq!(all, [0, 1, 2]);
    let sum: i64 = client.fetch("service1", "sum", ()).body(stream::iter(1..=10)).await.unwrap();
    assert_eq!(sum, 55);

    let calc: CalculatorClient = client.client("service1");
    assert_eq!(calc.add(2, 5).await.unwrap(), 7, "a typed client calls methods by name");
    let error = client.fetch::<i64>("service1", "ad", ()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.to_string().contains("`add`"), "{error}");
}

#[derive(Serialize, Deserialize)]
struct Echo<T> {
    value: T,
}

/// Sends `value` as an argument and expects it as the answer, and as an item both ways.
async fn survives<T: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static>(value: T) {
    let methods = Methods::new()
        .unary("echo", |_cx: Context, Echo { value }: Echo<T>| async move { Ok::<_, Status>(value) })
        .bidi("items", |_cx: Context, (): (), items: Streaming<T>| async move { Ok(items) });
    let pair = pair(methods).await;
    let answer: T = pair.client.fetch(SERVICE, "echo", args! { value: value }).await.unwrap();
    assert_eq!(answer, value, "as an argument and an answer");
    let items = stream::iter(vec![value.clone(), value.clone()]);
    let items: Vec<T> = pair.client.fetch(SERVICE, "items", ()).body(items).multiple().await.unwrap();
    assert_eq!(items, [value.clone(), value], "as an item");
}

#[tokio::test]
async fn falsy_and_extreme_values_arrive_as_they_left() {
    survives(0i64).await;
    survives(false).await;
    survives(String::new()).await;
    survives(None::<u8>).await;
    survives(Some(0u8)).await;
    survives(()).await;
    survives(Vec::<i64>::new()).await;
    survives(BTreeMap::<String, i64>::new()).await;
    survives(Bytes::new()).await;
    survives(u64::MAX).await;
    survives(i64::MIN).await;
    survives(f64::NEG_INFINITY).await;
    survives(f32::MIN_POSITIVE).await;
    survives('\u{10ffff}').await;
}

/// Short answers are copied out of what was read, longer ones share it: at the border between them nothing changes.
#[tokio::test]
async fn answers_of_every_short_length_arrive_as_they_left() {
    let methods = Methods::new()
        .unary("text", |_cx: Context, Echo { value }: Echo<usize>| async move { Ok::<_, Status>("x".repeat(value)) })
        .unary("bytes", |_cx: Context, Echo { value }: Echo<usize>| async move {
            Ok::<_, Status>(Bytes::from(vec![7; value]))
        })
        .server_streaming("items", |_cx: Context, Echo { value }: Echo<usize>| async move {
            Ok::<_, Status>(stream::iter(vec![value; value]))
        });
    let pair = pair(methods).await;
    for len in 0..70 {
        let text: String = pair.client.fetch(SERVICE, "text", args! { value: len }).await.unwrap();
        assert_eq!(text, "x".repeat(len));
        let bytes: Bytes = pair.client.fetch(SERVICE, "bytes", args! { value: len }).await.unwrap();
        assert_eq!(bytes, vec![7; len]);
        let items: Vec<usize> = pair.client.fetch(SERVICE, "items", args! { value: len }).multiple().await.unwrap();
        assert_eq!(items, vec![len; len]);
        let first = pair.client.fetch::<usize>(SERVICE, "items", args! { value: len }).await;
        assert_eq!(first.is_ok(), len == 1, "{len} items are no single one: {first:?}");
        let wrong = pair.client.fetch::<Vec<bool>>(SERVICE, "text", args! { value: len }).await.unwrap_err();
        assert!(wrong.message().contains("not of the type expected"), "{wrong}");
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    placed: SystemTime,
    lines: HashMap<String, BTreeMap<i32, Vec<Option<f64>>>>,
    state: State,
    thumbnail: Bytes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum State {
    Open,
    Sent(SystemTime),
    Returned { why: String, after: Duration },
}

#[tokio::test]
async fn structured_values_arrive_as_they_left() {
    let placed = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
    let deep = BTreeMap::from([(-1, vec![Some(0.5), None]), (i32::MAX, Vec::new())]);
    for state in
        [State::Open, State::Sent(placed), State::Returned { why: "größer als erwartet".into(), after: Duration::MAX }]
    {
        let lines = HashMap::from([(String::new(), BTreeMap::new()), ("a".into(), deep.clone())]);
        survives(Order { id: 0, placed, lines, state, thumbnail: Bytes::from_static(&[0, 255, 7]) }).await;
    }
}

#[picom::service]
trait Blobs {
    async fn vec(&self, data: Vec<u8>) -> Vec<u8>;
    async fn bytes(&self, data: Bytes) -> Bytes;
}

struct Same;

impl Blobs for Same {
    async fn vec(&self, data: Vec<u8>) -> Vec<u8> {
        data
    }

    async fn bytes(&self, data: Bytes) -> Bytes {
        data
    }
}

#[tokio::test]
async fn bytes_travel_as_bytes_and_not_as_numbers() {
    let pair = pair(BlobsServer::new(Same)).await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let blobs: BlobsClient = pair.client.client(SERVICE);
    let data = vec![0xff; 1 << 20];
    assert_eq!(blobs.vec(data.clone()).on(proxy.addr).await.unwrap(), data);
    assert_eq!(blobs.bytes(data.clone().into()).on(proxy.addr).await.unwrap(), data);
    let by_name: Bytes =
        pair.client.fetch(SERVICE, "vec", args! { data: Bytes::from(data.clone()) }).on(proxy.addr).await.unwrap();
    assert_eq!(by_name, data);
    let (sent, received) = proxy.bytes();
    let most = 3 * (1 << 20) + 64 * 1024;
    assert!(sent < most && received < most, "3 MiB of bytes took {sent} bytes there and {received} back");
}

#[tokio::test]
async fn very_long_messages_pass_where_the_limits_allow_them() {
    const LEN: usize = 64 << 20;
    let raised = |builder: picom::Builder| builder.max_message(LEN + 1024).max_assembly(2 * LEN);
    let pair = pair_with(BlobsServer::new(Same), raised, raised).await;
    let blobs: BlobsClient = pair.client.client(SERVICE);
    let data = Bytes::from(vec![0x5a; LEN]);
    let back = blobs.bytes(data.clone()).await.unwrap();
    assert!(back == data, "64 MiB came back as {} other bytes", back.len());
}

#[tokio::test]
async fn either_side_may_be_typed_or_not_for_every_kind() {
    let (_server, client, _) = typed().await;
    let sum: i64 = client.fetch("service1", "add", args! { a: 2, b: 5 }).await.unwrap();
    assert_eq!(sum, 7);
    let count: Vec<u64> = client.fetch("service1", "count", args! { to: 3 }).multiple().await.unwrap();
    assert_eq!(count, [0, 1, 2]);
    let sum: i64 = client.fetch("service1", "sum", ()).body(stream::iter(1..=10)).await.unwrap();
    assert_eq!(sum, 55);
    let chunk = Bytes::from_static(b"x");
    let echoed: Vec<Bytes> =
        client.fetch("service1", "echo", ()).body(stream::iter([chunk.clone()])).multiple().await.unwrap();
    assert_eq!(echoed, [chunk]);
    let error = client.fetch::<i64>("service1", "divide", args! { a: 1, b: 0 }).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown, "an application error whose type nobody knows: {error}");
    assert!(error.message().contains("DivisionByZero") && error.details().is_some(), "{error}");

    let methods = Methods::new()
        .server_streaming("count", |_cx: Context, Count { to }: Count| async move { Ok(stream::iter(0..to)) })
        .client_streaming("sum", |_cx: Context, (): (), body: Streaming<i64>| async move {
            Ok(body.collect_vec(100).await?.iter().sum::<i64>())
        })
        .bidi("echo", |_cx: Context, (): (), body: Streaming<Bytes>| async move { Ok(body) })
        .unary(
            "divide",
            |_cx: Context, Add { a, b }: Add| async move { a.checked_div(b).ok_or(MathError::DivisionByZero) },
        );
    let pair = pair(methods).await;
    let calc: CalculatorClient = pair.client.client(SERVICE);
    assert_eq!(calc.count(2).await.unwrap().collect_vec(9).await.unwrap(), [0, 1]);
    assert_eq!(calc.sum(stream::iter([1, 2])).await.unwrap(), 3);
    let chunk = Bytes::from_static(b"x");
    assert_eq!(calc.echo(stream::iter([chunk.clone()])).await.unwrap().collect_vec(9).await.unwrap(), [chunk]);
    assert_eq!(calc.divide(1, 0).await.unwrap_err().app(), Some(&MathError::DivisionByZero));
    assert_eq!(calc.divide(6, 3).await.unwrap(), 2);
}

#[tokio::test]
async fn a_single_item_is_fetched_and_any_other_number_is_an_error_that_says_what_to_use() {
    let (_server, client, _) = typed().await;
    assert_eq!(client.fetch::<u64>("service1", "count", args! { to: 1 }).await.unwrap(), 0);
    let none = client.fetch::<u64>("service1", "count", args! { to: 0 }).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound, "{none}");
    let two = client.fetch::<u64>("service1", "count", args! { to: 2 }).await.unwrap_err();
    assert_eq!(two.code(), Code::FailedPrecondition, "{two}");
    assert!(two.message().contains(".multiple()"), "{two}");
    assert_eq!(client.fetch::<Option<u64>>("service1", "count", args! { to: 0 }).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_calls_at_once_share_one_connection() {
    const CALLS: usize = 1000;
    let together = Arc::new(Barrier::new(CALLS));
    let methods = Methods::new().unary("meet", move |_cx: Context, Echo { value }: Echo<usize>| {
        let together = Arc::clone(&together);
        async move {
            together.wait().await;
            Ok::<_, Status>(value)
        }
    });
    let pair = pair(methods).await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let client = Picom::builder("caller").registry(Fixed::new([(SERVICE, [proxy.addr.to_string()])])).build().unwrap();
    let calls = (0..CALLS).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { client.fetch::<usize>(SERVICE, "meet", args! { value: n }).await })
    });
    for (n, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap(), n, "each call gets its own answer");
    }
    assert_eq!(proxy.connections(), 1, "the calls were to share one connection");
}

#[tokio::test]
async fn a_panic_costs_one_call_and_nothing_else() {
    let release = Arc::new(tokio::sync::Notify::new());
    let released = Arc::clone(&release);
    let methods = Methods::new()
        .unary("panic", |_cx: Context, (): ()| async move {
            let nothing: Option<u64> = std::hint::black_box(None);
            Ok::<_, Status>(nothing.expect("the handler panics on purpose"))
        })
        .unary("panic_later", |_cx: Context, (): ()| async move {
            tokio::task::yield_now().await;
            let nothing: Option<u64> = std::hint::black_box(None);
            Ok::<_, Status>(nothing.expect("the handler panics on purpose"))
        })
        .server_streaming("panic_within", |_cx: Context, (): ()| async move {
            Ok(stream::iter(0..2u64).map(|n| {
                assert!(n == 0, "the handler panics on purpose");
                n
            }))
        })
        .unary("wait", move |_cx: Context, (): ()| {
            let released = Arc::clone(&released);
            async move {
                released.notified().await;
                Ok::<_, Status>(7)
            }
        });
    let pair = pair(methods).await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let client = Picom::builder("caller").registry(Fixed::new([(SERVICE, [proxy.addr.to_string()])])).build().unwrap();
    let running = tokio::spawn(client.fetch::<u64>(SERVICE, "wait", ()).into_future());
    for method in ["panic", "panic_later"] {
        let error = client.fetch::<u64>(SERVICE, method, ()).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal, "{method}: {error}");
        assert!(error.message().contains("panicked"), "{method}: {error}");
        assert_eq!(error.execution(), Execution::Done, "{method}: {error}");
        assert_eq!(error.attempts(), 1, "{method}: a panic is not tried again");
    }
    let mut items = client.stream::<u64>(SERVICE, "panic_within", ()).await.unwrap();
    let mut last = items.next().await;
    if matches!(last, Some(Ok(0))) {
        last = items.next().await;
    }
    let error = last.expect("a panic is no end of a stream").unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error}");
    release.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), 7, "a call that ran beside the panics");
    assert_eq!(proxy.connections(), 1, "the connection lives");
}

#[tokio::test]
async fn a_call_is_made_when_it_is_awaited_and_not_before() {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let methods = Methods::new().unary("run", move |_cx: Context, (): ()| {
        let before = count.fetch_add(1, Ordering::SeqCst);
        async move { Ok::<_, Status>(before) }
    });
    let pair = pair(methods).await;
    drop(pair.client.fetch::<usize>(SERVICE, "run", ()));
    drop(pair.client.fetch::<usize>(SERVICE, "run", ()).into_future());
    assert_eq!(pair.client.fetch::<usize>(SERVICE, "run", ()).await.unwrap(), 0, "the dropped calls ran");
}
