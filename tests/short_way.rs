//! Calls at their most fragile: polled by one task and then another, dropped at every step, with values that panic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{FutureExt, poll};
use picom::{Bytes, Code, Context, Execution, Methods, Status};
use serde::{Deserialize, Serialize};
use support::nodes::{Pair, SERVICE, pair_with, witness};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// A value that cannot be written.
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        std::panic::resume_unwind(Box::new("on purpose"))
    }
}

/// A value that cannot be read.
#[derive(Debug)]
struct Unreadable;

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        std::panic::resume_unwind(Box::new("on purpose"))
    }
}

#[derive(Deserialize)]
struct Data {
    #[serde(with = "picom::private::bytes_field")]
    data: Bytes,
}

#[derive(Deserialize)]
struct Len {
    len: usize,
}

#[derive(Deserialize)]
struct Who {
    keep_it: bool,
}

/// A server with one place for calls, and a method that answers when it is let.
async fn one_place() -> (Pair, Arc<Semaphore>, support::nodes::Guards) {
    let (guards, _witness) = witness();
    let gate = Arc::new(Semaphore::new(0));
    let (held, opened) = (guards.clone(), Arc::clone(&gate));
    let methods = Methods::new()
        .unary("gated", move |_cx: Context, (): ()| {
            let (guard, gate) = (held.guard(), Arc::clone(&opened));
            async move {
                let _held = guard;
                gate.acquire().await.unwrap().forget();
                Ok::<_, Status>(7u64)
            }
        })
        .unary("seven", |_cx: Context, (): ()| async move { Ok::<_, Status>(7u64) });
    let one = |client: picom::Builder| client.max_connections_per_endpoint(1);
    let pair = pair_with(methods, |server| server.max_calls(1), one).await;
    assert_eq!(pair.client.fetch::<u64>(SERVICE, "seven", ()).await.unwrap(), 7);
    (pair, gate, guards)
}

