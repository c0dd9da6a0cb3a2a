//! A peer that falls silent without closing anything: its connections stay open, and nothing comes.
//!
//! Owns one test, which counts the files that this process has open, so nothing else may run beside it. Look next at
//! `consul_kill.rs` for a peer that is gone.
#![cfg(all(feature = "consul", feature = "macros"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::balance::RoundRobin;
use picom::registry::Fixed;
use picom::{Code, Execution, Picom};
use support::consul::Agent;
use support::process::{self, Process, SERVICE, Setup, open_files};
use support::work::{Journal, WorkClient};
use support::{eventually, passing};
use tokio::time::Instant;

/// Within so long a silence a peer with calls open is noticed to be dead.
const SILENCE: Duration = Duration::from_secs(6);
/// What a machine that builds something at the same time may add.
const SLACK: Duration = Duration::from_millis(500);

#[test]
fn a_process_of_its_own() {
    process::main_if_asked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_noticed_in_six_seconds_and_nothing_of_it_stays_open() {
    let Some(agent) = Agent::start().await else { return };
    let journal = Journal::new();
    // With so long a TTL it is not Consul that notices.
    let setup = Setup::new(&agent, Duration::from_secs(60), journal.path());
    let (silent, other) = (Process::start(&setup).await, Process::start(&setup).await);
    passing(&agent, 2).await;
    let before = [open_files("self"), silent.open_files(), other.open_files()];

    // Nothing but services is connected to, so that nothing else can be left open.
    let addresses = [&silent, &other].map(|process| process.addr.to_string());
    let listed = Fixed::new([(SERVICE, addresses)]);
    let node = Picom::builder("caller").registry(listed).balance(RoundRobin).build().unwrap();
    let typed: WorkClient = node.client(SERVICE);
    let reach = async |pid| eventually("both answer", async || typed.who().await.unwrap() == pid).await;
    reach(silent.pid()).await;
    reach(other.pid()).await;
    let nap = async |idempotent: bool| {
        let call = typed.nap(silent.pid(), 60_000);
        let result = if idempotent { call.idempotent().await } else { call.await };
        (result, Instant::now())
    };
    // Calls go to each in turn, so one of two of a kind hangs in the process that is about to fall silent.
    let (first, second, third, fourth) = (nap(true), nap(true), nap(false), nap(false));
    let calls = async { tokio::join!(first, second, third, fourth) };
    let frozen = async {
        eventually("a call of each kind hangs", async || typed.who().await.is_ok()).await;
        silent.freeze();
        Instant::now()
    };
    let ((first, second, third, fourth), frozen) = tokio::join!(calls, frozen);

    for (result, _) in [&first, &second] {
        assert_eq!(*result.as_ref().unwrap(), other.pid(), "an idempotent call succeeds elsewhere");
    }
    let noticed = [first.1, second.1].into_iter().max().unwrap() - frozen;
    println!("a silent peer was noticed, and the call answered by another, after {noticed:.2?}");
    assert!(noticed > Duration::from_secs(1), "no call hung, so nothing was tested");
    assert!(noticed < SILENCE + SLACK, "the silence was noticed only after {noticed:?}");
    let lost: Vec<_> = [&third, &fourth].into_iter().filter_map(|(result, _)| result.as_ref().err()).collect();
    assert_eq!(lost.len(), 1, "one of the two that must not run twice was lost: {third:?} {fourth:?}");
    assert_eq!((lost[0].code(), lost[0].execution()), (Code::Unavailable, Execution::Maybe), "{}", lost[0]);
    assert!(lost[0].to_string().contains("does not answer"), "{}", lost[0]);

    // The other falls silent too, with no call open: that it does not answer the last words must not keep anything open.
    assert_eq!(typed.who().await.unwrap(), other.pid());
    other.freeze();
    drop((typed, node));
    eventually("this process has closed everything, although nobody answers", async || open_files("self") <= before[0])
        .await;
    silent.thaw();
    other.thaw();
    eventually("so has the one that was silent", async || silent.open_files() <= before[1]).await;
    eventually("so has the other", async || other.open_files() <= before[2]).await;
}
