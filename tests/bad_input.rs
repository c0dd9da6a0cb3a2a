//! What callers and exposers do wrong, and how they are told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream;
use picom::registry::{Fixed, Memory};
use picom::{Arguments, Code, Context, Execution, Methods, Picom, Status, Streaming, args};
use serde::Deserialize;
use support::nodes::{SERVICE, builder, pair, pair_with};
use support::proxy::Proxy;
use tokio::time::Instant;

#[derive(Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

fn add(count: &Arc<AtomicUsize>) -> Methods {
    let (ran, summed) = (Arc::clone(count), Arc::clone(count));
    Methods::new()
        .unary("add", move |_cx: Context, Add { a, b }: Add| {
            ran.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, Status>(a + b) }
        })
        .client_streaming("sum", move |_cx: Context, (): (), mut body: Streaming<i64>| {
            summed.fetch_add(1, Ordering::SeqCst);
            async move {
                let mut sum = 0;
                while let Some(number) = body.message().await? {
                    sum += number;
                }
                Ok(sum)
            }
        })
        .server_streaming("count", |_cx: Context, (): ()| async move { Ok(stream::iter(["one", "two"])) })
}

#[tokio::test]
async fn an_unknown_service_is_said_after_the_wait_and_not_later() {
    let wait = Duration::from_millis(200);
    let client = builder("caller", &Memory::new()).resolve_wait(wait).build().unwrap();
    let begun = Instant::now();
    let error = client.fetch::<i64>("nowhere", "add", ()).await.unwrap_err();
    let took = begun.elapsed();
    assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{error}");
    assert!(error.message().contains("unknown service") && error.message().contains("`nowhere`"), "{error}");
    assert!(took >= wait && took < wait + Duration::from_secs(1), "a wait of {wait:?} took {took:?}");
}

#[tokio::test]
async fn a_service_that_comes_within_the_wait_is_called() {
    let registry = Memory::new();
    let client = builder("caller", &registry).build().unwrap();
    let call = tokio::spawn(async move { client.fetch::<i64>(SERVICE, "add", args! { a: 1, b: 2 }).await });
    tokio::task::yield_now().await;
    let server = builder(SERVICE, &registry).build().unwrap();
    server.expose(add(&Arc::default())).await.unwrap();
    assert_eq!(call.await.unwrap().unwrap(), 3);
}

