//! Threads that only read, refuse and write, for a server whose other threads have too much to do.
//!
//! Owns those threads, and the way of a connection to them and back. They must never run a handler: whoever reads behind one refuses
//! as late as if there was no such thread. Look next at [`super::dispatch`], which says where a connection belongs, and at
//! [`super::admission`], which knows whether there is too much to do.

use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::proto::Error;
use crate::transport::driver::{Driver, Handler};

/// For so many threads that run tasks there is one of these. To refuse a call takes some microseconds, and what makes threads late takes
/// several times that.
const WORKERS: usize = 4;

/// The threads, which begin when they are needed first and stay: overload that was there once may come again.
#[derive(Debug)]
pub(super) struct IoThreads {
    /// The runtime of everything else.
    home: Handle,
    /// Whether there may be any.
    possible: bool,
    /// Connections belong here now.
    wanted: AtomicBool,
    threads: Mutex<Threads>,
}

#[derive(Debug, Default)]
struct Threads {
    all: Vec<IoThread>,
    /// Whose turn it is.
    next: usize,
    /// They cannot be made, and that was said.
    failed: bool,
}

/// It ends when this is dropped, and with it what it drives.
#[derive(Debug)]
struct IoThread {
    runtime: Handle,
    _until: DropGuard,
}

impl IoThreads {
    /// For a server of this runtime. Nothing begins yet.
    pub(super) fn new(home: Handle, possible: bool) -> Self {
        Self { home, possible, wanted: AtomicBool::new(false), threads: Mutex::default() }
    }

    /// The runtime of everything else.
    pub(super) fn home(&self) -> &Handle {
        &self.home
    }

    /// Says whether the other threads have too much to do.
    pub(super) fn want(&self, wanted: bool) {
        let wanted = wanted && self.possible;
        if self.wanted.load(Ordering::Relaxed) != wanted {
            self.wanted.store(wanted, Ordering::Relaxed);
        }
    }

    /// Whether connections belong here.
    #[inline]
    pub(super) fn are_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// One of the threads, each in its turn. Where there can be none, the next connection tries again.
    fn choose(&self, service: &str) -> Option<Handle> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.all.is_empty() {
            let count = self.home.metrics().num_workers().div_ceil(WORKERS);
            match (0..count).map(|_| IoThread::start()).collect() {
                Ok(all) => threads.all = all,
                Err(error) => {
                    if !std::mem::replace(&mut threads.failed, true) {
                        tracing::warn!(service, %error, "no threads for connections, so refusals under overload are slow");
                    }
                    return None;
                }
            }
        }
        threads.next = (threads.next + 1) % threads.all.len();
        Some(threads.all[threads.next].runtime.clone())
    }

    /// Drives a connection to its end, there or here, wherever its handler wants to be. Boxed, because what is moved between tasks has a
    /// place in the future for each move.
    pub(super) async fn drive<H: Handler>(&self, mut driver: Box<Driver<H>>, service: &str) -> Arc<Error> {
        loop {
            if let Some(error) = driver.drive().await {
                return error;
            }
            let Some(there) = self.choose(service) else {
                driver.stays();
                continue;
            };
            let away = async move {
                let error = if driver.moves_away() { driver.drive().await } else { None };
                (driver, error)
            };
            match AbortOnDropHandle::new(there.spawn(away)).await {
                Ok((_, Some(error))) => return error,
                Ok((same, None)) => driver = same,
                Err(end) if end.is_panic() => resume_unwind(end.into_panic()),
                Err(_) => return Arc::new(Error::Closed),
            }
            driver.moves_home();
        }
    }
}

impl IoThread {
    fn start() -> io::Result<Self> {
        let until = CancellationToken::new();
        let (ended, (say, said)) = (until.clone(), mpsc::channel());
        // Made there, for a runtime must not be dropped by a task of another one, as it would be if there was no thread for it.
        let run = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = say.send(Ok(runtime.handle().clone()));
                runtime.block_on(ended.cancelled_owned());
            }
            Err(error) => _ = say.send(Err(error)),
        };
        let thread = std::thread::Builder::new().name("picom-io".to_owned());
        #[cfg(test)]
        let thread = if tests::no_threads() { thread.stack_size(1 << 46) } else { thread };
        thread.spawn(run)?;
        // It says one or the other right away.
        let runtime = said.recv().map_err(io::Error::other)??;
        Ok(Self { runtime, _until: until.drop_guard() })
    }
}

#[cfg(test)]
#[path = "tests/io_threads.rs"]
mod tests;
