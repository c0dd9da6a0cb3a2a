//! A service of ten processes of which one is slow or sick, and one that shrinks and grows.
//!
//! Owns only tests; each is a row of `docs/faults.md` and prints its figure. Look next at `balance.rs` for balancing within one
//! process, and at `src/balance/tests/` for the same bounds over many more clients, in virtual time.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::HashMap;
use std::future::{Future, IntoFuture};
use std::time::Duration;

use picom::balance::RoundRobin;
use picom::{Code, Status};
use support::consul::Agent;
use support::fault::Row;
use support::load::percentile;
use support::process::{self, Process, SERVICE, Setup};
use support::work::{Journal, WorkClient};
use support::{client, passing};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

const TTL: Duration = Duration::from_secs(30);
/// The processes of the service.
const REPLICAS: usize = 10;
/// After which a caller of a slow service has given up.
const DEADLINE: Duration = Duration::from_secs(1);

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

/// A service of ten processes, and two callers.
struct Fleet {
    setup: Setup,
    processes: Vec<Process>,
    callers: [WorkClient; 2],
    agent: Agent,
    journal: Journal,
}

impl Fleet {
    async fn start(size: usize) -> Option<Self> {
        let agent = Agent::start().await?;
        let journal = Journal::new();
        // So that it can be read although nobody has written anything.
        std::fs::write(journal.path(), []).unwrap();
        let setup = Setup::new(&agent, TTL, journal.path());
        let callers = [client(&agent).client(SERVICE), client(&agent).client(SERVICE)];
        let mut fleet = Self { setup, processes: Vec::new(), callers, agent, journal };
        fleet.becomes(size).await;
        Some(fleet)
    }

    /// Starts processes, or lets them leave, until there are so many.
    async fn becomes(&mut self, size: usize) {
        while self.processes.len() < size {
            self.processes.push(Process::start(&self.setup).await);
        }
        while self.processes.len() > size {
            self.processes.remove(0).leave().await;
        }
        passing(&self.agent, size).await;
    }
}

/// One call and what became of it.
struct Outcome {
    id: u64,
    /// Since the first one.
    at: Duration,
    took: Duration,
    /// The process that answered.
    result: Result<u32, Status>,
}

/// Makes `per_second` calls a second, from each of the callers in turn and whatever becomes of them, and waits for all.
async fn calls<F>(
    callers: &[WorkClient],
    per_second: u32,
    time: Duration,
    call: impl Fn(WorkClient, u64) -> F,
) -> Vec<Outcome>
where
    F: Future<Output = Result<u32, Status>> + Send + 'static,
{
    let (begun, mut made) = (Instant::now(), JoinSet::new());
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for (id, caller) in (0..).zip(callers.iter().cycle()) {
        ticks.tick().await;
        if begun.elapsed() >= time {
            break;
        }
        let call = call(caller.clone(), id);
        made.spawn(async move {
            let asked = Instant::now();
            let result = call.await;
            Outcome { id, at: asked - begun, took: asked.elapsed(), result }
        });
    }
    let outcomes = made.join_all().await;
    let rate = outcomes.len() as f64 / time.as_secs_f64();
    assert!(rate > 0.9 * f64::from(per_second), "this machine made only {rate:.0} of {per_second} calls a second");
    outcomes
}

/// How many of 100 calls ran into their deadline, and how long 99 of 100 took at most. Panics if one failed otherwise.
fn late(outcomes: &[Outcome]) -> (f64, Duration) {
    let mut times: Vec<_> = outcomes.iter().map(|call| call.took).collect();
    times.sort();
    let errors: Vec<_> = outcomes.iter().filter_map(|call| call.result.as_ref().err()).collect();
    assert!(errors.iter().all(|error| error.code() == Code::DeadlineExceeded), "{:?}", errors.first());
    (100.0 * errors.len() as f64 / outcomes.len() as f64, percentile(&times, 99))
}

