//! Calls of every kind, typed and by name, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use futures::{Stream, StreamExt, stream};
use picom::registry::Memory;
use picom::{Bytes, CallError, Code, Context, Methods, Picom, Status, Streaming, args};
use serde::{Deserialize, Serialize};

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
