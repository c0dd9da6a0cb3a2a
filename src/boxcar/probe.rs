//! One visit to one server: connect, and read the line.
//!
//! Owns what a visit can end with: [`Event`]. It must never take longer than its limits. Look next at [`super::rover`],
//! which decides who is visited when.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::line::{self, Line};
use super::set_options;

/// A server that a rover knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    pub(super) id: Arc<str>,
    pub(super) address: Arc<str>,
}

impl Server {
    /// A server of this name at `host:port`.
    pub fn new(id: &str, address: &str) -> Self {
        Self { id: Arc::from(id), address: Arc::from(address) }
    }

    /// By what it was added, and can be dropped.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.id, self.address)
    }
}

/// What a rover has to say.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A server has given a slot. The connection is the receiver's; bytes behind the line are still to be read from it.
    Connection {
        /// The number: how many connections that server had, about.
        slot: u32,
        /// Who gave it.
        server: Server,
        /// The connection.
        stream: TcpStream,
    },
    /// There is no connection to be had from this server now, or it said nothing in time, or closed without a word.
    Unreachable {
        /// Which one.
        server: Server,
        /// What failed.
        why: String,
    },
    /// A server is there but has no slot.
    Refused {
        /// Which one.
        server: Server,
        /// Why, as it said. What is no printable ASCII is escaped.
        words: String,
    },
    /// Something that somebody should put right.
    Error(RoverError),
}

/// What a rover cannot make sense of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoverError {
    /// There is no server to visit.
    #[error("no servers to contact")]
    NoServers,
    /// A server said something that is neither a slot nor a refusal: another protocol, perhaps.
    #[error("bad protocol: {server} answered \"{came}\" where a slot was expected")]
    BadProtocol {
        /// Which one.
        server: Server,
        /// What came, up to [`MAX_LINE`](super::MAX_LINE) bytes of it; what is no printable ASCII is escaped.
        came: String,
    },
}

/// How long each part may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connect: Duration,
    pub(super) line: Duration,
}

/// Visits a server.
pub(super) async fn probe(server: Server, limits: Limits) -> Event {
    let mut stream = match timeout(limits.connect, TcpStream::connect(&*server.address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Event::Unreachable { server, why: error.to_string() },
        Err(_) => return Event::Unreachable { server, why: format!("no connection within {:?}", limits.connect) },
    };
    // Where nobody listens on a port of the ephemeral range, a socket can meet itself, and keep the server from coming back.
    if stream.local_addr().ok() == stream.peer_addr().ok() {
        return Event::Unreachable { server, why: "nobody listens".to_owned() };
    }
    set_options(&stream);
    match timeout(limits.line, line::read(&mut stream)).await {
        Ok(Ok(Line::Slot(slot))) => Event::Connection { slot, server, stream },
        Ok(Ok(Line::Refused(words))) => Event::Refused { server, words },
        Ok(Ok(Line::Wrong(came))) => Event::Error(RoverError::BadProtocol { server, came }),
        Ok(Ok(Line::Nothing)) => Event::Unreachable { server, why: "it closed without a word".to_owned() },
        Ok(Err(error)) => Event::Unreachable { server, why: error.to_string() },
        Err(_) => Event::Unreachable { server, why: format!("it gave no slot within {:?}", limits.line) },
    }
}
