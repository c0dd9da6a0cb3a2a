//! Processes of their own that find each other by datagrams, die, and are stopped.
//!
//! Owns only tests; every process is the test program once more, and is killed when the test ends. Look next at
//! `registry_broadcast.rs` for what needs one process only.
#![cfg(all(feature = "broadcast", unix))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::env;
use std::process::Stdio;
use std::time::Duration;

use picom::registry::Registry;
use support::broadcast::Network;
use support::clock::{self, FalseClock};
use support::consul::{on_path, signal};
use support::{PATIENCE, instance, until};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, timeout};

const PORT: &str = "PICOM_TEST_BROADCAST_PORT";
const ID: &str = "PICOM_TEST_BROADCAST_ID";
const PERIOD: Duration = Duration::from_millis(500);
/// What an instance lives after it was last heard.
const LIFE: Duration = Duration::from_millis(3500);
/// What a machine that builds at the same time may add.
const SLACK: Duration = Duration::from_secs(2);

/// Registers one instance and tells how many it knows, if this process was started to.
#[test]
fn a_process_of_its_own() {
    let (Ok(port), Ok(id)) = (env::var(PORT), env::var(ID)) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let registry = Network::at(port.parse().unwrap()).registry().period(PERIOD);
        let mut watch = registry.watch("service1");
        let port = 4000 + id.bytes().map(u16::from).sum::<u16>();
        let registration = registry.register(instance("service1", &id, port)).await.unwrap();
        let mut input = tokio::io::stdin();
        let mut byte = [0];
        loop {
            tokio::select! {
                snapshot = watch.changed() => println!("@{}", snapshot.endpoints.len()),
                // The end of the input is the order to leave.
                _ = input.read(&mut byte) => break,
            }
        }
        registration.leave().await.unwrap();
    });
    std::process::exit(0);
}

struct Process {
    child: Child,
    input: Option<ChildStdin>,
    /// How many it knew, one after the other.
    counts: tokio::sync::watch::Receiver<Vec<usize>>,
}

impl Process {
    fn start(network: &Network, id: &str) -> Self {
        Self::start_with(network, id, [])
    }

    fn start_with<const N: usize>(network: &Network, id: &str, variables: [(&str, String); N]) -> Self {
        let program = env::current_exe().unwrap();
        let mut command = match on_path("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let mut child = command
            .args(["--exact", "a_process_of_its_own", "--nocapture", "--test-threads", "1"])
            .env(PORT, network.addr.port().to_string())
            .env(ID, id)
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, counts) = tokio::sync::watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(count) = line.split_once('@').and_then(|(_, count)| count.parse::<usize>().ok()) {
                    sender.send_modify(|counts| counts.push(count));
                }
            }
        });
        Self { input: child.stdin.take(), child, counts }
    }

    fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    async fn knows(&self, count: usize) {
        let mut counts = self.counts.clone();
        let known = timeout(PATIENCE, counts.wait_for(|counts| counts.last() == Some(&count))).await.is_ok();
        assert!(known, "it was to know {count}, and knew {:?}", self.counts.borrow());
    }
}

#[tokio::test]
async fn a_killed_process_is_gone_3_s_after_its_period_and_one_that_leaves_at_once() {
    let network = Network::new();
    let observer = network.registry();
    let mut watch = observer.watch("service1");
    let mut killed = Process::start(&network, "killed");
    let mut leaving = Process::start(&network, "leaving");
    let staying = Process::start(&network, "staying");
    until(&mut watch, "all three are known", |snapshot| snapshot.endpoints.len() == 3).await;
    for process in [&killed, &leaving, &staying] {
        process.knows(3).await;
    }

    let began = Instant::now();
    drop(leaving.input.take());
    until(&mut watch, "one has left", |snapshot| snapshot.endpoints.len() == 2).await;
    assert!(began.elapsed() < LIFE - PERIOD, "leaving was noticed only after {:?}", began.elapsed());
    staying.knows(2).await;

    killed.child.kill().await.unwrap();
    let died = Instant::now();
    until(&mut watch, "the dead one is gone", |snapshot| snapshot.endpoints.len() == 1).await;
    let took = died.elapsed();
    println!("a killed process was gone after {took:.2?}");
    assert!((LIFE - PERIOD - SLACK..LIFE + SLACK).contains(&took), "it took {took:?}");
    staying.knows(1).await;
    assert_eq!(watch.current().endpoints[0].id, "staying");
}

#[tokio::test]
async fn a_process_that_was_stopped_for_8_s_takes_nobody_for_dead() {
    let network = Network::new();
    let observer = network.registry().period(PERIOD);
    let mut watch = observer.watch("service1");
    let _own = observer.register(instance("service1", "own", 5000)).await.unwrap();
    let others = [Process::start(&network, "one"), Process::start(&network, "two")];
    let stopped = Process::start(&network, "stopped");
    stopped.knows(4).await;
    until(&mut watch, "all four are known", |snapshot| snapshot.endpoints.len() == 4).await;
    let before = stopped.counts.borrow().len();

    signal(stopped.pid(), "STOP");
    tokio::time::sleep(Duration::from_secs(8)).await;
    until(&mut watch, "who does not speak is gone", |snapshot| snapshot.endpoints.len() == 3).await;
    signal(stopped.pid(), "CONT");
    until(&mut watch, "it is back", |snapshot| snapshot.endpoints.len() == 4).await;
    for process in &others {
        process.knows(4).await;
    }
    // Longer than anybody lives without a word.
    tokio::time::sleep(LIFE + PERIOD).await;
    let after = stopped.counts.borrow()[before..].to_vec();
    assert!(after.iter().all(|count| *count == 4), "it took others for dead: it knew {after:?}");
}

/// Run as a program of its own, to see that the wall clock of such a program is the false one.
#[test]
fn the_wall_clock_is_told() {
    clock::tell_if_asked();
}

#[tokio::test]
async fn a_process_whose_wall_clock_is_an_hour_ahead_and_then_behind_loses_nobody_and_is_not_lost() {
    let Some(clock) = FalseClock::new() else { return };
    let network = Network::new();
    clock.jump(1);
    let (wrong, right) = (Process::start_with(&network, "wrong", clock.variables()), Process::start(&network, "right"));
    for process in [&wrong, &right] {
        process.knows(2).await;
    }
    let known = [&wrong, &right].map(|process| process.counts.borrow().len());
    for hours in [-1, 1] {
        clock.jump(hours);
        tokio::time::sleep(LIFE).await;
    }
    for (process, known) in [&wrong, &right].into_iter().zip(known) {
        let counts = process.counts.borrow().clone();
        assert!(counts[known..].iter().all(|count| *count == 2), "somebody was lost for a moment: {counts:?}");
    }
}
