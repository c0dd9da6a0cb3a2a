//! Where a process runs: its cores, its runtime, its limits, and what it has used.
//!
//! Owns every question to the operating system. Must never start a process. Next: `run`.

use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use tokio::runtime::{Builder, Runtime};

/// How client and server share the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Current-thread runtimes, the server on one core, the client on another.
    Split,
    /// Current-thread runtimes on one and the same core.
    Same,
    /// Two workers each, not pinned: what `#[tokio::main]` does on two cores.
    Mt,
}

/// Which of the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "split" => Ok(Self::Split),
            "same" => Ok(Self::Same),
            "mt" => Ok(Self::Mt),
            _ => Err("a mode is split, same or mt".to_owned()),
        }
    }
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Same => "same",
            Self::Mt => "mt",
        }
    }

    /// Puts this process where it belongs and makes its runtime.
    pub(crate) fn enter(self, side: Side) -> Runtime {
        raise_files();
        let cores = cores();
        match (self, side) {
            (Self::Mt, _) => {}
            (Self::Split, Side::Client) => pin(*cores.get(1).unwrap_or(&cores[0])),
            (Self::Same, _) | (Self::Split, Side::Server) => pin(cores[0]),
        }
        let mut builder = match self {
            Self::Mt => Builder::new_multi_thread(),
            _ => Builder::new_current_thread(),
        };
        if self == Self::Mt {
            builder.worker_threads(2);
        }
        builder.enable_all().build().expect("a runtime can be made")
    }
}

/// The cores that this process may use.
pub(crate) fn cores() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("the cores are known");
    (0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect()
}

/// Keeps the calling thread, and those that it starts from here on, on one core.
pub(crate) fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).expect("a core that exists");
    sched_setaffinity(Pid::from_raw(0), &set).expect("the process can be pinned");
}

/// Ten thousand connections need as many files.
fn raise_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits can be read");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("limits can be raised to what is allowed");
}

/// Seconds of processor time, user and system, that all threads of a process have used, also those that ended.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
    let clock = nix::time::clock_getcpuclockid(pid).expect("the process runs");
    let time = nix::time::clock_gettime(clock).expect("its clock can be read");
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}
