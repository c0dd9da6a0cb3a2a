//! Latencies of calls from many tasks, without getting in their way.
//!
//! Owns the phases of a run and one histogram for each thread. Must never read a clock twice for a call. Next: `calls`.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::sample::histogram;

type Shared = Arc<Mutex<Histogram<u32>>>;

/// There is one run in a process.
static PHASE: AtomicU8 = AtomicU8::new(WARMING);
static ALL: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

thread_local! {
    static MINE: OnceCell<Shared> = const { OnceCell::new() };
}

/// Whether it is the pace of a stream that is measured. Beside calls it would count as theirs.
static PACING: AtomicBool = AtomicBool::new(false);

/// From here on a stream's pace counts.
pub(crate) fn begin_pace() {
    PACING.store(true, Ordering::Relaxed);
    begin();
}

/// From here on calls count.
pub(crate) fn begin() {
    PHASE.store(MEASURING, Ordering::Relaxed);
}

/// Callers finish their call and end; the histogram of all of them.
pub(crate) fn end() -> Histogram<u32> {
    PHASE.store(OVER, Ordering::Relaxed);
    take()
}

/// Callers go on, and what they do does not count until the next `begin`; the histogram so far.
pub(crate) fn pause() -> Histogram<u32> {
    PHASE.store(WARMING, Ordering::Relaxed);
    take()
}

fn take() -> Histogram<u32> {
    let mut sum = histogram();
    for one in ALL.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let mut one = one.lock().unwrap_or_else(PoisonError::into_inner);
        sum.add(&*one).expect("they have the same bounds");
        one.reset();
    }
    sum
}

/// One caller's clock, read once between two calls.
pub(crate) struct Lap(Instant);

impl Lap {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// A call has ended; whether there shall be another.
    #[inline]
    pub(crate) fn done(&mut self) -> bool {
        let now = Instant::now();
        let took = now - self.0;
        self.0 = now;
        match PHASE.load(Ordering::Relaxed) {
            MEASURING => record(took.as_nanos() as u64),
            OVER => return false,
            _ => {}
        }
        true
    }
}

/// The clock of one stream, at the client: what it is given or gives, in so many items or bytes at a time.
pub(crate) struct Pace {
    lap: Lap,
    every: u64,
    since: u64,
}

impl Pace {
    /// For items, of which each is too short for a clock.
    pub(crate) fn items() -> Self {
        Self::each(1024)
    }

    /// For chunks.
    pub(crate) fn bytes() -> Self {
        Self::each(64 << 10)
    }

    fn each(every: u64) -> Self {
        Self { lap: Lap::start(), every, since: 0 }
    }

    #[inline]
    pub(crate) fn add(&mut self, more: u64) {
        self.since += more;
        if self.since >= self.every {
            self.since = 0;
            if PACING.load(Ordering::Relaxed) {
                self.lap.done();
            }
        }
    }
}

#[inline]
fn record(nanos: u64) {
    MINE.with(|mine| {
        let mine = mine.get_or_init(|| {
            let mine = Shared::new(Mutex::new(histogram()));
            ALL.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&mine));
            mine
        });
        // Nobody else wants this lock before the end.
        mine.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(nanos);
    });
}
