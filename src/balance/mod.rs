//! Which endpoint gets the next attempt: the [`Balancer`] trait, the policies, and what is known of each endpoint.
//!
//! Owns the choice and everything that it rests on: calls under way, latency, reported load, and which endpoints are left
//! alone for now. It must never connect, wait or read a clock: whoever asks says what time it is, so that all of it can be
//! tested in virtual time. Look next at `group.rs` for how one is chosen, and at `p2c.rs` for the default policy.
//!
//! # Policies
//!
//! | policy | takes |
//! | --- | --- |
//! | [`PeakEwma`] | the default: of two random ones the one with the lower latency × (calls under way + 1) |
//! | [`Boxcar::new()`](Boxcar::new), not [`boxcar::Boxcar`](crate::boxcar::Boxcar) | the same, times 1 + the load that the server itself reports, also where no calls are made |
//! | [`LeastOutstanding`] | of two random ones the one with fewer calls under way |
//! | [`RoundRobin`] | each in turn |
//! | [`Random`] | any |
//! | [`Weighted`] | any, more often those of more weight |
//! | [`ConsistentHash`] | the same one for the same [`key`](crate::Call::key) |
//! | [`ZoneFirst`] | by another policy, in one's own zone as long as enough is well there |
//!
//! A policy is chosen for a node ([`Builder::balance`](crate::Builder::balance)), for a client
//! ([`Channel::balance`](crate::Channel::balance)), or for a call ([`Call::balance`](crate::Call::balance)). All of them
//! choose among the same candidates: of the endpoints that the registry lists as usable, those that the call has not tried
//! yet and that are not left alone. What is known of an endpoint stays while the registry's list changes, as long as it is
//! the same process at the same address.
//!
//! # One of your own
//!
//! ```
//! use picom::balance::{Balancer, Candidate, Candidates, PeakEwma};
//!
//! /// Those that carry the label `ssd`, if there are any.
//! #[derive(Debug)]
//! struct OnSsd;
//!
//! impl Balancer for OnSsd {
//!     fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
//!         let fast = among.filter(|candidate| candidate.endpoint().tags.iter().any(|tag| tag == "ssd"));
//!         PeakEwma.pick(if fast.is_empty() { among } else { &fast })
//!     }
//! }
//!
//! let node = picom::Picom::builder("service2").balance(OnSsd).build();
//! ```

mod candidates;
mod circuit;
mod fleet;
mod group;
mod hash;
mod load;
mod member;
mod p2c;
mod simple;
#[cfg(test)]
mod tests;
mod zone;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use candidates::{Candidate, Candidates};
pub(crate) use circuit::Fault;
pub use circuit::SLOW_START;
pub(crate) use fleet::Fleet;
pub(crate) use group::{Choice, Group, Request};
pub use hash::ConsistentHash;
pub(crate) use hash::key;
pub(crate) use load::End;
pub(crate) use member::{Member, Seat};
pub use p2c::{Boxcar, LeastOutstanding, PeakEwma, ROVING_INTERVAL};
pub use simple::{Random, RoundRobin, Weighted};
pub use zone::ZoneFirst;

use crate::registry::Endpoint;

/// More endpoints than this are not used by one client: it takes this many of them, by a rank of its own, so that the
/// connections of a large system grow with its clients and not with their product. Finagle takes at least 12, gRPC
/// proposes 20 (A68).
pub const SUBSET: usize = 32;

/// Chooses endpoints. One policy may be shared by all calls of a node, to several services.
pub trait Balancer: fmt::Debug + Send + Sync + 'static {
    /// The endpoint for the next attempt. There is at least one candidate; if it takes none, picom takes any of them. It is
    /// asked for every attempt, from many threads at once, and must neither block nor panic.
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>>;

    /// Whether it chooses among all endpoints of a service also if there are more than [`SUBSET`].
    fn needs_all(&self) -> bool {
        false
    }

    /// Whether it looks at the load that servers [report](Candidate::reported): they are asked for it, four bytes with every
    /// answer, on the connections that are made once such a policy was chosen.
    fn wants_load(&self) -> bool {
        false
    }

    /// How often a client asks one endpoint, at random among those of which it has heard nothing for as long, how busy it is, at
    /// least 10 ms; `None` is never. While one of them has no connection, that one is tried at this pace instead. Eight times as seldom once
    /// all are there and report about the same load. Not at all by a client that has made no call for half a minute.
    fn roving(&self) -> Option<Duration> {
        None
    }

    /// In what time an endpoint that is new, or has come back, gets its whole share; longer than [`SLOW_START`] is not possible.
    fn slow_start(&self) -> Duration {
        SLOW_START
    }
}

/// A shared policy is a policy.
impl<B: Balancer + ?Sized> Balancer for Arc<B> {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        (**self).pick(among)
    }

    fn needs_all(&self) -> bool {
        (**self).needs_all()
    }

    fn wants_load(&self) -> bool {
        (**self).wants_load()
    }

    fn roving(&self) -> Option<Duration> {
        (**self).roving()
    }

    fn slow_start(&self) -> Duration {
        (**self).slow_start()
    }
}

/// What a client knows of one endpoint at one moment; see [`Channel::endpoints`](crate::Channel::endpoints).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EndpointState {
    /// What the registry says of it.
    pub endpoint: Arc<Endpoint>,
    /// Whether calls go to it at all: with more than [`SUBSET`] endpoints, most policies use a part of them.
    pub used: bool,
    /// Calls of this node under way there. Not counted, like the rest, while it is the only endpoint.
    pub outstanding: u32,
    /// Time to the first byte of an answer: what [`Candidate::latency`] says.
    pub latency: Option<Duration>,
    /// The load that it reported last: what [`Candidate::reported`] says.
    pub reported: Option<f64>,
    /// Connections of this node to it that take calls: usually one, none before the first call.
    pub connections: usize,
    /// Whether it is called.
    pub circuit: Circuit,
}

/// Whether an endpoint is called; see `docs/architecture.md`, "Who is left alone".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// It is.
    Closed,
    /// A connection failed or it refused a call: others are preferred for this long.
    Resting(Duration),
    /// It is left alone for this long because calls there failed; then one call finds out. Zero: that call may come now.
    Open(Duration),
    /// One call is finding out whether it works again.
    HalfOpen,
}
