//! Instances that leave while they are called: a rolling restart, and each step of `end()`.
//!
//! Owns only tests; the services are processes of their own. Look next at `support/process.rs` and `support/load.rs`.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use support::consul::Agent;
use support::fault::Row;
use support::load::{Kind, Load};
use support::process::{self, Process, Setup};
use support::work::Journal;
use support::{client, passing};

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

/// Restarts each of three in turn under so many calls a second.
async fn rolling(per_second: u32) {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let setup = Setup::new(&agent, Duration::from_secs(3), journal.path());
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(Process::start(&setup).await);
    }
    passing(&agent, 3).await;
    let load = Load::start(&client(&agent), per_second, &[Kind::Look, Kind::Act, Kind::Sum, Kind::Count]);
    let second = per_second as usize;
    load.more(second).await;
    for process in &mut processes {
        process.leave().await;
        let fresh = Process::start(&setup).await;
        assert_ne!(fresh.addr, process.addr, "the new process listens on a port of its own");
        *process = fresh;
        passing(&agent, 3).await;
        load.more(second).await;
    }
    let report = load.finish().await;
    println!("rolling restart: {report}");
    assert!(report.failed().is_empty(), "{report}: {:#?}", &report.failed()[..report.failed().len().min(5)]);
    let full = report.per_second() > 0.9 * f64::from(per_second);
    assert!(full, "this machine did not make the calls that were asked for: {report}");
    report.check(&journal.read());
    Row::new(16, &format!("rolling restart of three at {per_second} calls/s"))
        .at_most("failed calls of any kind", report.failed().len(), 0)
        .also("calls", report.outcomes.len())
        .also("a second", report.per_second())
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_three_at_500_calls_a_second_fails_no_call() {
    rolling(500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants two processors for itself"]
async fn a_rolling_restart_of_three_at_1000_calls_a_second_fails_no_call() {
    rolling(1000).await;
}
