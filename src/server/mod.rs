//! The exposing side of a node: accepts connections, dispatches calls, drains.
//!
//! Owns the listener, the table of methods and the connections that others opened. It must never look into the registry:
//! the node registers it. Look next at [`dispatch`] for the road of a call.

mod accept;
mod admission;
mod answer;
mod bulkhead;
mod connections;
mod dispatch;
mod incoming;
#[cfg(test)]
mod io_tests;
mod io_threads;
mod limit;
mod router;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use answer::{answer, answer_items, answer_try_items, fail};
pub use incoming::Incoming;

use crate::options::Options;
use crate::proto::CloseReason;
use crate::service::Service;
use crate::status::Status;
use crate::transport::{Listener, memory};
use admission::Admission;
use connections::Connections;
use io_threads::IoThreads;
use router::Router;

/// How long connections that had to be cut may take to close, when the limit on draining has passed already.
const FAREWELL: Duration = Duration::from_millis(250);

/// A listening server.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    local: SocketAddr,
}

/// What every connection of a server shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) service: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) incarnation: u64,
    pub(crate) options: Options,
    router: RwLock<Arc<Router>>,
    connections: Connections,
    admission: Admission,
    io_threads: IoThreads,
    draining: AtomicBool,
    stop_accepting: CancellationToken,
    tasks: TaskTracker,
}

/// What was cut when a drain reached its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Calls that had not finished.
    pub(crate) cut_calls: usize,
}

impl Server {
    /// Binds and starts to accept.
    pub(crate) async fn start(service: &str, incarnation: u64, options: Options) -> Result<Self, io::Error> {
        let listener = bind(&options).await?;
        let local = listener.local_addr()?;
        let shared = Arc::new(Shared {
            service: service.into(),
            node: service.into(),
            incarnation,
            router: RwLock::default(),
            connections: Connections::new(&options),
            admission: Admission::new(options.concurrency, options.max_running),
            // What is within this process needs no thread to be read.
            io_threads: IoThreads::new(Handle::current(), !options.in_memory),
            options,
            draining: AtomicBool::new(false),
            stop_accepting: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        // One of the tasks that an end waits for: when it returns, the port is free again.
        shared.tasks.spawn(accept::accept(listener, Arc::clone(&shared)));
        Ok(Self { shared, local })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Adds the methods of a service.
    pub(crate) fn add(&self, service: &Arc<dyn Service>) -> Result<(), Status> {
        self.shared.add(service)
    }

    /// Tells everyone connected, and everyone who still connects, to go elsewhere.
    pub(crate) fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        self.shared.connections.for_each(|link| link.drain());
    }

    /// Stops accepting and waits until the running calls are done, at most as long as the options say.
    pub(crate) async fn finish(&self) -> Drained {
        self.shared.stop_accepting.cancel();
        self.shared.tasks.close();
        let limit = self.shared.options.drain_timeout;
        if tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_ok() {
            return Drained { cut_calls: 0 };
        }
        let mut cut_calls = 0;
        self.shared.connections.for_each(|link| {
            cut_calls += link.open_calls();
            link.close(CloseReason::ShuttingDown, "the time for draining is over");
        });
        // Whoever waited for these calls shall hear why they end; the process may be gone in a moment.
        let _ = tokio::time::timeout(FAREWELL, self.shared.tasks.wait()).await;
        Drained { cut_calls }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop_accepting.cancel();
        self.shared.connections.for_each(|link| link.close(CloseReason::ShuttingDown, "the node was dropped"));
    }
}

impl Shared {
    fn router(&self) -> Arc<Router> {
        Arc::clone(&self.router.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn add(&self, service: &Arc<dyn Service>) -> Result<(), Status> {
        let mut router = self.router.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *router = Arc::new(router.with(service)?);
        Ok(())
    }
}

async fn bind(options: &Options) -> io::Result<Listener> {
    if options.in_memory {
        return memory::Listener::bind(options.port).map(Listener::Memory);
    }
    // tokio sets SO_REUSEADDR where it means "bind although old connections linger", so a restart gets its port back.
    tokio::net::TcpListener::bind(options.listen_at()).await.map(Listener::Tcp)
}
