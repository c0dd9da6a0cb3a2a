//! Three times the calls that a processor can serve, with the service in a process that has one processor for itself.
//!
//! Owns only a test; it is a row of `docs/faults.md` and prints its figure. Look next at `overload.rs` for the rest, within one
//! process.
#![cfg(all(target_os = "linux", feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use picom::{Code, Execution, Status};
use support::client;
use support::consul::{Agent, on_path};
use support::fault::Row;
use support::load::percentile;
use support::pressure::{Outcome, closed_loop, goodput, open_loop};
use support::process::{self, Process, SERVICE, Setup};
use support::scene::{Stalls, lasts};
use support::work::{Journal, WorkClient};
use tokio::time::Instant;

/// How long a caller waits.
const DEADLINE: Duration = Duration::from_millis(500);
/// What is left out of the goodput at the beginning of the overload…
const ONSET: Duration = Duration::from_secs(1);
/// … and of the times of refusals: what was let in before the overload was noticed has to end first.
const SETTLED: Duration = Duration::from_secs(2);
/// How long refusals may take.
const AT_ONCE: Duration = Duration::from_millis(5);
/// The pause of a caller who is refused without being told how long to wait.
const PAUSE: Duration = Duration::from_millis(10);

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

/// What a call costs, and who runs it.
struct Effort {
    microseconds: u64,
    /// In so many steps, each of which lets others go first.
    steps: u64,
    /// How long it waits afterwards, without the processor.
    wait_milliseconds: u64,
    /// How many callers keep the processor busy.
    callers: usize,
    /// How many threads run the tasks of the service.
    threads: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants two processors for itself"]
async fn at_three_times_what_a_processor_can_do_it_goes_on_doing_nearly_as_much() {
    let effort = Effort { microseconds: 2_000, steps: 4, wait_milliseconds: 0, callers: 8, threads: 2 };
    overload(effort, "2 ms of the processor in four steps").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants two processors for itself"]
async fn refusals_stay_quick_while_handlers_keep_the_only_thread() {
    let effort = Effort { microseconds: 2_000, steps: 1, wait_milliseconds: 0, callers: 4, threads: 1 };
    overload(effort, "2 ms of the processor at once, one thread").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants two processors for itself"]
async fn refusals_stay_quick_while_most_of_what_runs_waits() {
    let effort = Effort { microseconds: 1_000, steps: 1, wait_milliseconds: 50, callers: 56, threads: 2 };
    overload(effort, "1 ms of the processor, then 50 ms of waiting").await;
}

/// Keeps this process to one processor as long as it lives.
struct Kept {
    taskset: PathBuf,
    before: String,
}

impl Kept {
    fn to_processor_1(taskset: &Path) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let before = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
        let kept = Self { taskset: taskset.to_owned(), before: before.to_owned() };
        assert!(kept.keep_to("1"), "this process may not choose its processor");
        kept
    }

    fn keep_to(&self, processors: &str) -> bool {
        let own = std::process::id().to_string();
        let done = Command::new(&self.taskset).args(["-a", "-c", "-p", processors, &own]).output();
        done.is_ok_and(|done| done.status.success())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keep_to(&self.before);
    }
}

/// Keeps a processor from resting as long as it lives, without keeping anybody else from it. Two of them often share one core, which is
/// slower for each of them as long as the other one is busy; the caller is busy at times, and what it finds then is compared.
struct Restless(Child);

impl Restless {
    fn on_processor_1(taskset: &Path) -> Self {
        // Not for longer than this process lives, however it ends.
        let forever = ["-c", "1", "chrt", "--idle", "0", "sh", "-c", "while kill -0 $PPID; do :; done"];
        Self(Command::new(taskset).args(forever).spawn().unwrap())
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds what the call says that it took.
async fn counted(call: impl IntoFuture<Output = Result<u64, Status>>, spent: Arc<AtomicU64>) -> Result<u64, Status> {
    call.into_future().await.inspect(|took| _ = spent.fetch_add(*took, Ordering::Relaxed))
}

/// Three times the calls that are answered at best.
async fn overload(effort: Effort, what: &str) {
    let two = std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
    let Some(taskset) = on_path("taskset").filter(|_| two && on_path("chrt").is_some()) else {
        let _ = writeln!(
            std::io::stderr(),
            "\nSKIPPED: no taskset, no chrt, or only one processor, so nobody had one for itself\n"
        );
        return;
    };
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let mut setup = Setup::new(&agent, Duration::from_secs(30), journal.path());
    setup.through = vec![taskset.display().to_string(), "-c".into(), "0".into()];
    setup.variables = vec![(process::THREADS, effort.threads.to_string())];
    let process = Process::start(&setup).await;
    // The caller keeps to the other one.
    let stalls = Stalls::watch();
    let _kept = Kept::to_processor_1(&taskset);
    let _restless = Restless::on_processor_1(&taskset);
    let node = client(&agent);
    let client: WorkClient = node.client(SERVICE);
    // Nanoseconds of the processor that went to calls that were answered.
    let spent = Arc::new(AtomicU64::new(0));
    let call = |id: u64| client.burn(id, effort.microseconds, effort.steps, effort.wait_milliseconds);
    let refused_before = AtomicU64::new(0);
    // Where the machine has become slower since it was found out how many callers keep the processor busy, they are too many.
    let patient = async |id: u64| loop {
        match counted(call(id), Arc::clone(&spent)).await {
            Err(status) if status.code() == Code::ResourceExhausted => {
                refused_before.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(status.retry_after().unwrap_or(PAUSE)).await;
            }
            answer => break answer,
        }
    };
    let hurried = |id: u64| counted(call(id).timeout(DEADLINE).retries(0), Arc::clone(&spent));
    // Of all time since a moment, how much of the processor's the service has had, and how much of that went to them.
    let moment = || (Instant::now(), process.processor_time(), spent.load(Ordering::Relaxed));
    let parts_since = |(begun, used, before): (Instant, Duration, u64)| {
        let spent = Duration::from_nanos(spent.load(Ordering::Relaxed) - before);
        let (elapsed, used) = (begun.elapsed(), process.processor_time() - used);
        (used.as_secs_f64() / elapsed.as_secs_f64(), spent.as_secs_f64() / elapsed.as_secs_f64())
    };

    closed_loop(4, Duration::from_secs(1), patient).await;
    // Others use the machine too, and make it slow at times, so that what counts is what the service makes of the time that it gets.
    let before = moment();
    let peak = closed_loop(effort.callers, Duration::from_secs(4), patient).await;
    let (peak_used, peak_spent) = parts_since(before);
    let refused_before = refused_before.load(Ordering::Relaxed);
    let time = Duration::from_secs(8);
    let load = open_loop(0, 3.0 * peak, time, hurried);
    // The service needs a moment to find out.
    let measured = async {
        lasts(ONSET).await;
        let before = moment();
        lasts(time - ONSET).await;
        parts_since(before)
    };
    let (outcomes, (used, spent)) = tokio::join!(load, measured);
    for second in 0..time.as_secs() {
        let of = |fits: &dyn Fn(&Status) -> bool| {
            let here = outcomes.iter().filter(|call| call.at.as_secs() == second);
            here.filter(|call| call.error.as_ref().is_some_and(fits)).count()
        };
        println!(
            "second {second}: {:.0} answered, {} refused, {} late",
            goodput(&outcomes, Duration::from_secs(second), Duration::from_secs(second + 1)),
            of(&|error| error.code() == Code::ResourceExhausted),
            of(&|error| error.code() == Code::DeadlineExceeded),
        );
    }
    let made = outcomes.len() as f64 / time.as_secs_f64();
    assert!(made > 2.7 * peak, "this machine made only {made:.0} calls a second, of {:.0}", 3.0 * peak);
    let good = goodput(&outcomes, ONSET, time);
    let calm = open_loop(10_000_000, 0.7 * peak, Duration::from_secs(3), hurried).await;
    let last = calm.iter().filter(|call| call.error.is_some()).map(|call| call.at).max().unwrap_or_default();

    // One that is shorter concerns fewer than one refusal in a hundred.
    let stall = stalls.bearable(Duration::from_millis(30));
    let runs = journal.read();
    let refused: Vec<_> = outcomes
        .iter()
        .filter(|call| call.error.as_ref().is_some_and(|error| error.code() == Code::ResourceExhausted))
        .collect();
    let ran = refused
        .iter()
        .filter(|call| runs.contains_key(&call.id) || call.error.as_ref().unwrap().execution() != Execution::Never);
    let ran = ran.count();
    // The others were held back by the caller's own throttle.
    let sent = |call: &&&Outcome| call.error.as_ref().unwrap().attempts() > 0;
    let mut times: Vec<_> =
        refused.iter().filter(|call| call.at >= SETTLED).filter(sent).map(|call| call.took).collect();
    times.sort();
    let here = refused.iter().filter(|call| !sent(call)).count();
    assert!(times.len() > 500, "only {} calls were refused: this was no overload", times.len());
    let late = outcomes.iter().filter(|call| call.error.is_some()).count() - refused.len();
    Row::new(26, &format!("three times what the one processor of a service can do: {what}"))
        .at_least("goodput in % of the peak, in time of the processor", 100.0 * spent / peak_spent, 90.0)
        .at_most("refused calls that ran", ran, 0)
        .within("refusals: p99", percentile(&times, 99), AT_ONCE)
        .at_most("last failure after the overload", last, Duration::from_secs(10))
        .also("p50", percentile(&times, 50))
        .also("p90", percentile(&times, 90))
        .also("goodput in % of the peak, in calls", 100.0 * good / peak)
        .also("of that in the first second", 100.0 * goodput(&outcomes, Duration::ZERO, ONSET) / peak)
        .also("peak a second", peak)
        .also("refused at the peak", refused_before)
        .also("parts of the time in which the service had the processor", (peak_used, used))
        .also("refused by the service", refused.len() - here)
        .also("held back by the caller", here)
        .also("over their deadline of 500 ms", late)
        .also("longest time in which the caller did not run", stall)
        .finish();
}
