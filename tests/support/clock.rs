//! A wall clock that is wrong, for processes that a test starts.
//!
//! Owns the library that takes the place of the C library's clock, and the file by which the test turns it. It must never change a
//! monotonic clock. Look next at `process.rs` for processes.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use super::consul::on_path;

/// A file or folder of one's own, removed on drop.
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Temporary {
    pub(crate) fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("picom-{}-{name}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Names the file with the seconds by which the clock is ahead.
const AHEAD: &str = "PICOM_TEST_CLOCK";

/// Takes the place of the C library's wall clock; other clocks stay as they are.
const CLOCK: &str = "
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead(void) {
    static volatile long *shared;
    if (!shared) {
        int file = open(getenv(\"PICOM_TEST_CLOCK\"), O_RDONLY);
        void *map = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        close(file);
        if (map == MAP_FAILED) abort();
        shared = map;
    }
    return *shared;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
";

fn seconds() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// Says what time it is, if this program was started to. Each test program that uses a false clock has a test named
/// `the_wall_clock_is_told`, which calls this.
pub(crate) fn tell_if_asked() {
    if std::env::var_os(AHEAD).is_some() {
        println!("@clock {}", seconds());
    }
}

/// The clock, right until it jumps.
pub(crate) struct FalseClock {
    library: Temporary,
    offset: Temporary,
    file: File,
}

impl FalseClock {
    /// `None`, which is said, on a machine that is not Linux or has no C compiler.
    pub(crate) fn new() -> Option<Self> {
        let Some(cc) = on_path("cc").filter(|_| cfg!(target_os = "linux")) else {
            let _ = writeln!(std::io::stderr(), "\nSKIPPED: no C compiler, or not Linux, so no clock was changed\n");
            return None;
        };
        let (source, library, offset) =
            (Temporary::new("clock.c"), Temporary::new("clock.so"), Temporary::new("clock"));
        std::fs::write(&source.0, CLOCK).unwrap();
        let built = Command::new(cc).args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library.0).arg(&source.0).status();
        assert!(built.unwrap().success(), "the clock is not built");
        std::fs::write(&offset.0, 0_i64.to_ne_bytes()).unwrap();
        // Written in place: the processes look at this very file.
        let file = OpenOptions::new().write(true).open(&offset.0).unwrap();
        Some(Self { library, offset, file })
    }

    /// With these a process has this clock.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library.0.display().to_string()), (AHEAD, self.offset.0.display().to_string())]
    }

    /// From now on it is so many hours ahead, and that is seen.
    pub(crate) fn jump(&self, hours: i64) {
        let jump = hours * 3600;
        self.file.write_all_at(&jump.to_ne_bytes(), 0).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command.args(["--exact", "the_wall_clock_is_told", "--nocapture"]).envs(self.variables());
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let (_, told) = text.split_once("@clock ").unwrap_or_else(|| panic!("no clock in {text}"));
        let seen = told.split_whitespace().next().unwrap().parse::<i64>().unwrap() - seconds();
        assert!((seen - jump).abs() < 60, "the clock was to be {jump} s ahead, and was {seen} s");
    }
}
