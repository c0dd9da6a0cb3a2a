//! The same endpoint for the same key.
//!
//! Owns the hash, which is part of what programs rely on: all clients of a service must agree on it. It must never depend on
//! anything of this process. Look next at [`super::group`].

use super::{Balancer, Candidate, Candidates, PeakEwma};

/// An endpoint has at most this many times the calls of the average (Mirrokni et al., "Consistent hashing with bounded
/// loads"), …
const BOUND: f64 = 1.25;
/// … except that so few are no crowd, whatever the average is.
const NO_CROWD: f64 = 8.0;

/// The endpoint to which the call's [`key`](crate::Call::key) belongs, by rendezvous hashing: each endpoint draws a number
/// from the key and its own address, and the highest wins. So the keys of one that goes are spread over all others, and
/// one that comes takes its share from all. Shares are as the weights.
///
/// An endpoint that has 1.25 times the calls under way of the average, and more than 8, is full: further calls of its keys go to
/// the one with the next highest number. While an endpoint is left alone or warms up, its keys move in the same way. All
/// clients agree as long as their lists do. A call without a key goes by [`PeakEwma`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ConsistentHash;

impl Balancer for ConsistentHash {
    fn pick<'a>(&self, among: &Candidates<'a>) -> Option<Candidate<'a>> {
        let Some(key) = among.key() else { return PeakEwma.pick(among) };
        let outstanding: f64 = among.iter().map(|candidate| f64::from(candidate.outstanding())).sum();
        let bound = ((outstanding + 1.0) / among.len() as f64 * BOUND).ceil().max(NO_CROWD);
        let score = |candidate: &Candidate<'a>| {
            let drawn = unit(mix(key ^ candidate.member().place));
            f64::from(candidate.endpoint().weight.max(1)) / -drawn.ln()
        };
        let has_room = |candidate: &Candidate<'a>| f64::from(candidate.outstanding()) < bound;
        among.iter().filter(has_room).max_by(|a, b| score(a).total_cmp(&score(b)))
    }

    fn needs_all(&self) -> bool {
        true
    }
}

/// The hash of a key or an address: FNV-1a of 64 bits, mixed.
pub(crate) fn key(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// Spreads what differs in a few bits over all of them: the last steps of SplitMix64.
pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A number above 0 and below 1.
pub(super) fn unit(number: u64) -> f64 {
    ((number >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}
