//! Policies that look at nothing that was measured.
//!
//! Owns three of them. They must never look at load. Look next at [`super::p2c`] for those that do.

use super::{Balancer, Candidate, Candidates};

/// Each in turn. The turn is the service's, over all calls of the node.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin;

impl Balancer for RoundRobin {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        among.get(among.turn().checked_rem(among.len())?)
    }
}

/// Any of them, all equally often.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Balancer for Random {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        if among.is_empty() { None } else { among.get(fastrand::usize(..among.len())) }
    }
}

/// Any of them at random, each as often as its [weight](crate::registry::Endpoint::weight) says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weighted;

impl Balancer for Weighted {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        let weight = |candidate: &Candidate<'_>| u64::from(candidate.endpoint().weight.max(1));
        let all: u64 = among.iter().map(|candidate| weight(&candidate)).sum();
        let mut drawn = if all == 0 { return None } else { fastrand::u64(..all) };
        among.iter().find(|candidate| match drawn.checked_sub(weight(candidate)) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        })
    }
}
