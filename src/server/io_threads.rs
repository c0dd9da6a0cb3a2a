//! Threads that only read, refuse and write, for a server whose other threads have too much to do.
//!
//! Owns those threads, and the way of a connection to them and back. They must never run a handler: whoever reads behind one refuses
//! as late as if there was no such thread. Look next at [`super::dispatch`], which says where a connection belongs, and at
//! [`super::admission`], which knows whether there is too much to do.

use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

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
    /// Connections belong here now.
    wanted: AtomicBool,
    /// There can be none.
    impossible: AtomicBool,
    threads: OnceLock<Vec<IoThread>>,
    next: AtomicUsize,
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
        Self {
            home,
            wanted: AtomicBool::new(false),
            impossible: AtomicBool::new(!possible),
            threads: OnceLock::new(),
            next: AtomicUsize::new(0),
        }
    }

    /// The runtime of everything else.
    pub(super) fn home(&self) -> &Handle {
        &self.home
    }

    /// Says whether the other threads have too much to do.
    pub(super) fn want(&self, wanted: bool) {
        let wanted = wanted && !self.impossible.load(Ordering::Relaxed);
        if self.wanted.load(Ordering::Relaxed) != wanted {
            self.wanted.store(wanted, Ordering::Relaxed);
        }
    }

    /// Whether connections belong here.
    #[inline]
    pub(super) fn are_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    fn start(&self) -> io::Result<Vec<IoThread>> {
        let threads = self.home.metrics().num_workers().div_ceil(WORKERS);
        (0..threads).map(|_| IoThread::start()).collect()
    }

    /// One of the threads, each in its turn.
    fn choose(&self, service: &str) -> Option<&Handle> {
        let threads = self.threads.get_or_init(|| {
            self.start().unwrap_or_else(|error| {
                tracing::warn!(service, %error, "no threads of their own for connections: under overload refusals will be slow");
                Vec::new()
            })
        });
        let turn = self.next.fetch_add(1, Ordering::Relaxed).checked_rem(threads.len())?;
        Some(&threads.get(turn)?.runtime)
    }

    /// Drives a connection to its end, there or here, wherever its handler wants to be. Boxed, because what is moved between tasks has a
    /// place in the future for each move.
    pub(super) async fn drive<H: Handler>(&self, mut driver: Box<Driver<H>>, service: &str) -> Arc<Error> {
        loop {
            if let Some(error) = driver.drive().await {
                return error;
            }
            let Some(there) = self.choose(service) else {
                self.impossible.store(true, Ordering::Relaxed);
                self.want(false);
                continue;
            };
            let away = async move {
                driver.moved(true);
                let error = driver.drive().await;
                (driver, error)
            };
            match AbortOnDropHandle::new(there.spawn(away)).await {
                Ok((_, Some(error))) => return error,
                Ok((same, None)) => driver = same,
                Err(end) if end.is_panic() => resume_unwind(end.into_panic()),
                Err(_) => return Arc::new(Error::Closed),
            }
            driver.moved(false);
        }
    }
}

impl IoThread {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, until) = (runtime.handle().clone(), CancellationToken::new());
        let ended = until.clone();
        std::thread::Builder::new()
            .name("picom-io".to_owned())
            .spawn(move || runtime.block_on(ended.cancelled_owned()))?;
        Ok(Self { runtime: handle, _until: until.drop_guard() })
    }
}

#[cfg(test)]
#[path = "tests/io_threads.rs"]
mod tests;
