//! picom, typed, with at most one connection: beside `picom`, what another one is worth where threads wait for each other.
//!
//! Must never differ from `picom` in anything else. A second one is only made after some seconds, so `all` says nothing of it. Next:
//! `picom`.

use std::net::{SocketAddr, TcpListener};

use picom::Picom;

use super::picom::{self as typed, TypedCalls};
use crate::peer::Peer;

/// picom, whose callers all share one connection.
pub(crate) struct One;

impl Peer for One {
    const NAME: &'static str = "picom-one";
    const STREAMS: bool = true;
    type Client = TypedCalls;

    async fn serve(listener: TcpListener, connections: Option<usize>) {
        typed::Typed::serve(listener, connections).await;
    }

    async fn connect(address: SocketAddr) -> TypedCalls {
        let node = Picom::builder("load").registry(typed::fixed(address)).max_connections_per_endpoint(1);
        typed::connect(node.build().expect("options that work")).await
    }
}
