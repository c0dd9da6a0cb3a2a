//! Nodes in pairs, and witnesses of what happens to handlers.
//!
//! Owns what behaviour tests need on picom's own side. It must never reach below the public API. Look next at `peer.rs` for
//! peers that are not picom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use picom::registry::Memory;
use picom::{Builder, Exposed, Picom, Service};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::PATIENCE;

/// The name under which tests expose what they call.
pub(crate) const SERVICE: &str = "service1";

/// How soon a handler must be gone once nobody wants its answer.
pub(crate) const PROMPT: Duration = Duration::from_millis(100);

/// A node on the loopback interface.
pub(crate) fn builder(name: &str, registry: &Memory) -> Builder {
    Picom::builder(name).registry(registry.clone()).bind("127.0.0.1")
}

/// A server and a node that can call it.
pub(crate) struct Pair {
    pub(crate) server: Picom,
    pub(crate) client: Picom,
    pub(crate) exposed: Exposed,
    pub(crate) registry: Memory,
}

/// Exposes `service` with every option at its default.
pub(crate) async fn pair(service: impl Service) -> Pair {
    pair_with(service, |server| server, |client| client).await
}

/// Exposes `service`; the closures set options.
pub(crate) async fn pair_with(
    service: impl Service,
    server: impl FnOnce(Builder) -> Builder,
    client: impl FnOnce(Builder) -> Builder,
) -> Pair {
    let registry = Memory::new();
    let server = server(builder(SERVICE, &registry)).build().unwrap();
    let exposed = server.expose(service).await.unwrap();
    let client = client(builder("service2", &registry)).build().unwrap();
    Pair { server, client, exposed, registry }
}

/// Sees handlers begin and end.
pub(crate) struct Witness {
    seen: mpsc::UnboundedReceiver<Seen>,
}

#[derive(Debug)]
enum Seen {
    Began,
    Ended(Instant),
}

/// Makes the [`Guard`]s that handlers hold.
#[derive(Clone)]
pub(crate) struct Guards {
    say: mpsc::UnboundedSender<Seen>,
    alive: Arc<AtomicUsize>,
    made: Arc<AtomicUsize>,
}

/// Held by a handler; says when it is dropped.
pub(crate) struct Guard(Guards);

/// A witness and what it watches.
pub(crate) fn witness() -> (Guards, Witness) {
    let (say, seen) = mpsc::unbounded_channel();
    (Guards { say, alive: Arc::default(), made: Arc::default() }, Witness { seen })
}

impl Guards {
    /// A guard; the handler that makes it has begun.
    pub(crate) fn guard(&self) -> Guard {
        self.alive.fetch_add(1, Ordering::SeqCst);
        self.made.fetch_add(1, Ordering::SeqCst);
        let _ = self.say.send(Seen::Began);
        Guard(self.clone())
    }

    /// How many guards exist at this moment.
    pub(crate) fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    /// How many guards there have ever been: how often handlers ran.
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
        let _ = self.0.say.send(Seen::Ended(Instant::now()));
    }
}

impl Witness {
    /// Waits until a handler has begun.
    pub(crate) async fn began(&mut self) {
        match timeout(PATIENCE, self.seen.recv()).await {
            Ok(Some(Seen::Began)) => {}
            other => panic!("waited for a handler to begin, but saw {other:?}"),
        }
    }

    /// Forgets what was seen so far.
    pub(crate) fn forget(&mut self) {
        while self.seen.try_recv().is_ok() {}
    }

    /// Waits until a handler has ended and says when.
    pub(crate) async fn ended(&mut self) -> Instant {
        match timeout(PATIENCE, self.seen.recv()).await {
            Ok(Some(Seen::Ended(at))) => at,
            other => panic!("waited for a handler to be dropped, but saw {other:?}"),
        }
    }

    /// Waits until a handler has ended, which must be soon after `since`, and says how soon.
    pub(crate) async fn ended_promptly(&mut self, since: Instant) -> Duration {
        let took = self.ended().await.saturating_duration_since(since);
        assert!(took <= PROMPT, "the handler was dropped only after {took:?}");
        took
    }
}
