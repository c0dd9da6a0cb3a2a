//! What the calls of a simulated world are to be.
//!
//! Owns [`Plan`], from which both sides know what to send and what to expect. It must never look at a machine. Look next at
//! `apps.rs`, which carries plans out.

use std::time::Duration;

use fastrand::Rng;

/// What one call is to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) start: Duration,
    pub(super) deadline: Option<Duration>,
    pub(super) idle: Option<Duration>,
    pub(super) cancel: Option<Duration>,
    /// Lengths of the items after the first message.
    pub(super) upload: Vec<usize>,
    pub(super) abort: bool,
    /// Lengths of the items of the answer.
    pub(super) download: Vec<usize>,
    pub(super) handling: Handling,
    /// How long the server thinks, and the reader of each side after a chunk.
    pub(super) thinks: Duration,
    pub(super) dawdles: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Handling {
    /// Reads all, then answers with one message.
    Unary,
    /// Answers without reading.
    Early,
    /// Reads and answers at the same time.
    Stream,
    /// Some items, then a status.
    Fail,
    Refuse,
    /// Never answers; only with a deadline, an idle limit or a cancel.
    Silent,
}

impl Plan {
    pub(super) fn random(rng: &mut Rng) -> Self {
        let millis = |rng: &mut Rng, most: u64| Duration::from_millis(rng.u64(0..=most));
        let lens = |rng: &mut Rng| match rng.u8(..8) {
            0..4 => Vec::new(),
            4..6 => (0..rng.usize(..20)).map(|_| rng.usize(..400)).collect(),
            6 => (0..rng.usize(..200)).map(|_| rng.usize(..3000)).collect(),
            _ => (0..rng.usize(1..4)).map(|_| rng.usize(..200_000)).collect(),
        };
        let handling = match rng.u8(..20) {
            0..8 => Handling::Unary,
            8..10 => Handling::Early,
            10..15 => Handling::Stream,
            15..17 => Handling::Fail,
            17..19 => Handling::Refuse,
            _ => Handling::Silent,
        };
        let some = |rng: &mut Rng, least: bool, most: u64| (least || rng.u8(..5) == 0).then(|| millis(rng, most));
        Self {
            start: millis(rng, 3000),
            deadline: some(rng, handling == Handling::Silent, 2000),
            idle: (rng.u8(..8) == 0).then(|| Duration::from_millis(rng.u64(100..3000))),
            cancel: some(rng, false, 1000),
            upload: lens(rng),
            abort: rng.u8(..10) == 0,
            download: if handling == Handling::Unary || handling == Handling::Early {
                vec![if rng.u8(..5) == 0 { rng.usize(..300_000) } else { rng.usize(..500) }]
            } else {
                lens(rng)
            },
            handling,
            thinks: if rng.bool() { Duration::ZERO } else { millis(rng, 500) },
            dawdles: if rng.u8(..4) > 0 { Duration::ZERO } else { millis(rng, 20) },
        }
    }
}

/// The bytes of one item: which, of which call, and in which direction, are all in them.
pub(super) fn item(call: usize, number: usize, len: usize) -> Vec<u8> {
    // 251 is a prime, so no two places of a frame look alike. Repeated, as test builds are slow with single bytes.
    let pattern: Vec<u8> = (0..251).map(|at| (call * 31 + number * 7 + at) as u8).collect();
    let mut item = pattern.repeat(len / pattern.len() + 1);
    item.truncate(len);
    item
}
