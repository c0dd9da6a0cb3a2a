//! What `#[picom::service]` generates, at work: every form and option, called through a node and its registry.
//!
//! Owns the behaviour of generated code. It must never test the messages of rejections (that is `tests/macro_ui.rs`) nor
//! transport. Look next at `macros/src/expand_server.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use picom::registry::Memory;
use picom::{Bytes, CallError, Code, Context, Picom, Status, Streaming, args};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum MathError {
    ByZero { dividend: i64 },
}

/// Arithmetic.
#[picom::service]
trait Calculator {
    /// Adds two numbers.
    #[rpc(idempotent, deadline = "5s", alias = "plus")]
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status>;

    #[cfg(any())]
    async fn removed(&self, missing: Missing) -> Missing;

    /// Counts; the stream borrows from the service.
    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status>;

    async fn sum(&self, numbers: Streaming<i64>) -> Result<i64, Status>;

    async fn echo(
        &self,
        cx: &Context,
        body: Streaming<Bytes>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status>;

    async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError>;

    async fn quotients(&self, a: i64, by: Vec<i64>) -> Result<impl Stream<Item = Result<i64, MathError>>, MathError>;

    async fn now(&self) -> u64;

    async fn caller(&self, before: u8, cx: &Context, after: u8) -> String;

    async fn raw(&self, r#type: Vec<u8>, r#match: Option<String>) -> Vec<u8> {
        let mut bytes = r#type;
        bytes.extend(r#match.unwrap_or_default().into_bytes());
        bytes
    }

    #[deprecated = "as a test"]
    async fn last(&self) {}
}

struct Calc {
    steps: Vec<u64>,
    now: AtomicU64,
}

fn calc() -> Calc {
    Calc { steps: vec![0, 10, 20, 30], now: AtomicU64::new(7) }
}

#[picom::service]
impl Calculator for Calc {
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status> {
        a.checked_add(b).ok_or_else(|| Status::out_of_range("too large"))
    }

    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status> {
        let to = usize::try_from(to).map_err(|_| Status::out_of_range("too many"))?;
        Ok(stream::iter(self.steps.iter().take(to).copied()))
    }

    async fn sum(&self, mut numbers: Streaming<i64>) -> Result<i64, Status> {
        let mut sum = 0;
        while let Some(number) = numbers.next().await {
            sum += number?;
        }
        Ok(sum)
    }

    async fn echo(
        &self,
        cx: &Context,
        body: Streaming<Bytes>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status> {
        assert_eq!(cx.method(), "echo");
        Ok(body)
    }

    async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError> {
        a.checked_div(b).ok_or(MathError::ByZero { dividend: a })
    }

    async fn quotients(&self, a: i64, by: Vec<i64>) -> Result<impl Stream<Item = Result<i64, MathError>>, MathError> {
        if by.is_empty() {
            return Err(MathError::ByZero { dividend: a });
        }
        Ok(stream::iter(by).map(move |b| a.checked_div(b).ok_or(MathError::ByZero { dividend: a })))
    }

    async fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    async fn caller(&self, before: u8, cx: &Context, after: u8) -> String {
        format!("{before} {} {} {after}", cx.service(), cx.method())
    }
}

/// Another trait on the same type, with a method of the same name.
#[picom::service(prefix = "admin")]
trait Admin {
    #[rpc(alias = "legacy_now")]
    async fn now(&self) -> Result<u64, Status>;

    #[rpc(name = "set")]
    async fn set_now(&self, now: u64) -> Result<(), Status>;
}

impl Admin for Calc {
    async fn now(&self) -> Result<u64, Status> {
        Ok(self.now.load(Ordering::Relaxed) + 1000)
    }

    async fn set_now(&self, now: u64) -> Result<(), Status> {
        self.now.store(now, Ordering::Relaxed);
        Ok(())
    }
}

/// A type that is a service by itself.
struct Store {
    items: Vec<String>,
}

#[picom::service(prefix = "store")]
impl Store {
    async fn len(&self) -> usize {
        self.items.len()
    }

    async fn find(&self, prefix: String) -> impl Stream<Item = String> {
        stream::iter(self.items.iter().filter(move |item| item.starts_with(&prefix)).cloned())
    }
}

/// One node that offers everything, and one that calls it.
async fn nodes() -> (Picom, Picom) {
    let registry = Memory::new();
    let node = |name: &str| Picom::builder(name).registry(registry.clone()).build().unwrap();
    let (server, client) = (node("calculator"), node("caller"));
    let calc = Arc::new(calc());
    server.expose(CalculatorServer::from_arc(Arc::clone(&calc))).await.unwrap();
    server.expose(AdminServer::from_arc(calc)).await.unwrap();
    server.expose(Store { items: vec!["apple".into(), "avocado".into(), "pear".into()] }).await.unwrap();
    (server, client)
}

#[tokio::test]
async fn every_kind_of_method_of_a_trait_can_be_called() {
    let (server, node) = nodes().await;
    let calc = node.client::<CalculatorClient>("calculator");
    assert_eq!(calc.add(2, 5).await.unwrap(), 7);
    assert_eq!(calc.count(3).await.unwrap().collect_vec(9).await.unwrap(), [0, 10, 20]);
    assert_eq!(calc.sum(stream::iter(1..=10)).await.unwrap(), 55);
    let pieces = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    let echoed = calc.echo(stream::iter(pieces.clone())).await.unwrap();
    assert_eq!(echoed.collect_vec(9).await.unwrap(), pieces);
    assert_eq!(calc.now().await.unwrap(), 7);
    assert_eq!(calc.caller(1, 2).await.unwrap(), "1 calculator caller 2");
    server.end().await.unwrap();
}

#[tokio::test]
async fn default_bodies_and_raw_identifiers_work_and_bytes_come_back() {
    let (server, node) = nodes().await;
    let calc = node.client::<CalculatorClient>("calculator");
    assert_eq!(calc.raw(vec![0, 255], Some("a".into())).await.unwrap(), [0, 255, b'a']);
    let by_name: Vec<u8> = node.fetch("calculator", "raw", args! { r#type: vec![1u8, 2] }).await.unwrap();
    assert_eq!(by_name, [1, 2], "an argument that is an `Option` may be left out, and keys are plain names");
    #[expect(deprecated)]
    calc.last().await.unwrap();
    server.end().await.unwrap();
}

#[tokio::test]
async fn errors_keep_their_type() {
    let (server, node) = nodes().await;
    let calc = node.client::<CalculatorClient>("calculator");
    assert_eq!(calc.add(i64::MAX, 1).await.unwrap_err().code(), Code::OutOfRange);

    let error: CallError<MathError> = calc.divide(1, 0).await.unwrap_err();
    assert_eq!(error.app(), Some(&MathError::ByZero { dividend: 1 }));
    assert_eq!(calc.divide(6, 3).await.unwrap(), 2);

    // Before the first item, and in place of one.
    let mut refused = calc.quotients(5, vec![]).await;
    if let Ok(items) = &mut refused {
        refused = Err(items.next().await.unwrap().unwrap_err());
    }
    assert_eq!(refused.unwrap_err().app(), Some(&MathError::ByZero { dividend: 5 }));
    let mut items = calc.quotients(6, vec![2, 0]).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), 3);
    assert_eq!(items.next().await.unwrap().unwrap_err().app(), Some(&MathError::ByZero { dividend: 6 }));
    assert!(items.next().await.is_none());
    server.end().await.unwrap();
}

#[tokio::test]
async fn names_on_the_wire_follow_prefix_name_and_alias() {
    let (server, node) = nodes().await;
    let sum: i64 = node.fetch("calculator", "add", args! { a: 2, b: 5 }).await.unwrap();
    assert_eq!(sum, 7);
    let sum: i64 = node.fetch("calculator", "plus", args! { b: 5, a: 2 }).await.unwrap();
    assert_eq!(sum, 7);

    let admin = node.client::<AdminClient>("calculator");
    admin.set_now(1).await.unwrap();
    assert_eq!(admin.now().await.unwrap(), 1001);
    assert_eq!(node.client::<CalculatorClient>("calculator").now().await.unwrap(), 1, "one value, two services");
    assert_eq!(node.fetch::<u64>("calculator", "admin.now", ()).await.unwrap(), 1001);
    assert_eq!(node.fetch::<u64>("calculator", "legacy_now", ()).await.unwrap(), 1001);
    let unknown = node.fetch::<()>("calculator", "set_now", args! { now: 1u64 }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    server.end().await.unwrap();
}

#[tokio::test]
async fn a_type_can_be_a_service_by_itself() {
    let (server, node) = nodes().await;
    let store = node.client::<StoreClient>("calculator");
    assert_eq!(store.len().await.unwrap(), 3);
    assert_eq!(store.find("a".into()).await.unwrap().collect_vec(9).await.unwrap(), ["apple", "avocado"]);
    server.end().await.unwrap();
}

#[tokio::test]
async fn methods_after_a_removed_one_keep_their_place() {
    let (server, node) = nodes().await;
    let removed = node.fetch::<()>("calculator", "removed", ()).await.unwrap_err();
    assert_eq!(removed.code(), Code::Unimplemented);
    let items: Vec<u64> = node.fetch("calculator", "count", args! { to: 2 }).multiple().await.unwrap();
    assert_eq!(items, [0, 10], "the next method after the removed one is itself");
    server.end().await.unwrap();
}

#[tokio::test]
async fn a_wrong_argument_is_named_and_a_superfluous_one_ignored() {
    let (server, node) = nodes().await;
    let wrong = node.fetch::<i64>("calculator", "add", args! { a: "two", b: 5 }).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().contains("`a`"), "{wrong}");
    let now: u64 = node.fetch("calculator", "now", args! { zone: "UTC" }).await.unwrap();
    assert_eq!(now, 7, "a method without arguments ignores what it is given");
    server.end().await.unwrap();
}

#[tokio::test]
async fn the_descriptor_says_what_was_written() {
    use picom::private::TypedClient;
    let service = CalculatorClient::descriptor();
    assert_eq!((&*service.name, &*service.docs), ("Calculator", "Arithmetic."));
    let add = &service.methods[0];
    assert_eq!((&*add.name, add.idempotent, add.deadline), ("add", true, Some(Duration::from_secs(5))));
    assert_eq!(add.docs, "Adds two numbers.");
    assert_eq!(service.methods[1].name, "count");
    assert_eq!(service.methods.last().unwrap().deprecated.as_deref(), Some("as a test"));
    let server = CalculatorServer::new(calc());
    assert!(std::ptr::eq(picom::private::Service::descriptor(&server), service), "both sides share one descriptor");
}
