//! Members on one machine that need no set-up: whoever holds the port may die or stand still.
//!
//! Owns only tests; the members are processes of their own. Look next at `registry_manifest.rs` for the rest of the registry.
#![cfg(all(feature = "manifest", unix))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::BTreeSet;
use std::env;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use picom::registry::{Details, Event, Manifest};
use support::PATIENCE;
use support::clock::{self, FalseClock};
use support::consul::{on_path, signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep};

const PORT: &str = "PICOM_TEST_MANIFEST_PORT";
const NAME: &str = "PICOM_TEST_MANIFEST_NAME";
/// Begins the lines that are for the test.
const MARK: &str = "@picom ";

/// A member in a process of its own. Killed on drop.
struct Member {
    child: Child,
    _input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    table: BTreeSet<String>,
}

impl Member {
    fn start(port: u16, name: &str) -> Self {
        Self::start_with(port, name, [])
    }

    fn start_with<const N: usize>(port: u16, name: &str, variables: [(&str, String); N]) -> Self {
        let program = env::current_exe().expect("the test knows its own program");
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
            .env(PORT, port.to_string())
            .env(NAME, name)
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the test program can be started again");
        let lines = BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines();
        let input = child.stdin.take().expect("stdin is a pipe");
        Self { child, _input: input, lines, table: BTreeSet::new() }
    }

    fn signal(&self, name: &str) {
        signal(self.child.id().expect("it lives"), name);
    }

    /// Follows what it says of its table until that is this; returns whom it lost on the way.
    async fn until(&mut self, what: &str, wanted: &[&str]) -> BTreeSet<String> {
        let wanted: BTreeSet<_> = wanted.iter().map(ToString::to_string).collect();
        let mut lost = BTreeSet::new();
        let deadline = Instant::now() + PATIENCE;
        while self.table != wanted {
            let line = tokio::time::timeout_at(deadline, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("waited for {what}: {wanted:?}, but it knows {:?}", self.table));
            let line = line.unwrap().expect("the member lives");
            lost.extend(self.take(&line));
        }
        lost
    }

    /// What it says for so long; returns whom it lost.
    async fn listen(&mut self, time: Duration) -> BTreeSet<String> {
        let mut lost = BTreeSet::new();
        let deadline = Instant::now() + time;
        while let Ok(line) = tokio::time::timeout_at(deadline, self.lines.next_line()).await {
            lost.extend(self.take(&line.unwrap().expect("the member lives")));
        }
        lost
    }

    fn take(&mut self, line: &str) -> Option<String> {
        // The harness may have begun the line with the name of its test.
        let (_, said) = line.split_once(MARK)?;
        match said.split_at(1) {
            ("+", name) => {
                self.table.insert(name.to_owned());
                None
            }
            (_, name) => self.table.take(name),
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_process_of_its_own() {
    let (Ok(port), Ok(name)) = (env::var(PORT), env::var(NAME)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async move {
        // Whoever started this process is gone when its input ends.
        tokio::spawn(async {
            let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
            std::process::exit(3);
        });
        let manifest = Manifest::local_on(port.parse().unwrap());
        let mut events = manifest.events().unwrap();
        manifest.register(&name, Details { port: 4000, ..Details::default() }).unwrap();
        while let Some(event) = events.next().await {
            match event {
                Event::Registered(record) => say(&format!("+{}", record.role)),
                Event::Freed(record) => say(&format!("-{}", record.role)),
                Event::Missed(count) => panic!("{count} events were missed"),
                _ => {}
            }
        }
    });
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // A test that has gone hears nothing.
    let _ = writeln!(out, "\n{MARK}{text}").and_then(|()| out.flush());
}

#[tokio::test]
async fn when_the_holder_of_the_port_is_killed_another_takes_its_place_and_nobody_else_is_lost() {
    let port = free_port();
    let mut holder = Member::start(port, "holder");
    holder.until("itself", &["holder"]).await;
    let (mut one, mut two) = (Member::start(port, "one"), Member::start(port, "two"));
    for member in [&mut holder, &mut one, &mut two] {
        member.until("all three", &["holder", "one", "two"]).await;
    }
    for round in 0..2 {
        let killed = Instant::now();
        holder.child.kill().await.unwrap();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(killed.elapsed() < PATIENCE, "nobody took the port");
            sleep(Duration::from_millis(5)).await;
        }
        let taken = killed.elapsed();
        println!("round {round}: somebody else holds the port after {taken:.0?}");
        assert!(taken < Duration::from_secs(1), "the port was taken after {taken:?}");
        // One that comes now finds everybody, while the dead one has not yet been forgotten by all.
        holder = Member::start(port, "newcomer");
        holder.until("the living, by a newcomer", &["newcomer", "one", "two"]).await;
        for member in [&mut one, &mut two] {
            let lost = member.until("the living", &["newcomer", "one", "two"]).await;
            assert!(lost.iter().all(|name| name == "holder" || name == "newcomer"), "the living were lost: {lost:?}");
        }
    }
}

#[tokio::test]
async fn a_member_or_the_holder_that_stood_still_for_8_seconds_costs_nobody_else() {
    let all = ["holder", "one", "two"];
    let port = free_port();
    let mut holder = Member::start(port, "holder");
    holder.until("itself", &["holder"]).await;
    let (mut one, mut two) = (Member::start(port, "one"), Member::start(port, "two"));
    for member in [&mut holder, &mut one, &mut two] {
        member.until("all three", &all).await;
    }
    one.signal("STOP");
    sleep(Duration::from_secs(8)).await;
    one.signal("CONT");
    let lost = one.listen(Duration::from_secs(3)).await;
    assert_eq!(lost, BTreeSet::new(), "it believed its own impatience");
    for member in [&mut one, &mut two, &mut holder] {
        let lost = member.until("all three again", &all).await;
        assert!(lost.iter().all(|name| name == "one"), "{lost:?}");
    }
    holder.signal("STOP");
    sleep(Duration::from_secs(8)).await;
    holder.signal("CONT");
    for member in [&mut one, &mut two, &mut holder] {
        let lost = member.listen(Duration::from_secs(2)).await;
        assert!(lost.iter().all(|name| name == "holder"), "those behind the one that stood still were lost: {lost:?}");
        member.until("all three again", &all).await;
    }
}

/// Run as a program of its own, to see that the wall clock of such a program is the false one.
#[test]
fn the_wall_clock_is_told() {
    clock::tell_if_asked();
}

#[tokio::test]
async fn a_member_whose_wall_clock_is_an_hour_ahead_and_then_behind_loses_nobody_and_is_not_lost() {
    let Some(clock) = FalseClock::new() else { return };
    let (port, all) = (free_port(), ["holder", "one", "two"]);
    let mut holder = Member::start(port, "holder");
    holder.until("itself", &["holder"]).await;
    clock.jump(1);
    let (mut one, mut two) = (Member::start_with(port, "one", clock.variables()), Member::start(port, "two"));
    for member in [&mut holder, &mut one, &mut two] {
        member.until("all three", &all).await;
    }
    for hours in [-1, 1] {
        clock.jump(hours);
        // Longer than the lifetime.
        for member in [&mut one, &mut two, &mut holder] {
            let lost = member.listen(Duration::from_millis(2500)).await;
            assert_eq!(lost, BTreeSet::new(), "after a jump to {hours} h");
        }
    }
}