#[tokio::test]
async fn an_unknown_method_is_said_with_the_nearest_name_and_costs_nothing_else() {
    let ran = Arc::new(AtomicUsize::new(0));
    let pair = pair(add(&ran)).await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let registry = Fixed::new([(SERVICE, [proxy.addr.to_string()])]);
    let client = Picom::builder("caller").registry(registry).build().unwrap();
    for (method, nearest) in [("ad", Some("`add`")), ("Add", Some("`add`")), ("sums", Some("`sum`")), ("xyz", None)] {
        let error = client.fetch::<i64>(SERVICE, method, args! { a: 1, b: 2 }).idempotent().await.unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::Unimplemented, Execution::Never), "{error}");
        assert_eq!(error.attempts(), 1, "no other host knows better: {error}");
        assert!(error.message().contains(&format!("`{method}`")), "{error}");
        match nearest {
            Some(nearest) => assert!(error.message().contains(nearest), "{error}"),
            None => assert!(!error.message().contains("nearest"), "a suggestion that helps nobody: {error}"),
        }
    }
    for method in ["", &"m".repeat(256)] {
        let error = client.fetch::<i64>(SERVICE, method, ()).await.unwrap_err();
        assert_eq!(error.execution(), Execution::Never, "{} bytes: {error}", method.len());
        assert!([Code::Unimplemented, Code::InvalidArgument].contains(&error.code()), "{error}");
        assert!(!error.message().contains("max_message"), "{error}");
    }
    assert_eq!(client.fetch::<i64>(SERVICE, "add", args! { a: 1, b: 2 }).await.unwrap(), 3);
    assert_eq!(proxy.connections(), 1, "the connection lives");
    assert_eq!(ran.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn wrong_arguments_are_named_and_the_handler_never_runs() {
    let ran = Arc::new(AtomicUsize::new(0));
    let pair = pair(add(&ran)).await;
    /// The error of a call with these arguments.
    async fn error_of(client: &Picom, args: impl Arguments) -> Status {
        client.fetch::<i64>(SERVICE, "add", args).await.unwrap_err()
    }
    let client = &pair.client;
    let none: [i64; 0] = [];
    let cases = [
        (error_of(client, args! { a: "two", b: 5 }).await, vec!["`a`", "string", "i64"]),
        (error_of(client, args! { a: 2, b: 0.5 }).await, vec!["`b`", "0.5", "i64"]),
        (error_of(client, args! { a: 2, b: u64::MAX }).await, vec!["`b`", "18446744073709551615", "i64"]),
        (error_of(client, args! { a: 2, b: None::<i64> }).await, vec!["`b`", "i64"]),
        (error_of(client, args! { a: 2 }).await, vec!["`b`", "missing", "`a`"]),
        (error_of(client, args! { a: 2, bb: 5 }).await, vec!["`b`", "missing", "`bb`"]),
        (error_of(client, ()).await, vec!["`a`", "missing"]),
        (error_of(client, none).await, vec!["`a`", "missing"]),
        (error_of(client, vec![1, 2, 3]).await, vec!["length", "expected 2"]),
        (error_of(client, "a text".to_owned()).await, vec!["string", "Add"]),
        (error_of(client, args! { a: vec![vec![1]], b: 5 }).await, vec!["`a`", "sequence", "i64"]),
    ];
    for (error, parts) in cases {
        assert_eq!((error.code(), error.execution()), (Code::InvalidArgument, Execution::Never), "{error}");
        assert_eq!(error.attempts(), 1, "no other host understands it: {error}");
        for part in parts {
            assert!(error.message().contains(part), "{part} is not in: {error}");
        }
    }
    assert_eq!(ran.load(Ordering::SeqCst), 0, "the handler ran with wrong arguments");
    let surplus = args! { a: 2, b: 5, c: "ignored, so that a caller may be newer" };
    assert_eq!(client.fetch::<i64>(SERVICE, "add", surplus).await.unwrap(), 7);
    let order = client.fetch::<i64>(SERVICE, "add", (2, 5)).await;
    assert_eq!(order.unwrap(), 7, "arguments in the order of their declaration are understood too");
}

#[tokio::test]
async fn an_argument_that_cannot_be_encoded_fails_before_the_call() {
    struct Unspeakable;
    impl serde::Serialize for Unspeakable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("this has no words"))
        }
    }
    let ran = Arc::new(AtomicUsize::new(0));
    let pair = pair(add(&ran)).await;
    let error = pair.client.fetch::<i64>(SERVICE, "add", args! { a: Unspeakable, b: 1 }).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::InvalidArgument, Execution::Never), "{error}");
    assert!(error.message().contains("`a`") && error.message().contains("this has no words"), "{error}");
    assert_eq!(pair.client.fetch::<i64>(SERVICE, "add", args! { a: 1, b: 1 }).await.unwrap(), 2);
}

#[tokio::test]
async fn an_item_of_the_wrong_type_is_said_to_who_reads_it() {
    let pair = pair(add(&Arc::default())).await;
    let body = stream::iter(["one"]);
    let error = pair.client.fetch::<i64>(SERVICE, "sum", ()).body(body).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("item of the body") && error.message().contains("i64"), "{error}");
    let error = pair.client.fetch::<String>(SERVICE, "add", args! { a: 1, b: 1 }).await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::Internal, Execution::Done), "{error}");
    assert!(error.message().contains("answer") && error.message().contains("string"), "{error}");
    let mut items = pair.client.stream::<u64>(SERVICE, "count", ()).await.unwrap();
    let error = items.next().await.unwrap().unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::Internal, Execution::Done), "{error}");
    assert!(items.next().await.is_none(), "nothing comes after an error");
    assert_eq!(pair.client.fetch::<i64>(SERVICE, "add", args! { a: 1, b: 1 }).await.unwrap(), 2);
}

