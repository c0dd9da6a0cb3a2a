//! One attempt as balancing counts it.
//!
//! Owns the count: whatever becomes of an attempt, it is taken back exactly once. It must never decide what a failure means
//! (that is [`super::attempts`]). Look next at [`crate::balance`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::route::{Place, Route};
use super::target::Target;
use crate::balance::{End, Fault};
use crate::transport::link::Link;

/// Held from the choice of an endpoint to the end of the answer.
#[derive(Debug)]
pub(super) struct Ticket<P: Place = Arc<Target>> {
    place: P,
    /// The call is one of those under way there. Of a lone endpoint nothing is counted, because nothing is chosen.
    is_counted: bool,
    /// The outcome decides whether the endpoint is called again.
    is_probe: bool,
    is_answered: bool,
    /// When it was sent, until the first byte of the answer.
    sent: Option<Instant>,
}

impl<P: Place> Ticket<P> {
    /// `counts` with when it was chosen, if there are others.
    pub(super) fn new(place: P, counts: Option<Instant>, is_probe: bool) -> Self {
        let is_counted = counts.is_some();
        if let Some(now) = counts {
            place.target().member().begin(now.into_std());
        }
        Self { place, is_counted, is_probe, is_answered: false, sent: None }
    }

    pub(super) fn target(&self) -> &Arc<Target> {
        self.place.target()
    }

    /// The call was sent.
    pub(super) fn sent(&mut self, now: Instant) {
        if self.is_counted {
            self.sent = Some(now);
        }
    }

    /// The answer has begun; also one that says that the call was wrong.
    pub(super) fn answered(&mut self) {
        if !std::mem::replace(&mut self.is_answered, true) {
            self.measure();
            if self.is_counted {
                self.target().member().answered();
            }
            self.conclude(true);
        }
    }

    /// The whole answer is there.
    pub(super) fn finished(&mut self) {
        self.measure();
        if std::mem::replace(&mut self.is_counted, false) {
            self.target().member().end(if self.is_answered { End::AnsweredBefore } else { End::Answered });
        }
        self.conclude(true);
    }

    fn measure(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.target().member().took(sent.into_std(), Instant::now().into_std());
        }
    }

    /// No connection came about, which whoever connected has noted.
    pub(super) fn unreachable(&mut self) {
        self.sent = None;
        self.conclude(false);
    }

    /// It failed in a way that speaks against the endpoint.
    pub(super) fn failed(&mut self) {
        self.unreachable();
        self.target().member().failed(Fault::Call, Instant::now().into_std());
    }

    /// The endpoint did not take the call, and may have said for how long it is of no use to ask again. It works, though.
    pub(super) fn refused(&mut self, asked: Option<Duration>) {
        self.sent = None;
        self.conclude(true);
        self.target().member().refused(asked, Instant::now().into_std());
    }

    /// The endpoint works, and did not take this call, which says nothing of any other.
    pub(super) fn declined(&mut self) {
        self.sent = None;
        self.conclude(true);
    }

    fn conclude(&mut self, answered: bool) {
        if std::mem::replace(&mut self.is_probe, false) {
            self.target().member().end_probe(Some(answered), Instant::now().into_std());
        }
    }

    /// Leaves everything that is still to be counted to another one, of the same endpoint.
    pub(super) fn hand_over<Q: Place>(&mut self, place: Q) -> Ticket<Q> {
        Ticket {
            place,
            is_counted: std::mem::take(&mut self.is_counted),
            is_probe: std::mem::take(&mut self.is_probe),
            is_answered: std::mem::replace(&mut self.is_answered, true),
            sent: self.sent.take(),
        }
    }
}

impl Ticket<Arc<Route>> {
    pub(super) fn link(&self) -> &Arc<Link> {
        self.place.link()
    }
}

impl<P: Place> Drop for Ticket<P> {
    fn drop(&mut self) {
        let member = self.place.target().member();
        if let Some(sent) = self.sent {
            member.given_up(sent.into_std(), Instant::now().into_std());
        }
        if self.is_counted {
            member.end(if self.is_answered { End::AnsweredBefore } else { End::Unanswered });
        }
        if self.is_probe {
            member.end_probe(None, Instant::now().into_std());
        }
    }
}
