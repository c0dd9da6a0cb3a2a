//! Growth: streams get a larger window where the round trip, and nobody's pace, is what holds them up.
//!
//! Owns what was measured of the path, and the bound of what windows may grow. It must never read a clock, and never
//! let a peer that lies about round trips have more than that bound. Look next at `receive.rs`, which asks it whenever
//! it returns credit of a stream, and `credit.rs` for the window.
//!
//! A window allows one window in a round trip. A PING tells how long that is, and what the application takes meanwhile
//! tells how fast the stream is; where their product comes near the window, the window doubles. What is counted is what
//! was taken over at least two windows, not what came until the PONG: a PONG overtakes bulk, and where a whole window
//! comes in one burst, nothing at all may come between a PING and its PONG.

use std::time::{Duration, Instant};

use super::recv::Incoming;
use crate::wire::StreamId;
use crate::wire::hello::MAX_CREDIT;

/// A path with a shorter round trip needs no growth: even 512 KiB allow a gigabyte a second. One that was so short once,
/// as that of loopback, is not asked for again.
const SHORT: Duration = Duration::from_micros(500);

/// So many windows an application takes before a stream is looked at: one that is shorter would hardly use a larger window,
/// and calls with small bodies never cause a PING.
const SPAN: u32 = 2;

/// Least time between two PINGs: ten a second, of the two hundred that the peer's budget allows.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest one. The pause doubles with each PING and begins anew when a window grows.
const LONGEST_PAUSE: Duration = Duration::from_millis(6400);

/// A stream that is measured for so long rests: others may be.
const STALE: Duration = Duration::from_secs(5);

/// In the bytes of a probe's PING, and never in those of keepalive, which are a number of calls.
const PROBE: u64 = 1 << 63;

#[derive(Debug)]
pub(super) struct Growth {
    /// How large one window may become, and how much all may grow together.
    bound: u32,
    /// How much they have, over all streams.
    grown: u32,
    /// The shortest round trip so far: longer ones have waited behind bulk.
    round_trip: Option<Duration>,
    /// How many PINGs were sent.
    probes: u64,
    /// When the PING was sent whose PONG is awaited.
    asked: Option<Instant>,
    /// Whose pace is measured, and since when.
    measured: Option<(StreamId, Instant)>,
    pause: Duration,
    /// No PING is sent before.
    next: Instant,
}

/// What is to be done for a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    Nothing,
    /// Send a PING with these bytes.
    Ask([u8; 8]),
    /// The window has grown by this: grant it.
    Grown(u32),
}

impl Growth {
    /// Half of the connection's window is kept for streams that have not grown, lest a few that nobody reads any more stop
    /// all others.
    pub(super) fn new(connection_window: u32, now: Instant) -> Self {
        Self {
            bound: (connection_window / 2).min(MAX_CREDIT),
            grown: 0,
            round_trip: None,
            probes: 0,
            asked: None,
            measured: None,
            pause: PAUSE,
            next: now,
        }
    }

    /// Looks at a stream whose credit is being returned.
    pub(super) fn look(&mut self, id: StreamId, incoming: &mut Incoming, now: Instant) -> Look {
        let size = incoming.window.size();
        if incoming.taken < size.saturating_mul(SPAN) {
            return Look::Nothing;
        }
        let step = size.min(self.bound.saturating_sub(size)).min(self.bound - self.grown);
        if step == 0 || self.asked.is_some() || self.round_trip.is_some_and(|time| time < SHORT) {
            return Look::Nothing;
        }
        let keeps_up = incoming.held <= size / 2;
        match self.measured {
            Some((measured, since)) if measured == id => {
                // Much may have come at once, and its reader be about to take it; but not for ever.
                if !keeps_up && incoming.taken < size.saturating_mul(2 * SPAN) {
                    return Look::Nothing;
                }
                self.measured = None;
                let per_round_trip = self.per_round_trip(incoming.taken, now.saturating_duration_since(since));
                incoming.taken = 0;
                // Credit comes back by halves, so nothing ever waits for it once half a window covers the round trip.
                if !keeps_up || per_round_trip < u128::from(size / 2) {
                    return Look::Nothing;
                }
                self.pause = PAUSE;
                self.next = self.next.min(now + PAUSE);
                self.grown += step;
                incoming.window.grow(step);
                Look::Grown(step)
            }
            Some((_, since)) if now < since + STALE => Look::Nothing,
            _ if now < self.next || !keeps_up => Look::Nothing,
            _ => {
                incoming.taken = 0;
                self.measured = Some((id, now));
                self.asked = Some(now);
                self.next = now + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                self.probes += 1;
                Look::Ask((PROBE | self.probes).to_be_bytes())
            }
        }
    }

    /// Takes a PONG, if it is the one that is awaited.
    pub(super) fn answered(&mut self, payload: &[u8], now: Instant) {
        if payload != (PROBE | self.probes).to_be_bytes() {
            return;
        }
        if let Some(asked) = self.asked.take() {
            let time = now.saturating_duration_since(asked);
            self.round_trip = Some(self.round_trip.map_or(time, |least| least.min(time)));
        }
    }

    /// A stream is over that had grown by so much.
    pub(super) fn forget(&mut self, id: StreamId, grown: u32) {
        debug_assert!(grown <= self.grown, "what has grown was counted");
        self.grown = self.grown.saturating_sub(grown);
        self.measured = self.measured.filter(|(measured, _)| *measured != id);
    }

    /// How many of these bytes, taken in that time, one round trip had.
    fn per_round_trip(&self, taken: u32, time: Duration) -> u128 {
        let Some(round_trip) = self.round_trip else { return 0 };
        // Times are those of batches, so that a short one may look like none.
        let time = time.max(round_trip).as_micros().max(1);
        u128::from(taken) * round_trip.as_micros() / time
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (u32, u32, u64) {
        (self.bound, self.grown, self.probes)
    }
}