#[tokio::test]
async fn a_method_is_exposed_once() {
    let pair = pair(add(&Arc::default())).await;
    let more = Methods::new()
        .unary("fresh", |_cx: Context, (): ()| async move { Ok::<_, Status>(()) })
        .unary("add", |_cx: Context, (): ()| async move { Ok::<_, Status>(0) });
    let error = pair.server.expose(more).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    assert!(error.message().contains("`add`"), "{error}");
    let error = pair.client.fetch::<()>(SERVICE, "fresh", ()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "nothing of a refused service is exposed: {error}");
    let twice = Methods::new()
        .unary("same", |_cx: Context, (): ()| async move { Ok::<_, Status>(1) })
        .unary("same", |_cx: Context, (): ()| async move { Ok::<_, Status>(2) });
    assert_eq!(pair.server.expose(twice).await.unwrap_err().code(), Code::AlreadyExists);
    let more = Methods::new().unary("later", |_cx: Context, (): ()| async move { Ok::<_, Status>(9) });
    let again = pair.server.expose(more).await.unwrap();
    assert_eq!(again.local_addr(), pair.exposed.local_addr(), "it is the same instance");
    assert_eq!(pair.client.fetch::<i64>(SERVICE, "later", ()).await.unwrap(), 9, "on a connection made before");
    for name in ["", &"m".repeat(256)] {
        let methods = Methods::new().unary(name, |_cx: Context, (): ()| async move { Ok::<_, Status>(1) });
        let error = pair.server.expose(methods).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("1 to 255"), "{error}");
    }
}

#[tokio::test]
async fn names_that_no_registry_takes_are_refused_at_once() {
    let legal = pair(add(&Arc::default())).await.client;
    for name in ["", "two words", "dot.ted", "-dash", "dash-", "größe", "line\nbreak", &"n".repeat(64)] {
        let error = builder(name, &Memory::new()).build().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("illegal service name"), "{error}");
        assert!(!error.to_string().contains('\n'), "one line: {error:?}");
        let begun = Instant::now();
        let error = legal.fetch::<()>(name, "add", ()).await.unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::InvalidArgument, Execution::Never), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(1), "nobody waits for an impossible service");
        let late = Picom::new(name);
        let error = late.expose(add(&Arc::default())).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
}

#[tokio::test]
async fn a_place_that_cannot_be_bound_is_named() {
    let taken = pair(add(&Arc::default())).await.exposed.local_addr();
    let busy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = busy.local_addr().unwrap().port();
    let node = builder("second", &Memory::new()).port(port).build().unwrap();
    let error = node.expose(add(&Arc::default())).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains(&format!("127.0.0.1:{port}")) && error.message().contains("in use"), "{error}");
    drop(busy);
    node.expose(add(&Arc::default())).await.expect("a node whose port is free again can be exposed");
    assert_ne!(taken.port(), port);

    let elsewhere = builder("third", &Memory::new()).bind("192.0.2.1").build().unwrap();
    let error = elsewhere.expose(add(&Arc::default())).await.unwrap_err();
    assert!(error.message().contains("192.0.2.1"), "{error}");
    for (option, build) in [
        ("bind", builder("third", &Memory::new()).bind("localhost").build()),
        ("advertise", builder("third", &Memory::new()).advertise("0.0.0.0").build()),
    ] {
        let error = build.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(option), "{error}");
    }
}

#[tokio::test]
async fn more_items_than_are_to_be_collected_are_an_error() {
    let methods =
        Methods::new().server_streaming("count", |_cx: Context, (): ()| async move { Ok(stream::iter(0..10u64)) });
    let pair = pair_with(methods, |server| server, |client| client.collect_limit(9)).await;
    let all = || pair.client.fetch::<u64>(SERVICE, "count", ()).multiple();
    assert_eq!(all().limit(10).await.unwrap().len(), 10);
    let error = all().await.unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::ResourceExhausted, Execution::Done), "{error}");
    assert!(error.message().contains("9 items") && error.message().contains("collect_limit"), "{error}");
}