/// How many calls each process answered.
fn shares(outcomes: &[Outcome]) -> HashMap<u32, usize> {
    let mut shares = HashMap::new();
    for pid in outcomes.iter().filter_map(|call| call.result.as_ref().ok()) {
        *shares.entry(*pid).or_default() += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes forty seconds"]
async fn one_of_ten_that_is_ten_times_slower_is_hardly_noticed() {
    /// Mean time of a call; with four places in each of ten processes that is room for 1,000 a second.
    const MEAN_MS: u64 = 40;
    const RATE: u32 = 500;
    let Some(fleet) = Fleet::start(REPLICAS).await else { return };
    let slow = fleet.processes[0].pid();
    let toil = |slow: u32, robin: bool| {
        move |caller: WorkClient, _id: u64| {
            let call = caller.toil(slow, MEAN_MS).timeout(DEADLINE);
            let call = if robin { call.balance(RoundRobin) } else { call };
            call.into_future()
        }
    };
    let run =
        async |seconds, slow, robin| calls(&fleet.callers, RATE, Duration::from_secs(seconds), toil(slow, robin)).await;
    // Connections and first measurements.
    run(2, 0, false).await;
    let (_, well) = late(&run(8, 0, false).await);
    let outcomes = run(15, slow, false).await;
    let (missed, p99) = late(&outcomes);
    let share = 100.0 * shares(&outcomes).get(&slow).copied().unwrap_or(0) as f64 / outcomes.len() as f64;
    let (of_robin, p99_of_robin) = late(&run(5, slow, true).await);
    assert!(of_robin > 1.0, "round robin missed only {of_robin} %: this was no load");
    Row::new(12, "one of ten replicas becomes ten times slower, at half of the load that all can bear")
        .at_most("calls over the deadline of 1 s in %", missed, 0.15)
        .at_most("p99 in times of that without it", p99.as_secs_f64() / well.as_secs_f64(), 1.5)
        .also("p99", p99)
        .also("without it", well)
        .also("share of the slow one in %", share)
        .also("round robin: over the deadline in %", of_robin)
        .also("round robin: p99", p99_of_robin)
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_ten_that_fails_at_once_is_left_alone_within_a_second() {
    const RATE: u32 = 200;
    let Some(fleet) = Fleet::start(REPLICAS).await else { return };
    let sick = fleet.processes[0].pid();
    let ail = |sick: u32| move |caller: WorkClient, id: u64| caller.ail(sick, id).into_future();
    let well = calls(&fleet.callers, RATE, Duration::from_secs(1), ail(0)).await;
    let outcomes = calls(&fleet.callers, RATE, Duration::from_secs(6), ail(sick)).await;
    // What a handler answers is the answer, an error too: it is not tried again.
    let failed = well.iter().chain(&outcomes).filter(|call| call.result.is_err()).count();
    let runs = fleet.journal.read();
    assert!(!runs.is_empty(), "the sick one was never called, so nothing was tested");
    let late: Vec<_> = outcomes.iter().filter(|call| call.at >= Duration::from_secs(1)).collect();
    let there: u32 = late.iter().filter_map(|call| runs.get(&call.id)).sum();
    Row::new(13, "one of ten replicas fails every call at once")
        .at_most("its share after 1 s in %", 100.0 * f64::from(there) / late.len() as f64, 1.0)
        .also("calls that it failed", failed)
        .also("calls that it got in the first second", runs.values().sum::<u32>() - there)
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes forty seconds"]
async fn a_service_that_shrinks_to_one_and_grows_to_ten_is_loaded_evenly() {
    /// So many that chance alone makes no great difference in the time that is measured.
    const RATE: u32 = 300;
    let Some(mut fleet) = Fleet::start(3).await else { return };
    let look = |caller: WorkClient, id: u64| caller.look(id).into_future();
    let callers = fleet.callers.clone();
    let mut failed = 0;
    for size in [3, 1, REPLICAS] {
        let traffic = calls(&callers, RATE, Duration::from_secs(4), look);
        let ((), outcomes) = tokio::join!(fleet.becomes(size), traffic);
        failed += outcomes.iter().filter(|call| call.result.is_err()).count();
    }
    // Who joins has its whole share after 10 s.
    let settling = calls(&callers, RATE, Duration::from_secs(15), look).await;
    let outcomes = calls(&callers, RATE, Duration::from_secs(15), look).await;
    failed += settling.iter().chain(&outcomes).filter(|call| call.result.is_err()).count();
    let shares = shares(&outcomes);
    assert_eq!(shares.len(), REPLICAS, "somebody got nothing: {shares:?}");
    let most = shares.values().copied().max().unwrap_or(0) as f64;
    let mean = outcomes.len() as f64 / REPLICAS as f64;
    Row::new(17, "scale from three to one to ten")
        .at_most("load max/mean after 15 s", most / mean, 1.3)
        .at_most("failed calls of any kind", failed, 0)
        .also("least/mean", shares.values().copied().min().unwrap_or(0) as f64 / mean)
        .finish();
}
