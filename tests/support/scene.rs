//! The services and callers of most rows of the table of faults, and what became of their calls.
//!
//! Owns [`Scene`], [`Traffic`], [`Stalls`] and what a row asks of a [`Report`]. It must never cause a fault. Look next at `fault.rs` for the
//! rows, and at `load.rs` for the calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use picom::{Code, Picom};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::consul::Agent;
use super::load::{Kind, Load, Outcome, Report, percentile};
use super::process::{Process, SERVICE, Setup};
use super::work::{EFFORT, Journal};
use super::{client, passing};

/// Half of the calls idempotent, three of ten not, two of ten streams.
pub(crate) const MIX: &[Kind] = &[
    Kind::Look,
    Kind::Act,
    Kind::Look,
    Kind::Sum,
    Kind::Look,
    Kind::Act,
    Kind::Look,
    Kind::Count,
    Kind::Look,
    Kind::Act,
];

/// Calls a second that each of the two callers makes.
const RATE: u32 = 100;

/// Three services in processes of their own, which are found through `agent`.
pub(crate) struct Scene {
    pub(crate) agent: Agent,
    pub(crate) setup: Setup,
    pub(crate) processes: Vec<Process>,
    journal: Journal,
}

impl Scene {
    /// `None` where there is no Consul.
    pub(crate) async fn start(ttl: Duration) -> Option<Self> {
        Some(Self::with(Agent::start().await?, ttl, &[]).await)
    }

    /// With this agent, and these variables for the services.
    pub(crate) async fn with(agent: Agent, ttl: Duration, variables: &[(&'static str, String)]) -> Self {
        let journal = Journal::new();
        let mut setup = Setup::new(&agent, ttl, journal.path());
        setup.variables = variables.to_vec();
        let mut processes = Vec::new();
        for _ in 0..3 {
            processes.push(Process::start(&setup).await);
        }
        passing(&agent, 3).await;
        Self { agent, setup, processes, journal }
    }

    /// When Consul last saw the check of each service change, as numbers.
    pub(crate) async fn changes(&self) -> Vec<u64> {
        let checks = self.agent.get(&format!("/v1/health/checks/{SERVICE}")).await;
        let checks = checks.as_array().expect("a list");
        let mut changes: Vec<_> = checks.iter().filter_map(|check| check["ModifyIndex"].as_u64()).collect();
        assert_eq!(changes.len(), self.processes.len(), "a check for each service: {checks:#?}");
        changes.sort_unstable();
        changes
    }

    /// How many checks have changed since then: one that misses its TTL changes, and changes again with the next beat.
    pub(crate) async fn changed_since(&self, before: &[u64]) -> usize {
        let now = self.changes().await;
        now.iter().filter(|change| !before.contains(change)).count()
    }

    /// Two callers that find the services through the agent.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic::start(&[client(&self.agent), client(&self.agent)])
    }

    /// The calls made so far by `traffic`; panics if one that must not run twice did, or an error lies about it.
    pub(crate) async fn finish(&self, traffic: Traffic) -> Report {
        let report = traffic.finish().await;
        report.check(&self.journal.read());
        println!("{report}");
        for outcome in report.failed().iter().take(5) {
            println!("for example {outcome:?}");
        }
        report
    }
}

/// 200 calls a second of every kind, from all callers together.
pub(crate) struct Traffic(Vec<Load>);

impl Traffic {
    pub(crate) fn start(callers: &[Picom]) -> Self {
        Self(callers.iter().map(|caller| Load::start(caller, RATE, MIX)).collect())
    }

    /// Waits until each caller has ended so many more calls.
    pub(crate) async fn more(&self, calls: usize) {
        for load in &self.0 {
            load.more(calls).await;
        }
    }

    async fn finish(self) -> Report {
        let mut all = Report { outcomes: Vec::new(), took: Duration::ZERO };
        for report in join_all(self.0.into_iter().map(Load::finish)).await {
            all.took = all.took.max(report.took);
            all.outcomes.extend(report.outcomes);
        }
        all
    }
}

impl Report {
    /// How many calls that may run twice failed although they began this late or later.
    pub(crate) fn failed_looks(&self, since: Option<Instant>) -> usize {
        let counted = self.failed().into_iter().filter(|call| since.is_none_or(|since| call.begun >= since));
        counted.filter(|call| call.kind == Kind::Look).count()
    }

    /// How much longer than its own work a call took that was tried again and may run twice: the 99th percentile, and the
    /// longest.
    pub(crate) fn failover(&self) -> (Duration, Duration) {
        let again = self.outcomes.iter().filter(|call| call.kind == Kind::Look && call.attempts > 1);
        let mut times: Vec<_> = again.map(|call| call.took.saturating_sub(EFFORT)).collect();
        times.sort();
        assert!(!times.is_empty(), "no call met the fault, so nothing was tested: {self}");
        (percentile(&times, 99), percentile(&times, 100))
    }

    /// How long the longest call took that met the fault, whatever became of it. Balancing leaves a silent peer alone long before
    /// anybody knows what is wrong with it, so these may be few.
    pub(crate) fn noticed(&self) -> Duration {
        let met = self.outcomes.iter().filter(|call| call.attempts > 1 || call.error.is_some());
        let longest = met.map(|call| call.took.saturating_sub(EFFORT)).max();
        longest.unwrap_or_else(|| panic!("no call met the fault, so nothing was tested: {self}"))
    }

    /// How many of 100 calls ran into their deadline.
    pub(crate) fn timeouts(&self) -> f64 {
        let late = |call: &&&Outcome| call.error.as_ref().is_some_and(|error| error.code() == Code::DeadlineExceeded);
        100.0 * self.failed().iter().filter(late).count() as f64 / self.outcomes.len() as f64
    }

    /// Panics if this machine was too slow to make the calls, for then nothing was tested.
    pub(crate) fn at_full_rate(&self) -> &Self {
        assert!(self.per_second() > 180.0, "this machine did not make the calls that were asked for: {self}");
        self
    }
}

/// Notices when this process does not get to run, which spoils figures of rates.
pub(crate) struct Stalls {
    longest: Arc<AtomicU64>,
    _watching: AbortOnDropHandle<()>,
}

impl Stalls {
    pub(crate) fn watch() -> Self {
        const STEP: Duration = Duration::from_millis(20);
        let longest = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&longest);
        let watching = tokio::spawn(async move {
            loop {
                let due = Instant::now() + STEP;
                sleep_until(due).await;
                noted.fetch_max(u64::try_from(due.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { longest, _watching: AbortOnDropHandle::new(watching) }
    }

    /// The longest of them; panics if it is so long that the figures of the test say nothing.
    pub(crate) fn bearable(&self, most: Duration) -> Duration {
        let longest = Duration::from_millis(self.longest.load(Ordering::Relaxed));
        assert!(longest < most, "this process stood still for {longest:?}, so nothing was measured; run it again");
        longest
    }
}

/// Lets a fault last, or a caller go on, for so long: the length is part of the row.
pub(crate) async fn lasts(time: Duration) {
    sleep(time).await;
}
