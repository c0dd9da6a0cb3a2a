//! Where the simulator comes between connections: a network of its own, and every connection that was made.
//!
//! Owns what is installed on a thread, and is compiled for tests only. It must never know what a network does with bytes. Look
//! next at `simulation/net.rs`, which is that network.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Weak;

use futures::future::BoxFuture;

use super::Io;
use super::link::{Link, Phase};
use super::memory::ADDRESS;
use crate::proto::{Config, Side};

/// A network, for all connections that are made on one thread.
pub(crate) trait Network {
    /// Connects to an address of the network.
    fn connect(&self, addr: SocketAddr) -> BoxFuture<'static, io::Result<Io>>;
    /// A connection has a machine now: that of the client, or that of the server of this incarnation.
    fn made(&self, side: Side, incarnation: u64, link: Weak<Link>);
}

thread_local! {
    static NETWORK: RefCell<Option<Box<dyn Network>>> = const { RefCell::new(None) };
}

/// Puts a network in place, or takes it away.
pub(crate) fn install(network: Option<Box<dyn Network>>) {
    NETWORK.with(|place| *place.borrow_mut() = network);
}

/// The address at which one host of the network finds a port of it. Each host has addresses of its own for everybody, which is
/// how the network knows who connects.
pub(crate) fn addr(from: u16, port: u16) -> SocketAddr {
    let mut segments = ADDRESS.segments();
    segments[6] = from + 1;
    SocketAddr::new(IpAddr::from(segments), port)
}

/// Who connects, and to which port, by an address of a network.
pub(crate) fn parts(addr: SocketAddr) -> Option<(u16, u16)> {
    let IpAddr::V6(ip) = addr.ip() else { return None };
    let mut segments = ip.segments();
    let from = std::mem::take(&mut segments[6]).checked_sub(1)?;
    (segments == ADDRESS.segments()).then_some((from, addr.port()))
}

/// The connection through the thread's network, if there is one and the address is of it.
pub(super) fn connect(addr: SocketAddr) -> Option<BoxFuture<'static, io::Result<Io>>> {
    parts(addr)?;
    NETWORK.with(|place| place.borrow().as_ref().map(|network| network.connect(addr)))
}

/// Tells the thread's network of a connection.
pub(super) fn made(config: &Config, link: Weak<Link>) {
    NETWORK.with(|place| {
        if let Some(network) = &*place.borrow() {
            network.made(config.side, config.incarnation, link);
        }
    });
}

impl Link {
    /// See [`Connection::accounts`](crate::proto::Connection::accounts); nothing of a connection that is over, or
    /// whose peer has not said yet how much credit it gives.
    pub(crate) fn accounts(&self) -> Option<(usize, bool, usize, usize)> {
        let is_greeted = !matches!(*self.phase().borrow(), Phase::Handshaking);
        let state = self.lock();
        (is_greeted && !state.is_closing()).then(|| state.proto.accounts())
    }
}
