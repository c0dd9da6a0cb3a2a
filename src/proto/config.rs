//! What a connection is told when it is made.
//!
//! Owns [`Config`] and the defaults of the protocol. It must never read an option of the user: `options.rs` does that
//! and fills a [`Config`]. Look next at `connection.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::load::Gauge;

/// First credit of each stream, in bytes: two quanta, so that one is under way while the other is read and given back. Longer
/// paths get more, see `growth.rs`.
pub(crate) const STREAM_WINDOW: u32 = 512 * 1024;

/// First credit of a connection, in bytes: what all its unread streams may hold in memory together.
pub(crate) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// Longest message, in bytes.
pub(crate) const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// How many calls may be open at once on one connection.
pub(crate) const MAX_CALLS: u16 = 1024;

/// How long the handshake may take: a peer that is slower is not worth a socket.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence, while calls are open, after which a side asks whether the peer lives: with [`PING_TIMEOUT`] a dead host is
/// noticed within 6 seconds.
pub(crate) const PING_BUSY: Duration = Duration::from_secs(3);

/// Silence after which a side asks when no call is open: often enough to keep middleboxes from forgetting the connection.
pub(crate) const PING_IDLE: Duration = Duration::from_secs(15);

/// How long the answer to that question may take. A tenth short of 3 seconds, so that a machine with other things to do still
/// notices within 6 and 18.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_millis(2900);

/// Calls that a client may cancel before their answer, at once: sixteen times the calls that may be open, for a client whose
/// calls all time out because the server is slow must not lose the connection for it.
pub(crate) const CANCEL_BUDGET: u32 = 16_384;

/// How many such calls a second come back to the budget. To take and drop as many costs the server a few percent of one core.
pub(crate) const CANCEL_REFILL: u32 = 16_384;

/// Control frames that a peer may send at once.
pub(crate) const CONTROL_BUDGET: u32 = 1000;

/// How many control frames a second come back to the budget.
pub(crate) const CONTROL_REFILL: u32 = 200;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// Everything that a connection is told when it is made.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) side: Side,
    /// The name of this node.
    pub(crate) node: String,
    /// The service wanted (client) or offered (server).
    pub(crate) service: String,
    /// Random number of this process.
    pub(crate) incarnation: u64,
    /// Client: the incarnation it wants to reach.
    pub(crate) expect: Option<u64>,
    /// Server: how many calls may be open at once; at least 1.
    pub(crate) max_calls: u16,
    /// First credit of each stream that this side receives, in bytes.
    pub(crate) stream_window: u32,
    /// First credit of the connection that this side receives, in bytes.
    pub(crate) connection_window: u32,
    /// Longest message that this side accepts, in bytes.
    pub(crate) max_message: usize,
    /// Server: names of the methods that are idempotent.
    pub(crate) idempotent: Vec<String>,
    /// Client: whether the server shall say how busy it is.
    pub(crate) wants_load: bool,
    /// Server: how busy it is, for clients that want to know.
    pub(crate) gauge: Option<Arc<Gauge>>,
    pub(crate) handshake_timeout: Duration,
    pub(crate) ping_busy: Duration,
    pub(crate) ping_idle: Duration,
    pub(crate) ping_timeout: Duration,
    /// After how long without an open call the connection is given up; `None`: never.
    pub(crate) idle_close: Option<Duration>,
    pub(crate) cancel_budget: u32,
    /// Per second.
    pub(crate) cancel_refill: u32,
    pub(crate) control_budget: u32,
    /// Per second.
    pub(crate) control_refill: u32,
}

impl Config {
    /// The defaults for one side; names and numbers of processes are left empty.
    pub(crate) fn new(side: Side) -> Self {
        Self {
            side,
            node: String::new(),
            service: String::new(),
            incarnation: 0,
            expect: None,
            max_calls: MAX_CALLS,
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_message: MAX_MESSAGE,
            idempotent: Vec::new(),
            wants_load: false,
            gauge: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            ping_busy: PING_BUSY,
            ping_idle: PING_IDLE,
            ping_timeout: PING_TIMEOUT,
            idle_close: None,
            cancel_budget: CANCEL_BUDGET,
            cancel_refill: CANCEL_REFILL,
            control_budget: CONTROL_BUDGET,
            control_refill: CONTROL_REFILL,
        }
    }
}
