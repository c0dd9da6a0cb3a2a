//! Services in processes of their own, which can be frozen, killed and told to leave.
//!
//! Owns [`Process`], and [`main_if_asked`], the program that runs in it: the test binary starts itself again and runs only
//! the one test that calls it. It must never leave a process behind, nor touch one that it did not start. Look next at
//! `work.rs` for the service that such a process exposes.

use std::env;
use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use picom::Picom;
use picom::registry::{Consul, RegistrationState};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, timeout};

use super::PATIENCE;
use super::consul::{Agent, on_path, signal};
use super::work::{WorkServer, Worker};

/// The name of the service that every process exposes.
pub(crate) const SERVICE: &str = "worker";

const CONSUL: &str = "PICOM_TEST_CONSUL";
const TTL_MS: &str = "PICOM_TEST_TTL_MS";
const JOURNAL: &str = "PICOM_TEST_JOURNAL";
const DRAIN_MS: &str = "PICOM_TEST_DRAIN_MS";
/// With what right it asks Consul, if it needs any.
pub(crate) const TOKEN: &str = "PICOM_TEST_TOKEN";
/// How many threads run its tasks, if not two.
pub(crate) const THREADS: &str = "PICOM_TEST_THREADS";
/// Begins the lines that are for the test: the test harness of the child writes others.
const MARK: &str = "@picom ";

/// How a process is to serve.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) consul: String,
    pub(crate) ttl: Duration,
    /// Where it writes which calls it ran.
    pub(crate) journal: PathBuf,
    pub(crate) drain_timeout: Duration,
    /// What it finds in its environment besides.
    pub(crate) variables: Vec<(&'static str, String)>,
    /// The program and arguments that start it, if it is not to be started directly; they must end by becoming it.
    pub(crate) through: Vec<String>,
}

impl Setup {
    pub(crate) fn new(agent: &Agent, ttl: Duration, journal: &Path) -> Self {
        let drain_timeout = Duration::from_secs(10);
        Self {
            consul: agent.url(),
            ttl,
            journal: journal.to_owned(),
            drain_timeout,
            variables: Vec::new(),
            through: Vec::new(),
        }
    }
}

/// A process that exposes [`SERVICE`]. Killed on drop, and by the kernel when the test dies.
pub(crate) struct Process {
    child: Child,
    pid: u32,
    /// Kept open as long as the process shall live; waiting for its end would close the child's own.
    _input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) addr: SocketAddr,
    /// What the registry had said when `expose` returned.
    pub(crate) state: String,
}

