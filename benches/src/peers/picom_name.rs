//! picom without a trait: closures on one side, names on the other.
//!
//! Must never do what `picom` does not: same service, same options. Next: `picom`.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use futures::stream;
use picom::{Bytes, Context, Methods, Picom, Status, args};
use serde::Deserialize;

use super::picom::{SERVICE, add_up, chunks, client, count_bytes, fixed, ready, sent, server};
use crate::peer::{Client, Feed, Peer};

#[derive(Deserialize)]
struct Add {
    a: u64,
    b: u64,
}

#[derive(Deserialize)]
struct Echo {
    #[serde(with = "picom::by_reference")]
    body: Bytes,
}

#[derive(Deserialize)]
struct Items {
    count: u64,
}

#[derive(Deserialize)]
struct Chunks {
    count: u64,
    size: usize,
}

fn methods() -> Methods {
    Methods::new()
        .unary("add", |_: Context, Add { a, b }: Add| async move { Ok::<_, Status>(a.wrapping_add(b)) })
        .unary("echo", |_: Context, Echo { body }: Echo| async move { Ok::<_, Status>(body) })
        .server_streaming("items", |_: Context, Items { count }: Items| async move { Ok(stream::iter(0..count)) })
        .server_streaming("items_sent", |_: Context, Items { count }: Items| async move { Ok(sent(count)) })
        .client_streaming("sum", |_: Context, (): (), items| add_up(items))
        .server_streaming("chunks", |_: Context, Chunks { count, size }: Chunks| async move { Ok(chunks(count, size)) })
        .client_streaming("size", |_: Context, (): (), body| count_bytes(body))
}

/// picom, by name.
pub(crate) struct ByName;

#[derive(Clone)]
pub(crate) struct CallsByName(Picom);

impl Peer for ByName {
    const NAME: &'static str = "picom-name";
    const STREAMS: bool = true;
    type Client = CallsByName;

    async fn serve(listener: TcpListener, connections: Option<usize>) {
        let registry = fixed(listener.local_addr().expect("a bound address"));
        let node = server(listener, connections).registry(registry).build().expect("options that work");
        node.expose(methods()).await.expect("the port is still free");
        std::future::pending::<()>().await;
    }

    async fn connect(address: SocketAddr) -> CallsByName {
        let node = client(address);
        // The port was bound before picom listened on it.
        for _ in 0..100 {
            if node.fetch::<u64>(SERVICE, "add", args! { a: 1, b: 2 }).await.is_ok() {
                return CallsByName(node);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("picom does not answer");
    }
}

impl Client for CallsByName {
    async fn add(&self, a: u64, b: u64) -> u64 {
        self.0.fetch(SERVICE, "add", args! { a: a, b: b }).await.expect("a sum")
    }

    async fn echo(&self, body: Bytes) -> Bytes {
        self.0.fetch(SERVICE, "echo", args! { body: body }).await.expect("an echo")
    }

    async fn items_down(&self, count: u64, feed: Feed) -> u64 {
        let method = match feed {
            Feed::Ready => "items",
            Feed::Sent => "items_sent",
        };
        let items = self.0.stream(SERVICE, method, args! { count: count }).await.expect("a stream");
        add_up(items).await.expect("the whole of it")
    }

    async fn items_up(&self, count: u64, feed: Feed) -> u64 {
        let call = self.0.fetch(SERVICE, "sum", ());
        let sum = match feed {
            Feed::Ready => call.body(ready(count)).await,
            Feed::Sent => call.body(sent(count)).await,
        };
        sum.expect("a sum")
    }

    async fn chunks_down(&self, count: u64, size: usize) -> u64 {
        let chunks = self.0.stream(SERVICE, "chunks", args! { count: count, size: size }).await.expect("a stream");
        count_bytes(chunks).await.expect("the whole of it")
    }

    async fn chunks_up(&self, count: u64, size: usize) -> u64 {
        self.0.fetch(SERVICE, "size", ()).body(chunks(count, size)).await.expect("a number of bytes")
    }
}