#[tokio::test]
async fn a_call_that_another_task_goes_on_with_wakes_that_task() {
    let (pair, gate, _) = one_place().await;
    for spurious in [0, 3] {
        let mut call = pair.client.fetch::<u64>(SERVICE, "gated", ()).into_future();
        assert!(poll!(&mut call).is_pending());
        let task = tokio::spawn(async move {
            for _ in 0..spurious {
                assert!(poll!(&mut call).is_pending());
                tokio::task::yield_now().await;
            }
            call.await
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        gate.add_permits(1);
        assert_eq!(timeout(support::PATIENCE, task).await.unwrap().unwrap().unwrap(), 7);
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_at_any_step_is_cancelled_and_gives_its_place_back() {
    let (pair, gate, guards) = one_place().await;
    // Not polled; polled once; polled again; answered but not read.
    for step in 0..4 {
        let mut call = pair.client.fetch::<u64>(SERVICE, "gated", ()).into_future();
        if step > 0 {
            let before = guards.made();
            assert!(poll!(&mut call).is_pending());
            support::eventually("the handler runs", async || guards.made() > before).await;
        }
        if step > 1 {
            assert!(poll!(&mut call).is_pending());
        }
        if step > 2 {
            gate.add_permits(1);
            support::eventually("the handler is done", async || guards.alive() == 0).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(call);
        support::eventually("the handler is gone", async || guards.alive() == 0).await;
        let next = pair.client.fetch::<u64>(SERVICE, "seven", ()).timeout(Duration::from_secs(2));
        assert_eq!(next.await.unwrap(), 7, "step {step}");
    }
}

#[tokio::test]
async fn values_that_panic_cost_their_call_only() {
    let (pair, _, _) = one_place().await;
    for _ in 0..3 {
        let unwritable = AssertUnwindSafe(pair.client.fetch::<u64>(SERVICE, "seven", Unwritable).into_future());
        assert!(unwritable.catch_unwind().await.is_err());
        let unreadable = AssertUnwindSafe(pair.client.fetch::<Unreadable>(SERVICE, "seven", ()).into_future());
        assert!(unreadable.catch_unwind().await.is_err());
        let next = pair.client.fetch::<u64>(SERVICE, "seven", ()).timeout(Duration::from_secs(2));
        assert_eq!(next.await.unwrap(), 7);
    }
}

#[tokio::test]
async fn a_deadline_that_has_passed_sends_nothing() {
    let (pair, _, guards) = one_place().await;
    let call = pair.client.fetch::<u64>(SERVICE, "gated", ()).deadline(Instant::now());
    let error = call.await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::DeadlineExceeded, Execution::Never));
    assert_eq!(guards.made(), 0);
}

#[tokio::test]
async fn limits_count_what_goes_by_reference() {
    const LIMIT: usize = 10_000;
    let methods = Methods::new()
        .unary("len", |_cx: Context, Data { data }: Data| async move { Ok::<_, Status>(data.len()) })
        .unary("bytes", |_cx: Context, Len { len }: Len| async move { Ok::<_, Status>(Bytes::from(vec![7; len])) });
    let pair = pair_with(methods, |server| server.max_message(LIMIT), |client| client.max_message(LIMIT)).await;
    // A map of one with the name `data`, and the header of the bytes.
    let most = LIMIT - (1 + 5 + 3);
    let len = |len: usize| pair.client.fetch::<usize>(SERVICE, "len", picom::args! { data: Bytes::from(vec![7; len]) });
    assert_eq!(len(most).await.unwrap(), most);
    let error = len(most + 1).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::InvalidArgument, Execution::Never));
    let bytes = |len: usize| pair.client.fetch::<Bytes>(SERVICE, "bytes", picom::args! { len: len });
    assert_eq!(bytes(LIMIT - 3).await.unwrap().len(), LIMIT - 3);
    assert_eq!(bytes(LIMIT - 2).await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn no_call_sees_what_another_left_in_its_context() {
    let kept: Arc<Mutex<Vec<Context>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let methods = Methods::new().unary("who", move |cx: Context, Who { keep_it }: Who| {
        let keep = Arc::clone(&keep);
        async move {
            let name = cx.metadata().get("name").unwrap_or_default().to_owned();
            let current = Context::current().unwrap();
            assert_eq!(current.metadata().get("name").unwrap_or_default(), name);
            let elsewhere = tokio::spawn(async { Context::current().is_none() });
            cx.set_answer_metadata("name", &name).unwrap();
            if keep_it {
                keep.lock().unwrap().push(cx);
                assert!(elsewhere.await.unwrap());
            }
            Ok::<_, Status>(name)
        }
    });
    let pair = pair_with(methods, |server| server, |client| client).await;
    let calls = (0..300).map(|n: u32| {
        let client = pair.client.clone();
        tokio::spawn(async move {
            let name = n.to_string();
            let mut call = client.fetch::<String>(SERVICE, "who", picom::args! { keep_it: n % 3 == 0 });
            if n % 2 == 0 {
                call = call.metadata("name", &name);
            }
            let (answer, info) = call.with_info().await.unwrap();
            let expected = if n % 2 == 0 { name } else { String::new() };
            assert_eq!(answer, expected);
            assert_eq!(info.metadata().get("name").unwrap_or_default(), expected);
            assert_eq!(info.attempts(), 1);
            expected
        })
    });
    let mut expected = Vec::new();
    for (n, call) in futures::future::join_all(calls).await.into_iter().enumerate() {
        expected.extend(call.ok().filter(|_| n % 3 == 0));
    }
    let mut seen: Vec<_> =
        kept.lock().unwrap().iter().map(|cx| cx.metadata().get("name").unwrap_or_default().to_owned()).collect();
    assert!(kept.lock().unwrap().iter().all(|cx| !cx.is_cancelled()));
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
}
