//! What travels beside the arguments, and what nested calls inherit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::time::Duration;

use futures::stream;
use picom::registry::Memory;
use picom::{Code, Context, Execution, Methods, Picom, Status, Streaming, args};
use serde::Deserialize;
use support::nodes::{SERVICE, builder, pair, pair_with};
use support::peer::nobody;
use tokio::time::timeout;

type Entries = BTreeMap<String, String>;

fn entries(cx: &Context) -> Entries {
    cx.metadata().iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[derive(Deserialize)]
struct Tag {
    tag: String,
}

fn seen() -> Methods {
    Methods::new()
        .unary("seen", |cx: Context, (): ()| async move { Ok::<_, Status>(entries(&cx)) })
        .unary("tag", |cx: Context, Tag { tag }: Tag| async move {
            cx.set_answer_metadata("tag", &tag).unwrap();
            Ok::<_, Status>(tag)
        })
        .unary("tag_later", |cx: Context, Tag { tag }: Tag| async move {
            tokio::task::yield_now().await;
            cx.set_answer_metadata("tag", &tag).unwrap();
            Ok::<_, Status>(tag)
        })
        .server_streaming("tag_items", |cx: Context, Tag { tag }: Tag| async move {
            cx.set_answer_metadata("tag", &tag).unwrap();
            Ok(stream::iter([1u64]))
        })
}

#[tokio::test]
async fn metadata_travels_both_ways() {
    let pair = pair(seen()).await;
    let call = pair.client.fetch::<Entries>(SERVICE, "seen", ());
    let (seen, info) = call
        .metadata("tenant", "acme")
        .metadata_inherited("trace.id", "größe")
        .metadata("empty", "")
        .with_info()
        .await
        .unwrap();
    let expected = [("tenant", "acme"), ("trace.id", "größe"), ("empty", "")];
    assert_eq!(seen, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    assert!(info.metadata().is_empty(), "an answer without metadata has none: {:?}", info.metadata());
    for method in ["tag", "tag_later"] {
        let (_, info) = pair.client.fetch::<String>(SERVICE, method, args! { tag: "blue" }).with_info().await.unwrap();
        assert_eq!(info.metadata().get("tag"), Some("blue"), "{method}");
        assert_eq!(info.endpoint(), pair.exposed.local_addr());
        assert_eq!(info.attempts(), 1);
        assert!(info.elapsed() < support::PATIENCE);
    }
    let (items, info) =
        pair.client.fetch::<u64>(SERVICE, "tag_items", args! { tag: "red" }).multiple().with_info().await.unwrap();
    assert_eq!((items, info.metadata().get("tag")), (vec![1], Some("red")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_answer_keeps_its_own_metadata_among_many_calls() {
    let pair = pair_with(seen(), |server| server.max_calls(4), |client| client).await;
    let callers = (0..16).map(|caller| {
        let client = pair.client.clone();
        tokio::spawn(async move {
            for n in 0..300 {
                let tag = format!("{caller}-{n}");
                let call = client.fetch::<String>(SERVICE, "tag", args! { tag: tag });
                let (answer, info) = call.with_info().await.unwrap();
                assert_eq!(answer, tag);
                assert_eq!(info.metadata().get("tag"), Some(tag.as_str()), "the metadata of another call, or none");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn metadata_is_limited_and_what_is_wrong_fails_the_call_before_it_is_made() {
    let pair = pair(seen()).await;
    let call = |fill: &dyn Fn(&str) -> Vec<(String, String)>| {
        let call = pair.client.fetch::<Entries>(SERVICE, "seen", ());
        fill("").into_iter().fold(call, |call, (key, value)| call.metadata(&key, &value))
    };
    // Each entry costs three bytes beside its key and its value.
    let fits = call(&|_| vec![("k".into(), "v".repeat(16 * 1024 - 4))]).await.unwrap();
    assert_eq!(fits["k"].len(), 16 * 1024 - 4, "metadata of the largest size arrives");
    let many = call(&|_| (0..64).map(|n| (format!("k{n}"), String::new())).collect()).await.unwrap();
    assert_eq!(many.len(), 64, "the largest number of entries arrives");
    let wrong: [(&str, Vec<(String, String)>); 4] = [
        ("at most 16384 bytes", vec![("k".into(), "v".repeat(16 * 1024 - 3))]),
        ("at most 64 entries", (0..65).map(|n| (format!("k{n}"), String::new())).collect()),
        ("lower case", vec![("Upper".into(), String::new())]),
        ("1 to 127", vec![(String::new(), String::new())]),
    ];
    for (text, given) in wrong {
        let error = call(&|_| given.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(text), "{text}: {error}");
        assert_eq!((error.execution(), error.attempts()), (Execution::Never, 0), "{error}");
    }
    call(&|_| Vec::new()).await.expect("the connection lives");
}

/// Three nodes in a row: what `front` gets it asks of `middle`, and that of `back`.
async fn chain(registry: &Memory) -> Vec<Picom> {
    let mut nodes = Vec::new();
    for (name, next) in [("front", Some("middle")), ("middle", Some("back")), ("back", None)] {
        let node = builder(name, registry).build().unwrap();
        let (calls, detached) = (node.clone(), node.clone());
        let methods = Methods::new()
            .unary("seen", move |cx: Context, (): ()| {
                let node = calls.clone();
                async move {
                    match next {
                        Some(next) => node.fetch::<Entries>(next, "seen", ()).await,
                        None => Ok(entries(&cx)),
                    }
                }
            })
            .unary("remaining", {
                let node = node.clone();
                move |cx: Context, (): ()| {
                    let node = node.clone();
                    async move {
                        let mine = cx.remaining().map(|left| left.as_micros() as u64);
                        let mut all = vec![mine];
                        if let Some(next) = next {
                            all.extend(node.fetch::<Vec<Option<u64>>>(next, "remaining", ()).await?);
                        }
                        Ok::<_, Status>(all)
                    }
                }
            })
            .unary("detached", move |_cx: Context, (): ()| {
                let node = detached.clone();
                async move {
                    let call = async { node.fetch::<Entries>("back", "seen", ()).await };
                    let in_task = tokio::spawn(Context::detached(async {
                        Context::current().is_some_and(|cx| cx.deadline().is_none())
                    }));
                    assert!(in_task.await.unwrap(), "a detached future has no deadline");
                    Context::detached(call).await
                }
            });
        node.expose(methods).await.unwrap();
        nodes.push(node);
    }
    nodes
}

#[tokio::test]
async fn only_what_is_marked_is_inherited_and_over_every_hop() {
    let registry = Memory::new();
    let nodes = chain(&registry).await;
    let call = nodes[2].fetch::<Entries>("front", "seen", ());
    let seen = call.metadata("once", "1").metadata_inherited("trace", "abc").await.unwrap();
    assert_eq!(seen, [("trace".to_owned(), "abc".to_owned())].into(), "over two hops");
    let call = nodes[2].fetch::<Entries>("front", "detached", ());
    let seen = call.metadata_inherited("trace", "abc").await.unwrap();
    assert_eq!(seen, Entries::new(), "a detached call inherits nothing");
}

#[tokio::test]
async fn the_time_that_remains_shrinks_from_hop_to_hop() {
    let registry = Memory::new();
    let nodes = chain(&registry).await;
    let given = Duration::from_secs(10);
    let call = nodes[2].fetch::<Vec<Option<u64>>>("front", "remaining", ()).timeout(given);
    let remaining: Vec<u64> = call.await.unwrap().into_iter().map(|left| left.expect("a deadline")).collect();
    assert!(remaining[0] <= given.as_micros() as u64, "{remaining:?}");
    // Each hop keeps a margin back to answer in.
    for pair in remaining.windows(2) {
        assert!(pair[1] + 4_000 < pair[0], "the deadline did not shrink by the margin: {remaining:?}");
        assert!(pair[1] + 5_000_000 > pair[0], "the deadline shrank by much more than the hop took: {remaining:?}");
    }
}

#[tokio::test]
async fn a_failure_of_a_nested_call_says_where_it_was_and_not_that_the_outer_handler_never_ran() {
    let registry = Memory::new();
    let outer = builder(SERVICE, &registry).build().unwrap();
    let (node, dead) = (outer.clone(), nobody().await);
    let streams = outer.clone();
    let methods = Methods::new()
        .unary("forward", move |_cx: Context, (): ()| {
            let node = node.clone();
            async move { node.fetch::<u64>("inner", "add", ()).on(dead).retries(0).await }
        })
        .server_streaming("forward_items", move |_cx: Context, (): ()| {
            let node = streams.clone();
            async move { node.stream::<u64>("inner", "add", ()).on(dead).retries(0).await }
        });
    outer.expose(methods).await.unwrap();
    let client = builder("service2", &registry).build().unwrap();
    let unary = client.fetch::<u64>(SERVICE, "forward", ()).await.unwrap_err();
    let items = client.fetch::<u64>(SERVICE, "forward_items", ()).multiple().await.unwrap_err();
    for error in [unary, items] {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert_eq!(error.execution(), Execution::Done, "the handler that forwards did run: {error}");
        assert!(error.message().contains(&format!("inner.add at {dead}")), "whose connection was refused? {error}");
    }
}

#[tokio::test]
async fn a_handler_knows_who_calls_what() {
    let methods = Methods::new().bidi("who", |cx: Context, (): (), _body: Streaming<u64>| async move {
        let peer = cx.peer();
        let facts = [cx.service(), cx.method(), &peer.node].map(str::to_owned);
        let facts = facts.into_iter().chain([peer.addr.map_or_else(String::new, |addr| addr.ip().to_string())]);
        Ok(stream::iter(facts.collect::<Vec<_>>()))
    });
    let pair = pair(methods).await;
    let call = pair.client.fetch::<String>(SERVICE, "who", ()).body(stream::empty::<u64>()).multiple();
    assert_eq!(call.await.unwrap(), [SERVICE, "who", "service2", "127.0.0.1"]);
}

#[tokio::test]
async fn work_in_a_task_of_its_own_learns_that_the_call_is_over() {
    let (say, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let methods = Methods::new().unary("wait", move |cx: Context, (): ()| {
        let say = say.clone();
        async move {
            let _ = say.send(false);
            let watching = cx.clone();
            tokio::spawn(async move {
                watching.cancelled().await;
                let _ = say.send(watching.is_cancelled());
            });
            std::future::pending::<Result<(), Status>>().await
        }
    });
    let pair = pair(methods).await;
    let call = tokio::spawn(pair.client.fetch::<()>(SERVICE, "wait", ()).into_future());
    assert_eq!(timeout(support::PATIENCE, heard.recv()).await.expect("the handler runs"), Some(false));
    call.abort();
    let told = timeout(support::PATIENCE, heard.recv()).await;
    assert_eq!(told.expect("the context never said that the call is over"), Some(true));
}
