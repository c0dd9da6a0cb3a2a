//! The practical limit: a multiplexer on tokio with everything that makes one fast, and without codec, names or deadlines.
//!
//! Owns the knobs of flow control. Must never become easier than a multiplexer for `call().await` from many tasks can be, nor
//! slower than the best known: it is the yardstick. Next: `client`, `server`; both move bytes through `frame`, `inbox` and
//! `outbox`.

mod client;
mod down;
mod frame;
mod inbox;
mod outbox;
mod server;
mod slab;
mod sources;
mod up;

use std::net::{SocketAddr, TcpListener};

use crate::peer::Peer;

/// Longest piece of a body or chunk in one frame.
const FRAGMENT: usize = 64 << 10;
/// Bulk that is handed to the socket before small frames get their next chance.
const QUANTUM: usize = 256 << 10;
/// Bytes of one stream down that may be under way; given back by halves. Half as many move a third less, and small answers wait behind
/// them: twice as many move no more bulk and keep a call waiting longer.
const WINDOW: usize = 512 << 10;
/// The same for a stream up, which is slower with less: the server takes what came before it writes any credit.
const WINDOW_UP: usize = 1 << 20;
/// Bodies from here on are written and read by reference.
const BY_REFERENCE: usize = 2 << 10;
/// Items of a stream go in frames of this many bytes.
const BATCH: usize = 32 << 10;

pub(crate) struct Raw;

impl Peer for Raw {
    const NAME: &'static str = "raw";
    const STREAMS: bool = true;
    type Client = client::Caller;

    async fn serve(listener: TcpListener, _: Option<usize>) {
        server::serve(listener).await;
    }

    async fn connect(address: SocketAddr) -> client::Caller {
        client::connect(address).await
    }
}
