//! What every system under test looks like to the workloads: one server, one client on one connection.
//!
//! Must never: help one peer by doing for it what the others do themselves. Next: `peers` holds one file per peer,
//! `workloads` drives them.

use bytes::Bytes;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};

/// A system under test.
pub(crate) trait Peer: 'static {
    /// Its name in the results.
    const NAME: &'static str;
    /// Whether it can stream; without it the four stream methods of the client are never called.
    const STREAMS: bool;
    /// Its client.
    type Client: Client;

    /// Serves on `listener` until the process is killed. `listener` is listening and non-blocking. `connections` says how many
    /// come where they are more than a server may be expected to take from one address.
    fn serve(listener: TcpListener, connections: Option<usize>) -> impl Future<Output = ()> + Send;

    /// One client, on one connection of its own, connected when this returns.
    fn connect(address: SocketAddr) -> impl Future<Output = Self::Client> + Send;
}

/// How the items of a stream are handed to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// A source that is always ready, such as an iterator.
    Ready,
    /// One `send(item).await` for each item, from a task to a channel or sink.
    Sent,
}

/// A client of a [`Peer`]: cheap to clone, all clones share the connection. A failed call panics: a benchmark with
/// failures has no figures. The streams' defaults are for peers without streams, of
/// which they are never asked: [`Peer::STREAMS`] says so.
pub(crate) trait Client: Clone + Send + Sync + 'static {
    /// `a + b`, computed by the server from two 64-bit numbers.
    fn add(&self, a: u64, b: u64) -> impl Future<Output = u64> + Send;

    /// The same bytes back.
    fn echo(&self, body: Bytes) -> impl Future<Output = Bytes> + Send;

    // A peer that has streams overrides these four. Of others the suite leaves those workloads out and says so, so that coming here is
    // a mistake in the suite, which must end the run.

    /// Receives the 64-bit items `0..count` one by one and returns their wrapping sum.
    fn items_down(&self, _count: u64, _feed: Feed) -> impl Future<Output = u64> + Send {
        async { unimplemented!("this peer has no streams") }
    }

    /// Sends the 64-bit items `0..count` one by one; the server's handler receives each and returns their wrapping sum.
    fn items_up(&self, _count: u64, _feed: Feed) -> impl Future<Output = u64> + Send {
        async { unimplemented!("this peer has no streams") }
    }

    /// Receives `count` chunks of `size` bytes and returns how many bytes came.
    fn chunks_down(&self, _count: u64, _size: usize) -> impl Future<Output = u64> + Send {
        async { unimplemented!("this peer has no streams") }
    }

    /// Sends `count` chunks of `size` bytes; the server's handler receives each and returns how many bytes came.
    fn chunks_up(&self, _count: u64, _size: usize) -> impl Future<Output = u64> + Send {
        async { unimplemented!("this peer has no streams") }
    }
}
