//! Giving a call up: before, during and after it, by will or because the connection is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;

use futures::{StreamExt, stream};
use picom::registry::Fixed;
use picom::{Code, Context, Execution, Methods, Picom, Status, Streaming};
use support::eventually;
use support::fault::Row;
use support::nodes::{Guards, PROMPT, Pair, SERVICE, Witness, pair, pair_with, witness};
use support::peer::{self, Hello, Peer};
use support::proxy::{Mode, Proxy};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Methods that never end by themselves, each call of which holds a guard.
fn waiting(guards: &Guards) -> Methods {
    let (unary, server, client, bidi) = (guards.clone(), guards.clone(), guards.clone(), guards.clone());
    Methods::new()
        .unary("ping", |_cx: Context, (): ()| async move { Ok::<_, Status>(()) })
        .unary("unary", move |_cx: Context, (): ()| {
            let guard = unary.guard();
            async move {
                let _held = guard;
                std::future::pending::<Result<u64, Status>>().await
            }
        })
        .server_streaming("server", move |_cx: Context, (): ()| {
            let guard = server.guard();
            async move {
                Ok(stream::iter([1u64]).chain(stream::pending()).map(move |item| {
                    let _held = &guard;
                    item
                }))
            }
        })
        .client_streaming("client", move |_cx: Context, (): (), mut body: Streaming<u64>| {
            let guard = client.guard();
            async move {
                let _held = guard;
                while body.message().await?.is_some() {}
                std::future::pending::<Result<u64, Status>>().await
            }
        })
        .bidi("bidi", move |_cx: Context, (): (), body: Streaming<u64>| {
            let guard = bidi.guard();
            async move {
                Ok(body.map(move |item| {
                    let _held = &guard;
                    item
                }))
            }
        })
}

async fn watched() -> (Pair, Guards, Witness) {
    let (guards, witness) = witness();
    let pair = pair(waiting(&guards)).await;
    (pair, guards, witness)
}

#[tokio::test]
async fn dropping_a_call_drops_its_handler() {
    let (pair, guards, mut witness) = watched().await;
    for round in 0..3 {
        let fetch = |method| pair.client.fetch::<u64>(SERVICE, method, ());
        for kind in 0..3 {
            let call = match kind {
                0 => tokio::spawn(fetch("unary").into_future()),
                1 => tokio::spawn(fetch("client").body(stream::iter([1u64, 2])).into_future()),
                _ => tokio::spawn(fetch("client").body(stream::pending::<u64>()).into_future()),
            };
            witness.began().await;
            let dropped = Instant::now();
            call.abort();
            witness.ended_promptly(dropped).await;
        }
        let all = tokio::spawn(fetch("server").multiple().into_future());
        witness.began().await;
        let dropped = Instant::now();
        all.abort();
        witness.ended_promptly(dropped).await;
        assert_eq!(guards.alive(), 0, "round {round}");
    }
    pair.client.fetch::<()>(SERVICE, "ping", ()).await.expect("the connection lives");
}

#[tokio::test]
async fn dropping_a_stream_drops_its_handler() {
    let (pair, _guards, mut witness) = watched().await;
    let mut items = pair.client.stream::<u64>(SERVICE, "server", ()).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), 1);
    witness.began().await;
    let dropped = Instant::now();
    drop(items);
    let begun = witness.ended_promptly(dropped).await;

    // One that nobody has read, and whose body has not ended.
    let body = stream::iter([7u64]).chain(stream::pending());
    let items = pair.client.stream::<u64>(SERVICE, "bidi", ()).body(body).await.unwrap();
    witness.began().await;
    let dropped = Instant::now();
    drop(items);
    let unread = witness.ended_promptly(dropped).await;
    Row::new(30, "caller gives up in the middle of a stream")
        .at_most("handler gone after", begun.max(unread), PROMPT)
        .finish();
    pair.client.fetch::<()>(SERVICE, "ping", ()).await.expect("the connection lives");
}

#[tokio::test]
async fn a_timeout_around_a_call_is_a_cancellation_too() {
    let (pair, _guards, mut witness) = watched().await;
    let call = pair.client.fetch::<u64>(SERVICE, "unary", ());
    tokio::select! {
        answer = call.into_future() => panic!("{answer:?}"),
        () = witness.began() => {}
    }
    let dropped = Instant::now();
    witness.ended_promptly(dropped).await;
}

#[tokio::test]
async fn giving_up_after_the_answer_does_nothing() {
    let (pair, guards, _witness) = watched().await;
    let (_, info) = pair.client.fetch::<()>(SERVICE, "ping", ()).with_info().await.unwrap();
    drop(info);
    let items = pair.client.fetch::<u64>(SERVICE, "ping", ()).multiple().await;
    drop(items);
    pair.client.fetch::<()>(SERVICE, "ping", ()).await.unwrap();
    assert_eq!(guards.made(), 0);
}

