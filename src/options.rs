//! Every option of a node, with its default, its unit and its reason.
//!
//! Owns the numbers. It must never act on them: each is read in the room that it limits. Look next at
//! [`Builder`](crate::Builder) for how users set them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{Balancer, PeakEwma};
use crate::proto;

/// How often a call is tried again on other hosts after the first attempt, where that is safe.
pub const RETRIES: u32 = 3;
/// Most attempts of one call, whatever `retries` says: gRPC caps at five as well.
pub const MAX_ATTEMPTS: u32 = 5;
/// Deadline of a call over all attempts when neither call, method nor context names one. Calls that stream have none,
/// but see [`STREAM_IDLE`].
pub const DEADLINE: Duration = Duration::from_secs(30);
/// A streaming call ends when it has waited for its peer this long and nothing of it moved either way.
pub const STREAM_IDLE: Duration = Duration::from_secs(60);
/// How long a first call waits for a first instance (never longer than its own deadline). Within 5 s a caller is to know what
/// is wrong, on a busy machine too; a Consul that is just starting refuses connections like one that is gone, and gets nearly
/// all of that time.
pub const RESOLVE_WAIT: Duration = Duration::from_millis(4500);
/// How long a pick waits for an endpoint: 5 minutes, so that whole systems can be started in any order.
pub const PICK_WAIT: Duration = Duration::from_secs(300);
/// How long connecting and shaking hands with one endpoint may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a peer that connected may take until it has said hello.
pub const HANDSHAKE_TIMEOUT: Duration = proto::HANDSHAKE_TIMEOUT;
/// Longest message that is accepted, in bytes: 4 MiB, as tonic's.
pub const MAX_MESSAGE: usize = proto::MAX_MESSAGE;
/// Most items that `multiple()` collects.
pub const COLLECT_LIMIT: usize = 100_000;
/// Most calls that one connection may have open at the server.
pub const MAX_CALLS: u16 = proto::MAX_CALLS;
/// Most connections that a client has to one endpoint: four times as many calls as one may have open there. One more is only made
/// where a call would have to wait for a place, or where threads keep waiting for each other; without calls it costs 10 KiB at each end, and closes after [`CLIENT_IDLE_CLOSE`].
pub const MAX_CONNECTIONS_PER_ENDPOINT: usize = 4;
/// Most calls that one server runs at once, over all connections: what 64 full connections have. One more waits a moment or is refused as
/// busy, so that another host takes it.
pub const MAX_RUNNING: usize = 65_536;
/// How a server limits the calls that it runs at once, below `max_running`, which is always the most.
///
/// One call more waits for its turn, at most 100 ms and at most half of its time; where too many wait already, and with `Adaptive` while
/// others are refused, it is refused as busy at once, before its body is read, and another host gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Concurrency {
    /// No limit as long as tasks run when they are ready. When all that becomes ready within 100 ms runs more than 20 ms too late, the
    /// processors have too much to do: then fewer calls run at once, down to 2 for each thread of the runtime, so that tasks run about
    /// 10 ms too late, until most calls find a place again, or that suffices for 10 s; and connections are driven by threads of their own,
    /// so that refusals are quick. How long calls take is not looked at, so calls that wait for something else are not held back.
    #[default]
    Adaptive,
    /// A limit that follows how long calls take, for a server whose handlers queue for something of which there is only so much,
    /// such as connections to a database: it starts at 64, shrinks down to 8 while calls take more than 1.5 times the least seen
    /// of late, and grows otherwise. Wants methods that take about equally long, for a long one among short ones looks like a queue.
    Gradient,
    /// So many, at least one.
    Fixed(usize),
    /// As many as `max_running` allows.
    Unlimited,
}
/// Most bytes that one connection may have in arguments that are still being put together from many frames.
pub const MAX_ASSEMBLY: usize = 64 << 20;
/// First credit of each stream in bytes. Measured on loopback, 512 KiB reaches full bandwidth; half of it costs a third to a half
/// of it, and twice as much brings nothing but a longer wait for small calls. A path with a long round trip needs more: while the
/// reader keeps up there, the window doubles, up to half of the connection's, see [`CONNECTION_WINDOW`].
pub const STREAM_WINDOW: u32 = proto::STREAM_WINDOW;
/// First credit of a connection in bytes: 15 unread streams do not stop the others; 7 where windows have grown, for which
/// half of it is there. It does not grow itself, and bounds the memory.
pub const CONNECTION_WINDOW: u32 = proto::CONNECTION_WINDOW;
/// Most connections that a server accepts.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Most connections that a server accepts from one address.
pub const MAX_CONNECTIONS_PER_PEER: usize = 1_000;
/// Most connections that have not yet said hello; one more ends the oldest of them.
pub const MAX_HANDSHAKES: usize = 256;
/// A client closes a connection that had no call for this long; the server waits a minute longer, so that the client,
/// which knows whether it is about to call, closes first.
pub const CLIENT_IDLE_CLOSE: Duration = Duration::from_secs(240);
/// See [`CLIENT_IDLE_CLOSE`].
pub const SERVER_IDLE_CLOSE: Duration = Duration::from_secs(300);
/// How long `end()` keeps accepting after it has deregistered and the registry has confirmed it, while lists elsewhere turn
/// over. Whoever is connected is told at once, and a refused connection is tried elsewhere, so this only spares attempts.
pub const DRAIN_DELAY: Duration = Duration::from_millis(250);
/// How long `end()` lets running calls finish before it cuts them.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The options of one node; see [`Builder`](crate::Builder) for what each means.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) port: u16,
    pub(crate) in_memory: bool,
    /// `None` leaves it to the registry.
    pub(crate) bind: Option<IpAddr>,
    pub(crate) advertise: Option<IpAddr>,
    pub(crate) started: bool,
    pub(crate) balance: Arc<dyn Balancer>,
    pub(crate) zone: Option<String>,
    pub(crate) weight: u16,
    pub(crate) retries: u32,
    pub(crate) deadline: Option<Duration>,
    pub(crate) stream_idle: Option<Duration>,
    pub(crate) resolve_wait: Duration,
    pub(crate) pick_wait: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_connections_per_endpoint: usize,
    pub(crate) handshake_timeout: Duration,
    pub(crate) max_message: usize,
    pub(crate) collect_limit: usize,
    pub(crate) max_calls: u16,
    pub(crate) max_running: usize,
    pub(crate) concurrency: Concurrency,
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) max_assembly: usize,
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_peer: usize,
    pub(crate) max_handshakes: usize,
    pub(crate) drain_delay: Duration,
    pub(crate) drain_timeout: Duration,
}

impl Options {
    /// Where a server listens.
    pub(crate) fn listen_at(&self) -> SocketAddr {
        SocketAddr::new(self.bind.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), self.port)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            in_memory: false,
            bind: None,
            advertise: None,
            started: true,
            balance: Arc::new(PeakEwma),
            zone: None,
            weight: 1,
            retries: RETRIES,
            deadline: Some(DEADLINE),
            stream_idle: Some(STREAM_IDLE),
            resolve_wait: RESOLVE_WAIT,
            pick_wait: PICK_WAIT,
            connect_timeout: CONNECT_TIMEOUT,
            max_connections_per_endpoint: MAX_CONNECTIONS_PER_ENDPOINT,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            max_message: MAX_MESSAGE,
            collect_limit: COLLECT_LIMIT,
            max_calls: MAX_CALLS,
            max_running: MAX_RUNNING,
            concurrency: Concurrency::Adaptive,
            max_connection_age: None,
            max_assembly: MAX_ASSEMBLY,
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_connections: MAX_CONNECTIONS,
            max_connections_per_peer: MAX_CONNECTIONS_PER_PEER,
            max_handshakes: MAX_HANDSHAKES,
            drain_delay: DRAIN_DELAY,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}
