//! The endpoints of one list, and how one of them is chosen for an attempt.
//!
//! Owns who is a candidate: the part of a large service that this client uses, without those that the call has tried, that are
//! left alone, or that must not have their whole share yet. It must never prefer one candidate to another: that is the policy's.
//! Look next at [`super::circuit`] and [`super::p2c`].

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use super::candidates::{About, Candidates};
use super::circuit::{Standing, share};
use super::fleet::Fleet;
use super::hash::{mix, unit};
use super::member::{Member, Seat};
use super::{Balancer, EndpointState, SUBSET};

/// The endpoints of the newest list.
#[derive(Debug)]
pub(crate) struct Group {
    seats: Vec<Seat>,
    /// Positions of those that this client uses, if these are not all.
    subset: Option<Vec<usize>>,
    fleet: Arc<Fleet>,
}

/// What is known of the attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) key: Option<u64>,
    pub(crate) zone: Option<&'a str>,
    /// Whether it is a call, which can find out whether an endpoint works again.
    pub(crate) is_call: bool,
    pub(crate) now: Instant,
}

/// Who was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) position: usize,
    /// The outcome decides whether the endpoint is called again; see [`Member::end_probe`].
    pub(crate) is_probe: bool,
}

/// The reasons against an endpoint, the weakest first. Being tried is worse than all others.
const WARMING: u8 = 1;
const RESTING: u8 = 2;
const EJECTED: u8 = 3;
const TRIED: u8 = 4;

impl Group {
    /// `seed` decides which endpoints of many this client uses.
    pub(crate) fn new(seats: Vec<Seat>, fleet: Arc<Fleet>, seed: u64, now: Instant) -> Self {
        fleet.resize(seats.len());
        if fleet.has_too_many_ejected() {
            seats.iter().for_each(|seat| seat.member.pardon(now));
        }
        let subset = (seats.len() > SUBSET).then(|| subset(&seats, seed));
        Self { seats, subset, fleet }
    }

    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    pub(crate) fn len(&self) -> usize {
        self.seats.len()
    }

    pub(crate) fn seat(&self, position: usize) -> Option<&Seat> {
        self.seats.get(position)
    }

    /// What is known of each endpoint.
    pub(crate) fn states(&self, now: Instant) -> Vec<EndpointState> {
        let now = self.fleet.at(now);
        let is_used =
            |position| self.subset.as_ref().is_none_or(|subset: &Vec<usize>| subset.binary_search(&position).is_ok());
        self.seats.iter().enumerate().map(|(position, seat)| seat.state(is_used(position), now)).collect()
    }

    /// Chooses; `None` only if there is nobody. `tried` are those that the call has used before; they come last.
    pub(crate) fn choose(&self, policy: &dyn Balancer, request: Request<'_>, tried: &[Arc<Member>]) -> Option<Choice> {
        if self.seats.len() <= 1 {
            return (!self.seats.is_empty()).then_some(Choice { position: 0, is_probe: false });
        }
        let about = About { fleet: &self.fleet, key: request.key, zone: request.zone, now: self.fleet.at(request.now) };
        let used = self.subset.as_deref().filter(|_| !policy.needs_all());
        if tried.is_empty() && !self.fleet.is_somebody_unwell() {
            let position = pick(policy, &Candidates::new(&self.seats, used.map(Cow::Borrowed), about))?;
            return Some(Choice { position, is_probe: false });
        }
        // A second round only if another call was faster to take the duty of finding out.
        let mut may_probe = request.is_call;
        loop {
            let (mut reason, mut best) = self.best(policy, used, about, tried, may_probe);
            if reason >= RESTING && used.is_some() {
                (reason, best) = self.best(policy, None, about, tried, may_probe);
            }
            let position = pick(policy, &Candidates::new(&self.seats, Some(Cow::Owned(best)), about))?;
            let circuit = &self.seats.get(position)?.member.circuit;
            // Where nobody else is left, any call that is answered tells that the endpoint works.
            let is_last_resort = reason % TRIED == EJECTED && request.is_call;
            if is_last_resort || !matches!(circuit.standing(about.now), Standing::Open(0)) || !may_probe {
                return Some(Choice { position, is_probe: is_last_resort });
            }
            if circuit.begin_probe(about.now) {
                return Some(Choice { position, is_probe: true });
            }
            may_probe = false;
        }
    }

