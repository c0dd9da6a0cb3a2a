//! What a policy is shown: the endpoints that may be chosen, and what is known of each.
//!
//! Owns the view only. It must never change anything but the turn. Look next at [`super::group`], which decides who is in it.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use super::fleet::Fleet;
use super::member::{Member, Seat};
use crate::registry::Endpoint;

/// Latency of an endpoint where no other one is known: 30 ms, as in linkerd.
const UNKNOWN_LATENCY: f64 = 0.030;

/// The endpoints among which one is chosen, and what is known of the call.
#[derive(Clone)]
pub struct Candidates<'a> {
    seats: &'a [Seat],
    /// Their positions; `None` is all.
    only: Option<Cow<'a, [usize]>>,
    about: About<'a>,
}

/// What is the same for all candidates.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) key: Option<u64>,
    pub(super) zone: Option<&'a str>,
    pub(super) now: u64,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(seats: &'a [Seat], only: Option<Cow<'a, [usize]>>, about: About<'a>) -> Self {
        Self { seats, only, about }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.only.as_ref().map_or(self.seats.len(), |only| only.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one at this index, which is below [`len`](Self::len). They are in the order of their addresses.
    pub fn get(&self, index: usize) -> Option<Candidate<'a>> {
        let position = match &self.only {
            None => index,
            Some(only) => *only.get(index)?,
        };
        self.seats.get(position).map(|seat| Candidate { seat, position, now: self.about.now })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Candidate<'a>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Only those that `keep` wants, to be given to another policy.
    #[must_use]
    pub fn filter(&self, mut keep: impl FnMut(&Candidate<'a>) -> bool) -> Self {
        let only = self.iter().filter(|candidate| keep(candidate)).map(|candidate| candidate.position).collect();
        Self { seats: self.seats, only: Some(Cow::Owned(only)), about: self.about }
    }

    /// Every usable endpoint of the service, also those that are not candidates now.
    pub fn listed(&self) -> impl Iterator<Item = &'a Endpoint> {
        self.seats.iter().map(|seat| &*seat.endpoint)
    }

    /// A hash of the call's [`key`](crate::Call::key), if it has one; the same in every process.
    pub fn key(&self) -> Option<u64> {
        self.about.key
    }

    /// The [`zone`](crate::Builder::zone) of the node that calls, if it has one.
    pub fn zone(&self) -> Option<&'a str> {
        self.about.zone
    }

    /// A number that grows by one each time that anybody asks for it, for each service by itself. It begins at random.
    pub fn turn(&self) -> usize {
        self.about.fleet.turn()
    }

    /// The latency of those that have none: the median of the others, 30 ms if there are none.
    pub fn typical_latency(&self) -> Duration {
        Duration::from_secs_f64(self.typical())
    }

    pub(super) fn typical(&self) -> f64 {
        let mut known: Vec<f64> =
            self.iter().filter_map(|candidate| candidate.member().load.measured(self.now())).collect();
        if known.is_empty() {
            return UNKNOWN_LATENCY;
        }
        let middle = known.len() / 2;
        *known.select_nth_unstable_by(middle, f64::total_cmp).1
    }

    fn now(&self) -> u64 {
        self.about.now
    }
}

impl fmt::Debug for Candidates<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// One endpoint that may be chosen.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    seat: &'a Seat,
    position: usize,
    now: u64,
}

impl<'a> Candidate<'a> {
    /// What the registry says of it now.
    pub fn endpoint(&self) -> &'a Endpoint {
        &self.seat.endpoint
    }

    /// Calls of this node under way there, from the moment that it was chosen for them to the end of their answers.
    pub fn outstanding(&self) -> u32 {
        self.member().load.outstanding()
    }

    /// The time to the first byte of an answer: a longer one is taken over at once, shorter ones in the course of 5 s (the
    /// "peak EWMA" of Finagle). What is not confirmed fades towards zero in the same time, so that one that was slow is asked
    /// again. A failure counts as 5 s, which fade in the course of 1 s. `None` until its second
    /// answer, because the first one pays for what is made once.
    pub fn latency(&self) -> Option<Duration> {
        self.latency_seconds().map(Duration::from_secs_f64)
    }

    pub(super) fn latency_seconds(&self) -> Option<f64> {
        self.member().load.latency(self.now)
    }

    /// For how long calls of this node have waited there while none was answered: what a call that goes there now will take at
    /// least. To two milliseconds.
    pub fn waiting(&self) -> Duration {
        Duration::from_secs_f64(self.waiting_seconds())
    }

    pub(super) fn waiting_seconds(&self) -> f64 {
        self.member().load.waiting(self.now)
    }

    /// The load that the server reported with its last answer, as a share of its capacity: 0 is idle, 1 is full, more is
    /// queued. It fades in the course of 1 s. `None` if it never said anything.
    pub fn reported(&self) -> Option<f64> {
        self.member().load.reported(self.now)
    }

    pub(super) fn member(&self) -> &'a Member {
        &self.seat.member
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }
}

impl fmt::Debug for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("addr", &self.endpoint().addr)
            .field("outstanding", &self.outstanding())
            .field("latency", &self.latency())
            .field("reported", &self.reported())
            .finish()
    }
}