impl Process {
    /// Starts a process and waits until `expose` has returned in it.
    pub(crate) async fn start(setup: &Setup) -> Self {
        let program = env::current_exe().expect("the test knows its own program");
        let die_with_us =
            on_path("setpriv").map(|setpriv| [setpriv.display().to_string(), "--pdeathsig".into(), "KILL".into()]);
        let mut words = die_with_us.into_iter().flatten().chain(setup.through.iter().cloned()).map(OsString::from);
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(program);
                command
            }
            None => Command::new(program),
        };
        let mut child = command
            .args(["--exact", "a_process_of_its_own", "--nocapture", "--test-threads", "1"])
            .env(CONSUL, &setup.consul)
            .env(TTL_MS, setup.ttl.as_millis().to_string())
            .env(JOURNAL, &setup.journal)
            .env(DRAIN_MS, setup.drain_timeout.as_millis().to_string())
            .envs(setup.variables.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the test program can be started again");
        let pid = child.id().expect("it was just started");
        let lines = BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines();
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let input = child.stdin.take().expect("stdin is a pipe");
        let mut process = Self { child, pid, _input: input, lines, addr: unknown, state: String::new() };
        let ready = process.line().await;
        let (addr, state) = ready.split_once(' ').expect("the line has an address and a state");
        process.addr = addr.parse().expect("the line begins with an address");
        process.state = state.to_owned();
        process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The next thing that it says.
    pub(crate) async fn line(&mut self) -> String {
        let heard = timeout(PATIENCE, async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                // The harness may have begun the line with the name of its test.
                if let Some((_, said)) = line.split_once(MARK) {
                    return said.to_owned();
                }
            }
            panic!("process {} has ended without the word that was waited for", self.pid);
        });
        heard.await.unwrap_or_else(|_| panic!("process {} has not said a word within {PATIENCE:?}", self.pid))
    }

    /// Freezes it.
    pub(crate) fn freeze(&self) {
        signal(self.pid, "STOP");
    }

    /// Lets a frozen process go on.
    pub(crate) fn thaw(&self) {
        signal(self.pid, "CONT");
    }

    /// Ends it with no chance to say good-bye.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Asks it to leave, as a supervisor would.
    pub(crate) fn terminate(&self) {
        signal(self.pid, "TERM");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("process {} has not ended within {PATIENCE:?}", self.pid)).expect("its status")
    }

    /// Asks it to leave and waits until it has; it must call that a success.
    pub(crate) async fn leave(&mut self) {
        self.terminate();
        let status = self.ended().await;
        assert!(status.success(), "a process that left properly ended with {status}");
    }

    /// How much time of processors it has had, to a hundredth of a second.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the process lives");
        // The name of the program, which may hold anything, ends with the last bracket.
        let (_, numbers) = stat.rsplit_once(')').expect("the kernel tells the name");
        let ticks = numbers.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number"));
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    /// How many files and sockets it has open.
    pub(crate) fn open_files(&self) -> usize {
        open_files(&self.pid.to_string())
    }
}

/// How many files and sockets a process has open; `self` is this one.
pub(crate) fn open_files(process: &str) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).expect("the process lives").count()
}

/// Serves, if this process was started to; returns at once in a usual run of the tests.
pub(crate) fn main_if_asked() {
    let Ok(consul) = env::var(CONSUL) else { return };
    let threads = env::var(THREADS).map_or(2, |threads| threads.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.expect("a runtime").block_on(serve(&consul));
}

async fn serve(consul: &str) {
    let milliseconds = |name| Duration::from_millis(env::var(name).unwrap().parse().unwrap());
    // Whoever started this process is gone when its input ends; without it there is nobody to serve.
    tokio::spawn(async {
        let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
        std::process::exit(3);
    });
    let registry = Consul::new(consul).unwrap().ttl(milliseconds(TTL_MS));
    let registry = match env::var(TOKEN) {
        Ok(token) => registry.token(token),
        Err(_) => registry,
    };
    let node = Picom::builder(SERVICE)
        .registry(registry)
        .bind("127.0.0.1")
        .drain_timeout(milliseconds(DRAIN_MS))
        .build()
        .unwrap();
    // Listened to before anybody can know of this process, so that no signal comes too early.
    let mut asked = Box::pin(picom::shutdown_signal());
    let early = futures::poll!(asked.as_mut());
    assert!(early.is_pending(), "asked to leave before anything began");
    let worker = Worker::new(Path::new(&env::var_os(JOURNAL).unwrap()));
    let exposed = node.expose(WorkServer::new(worker)).await.expect("expose returns, whatever the registry does");
    let state = match exposed.state() {
        RegistrationState::Registered => "Registered".to_owned(),
        other => format!("{other:?}"),
    };
    say(&format!("{} {state}", exposed.local_addr()));
    asked.await.expect("signals can be listened to");
    let begun = Instant::now();
    let result = node.end().await;
    say(&format!(
        "{} {}",
        begun.elapsed().as_millis(),
        result.as_ref().map_or_else(ToString::to_string, |()| String::new())
    ));
    std::process::exit(i32::from(result.is_err()));
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // A test that has gone hears nothing.
    let _ = writeln!(out, "{MARK}{text}").and_then(|()| out.flush());
}
