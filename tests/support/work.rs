//! The service that the processes of a test expose, and the journal of what they ran.
//!
//! Owns [`Work`], whose methods are of every kind, and [`Journal`]. A handler writes its call down before it does anything
//! else, straight to the file, so that not even a killed process forgets what it ran. Look next at `load.rs` for who calls.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use picom::{Bytes, Status, Streaming};
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// How long a handler takes: long enough that calls are always under way when something happens to its process.
pub(crate) const EFFORT: Duration = Duration::from_millis(20);

/// A pause between two items of a stream.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

#[picom::service]
pub(crate) trait Work {
    /// Tells the process that answers.
    #[rpc(idempotent)]
    async fn who(&self) -> u32;
    /// May run twice.
    #[rpc(idempotent)]
    async fn look(&self, id: u64) -> u32;
    /// Must not run twice, nor must any of the following.
    async fn act(&self, id: u64) -> u32;
    async fn sum(&self, id: u64, numbers: Streaming<u64>) -> Result<u64, Status>;
    async fn count(&self, id: u64, to: u64) -> Result<impl Stream<Item = u64>, Status>;
    async fn echo(&self, pieces: Streaming<Bytes>) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status>;
    /// Takes this long in one process, and no time in any other. Tells the process that answers.
    async fn nap(&self, process: u32, milliseconds: u64) -> u32;
    /// Takes one of the four places of a process for a random time, of this mean; in one process for ten times as long.
    #[rpc(idempotent)]
    async fn toil(&self, slow: u32, milliseconds: u64) -> u32;
    /// Fails at once in one process, and writes it down there.
    #[rpc(idempotent)]
    async fn ail(&self, sick: u32, id: u64) -> Result<u32, Status>;
    /// Needs a processor for so long, in so many steps, each of which lets others go first, and then waits.
    /// Tells for how many nanoseconds it had the processor.
    #[rpc(idempotent)]
    async fn burn(&self, id: u64, microseconds: u64, steps: u64, wait_milliseconds: u64) -> u64;
}

/// How many calls of `toil` a process can serve at once.
const PLACES: usize = 4;

pub(crate) struct Worker {
    journal: File,
    places: Semaphore,
}

impl Worker {
    pub(crate) fn new(journal: &Path) -> Self {
        let journal = OpenOptions::new().append(true).create(true).open(journal).expect("the journal can be opened");
        Self { journal, places: Semaphore::new(PLACES) }
    }

    fn ran(&self, id: u64) {
        (&self.journal).write_all(&id.to_be_bytes()).expect("the journal can be written");
    }
}

impl Work for Worker {
    async fn who(&self) -> u32 {
        std::process::id()
    }

    async fn look(&self, id: u64) -> u32 {
        self.ran(id);
        sleep(EFFORT).await;
        std::process::id()
    }

    async fn act(&self, id: u64) -> u32 {
        self.ran(id);
        sleep(EFFORT).await;
        std::process::id()
    }

    async fn sum(&self, id: u64, mut numbers: Streaming<u64>) -> Result<u64, Status> {
        self.ran(id);
        let mut sum = 0;
        while let Some(number) = numbers.message().await? {
            sum += number;
        }
        Ok(sum)
    }

    async fn count(&self, id: u64, to: u64) -> Result<impl Stream<Item = u64>, Status> {
        self.ran(id);
        Ok(slowly(to))
    }

    async fn echo(&self, pieces: Streaming<Bytes>) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status> {
        Ok(pieces)
    }

    async fn nap(&self, process: u32, milliseconds: u64) -> u32 {
        if process == std::process::id() {
            sleep(Duration::from_millis(milliseconds)).await;
        }
        std::process::id()
    }

    async fn toil(&self, slow: u32, milliseconds: u64) -> u32 {
        let place = self.places.acquire().await.expect("it is never closed");
        let mean = Duration::from_millis(milliseconds) * if slow == std::process::id() { 10 } else { 1 };
        sleep(mean.mul_f64(-fastrand::f64().max(f64::MIN_POSITIVE).ln())).await;
        drop(place);
        std::process::id()
    }

    async fn ail(&self, sick: u32, id: u64) -> Result<u32, Status> {
        if sick == std::process::id() {
            self.ran(id);
            return Err(Status::unavailable("out of order"));
        }
        sleep(EFFORT).await;
        Ok(std::process::id())
    }

    async fn burn(&self, id: u64, microseconds: u64, steps: u64, wait_milliseconds: u64) -> u64 {
        self.ran(id);
        let mut took = Duration::ZERO;
        for step in 0..steps {
            if step > 0 {
                tokio::task::yield_now().await;
            }
            let before = processor_time();
            spin(microseconds * *ROUNDS / steps);
            took += processor_time() - before;
        }
        if wait_milliseconds > 0 {
            sleep(Duration::from_millis(wait_milliseconds)).await;
        }
        u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// For how long this thread has had a processor.
fn processor_time() -> Duration {
    nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("the system says how long a thread has run").into()
}

/// How many rounds of [`spin`] a processor does in a microsecond, which others can only make seem fewer: so that a call is as
/// much work when this process has to share its processor.
static ROUNDS: LazyLock<u64> = LazyLock::new(|| {
    const SAMPLE: u64 = 50_000;
    let sample = |_| {
        let begun = std::time::Instant::now();
        spin(SAMPLE);
        begun.elapsed()
    };
    let quickest = (0..20).map(sample).min().unwrap_or_default();
    (SAMPLE * 1_000 / u64::try_from(quickest.as_nanos()).unwrap_or(u64::MAX).max(1)).max(1)
});

fn spin(rounds: u64) {
    for round in 0..rounds {
        std::hint::black_box(round);
    }
}

/// 0 up to `to`, with pauses.
pub(crate) fn slowly(to: u64) -> impl Stream<Item = u64> + Send + 'static {
    stream::iter(0..to).then(async |number| {
        sleep(PAUSE).await;
        number
    })
}

/// Where all processes of one test write which calls they ran; removed on drop.
pub(crate) struct Journal(PathBuf);

impl Journal {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("picom-journal-{}-{number}", std::process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// How often each call ran.
    pub(crate) fn read(&self) -> HashMap<u64, u32> {
        let mut runs = HashMap::new();
        for id in std::fs::read(&self.0).expect("the journal can be read").chunks_exact(8) {
            let id = u64::from_be_bytes(id.try_into().expect("eight bytes"));
            *runs.entry(id).or_default() += 1;
        }
        runs
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // A test that never started a process has none.
        let _ = std::fs::remove_file(&self.0);
    }
}
