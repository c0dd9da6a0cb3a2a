//! Whether somebody else uses the machine.
//!
//! Owns the probe: on every core a thread that does nothing but look at the clock, and what is missing was somebody else's,
//! in this machine or on its host. Must never run while something is measured. Next: `run`.

use std::thread;
use std::time::{Duration, Instant};

use crate::place::{cores, pin};

/// A run beside which more than this share of a core was missing does not count, if there are others.
pub(crate) const LIMIT: f64 = 0.05;

/// How long one look takes.
const LOOK: Duration = Duration::from_millis(40);
/// Looking at the clock takes a fraction of a microsecond, and the timer's interrupt a few.
const GAP: Duration = Duration::from_micros(30);
/// Looks until a run begins anyway.
const PATIENCE: usize = 5;

/// The share of the worst core that is missing.
pub(crate) fn look() -> f64 {
    let threads: Vec<_> = cores().into_iter().map(|core| thread::spawn(move || spin(core))).collect();
    threads.into_iter().map(|thread| thread.join().expect("it only counts")).fold(0.0, f64::max)
}

/// Waits a little for quiet; what was missing in the last look.
pub(crate) fn wait() -> f64 {
    let mut missing = look();
    for _ in 1..PATIENCE {
        if missing <= LIMIT {
            break;
        }
        // Nothing tells when a neighbour is done.
        thread::sleep(LOOK);
        missing = look();
    }
    missing
}

fn spin(core: usize) -> f64 {
    pin(core);
    let begun = Instant::now();
    let (mut last, mut missing) = (begun, Duration::ZERO);
    while last - begun < LOOK {
        let now = Instant::now();
        if now - last > GAP {
            missing += now - last;
        }
        last = now;
    }
    missing.as_secs_f64() / (last - begun).as_secs_f64()
}
