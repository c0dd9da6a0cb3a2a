//! One's own zone first.
//!
//! Owns the question whether the zone can bear it. It must never choose within the zone: another policy does. Look next at
//! [`super::p2c`].

use super::{Balancer, Candidate, Candidates};

/// Chooses by another policy among the endpoints of the node's own [`zone`](crate::Builder::zone), as long as at least half of
/// those that the registry lists there can be called; else, or if the node has no zone, among all.
///
/// It does not compare how many callers and endpoints the zone has: with few endpoints in a zone of many callers, these get
/// all the calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct ZoneFirst<B>(B);

impl<B: Balancer> ZoneFirst<B> {
    /// By `policy` within the zone.
    pub const fn new(policy: B) -> Self {
        Self(policy)
    }
}

impl<B: Balancer> Balancer for ZoneFirst<B> {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        let Some(zone) = among.zone() else { return self.0.pick(among) };
        let near = among.filter(|candidate| candidate.endpoint().zone.as_deref() == Some(zone));
        let listed = among.listed().filter(|endpoint| endpoint.zone.as_deref() == Some(zone)).count();
        self.0.pick(if near.is_empty() || near.len() * 2 < listed { among } else { &near })
    }

    fn needs_all(&self) -> bool {
        true
    }

    fn wants_load(&self) -> bool {
        self.0.wants_load()
    }
}
