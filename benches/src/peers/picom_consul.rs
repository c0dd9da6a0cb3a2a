//! picom, typed, with both sides finding each other through Consul: W7, beside `picom` with its fixed address.
//!
//! Must never differ from `picom` in anything else. Next: `picom`.

use std::net::{SocketAddr, TcpListener};

use super::picom::{self, TypedCalls};
use crate::peer::Peer;

/// picom through the registry that `PICOM_REGISTRY` names.
pub(crate) struct ThroughConsul;

impl Peer for ThroughConsul {
    const NAME: &'static str = "picom-consul";
    const STREAMS: bool = true;
    type Client = TypedCalls;

    async fn serve(listener: TcpListener, connections: Option<usize>) {
        picom::serve(picom::server(listener, connections)).await;
    }

    async fn connect(_: SocketAddr) -> TypedCalls {
        picom::connect(::picom::Picom::new("load")).await
    }
}
