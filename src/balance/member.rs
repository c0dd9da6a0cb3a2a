//! One endpoint as balancing knows it, for as long as the process there is the same.
//!
//! Owns what an outcome means for load and circuit. It must never see a connection. Look next at [`super::load`] and
//! [`super::circuit`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::circuit::{Circuit, Failed, Fault, Standing};
use super::fleet::Fleet;
use super::hash;
use super::load::{End, Load};
use super::{Circuit as Shown, EndpointState};
use crate::registry::Endpoint;

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Member {
    pub(super) load: Load,
    pub(super) circuit: Circuit,
    addr: SocketAddr,
    /// A hash of its address, the same in every process.
    pub(super) place: u64,
    fleet: Arc<Fleet>,
}

/// An endpoint of the newest list.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) member: Arc<Member>,
}

impl Member {
    pub(crate) fn new(addr: SocketAddr, fleet: Arc<Fleet>) -> Self {
        let place = hash::key(addr.to_string().as_bytes());
        Self { load: Load::default(), circuit: Circuit::default(), addr, place, fleet }
    }

    /// One that joins others, which has to warm up.
    pub(crate) fn warm_up(&self, now: Instant) {
        self.circuit.warm_up(self.fleet.at(now), &self.fleet);
    }

    /// Ends an ejection, whatever was the reason.
    pub(crate) fn pardon(&self, now: Instant) {
        self.circuit.pardon(self.fleet.at(now), &self.fleet);
    }

    /// A call goes there. It has to be ended.
    pub(crate) fn begin(&self, now: Instant) {
        self.load.begin(self.fleet.at(now));
    }

    /// A call has ended.
    pub(crate) fn end(&self, end: End) {
        self.load.end(end);
    }

    /// The answer to a call has begun, which goes on.
    pub(crate) fn answered(&self) {
        self.load.answered();
    }

    /// The first byte of an answer took from `sent` to `now`.
    pub(crate) fn took(&self, sent: Instant, now: Instant) {
        self.load.observe(now.saturating_duration_since(sent).as_secs_f64(), self.fleet.at(now));
    }

    /// Nobody waits any longer for an answer that had not come from `sent` to `now`.
    pub(crate) fn given_up(&self, sent: Instant, now: Instant) {
        self.load.observe_at_least(now.saturating_duration_since(sent).as_secs_f64(), self.fleet.at(now));
    }

    /// Something went wrong that speaks against it.
    pub(crate) fn failed(&self, fault: Fault, now: Instant) {
        self.failed_at(fault, self.fleet.at(now));
    }

    pub(super) fn failed_at(&self, fault: Fault, now: u64) {
        match self.circuit.failed(fault, now, self.load.answers(), &self.fleet) {
            Failed::Ignored => {}
            Failed::Noted => self.load.penalise(now),
            // The call that finds out is not to be put off by what was.
            Failed::Ejected => {
                self.load.forget();
                let (service, addr) = (self.fleet.service(), self.addr);
                tracing::warn!(service, %addr, ?fault, "an endpoint is left alone for a while, because too much fails there");
            }
        }
    }

    /// It refused a call. That is no failure: a server that is full is not broken, and to eject it would fill the others.
    pub(crate) fn refused(&self, asked: Option<Duration>, now: Instant) {
        self.circuit.refused(asked, self.fleet.at(now), &self.fleet);
    }

    /// There is a connection again, perhaps to a process that is new: it counts as one that was not measured yet.
    pub(crate) fn connected(&self, now: Instant) {
        self.load.forgive();
        self.circuit.connected(self.fleet.at(now), &self.fleet);
    }

    /// How busy it said last that it was, as a share of its capacity, and how long ago.
    pub(crate) fn last_report(&self, now: Instant) -> Option<(f64, Duration)> {
        self.load.last_report(self.fleet.at(now))
    }

    /// What came of the call that was to find out whether it works again: `None` if nobody waited for that.
    pub(crate) fn end_probe(&self, answered: Option<bool>, now: Instant) {
        if self.circuit.end_probe(answered, self.fleet.at(now), &self.fleet) {
            tracing::info!(service = self.fleet.service(), addr = %self.addr, "an endpoint works again, and is called");
        }
    }

    /// What the server says of its load: so many of `capacity` places are taken or waited for.
    pub(crate) fn reported(&self, slot: u32, capacity: u32, now: Instant) {
        self.load.report(slot, capacity, self.fleet.at(now));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.circuit.forgotten(&self.fleet);
    }
}

impl Seat {
    /// What is known of it.
    pub(crate) fn state(&self, used: bool, now: u64) -> EndpointState {
        let Self { endpoint, member } = self;
        EndpointState {
            endpoint: Arc::clone(endpoint),
            used,
            outstanding: member.load.outstanding(),
            latency: member.load.latency(now).map(Duration::from_secs_f64),
            reported: member.load.reported(now),
            // Whoever has them counts them.
            connections: 0,
            circuit: match member.circuit.standing(now) {
                Standing::Well | Standing::Warming(_) => Shown::Closed,
                Standing::Resting(left) => Shown::Resting(Duration::from_nanos(left)),
                Standing::Open(left) => Shown::Open(Duration::from_nanos(left)),
                Standing::HalfOpen => Shown::HalfOpen,
            },
        }
    }
}