#[tokio::test]
async fn a_lost_connection_drops_its_handlers_and_fails_its_calls() {
    let (pair, guards, mut witness) = watched().await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let registry = Fixed::new([(SERVICE, [proxy.addr.to_string()])]);
    let client = Picom::builder("caller").registry(registry).build().unwrap();
    let unary = tokio::spawn(client.fetch::<u64>(SERVICE, "unary", ()).into_future());
    witness.began().await;
    let mut items = client.stream::<u64>(SERVICE, "server", ()).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), 1);
    witness.began().await;
    let cut = Instant::now();
    proxy.set(Mode::Cut);
    witness.ended_promptly(cut).await;
    witness.ended_promptly(cut).await;
    let unary = unary.await.unwrap().unwrap_err();
    let within = items.next().await.expect("a lost connection is no end of a stream").unwrap_err();
    for error in [unary, within] {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert_eq!(error.execution(), Execution::Maybe, "{error}");
        assert!(error.message().contains("connection lost"), "{error}");
        assert_eq!(error.attempts(), 1, "what may have run is not tried again: {error}");
    }
    assert_eq!(guards.made(), 2, "handlers ran more often than they were called");
}

#[tokio::test]
async fn a_client_that_closes_its_half_is_gone() {
    let (guards, mut witness) = witness();
    let pair = pair(waiting(&guards)).await;
    let mut client = Peer::connect(pair.exposed.local_addr(), &Hello::client(SERVICE)).await;
    client.send(&peer::unary(peer::FIRST, "unary")).await;
    witness.began().await;
    let closed = Instant::now();
    tokio::io::AsyncWriteExt::shutdown(&mut client.socket).await.unwrap();
    witness.ended_promptly(closed).await;
}

#[tokio::test]
async fn a_call_that_waits_for_its_turn_can_be_given_up() {
    let (guards, mut witness) = witness();
    let one = |client: picom::Builder| client.max_connections_per_endpoint(1);
    let pair = pair_with(waiting(&guards), |server| server.max_calls(1), one).await;
    let first = tokio::spawn(pair.client.fetch::<u64>(SERVICE, "unary", ()).into_future());
    witness.began().await;
    let waiting = tokio::spawn(pair.client.fetch::<u64>(SERVICE, "unary", ()).into_future());
    let last = tokio::spawn(pair.client.fetch::<()>(SERVICE, "ping", ()).into_future());
    eventually("the others have begun to wait", {
        let mut turns = 0;
        async move || {
            turns += 1;
            turns > 3
        }
    })
    .await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert!(!last.is_finished(), "a call beyond the limit did not wait");
    first.abort();
    timeout(support::PATIENCE, last).await.expect("the next in turn takes the place").unwrap().unwrap();
    assert_eq!(guards.made(), 1, "the call that was given up ran all the same");
}

#[tokio::test]
async fn calls_given_up_by_the_thousand_leave_nothing_behind() {
    let (pair, guards, _witness) = watched().await;
    let proxy = Proxy::start(pair.exposed.local_addr()).await;
    let registry = Fixed::new([(SERVICE, [proxy.addr.to_string()])]);
    let client = Picom::builder("caller").registry(registry).build().unwrap();
    for _ in 0..3000 {
        let call = tokio::spawn(client.fetch::<u64>(SERVICE, "unary", ()).into_future());
        tokio::task::yield_now().await;
        call.abort();
        let _ = call.await;
    }
    client.fetch::<()>(SERVICE, "ping", ()).await.expect("the connection lives");
    eventually("no handler is left", async || guards.alive() == 0).await;
    assert_eq!(proxy.connections(), 1, "a client may cancel its own calls");
}

/// What a task reads from the body that a handler has given to it.
async fn body_in_other_hands(answers: bool) -> (Pair, mpsc::UnboundedReceiver<Result<Option<u64>, Status>>) {
    let (say, said) = mpsc::unbounded_channel();
    let methods = Methods::new().client_streaming("hand_on", move |_cx: Context, (): (), mut body: Streaming<u64>| {
        let say = say.clone();
        async move {
            tokio::spawn(async move {
                loop {
                    let item = body.message().await;
                    let last = !matches!(item, Ok(Some(_)));
                    let _ = say.send(item);
                    if last {
                        break;
                    }
                }
            });
            if answers { Ok(7u64) } else { std::future::pending().await }
        }
    });
    (pair(methods).await, said)
}

#[tokio::test]
async fn a_body_in_other_hands_says_that_the_call_is_over() {
    for answers in [false, true] {
        let (pair, mut said) = body_in_other_hands(answers).await;
        let body = stream::iter([1u64]).chain(stream::pending());
        let call = tokio::spawn(pair.client.fetch::<u64>(SERVICE, "hand_on", ()).body(body).into_future());
        if answers {
            assert_eq!(call.await.unwrap().unwrap(), 7);
        } else {
            assert_eq!(said.recv().await.unwrap().unwrap(), Some(1));
            call.abort();
        }
        let end = timeout(PROMPT, async {
            loop {
                match said.recv().await.expect("the reader says how it ended") {
                    Ok(Some(1)) => {}
                    end => return end,
                }
            }
        });
        let end = end.await.unwrap_or_else(|_| panic!("answered: {answers}: the body never ends"));
        let error = end.expect_err("a body that was given up has no proper end");
        assert_eq!(error.code(), Code::Cancelled, "answered: {answers}: {error}");
    }
}
