//! A service that dies without a word while it is called.
//!
//! Owns only tests; the services are processes of their own. Look next at `consul_half_open.rs` for one that only falls silent.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::Execution;
use support::consul::Agent;
use support::fault::Row;
use support::load::{Kind, Load, percentile};
use support::process::{self, Process, Setup};
use support::work::{EFFORT, Journal};
use support::{client, passing};

/// How long it may take until a call that was under way has its answer from another host.
const FAILOVER: Duration = Duration::from_millis(500);

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_each_of_three_in_turn_fails_no_idempotent_call_and_runs_no_other_twice() {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    let setup = Setup::new(&agent, Duration::from_secs(2), journal.path());
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(Process::start(&setup).await);
    }
    passing(&agent, 3).await;
    let load = Load::start(&client(&agent), 500, &[Kind::Look, Kind::Act, Kind::Look, Kind::Sum]);
    load.more(500).await;
    for process in &mut processes {
        process.kill().await;
        *process = Process::start(&setup).await;
        // The dead one is listed until Consul has noticed.
        load.more(500).await;
        passing(&agent, 3).await;
    }
    let report = load.finish().await;
    println!("kill -9: {report}");

    let failed = report.failed();
    assert!(failed.iter().all(|outcome| outcome.kind != Kind::Look), "idempotent calls failed: {failed:#?}");
    for outcome in &failed {
        let error = outcome.error.as_ref().unwrap();
        assert_eq!(error.execution(), Execution::Maybe, "a call that never ran was not tried elsewhere: {outcome:?}");
    }
    // Those that were under way at that moment, and no more.
    assert!(failed.len() <= 3 * 50, "{report}");
    report.check(&journal.read());
    let p99 = percentile(&report.times(true), 99);
    println!("failover p99 {p99:.1?}, of which the handler takes {EFFORT:?} or a stream 40 ms");
    assert!(!p99.is_zero(), "nothing was under way when a process died, so nothing was tested: {report}");
    assert!(p99 < FAILOVER, "failover took {p99:?}: {report}");
    Row::new(9, "each of three killed in turn at 500 calls/s")
        .at_most("failed idempotent calls", report.failed_looks(None), 0)
        .within("failover p99", report.failover().0, Duration::from_millis(50))
        .also("longest failover", report.failover().1)
        .also("other calls lost that had been sent", failed.len())
        .finish();
}
