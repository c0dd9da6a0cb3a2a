//! Balancing between servers by the numbers of their connections, for any TCP application.
//!
//! A server numbers its connections with the lowest free number from 0, and says the number in one line, `13\r\n`, before the
//! application begins. So the number that a newcomer gets is about how many connections that server has. A client keeps the
//! connections with the lowest numbers, uses them first, and goes on asking servers at random, one every second: whoever has few
//! connections gives low numbers, so clients come to it until it has as many as the others. Nobody has to know anybody's load.
//! That is the protocol of callosum, after Indeed's Boxcar, and works with programs that speak it. The line is decimal digits, then
//! CR and LF, both of them: a line that ends with LF alone is no slot, and is reported like that of any other protocol
//! ([`RoverError::BadProtocol`]).
//!
//! [`Listener`] is the server's side, and [`Slots`] its numbers. [`Rover`] asks around, [`Pool`] keeps and leases; [`Boxcar`] is
//! both.
//!
//! ```
//! use std::time::Duration;
//! use picom::boxcar::{Boxcar, Listener, Pool, Rover};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Three servers that send back what they get.
//! let boxcar = Boxcar::new(Rover::new(), Pool::new(6));
//! for id in ["a", "b", "c"] {
//!     let mut listener = Listener::bind("127.0.0.1:0").await?;
//!     boxcar.add_server(id, &listener.local_addr()?.to_string());
//!     tokio::spawn(async move {
//!         while let Some(mut connection) = listener.accept().await {
//!             tokio::spawn(async move {
//!                 let (mut read, mut write) = connection.split();
//!                 tokio::io::copy(&mut read, &mut write).await
//!             });
//!         }
//!     });
//! }
//!
//! boxcar.start();
//! let mut connection = boxcar.lease(Duration::from_secs(5)).await?;
//! connection.write_all(b"hello").await?;
//! let mut answer = [0; 5];
//! connection.read_exact(&mut answer).await?;
//! assert_eq!(&answer, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # What it balances
//!
//! Connections, as a stand-in for load. So keep about as many as you use at the same time: with a pool of 6 and 6 users every
//! connection works, and servers with as many connections have as much to do. A pool far larger than its use leaves most of the work
//! to its lowest numbers, which are anybody's. A client with more to do takes a larger pool; a server that should get less hands out
//! other numbers, with [`Listener::numbered_by`].
//!
//! A pool fills by one connection every interval. With the defaults, 20 clients with 6 connections each share three servers evenly
//! after 6 s. One that is restarted at once has its share again after 3 s, and one that was away for minutes after 1 s, because then all
//! its clients ask it every second and none of their pools has holes that the others fill meanwhile
//! (`cargo test --test boxcar_balance at_default -- --nocapture`).
//!
//! # Limits
//!
//! | what | default | option |
//! | --- | --- | --- |
//! | connections of a server | [`SERVER_SLOTS`], 1,000 | [`Listener::max_slots`] |
//! | connections of a client | [`MAX_SLOTS`], 100; up to twice that while leases last | [`Pool::new`] |
//! | time from one visit to the next | [`ROVING_INTERVAL`], 1 s ± 10 % | [`Rover::interval`] |
//! | the same once nothing better is found | [`MAX_ROVING_INTERVAL`], 8 s ± 10 % | [`Rover::max_interval`] |
//! | from one visit to the next of those that are not there | as long as between visits at first | [`Rover::interval`] |
//! | the same to a server whose number is less than half of the highest held | a tenth of it | [`Rover::interval`] |
//! | connecting to a server | [`CONNECT_TIMEOUT`], 1 s | [`Rover::connect_timeout`] |
//! | a server's line | [`LINE_TIMEOUT`], 1 s, and [`MAX_LINE`], 128 bytes | [`Rover::line_timeout`] |
//! | giving a client its line | [`GREETING_TIMEOUT`], 5 s; [`MAX_GREETINGS`], 256 at once | |
//! | events that nobody has read | [`MAX_EVENTS`], 64 | |
//! | waiting for a lease | as [`Pool::lease`] is told; [`MAX_WAITING`], 1,024 at once | |
//! | a peer that is gone without a word | 60 s, by the kernel's keepalive | |
//!
//! Nothing is encrypted and nobody is authenticated: use it within a network that you trust.

mod accepted;
mod car;
mod lease;
mod ledger;
mod line;
mod listener;
mod pace;
mod pool;
mod probe;
mod pulse;
mod route;
mod rover;
mod slots;
mod travel;

use std::time::Duration;

use tokio::net::TcpStream;

pub use accepted::{Accepted, SlotGuard};
pub use car::Boxcar;
pub use lease::Lease;
pub use line::MAX_LINE;
pub use listener::{GREETING_TIMEOUT, Listener, MAX_GREETINGS, SERVER_SLOTS};
pub(crate) use pace::Pace;
pub use pool::{LeaseError, MAX_SLOTS, MAX_WAITING, Pool};
pub use probe::{Event, RoverError, Server};
pub use rover::{CONNECT_TIMEOUT, Events, LINE_TIMEOUT, MAX_EVENTS, MAX_ROVING_INTERVAL, ROVING_INTERVAL, Rover};
pub use slots::{InvalidSlot, Slots};

/// The port that callosum's servers take unless they are told another one. Nothing here assumes it.
pub const PORT: u16 = 4040;

/// A connection on which nothing has come for this long is asked whether its peer is still there,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// again after this long,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// and given up after so many questions: a peer that is gone without a word holds a slot for a minute.
const KEEPALIVE_RETRIES: u32 = 3;

/// Sets what every connection gets, at either side.
fn set_options(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let keepalive = keepalive.with_retries(KEEPALIVE_RETRIES);
    // None of them decides whether the connection works, so a kernel that refuses one is no reason to fail.
    let set = stream.set_nodelay(true).and(socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(%error, "a socket option was refused");
    }
}
