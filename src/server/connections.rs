//! The connections of a server and the limits on their number.
//!
//! Owns who is connected and from where. It must never read or write. Look next at [`super::accept`].

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::options::Options;
use crate::proto::CloseReason;
use crate::transport::link::Link;

/// Every connection, with its limits.
#[derive(Debug)]
pub(super) struct Connections {
    table: Mutex<Table>,
    max: usize,
    max_per_peer: usize,
    max_handshakes: usize,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// In the order in which they came, so that what is done with each of them is done in an order.
    all: BTreeMap<u64, Entry>,
    count: Count,
    per_peer: HashMap<IpAddr, Count>,
    /// Numbers of connections without hello, oldest first; some may have ended.
    handshaking: std::collections::BTreeSet<u64>,
}

#[derive(Debug)]
struct Entry {
    link: Arc<Link>,
    peer: Option<IpAddr>,
    is_leaving: bool,
}

/// Connections, from one address or from all.
#[derive(Debug, Default)]
struct Count {
    all: usize,
    /// Those of them that were told to go, and stay for the calls that they have.
    leaving: usize,
}

impl Count {
    /// Whether one more would be past the limit. One that was told to go has left its place to the next, or who was a client before would be
    /// none now; but only as many as there may be, or they would be without end.
    fn is_full(&self, max: usize) -> bool {
        self.all - self.leaving.min(max) >= max
    }
}

/// A place in the table; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<super::Shared>,
    number: u64,
}

impl Connections {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            table: Mutex::default(),
            max: options.max_connections,
            max_per_peer: options.max_connections_per_peer,
            max_handshakes: options.max_handshakes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which limit one more connection from `peer` would exceed.
    pub(super) fn refuses(&self, peer: Option<IpAddr>) -> Option<String> {
        let table = self.lock();
        if table.count.is_full(self.max) {
            return Some(format!("this server has its limit of {} connections", self.max));
        }
        let from_peer = peer.and_then(|peer| table.per_peer.get(&peer)).unwrap_or(&Count { all: 0, leaving: 0 });
        from_peer
            .is_full(self.max_per_peer)
            .then(|| format!("this server has its limit of {} connections from one address", self.max_per_peer))
    }

    /// Does something with each connection. `act` must not come back here.
    pub(super) fn for_each(&self, mut act: impl FnMut(&Link)) {
        let links: Vec<_> = self.lock().all.values().map(|entry| Arc::clone(&entry.link)).collect();
        links.iter().for_each(|link| act(link));
    }
}

impl Place {
    /// Takes a place for a new connection. If too many have not said hello, the oldest of them has to go.
    pub(super) fn take(shared: &Arc<super::Shared>, link: &Arc<Link>) -> Self {
        let connections = &shared.connections;
        let mut table = connections.lock();
        let number = table.next;
        table.next += 1;
        let peer = link.remote().map(|addr| addr.ip());
        table.all.insert(number, Entry { link: Arc::clone(link), peer, is_leaving: false });
        table.count.all += 1;
        if let Some(peer) = peer {
            table.per_peer.entry(peer).or_default().all += 1;
        }
        table.handshaking.insert(number);
        let oldest = (table.handshaking.len() > connections.max_handshakes)
            .then(|| table.handshaking.pop_first())
            .flatten()
            .and_then(|number| table.all.get(&number))
            .map(|entry| Arc::clone(&entry.link));
        drop(table);
        if let Some(oldest) = oldest {
            oldest.close(CloseReason::Busy, "too many connections have not said hello");
        }
        Self { shared: Arc::clone(shared), number }
    }

    /// The connection has said hello.
    pub(super) fn greeted(&self) {
        self.shared.connections.lock().handshaking.remove(&self.number);
    }

    /// The connection was told to go, and leaves its place to another one.
    pub(super) fn left(&self) {
        let mut table = self.shared.connections.lock();
        let Table { all, count, per_peer, .. } = &mut *table;
        let Some(entry) = all.get_mut(&self.number).filter(|entry| !entry.is_leaving) else { return };
        entry.is_leaving = true;
        count.leaving += 1;
        if let Some(count) = entry.peer.and_then(|peer| per_peer.get_mut(&peer)) {
            count.leaving += 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.shared.connections.lock();
        table.handshaking.remove(&self.number);
        let Some(entry) = table.all.remove(&self.number) else { return };
        let leaving = usize::from(entry.is_leaving);
        table.count.all -= 1;
        table.count.leaving -= leaving;
        let Some(peer) = entry.peer else { return };
        if let Some(count) = table.per_peer.get_mut(&peer) {
            count.all -= 1;
            count.leaving -= leaving;
            if count.all == 0 {
                table.per_peer.remove(&peer);
            }
        }
    }
}
