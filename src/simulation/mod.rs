//! Whole clients and servers in worlds of their own: virtual time, a network that fails, hosts that die and come back, a Consul that
//! lags, lies and forgets. Worlds differ in how busy they are, how many servers they have, how these are chosen, how much they take
//! at once, and how long chains of calls are ([`nature`]).
//!
//! Each seed is one world, and the same seed is the same world. `PICOM_SIM_SEED` runs one seed and shows all that happened;
//! `PICOM_SIM_SEEDS` says how many are run otherwise, and `PICOM_SIM_FIRST` from which on. What must hold in every world is judged in
//! [`journal`], in [`runs`] and, when all is well again, in [`peace`]; that the judges can see is shown in [`flaws`]. Compiled for tests only. The protocol alone has a simulation of its
//! own in `proto/tests`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

// It is also held against the real one, by the tests of registries.
#[path = "../../tests/support/simulated_consul.rs"]
mod consul;
mod delays;
mod faults;
mod flaws;
mod journal;
mod located;
mod nature;
mod net;
mod peace;
mod relay;
mod runs;
mod service;
mod turns;
mod work;
mod world;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many worlds are run by default.
const SEEDS: u64 = 200;
/// Events that a failing seed shows.
const SHOWN: usize = 60;

fn seeds() -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("PICOM_SIM_SEED") {
        return seed..seed + 1;
    }
    let first = number("PICOM_SIM_FIRST").unwrap_or(0);
    first..first + number("PICOM_SIM_SEEDS").unwrap_or(SEEDS)
}

fn shown(seed: u64, outcome: &world::Outcome) -> String {
    let from = outcome.log.len().saturating_sub(if seeds().end - seeds().start == 1 { usize::MAX } else { SHOWN });
    format!(
        "\n{}\n\n{}\n\nPICOM_SIM_SEED={seed} cargo test -p picom --lib simulation::no_world shows it again, with all of its {} events\n",
        outcome.log[from..].join("\n"),
        outcome.violations.join("\n"),
        outcome.log.len(),
    )
}

#[test]
fn no_world_breaks_a_promise() {
    let (seeds, start) = (seeds(), Instant::now());
    let number = seeds.end - seeds.start;
    let next = AtomicU64::new(seeds.start);
    let sums = Mutex::new(Sums::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let began = Instant::now();
                    let Ok(outcome) = std::panic::catch_unwind(|| world::run(seed)) else {
                        println!("PICOM_SIM_SEED={seed} panics");
                        sums.lock().unwrap().failed.insert(seed);
                        continue;
                    };
                    sums.lock().unwrap().add(seed, &outcome, began.elapsed());
                    if !outcome.violations.is_empty() || number == 1 {
                        println!("{}", shown(seed, &outcome));
                    }
                }
            });
        }
    });
    let Sums { counts, failed, slowest } = sums.into_inner().unwrap();
    let [well, never, maybe, done, nested, second, losers] = counts;
    println!(
        "{number} worlds in {:.1?} on {threads} threads, the slowest, {}, in {:.1?}; calls that were well: {well}, never ran: \
         {never}, may have run: {maybe}, failed in their handlers: {done}; made by handlers: {nested}; second attempts beside a \
         first: {second}, attempts that were cancelled because another one was answered: {losers}",
        start.elapsed(),
        slowest.1,
        slowest.0,
    );
    assert!(failed.is_empty(), "promises were broken in the worlds {failed:?}; see above");
    assert!(number < SEEDS || counts.iter().all(|count| *count > 0), "nothing much happened");
}

/// What came of all worlds together.
#[derive(Default)]
struct Sums {
    counts: [usize; 7],
    failed: BTreeSet<u64>,
    slowest: (Duration, u64),
}

impl Sums {
    fn add(&mut self, seed: u64, outcome: &world::Outcome, time: Duration) {
        self.counts.iter_mut().zip(outcome.counts).for_each(|(sum, count)| *sum += count);
        self.slowest = self.slowest.max((time, seed));
        if !outcome.violations.is_empty() {
            self.failed.insert(seed);
        }
    }
}

/// Each of these worlds has shown a mistake once. Whoever changes what follows from a seed makes other worlds of them, so what they
/// have shown has tests of its own where that is possible.
#[test]
fn what_a_world_has_shown_once_it_does_not_show_again() {
    // An idempotent call of which one attempt ran was said never to have run, because the last attempt had not; and a call whose
    // connection closed before it left was said to have run. The simulated Consul kept the entry of a predecessor alive for one that
    // could not register at first.
    for seed in [60, 90, 1395, 2331] {
        let outcome = world::run(seed);
        assert!(outcome.violations.is_empty(), "{}", shown(seed, &outcome));
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in seeds().take(20) {
        let (once, again) = (world::run(seed).log, world::run(seed).log);
        let differs = once.iter().zip(&again).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!("PICOM_SIM_SEED={seed}: event {at} is {:?} and then {:?}", once[at], again[at]);
        }
        assert_eq!(once.len(), again.len(), "PICOM_SIM_SEED={seed}");
    }
}
