//! picom through a trait, every option at its default, but for one limit where more connections come than it lets through.
//!
//! Owns the service that `picom_name` calls by name as well. Must never mark a method or set an option to be faster.
//! Next: `peer` for the contract.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use futures::{Stream, stream};
use picom::registry::Fixed;
use picom::{Builder, Bytes, Picom, Status, Streaming};

use crate::peer::{Client, Feed, Peer};
use crate::workloads::meter::Pace;

/// The name of the service.
pub(super) const SERVICE: &str = "bench";

#[picom::service]
trait Bench {
    async fn add(&self, a: u64, b: u64) -> Result<u64, Status>;
    async fn echo(&self, body: Bytes) -> Result<Bytes, Status>;
    async fn items(&self, count: u64) -> Result<impl Stream<Item = u64>, Status>;
    async fn items_sent(&self, count: u64) -> Result<Streaming<u64>, Status>;
    async fn sum(&self, items: Streaming<u64>) -> Result<u64, Status>;
    async fn chunks(&self, count: u64, size: usize) -> Result<impl Stream<Item = Bytes>, Status>;
    async fn size(&self, chunks: Streaming<Bytes>) -> Result<u64, Status>;
}

struct Handler;

impl Bench for Handler {
    async fn add(&self, a: u64, b: u64) -> Result<u64, Status> {
        Ok(a.wrapping_add(b))
    }

    async fn echo(&self, body: Bytes) -> Result<Bytes, Status> {
        Ok(body)
    }

    async fn items(&self, count: u64) -> Result<impl Stream<Item = u64>, Status> {
        Ok(stream::iter(0..count))
    }

    async fn items_sent(&self, count: u64) -> Result<Streaming<u64>, Status> {
        Ok(sent(count))
    }

    async fn sum(&self, items: Streaming<u64>) -> Result<u64, Status> {
        add_up(items).await
    }

    async fn chunks(&self, count: u64, size: usize) -> Result<impl Stream<Item = Bytes>, Status> {
        Ok(chunks(count, size))
    }

    async fn size(&self, chunks: Streaming<Bytes>) -> Result<u64, Status> {
        count_bytes(chunks).await
    }
}

/// Items that a task sends one by one.
pub(super) fn sent(count: u64) -> Streaming<u64> {
    let (sender, items) = picom::channel();
    tokio::spawn(async move {
        let mut pace = Pace::items();
        for item in 0..count {
            pace.add(1);
            sender.send(item).await.expect("somebody reads");
        }
    });
    items
}

/// Items that are there, for a client.
pub(super) fn ready(count: u64) -> impl Stream<Item = u64> {
    let mut pace = Pace::items();
    stream::iter((0..count).inspect(move |_| pace.add(1)))
}

/// The same chunk again and again.
pub(super) fn chunks(count: u64, size: usize) -> impl Stream<Item = Bytes> {
    let (chunk, mut pace) = (Bytes::from(vec![7; size]), Pace::bytes());
    stream::iter((0..count).map(move |_| {
        pace.add(size as u64);
        chunk.clone()
    }))
}

pub(super) async fn add_up(mut items: Streaming<u64>) -> Result<u64, Status> {
    let (mut sum, mut pace) = (0_u64, Pace::items());
    while let Some(item) = items.message().await? {
        pace.add(1);
        sum = sum.wrapping_add(item);
    }
    Ok(sum)
}

pub(super) async fn count_bytes(mut chunks: Streaming<Bytes>) -> Result<u64, Status> {
    let (mut bytes, mut pace) = (0, Pace::bytes());
    while let Some(chunk) = chunks.message().await? {
        pace.add(chunk.len() as u64);
        bytes += chunk.len() as u64;
    }
    Ok(bytes)
}

/// A node that serves where the listener was: picom binds for itself.
pub(super) fn server(listener: TcpListener, connections: Option<usize>) -> Builder {
    let address = listener.local_addr().expect("a bound address");
    drop(listener);
    let node = Picom::builder(SERVICE).bind("127.0.0.1").port(address.port());
    match connections {
        Some(connections) => node.max_connections_per_peer(connections),
        None => node,
    }
}

/// The registry of those who know the address.
pub(super) fn fixed(address: SocketAddr) -> Fixed {
    Fixed::new([(SERVICE, [address.to_string()])])
}

/// Serves the trait for ever.
pub(super) async fn serve(node: Builder) {
    let node = node.build().expect("options that work");
    node.expose(BenchServer::new(Handler)).await.expect("the port is still free");
    std::future::pending::<()>().await;
}

/// Calls until the first answer: the port was bound before picom listened on it.
pub(super) async fn connect(node: Picom) -> TypedCalls {
    let calls = TypedCalls(node.client(SERVICE));
    for _ in 0..100 {
        if calls.0.add(1, 2).await.is_ok() {
            return calls;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("picom does not answer");
}

/// A node of its own for each client, and so a connection of its own.
pub(super) fn client(address: SocketAddr) -> Picom {
    Picom::builder("load").registry(fixed(address)).build().expect("options that work")
}

/// picom, typed.
pub(crate) struct Typed;

#[derive(Clone)]
pub(crate) struct TypedCalls(BenchClient);

impl Peer for Typed {
    const NAME: &'static str = "picom";
    const STREAMS: bool = true;
    type Client = TypedCalls;

    async fn serve(listener: TcpListener, connections: Option<usize>) {
        let registry = fixed(listener.local_addr().expect("a bound address"));
        serve(server(listener, connections).registry(registry)).await;
    }

    async fn connect(address: SocketAddr) -> TypedCalls {
        connect(client(address)).await
    }
}

impl Client for TypedCalls {
    async fn add(&self, a: u64, b: u64) -> u64 {
        self.0.add(a, b).await.expect("a sum")
    }

    async fn echo(&self, body: Bytes) -> Bytes {
        self.0.echo(body).await.expect("an echo")
    }

    async fn items_down(&self, count: u64, feed: Feed) -> u64 {
        let items = match feed {
            Feed::Ready => self.0.items(count).await,
            Feed::Sent => self.0.items_sent(count).await,
        };
        add_up(items.expect("a stream")).await.expect("the whole of it")
    }

    async fn items_up(&self, count: u64, feed: Feed) -> u64 {
        let sum = match feed {
            Feed::Ready => self.0.sum(ready(count)).await,
            Feed::Sent => self.0.sum(sent(count)).await,
        };
        sum.expect("a sum")
    }

    async fn chunks_down(&self, count: u64, size: usize) -> u64 {
        count_bytes(self.0.chunks(count, size).await.expect("a stream")).await.expect("the whole of it")
    }

    async fn chunks_up(&self, count: u64, size: usize) -> u64 {
        self.0.size(chunks(count, size)).await.expect("a number of bytes")
    }
}
