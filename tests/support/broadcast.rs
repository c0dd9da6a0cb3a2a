//! Loopback networks of datagrams, one per test, and a stranger on them.
//!
//! Owns [`Network`], [`Port`] and [`Stranger`]. It must never send anywhere but to loopback. Look next at the tests of the broadcast
//! registry.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use picom::registry::Broadcast;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::timeout;

use super::PATIENCE;

/// A broadcast address of loopback with a port of its own, so that tests do not hear each other.
pub(crate) struct Network {
    pub(crate) addr: SocketAddr,
    _port: Option<Port>,
}

impl Network {
    pub(crate) fn new() -> Self {
        let port = Port::new();
        Self { _port: Some(port.clone()), ..Self::at(port.number()) }
    }

    /// The network of another process.
    pub(crate) fn at(port: u16) -> Self {
        Self { addr: SocketAddr::from(([127, 255, 255, 255], port)), _port: None }
    }

    /// Another process's view of this network would be the same.
    pub(crate) fn registry(&self) -> Broadcast {
        Broadcast::to(&self.addr.to_string()).expect("a broadcast address")
    }

    pub(crate) fn stranger(&self) -> Stranger {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.set_broadcast(true).expect("an option");
        socket.bind(&SockAddr::from(self.addr)).expect("the address is shared");
        socket.set_nonblocking(true).expect("an option");
        let socket = tokio::net::UdpSocket::from_std(socket.into()).expect("a runtime");
        Stranger { socket, to: self.addr }
    }
}

/// A port for datagrams that no other test uses, in this process or another, for as long as this lives.
#[derive(Clone)]
pub(crate) struct Port(Arc<UdpSocket>);

impl Port {
    pub(crate) fn new() -> Self {
        // All tests reserve at one address, which nothing else uses.
        Self(Arc::new(UdpSocket::bind("127.77.77.77:0").expect("all of 127.0.0.0/8 is loopback")))
    }

    pub(crate) fn number(&self) -> u16 {
        self.0.local_addr().expect("it is bound").port()
    }
}

/// Somebody who hears everything and sends what no node would.
pub(crate) struct Stranger {
    socket: tokio::net::UdpSocket,
    to: SocketAddr,
}

impl Stranger {
    pub(crate) async fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.to).await.expect("loopback takes datagrams of this size");
    }

    /// The next datagram that anybody sends.
    pub(crate) async fn hear(&self) -> Vec<u8> {
        timeout(PATIENCE, self.next()).await.expect("somebody sends something")
    }

    /// The next datagram, if there is one within this time.
    pub(crate) async fn hear_within(&self, time: Duration) -> Option<Vec<u8>> {
        timeout(time, self.next()).await.ok()
    }

    async fn next(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let (len, _) = self.socket.recv_from(&mut buffer).await.expect("it listens");
        buffer.truncate(len);
        buffer
    }
}
