//! The better one of two random endpoints.
//!
//! Owns what makes one better: the cost of each policy. Two draws are enough to keep away from those that are slow or full,
//! and, unlike taking the best of all, do not send every client to the same one (Mitzenmacher, "The power of two choices").
//! It must never look at more than it draws, except to guess what one that never answered may cost. Look next at
//! [`super::load`] for what costs are made of.

use std::cell::OnceCell;
use std::time::Duration;

use super::{Balancer, Candidate, Candidates};

/// Latencies below this, in seconds, do not differ: that is how long a task may wait for its turn on any busy machine, and
/// what linkerd assumes at least.
const LEAST_LATENCY: f64 = 0.001;
/// Latencies of which the longer is not this many times the shorter do not differ either. A longer one is believed at once and for
/// seconds, and chance or a moment's wait for a processor makes one of a fifth; if that decided, equal servers would get unequal
/// shares for as long.
const ALIKE: f64 = 1.25;

/// Of two random endpoints the one with the lower latency × (calls under way + 1) ÷ weight. This is the default. It keeps
/// away from an endpoint that is slow also when each client has few calls under way. As long as neither takes a quarter longer than the
/// other, only the calls under way count.
///
/// [`Candidate::latency`] says what latency is; here it is at least the time for which calls have been
/// [waiting](Candidate::waiting) in vain, so that one that hangs is known before any call has failed, and at least 1 ms. An
/// endpoint of which nothing was measured yet counts as the median of the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeakEwma;

impl Balancer for PeakEwma {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        faster_of_two(among, crowd)
    }
}

/// How often [`Boxcar`] asks an endpoint how busy it is, unless it is told otherwise: as callosum's rover.
pub const ROVING_INTERVAL: Duration = Duration::from_secs(1);
/// In what time an endpoint that is new gets its whole share of the calls that [`Boxcar`] balances. Shorter than where nothing is
/// heard of the endpoint: with its first answers it says itself when that is too much.
const SLOW_START: Duration = Duration::from_secs(3);

/// As [`PeakEwma`], with the cost multiplied by 1 + the load that the server itself [reports](Candidate::reported): it sees the
/// calls of all clients, each of which sees only its own.
///
/// The load is known from every answer. Where none comes, a rover asks: every second, 10 % more or less at random, one endpoint of
/// those that said nothing meanwhile, or connects to one that has no connection, so that a server that comes back is known before any
/// call has to find out. Once all are there and about equally busy it asks only every 8 s. An endpoint that is new has its share after
/// 3 s rather than 10.
#[derive(Clone, Copy, Debug)]
pub struct Boxcar {
    interval: Duration,
}

impl Boxcar {
    /// The policy with the default interval.
    pub fn new() -> Self {
        Self { interval: ROVING_INTERVAL }
    }

    /// How often the rover asks; default [`ROVING_INTERVAL`], at least 10 ms. One client with several such policies for a service
    /// takes the shortest.
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval }
    }
}

impl Default for Boxcar {
    fn default() -> Self {
        Self::new()
    }
}

impl Balancer for Boxcar {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        faster_of_two(among, |candidate| crowd(candidate) * (1.0 + candidate.reported().unwrap_or(0.0)))
    }

    fn wants_load(&self) -> bool {
        true
    }

    fn roving(&self) -> Option<Duration> {
        Some(self.interval)
    }

    fn slow_start(&self) -> Duration {
        SLOW_START
    }
}

/// Of two random endpoints the one with fewer calls under way ÷ weight. For calls whose first byte tells nothing of how
/// long they take; it does not notice that an endpoint is slow unless each client has several calls under way there.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastOutstanding;

impl Balancer for LeastOutstanding {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        best_of_two(among, |first, second| crowd(second) < crowd(first))
    }
}

/// The one with the lower latency × cost.
fn faster_of_two<'a>(among: &Candidates<'a>, cost: impl Fn(&Candidate<'a>) -> f64) -> Option<Candidate<'a>> {
    let typical = OnceCell::new();
    best_of_two(among, |first, second| {
        let (one, other) = (latency(among, first, &typical), latency(among, second, &typical));
        if one.max(other) < one.min(other) * ALIKE {
            cost(second) < cost(first)
        } else {
            other * cost(second) < one * cost(first)
        }
    })
}

/// Draws two different ones; the first, which is a random one, wins unless the second is `better`.
fn best_of_two<'a>(
    among: &Candidates<'a>,
    better: impl Fn(&Candidate<'a>, &Candidate<'a>) -> bool,
) -> Option<Candidate<'a>> {
    let len = among.len();
    if len < 2 {
        return among.get(0);
    }
    let first = fastrand::usize(..len);
    let second = (first + fastrand::usize(1..len)) % len;
    let (first, second) = (among.get(first)?, among.get(second)?);
    Some(if better(&first, &second) { second } else { first })
}

/// Calls under way with this one, in proportion to the weight.
fn crowd(candidate: &Candidate<'_>) -> f64 {
    f64::from(candidate.outstanding().saturating_add(1)) / f64::from(candidate.endpoint().weight.max(1))
}

fn latency<'a>(among: &Candidates<'a>, candidate: &Candidate<'a>, typical: &OnceCell<f64>) -> f64 {
    let known = candidate.latency_seconds().unwrap_or_else(|| *typical.get_or_init(|| among.typical()));
    known.max(candidate.waiting_seconds()).max(LEAST_LATENCY)
}
