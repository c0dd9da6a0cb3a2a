//! Calls at a steady rate, whatever becomes of them, and what became of them.
//!
//! Owns [`Load`], an open loop: a call that hangs delays no other one, as with callers who know nothing of each other. Owns
//! also [`Report`], which a test judges. Look next at `work.rs` for what is called.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use picom::{Execution, Picom, Status};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::process::SERVICE;
use super::work::{WorkClient, slowly};

/// Items of each stream.
const ITEMS: u64 = 20;

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// One message each way, idempotent.
    Look,
    /// One message each way, not idempotent.
    Act,
    /// A stream to the server, not idempotent.
    Sum,
    /// A stream from the server, not idempotent.
    Count,
}

/// One call and its end.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) begun: Instant,
    pub(crate) took: Duration,
    /// How many attempts it took, if that is known.
    pub(crate) attempts: u32,
    pub(crate) error: Option<Status>,
}

/// Calls being made.
pub(crate) struct Load {
    begun: Instant,
    stop: Arc<AtomicBool>,
    made: JoinHandle<()>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

/// Everything that was called.
pub(crate) struct Report {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) took: Duration,
}

impl Load {
    /// Makes so many calls a second until [`Load::finish`], of all `kinds` in turn.
    pub(crate) fn start(node: &Picom, per_second: u32, kinds: &'static [Kind]) -> Self {
        let client: WorkClient = node.client(SERVICE);
        let (stop, outcomes) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, results) = (Arc::clone(&stop), Arc::clone(&outcomes));
        let made = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / per_second);
            // If a tick comes late, the next ones make up for it.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut calls = JoinSet::new();
            for &kind in kinds.iter().cycle() {
                // Of all callers in this process, so that they can share a journal.
                static NEXT: AtomicU64 = AtomicU64::new(1);
                let id = NEXT.fetch_add(1, Ordering::Relaxed);
                ticks.tick().await;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (client, results) = (client.clone(), Arc::clone(&results));
                calls.spawn(async move {
                    let begun = Instant::now();
                    let result = call(&client, kind, id).await;
                    let took = begun.elapsed();
                    let attempts = result.as_ref().map_or_else(Status::attempts, |attempts| *attempts);
                    let outcome = Outcome { id, kind, begun, took, attempts, error: result.err() };
                    results.lock().expect("nobody panics with it").push(outcome);
                });
                while calls.try_join_next().is_some() {}
            }
            while let Some(joined) = calls.join_next().await {
                joined.expect("a call does not panic");
            }
        });
        Self { begun: Instant::now(), stop, made, outcomes }
    }

    /// Waits until so many more calls are over.
    pub(crate) async fn more(&self, calls: usize) {
        let wanted = self.made() + calls;
        super::eventually("more calls are over", async || self.made() >= wanted).await;
    }

    fn made(&self) -> usize {
        self.outcomes.lock().expect("nobody panics with it").len()
    }

    /// Makes no more calls, and waits for those that were made.
    pub(crate) async fn finish(self) -> Report {
        let took = self.begun.elapsed();
        self.stop.store(true, Ordering::Relaxed);
        self.made.await.expect("the calls do not panic");
        let outcomes = std::mem::take(&mut *self.outcomes.lock().expect("nobody panics with it"));
        Report { outcomes, took }
    }
}

/// Makes one call and says how many attempts it took.
async fn call(client: &WorkClient, kind: Kind, id: u64) -> Result<u32, Status> {
    match kind {
        Kind::Look => client.look(id).with_info().await.map(|(_, info)| info.attempts()),
        Kind::Act => client.act(id).with_info().await.map(|(_, info)| info.attempts()),
        Kind::Sum => {
            let (sum, info) = client.sum(id, slowly(ITEMS)).with_info().await?;
            if sum == ITEMS * (ITEMS - 1) / 2 { Ok(info.attempts()) } else { Err(Status::internal("a wrong sum")) }
        }
        Kind::Count => {
            let (mut items, info) = client.count(id, ITEMS).with_info().await?;
            let mut expected = 0..;
            while let Some(item) = items.message().await? {
                if Some(item) != expected.next() {
                    return Err(Status::internal("an item is missing"));
                }
            }
            if expected.start == ITEMS { Ok(info.attempts()) } else { Err(Status::data_loss("the stream is short")) }
        }
    }
}

impl Report {
    /// The calls that failed.
    pub(crate) fn failed(&self) -> Vec<&Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.error.is_some()).collect()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.outcomes.len() as f64 / self.took.as_secs_f64()
    }

    /// How long the calls took that needed more than one attempt, or all calls, the quickest first.
    pub(crate) fn times(&self, only_retried: bool) -> Vec<Duration> {
        let counted = self.outcomes.iter().filter(|outcome| outcome.error.is_none());
        let mut times: Vec<_> =
            counted.filter(|outcome| !only_retried || outcome.attempts > 1).map(|outcome| outcome.took).collect();
        times.sort();
        times
    }

    /// Panics if a call that must not run twice did, or if one that failed says that it never ran although it did.
    pub(crate) fn check(&self, runs: &HashMap<u64, u32>) {
        for outcome in &self.outcomes {
            let ran = runs.get(&outcome.id).copied().unwrap_or(0);
            assert!(outcome.kind == Kind::Look || ran <= 1, "ran {ran} times, and must not run twice: {outcome:?}");
            let Some(error) = &outcome.error else {
                assert!(ran > 0, "succeeded, but never ran: {outcome:?}");
                continue;
            };
            assert!(error.execution() != Execution::Never || ran == 0, "ran, although it says not: {outcome:?}");
        }
    }
}

/// The time that `percent` of all stay below.
pub(crate) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(index).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, retried) = (self.times(false), self.times(true));
        write!(
            f,
            "{} calls at {:.0}/s, {} failed; p50 {:.1?}, p99 {:.1?}, longest {:.1?}; {} tried again: p50 {:.1?}, p99 {:.1?}",
            self.outcomes.len(),
            self.per_second(),
            self.failed().len(),
            percentile(&all, 50),
            percentile(&all, 99),
            percentile(&all, 100),
            retried.len(),
            percentile(&retried, 50),
            percentile(&retried, 99),
        )
    }
}