    /// Whether half of all or more are not well, without those that a call has used: about when no more are ejected. Those that are left
    /// have no time to spare then.
    pub(crate) fn is_in_panic(&self, used: &[Arc<Member>], now: Instant) -> bool {
        let now = self.fleet.at(now);
        let is_unwell = |seat: &&Seat| {
            !matches!(seat.member.circuit.standing(now), Standing::Well | Standing::Warming(_))
                && !used.iter().any(|other| Arc::ptr_eq(other, &seat.member))
        };
        self.seats.iter().filter(is_unwell).count() * 2 >= self.seats.len()
    }

    /// Chooses for an attempt beside those of the same call that are at `used`: among the others, against whom there must be nothing.
    pub(crate) fn choose_beside(
        &self,
        policy: &dyn Balancer,
        request: Request<'_>,
        used: &[Arc<Member>],
    ) -> Option<usize> {
        let about = About { fleet: &self.fleet, key: request.key, zone: request.zone, now: self.fleet.at(request.now) };
        let subset = self.subset.as_deref().filter(|_| !policy.needs_all());
        let (reason, best) = self.best(policy, subset, about, used, false);
        let candidates = Candidates::new(&self.seats, Some(Cow::Owned(best)), about);
        (reason == 0).then(|| pick(policy, &candidates)).flatten()
    }

    /// Those against whom there is least, and what that is.
    fn best(
        &self,
        policy: &dyn Balancer,
        used: Option<&[usize]>,
        about: About<'_>,
        tried: &[Arc<Member>],
        may_probe: bool,
    ) -> (u8, Vec<usize>) {
        let all = 0..if used.is_some() { 0 } else { self.seats.len() };
        let (mut least, mut best) = (u8::MAX, Vec::new());
        let slow_start = policy.slow_start();
        self.fleet.look_again();
        for position in used.unwrap_or_default().iter().copied().chain(all) {
            let Some(Seat { member, .. }) = self.seats.get(position) else { continue };
            let standing = member.circuit.standing(about.now);
            let mut reason = match standing {
                Standing::Well => 0,
                Standing::Open(0) if may_probe => 0,
                Standing::Warming(warm) if has_turn(share(warm, slow_start), about.key, member.place) => 0,
                Standing::Warming(_) => WARMING,
                Standing::Resting(_) => RESTING,
                Standing::Open(_) | Standing::HalfOpen => EJECTED,
            };
            if tried.iter().any(|other| Arc::ptr_eq(other, member)) {
                reason += TRIED;
            }
            if reason < least {
                (least, best) = (reason, Vec::new());
            }
            if reason == least {
                best.push(position);
            }
        }
        let is_well = |seat: &Seat| seat.member.circuit.standing(about.now) == Standing::Well;
        if !self.seats.iter().all(is_well) {
            self.fleet.somebody_is_unwell();
        }
        (least, best)
    }
}

fn pick(policy: &dyn Balancer, candidates: &Candidates<'_>) -> Option<usize> {
    let any = || candidates.get(fastrand::usize(..candidates.len().max(1)));
    policy.pick(candidates).or_else(any).map(|candidate| candidate.position())
}

/// Whether an endpoint that should get this part of its share is a candidate for this call. With a key the same calls move to
/// it one after the other, instead of all of them to and fro.
fn has_turn(share: f64, key: Option<u64>, place: u64) -> bool {
    key.map_or_else(fastrand::f64, |key| unit(mix(key.wrapping_add(mix(place))))) < share
}

/// The positions of the [`SUBSET`] first by a rank that depends on the client and on the address alone, as gRPC's A68
/// proposes: whoever comes or goes moves one place at most, and clients need not know of each other.
fn subset(seats: &[Seat], seed: u64) -> Vec<usize> {
    let rank = |position: &usize| seats.get(*position).map(|seat| mix(seed ^ seat.member.place));
    let mut ranked: Vec<usize> = (0..seats.len()).collect();
    ranked.sort_unstable_by_key(rank);
    ranked.truncate(SUBSET);
    ranked.sort_unstable();
    ranked
}
