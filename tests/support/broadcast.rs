//! Loopback networks of datagrams, one per test, and a stranger on them.
//!
//! Owns [`Network`] and [`Stranger`]. It must never send anywhere but to loopback. Look next at the tests of the broadcast
//! registry.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use picom::registry::Broadcast;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::timeout;

use super::PATIENCE;

/// A broadcast address of loopback with a port of its own, so that tests do not hear each other.
pub(crate) struct Network {
    pub(crate) addr: SocketAddr,
}

impl Network {
    pub(crate) fn new() -> Self {
        Self::at(free_port())
    }

    pub(crate) fn at(port: u16) -> Self {
        Self { addr: SocketAddr::from(([127, 255, 255, 255], port)) }
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

/// A port that nobody uses for datagrams now.
pub(crate) fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    socket.local_addr().expect("it is bound").port()
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
