//! picom, typed, with two instances to choose from, in W1 and W2-256: what balancing costs, which a lone instance is spared.
//!
//! Must never differ from `picom` in anything else; each instance has a connection of its own, so batches are half as long. Next:
//! `picom`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use picom::Picom;
use picom::registry::Fixed;

use super::picom::{self as one, SERVICE, TypedCalls};
use crate::peer::Peer;

/// picom, with another instance beside the first.
pub(crate) struct Two;

/// Where that is.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn both(first: SocketAddr) -> Fixed {
    Fixed::new([(SERVICE, [first.to_string(), SocketAddr::new(OTHER.into(), first.port()).to_string()])])
}

impl Peer for Two {
    const NAME: &'static str = "picom-two";
    const STREAMS: bool = true;
    type Client = TypedCalls;

    async fn serve(listener: TcpListener, connections: Option<usize>) {
        let address = listener.local_addr().expect("a bound address");
        let first = one::server(listener, connections).registry(both(address));
        let second = Picom::builder(SERVICE).bind(&OTHER.to_string()).port(address.port()).registry(both(address));
        tokio::join!(one::serve(first), one::serve(second));
    }

    async fn connect(address: SocketAddr) -> TypedCalls {
        one::connect(Picom::builder("load").registry(both(address)).build().expect("options that work")).await
    }
}
