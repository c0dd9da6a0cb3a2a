//! What a handler knows of its call, and what the calls it makes inherit.
//!
//! Owns [`Context`] and the task-local copy that nested calls read. It must never touch a connection: cancelling is
//! done by the server's dispatch. Look next at `client/call.rs` for who inherits.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metadata::{Metadata, MetadataError};

tokio::task_local! {
    static CURRENT: Context;
}

/// Who called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The name of the calling node.
    pub node: Arc<str>,
    /// Where it called from; `None` within one process.
    pub addr: Option<SocketAddr>,
    /// The random number of its process.
    pub incarnation: u64,
}

/// A call as its handler sees it. Cheap to clone.
///
/// Calls that a handler makes inherit what remains of the deadline and the metadata marked for it, also when the
/// handler does not take the context. [`Context::detached`] opts out.
#[derive(Clone, Debug)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: Arc<str>,
    method: Arc<str>,
    peer: Arc<Peer>,
    deadline: Option<Instant>,
    attempt: u8,
    metadata: Metadata,
    answer: Mutex<Metadata>,
    cancelled: AtomicBool,
    token: OnceLock<CancellationToken>,
}

impl Context {
    pub(crate) fn new(
        service: Arc<str>,
        method: Arc<str>,
        peer: Arc<Peer>,
        deadline: Option<Instant>,
        attempt: u8,
        metadata: Metadata,
    ) -> Self {
        Self(Arc::new(Inner {
            service,
            method,
            peer,
            deadline,
            attempt,
            metadata,
            answer: Mutex::default(),
            cancelled: AtomicBool::new(false),
            token: OnceLock::new(),
        }))
    }

    /// The service that was called.
    pub fn service(&self) -> &str {
        &self.0.service
    }

    /// The method that was called, by the name that the caller used.
    pub fn method(&self) -> &str {
        &self.0.method
    }

    /// Who called.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// When the caller stops waiting; `None` if it waits as long as it takes.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }

    /// How long the caller still waits; zero when the deadline has passed, `None` without one.
    pub fn remaining(&self) -> Option<Duration> {
        self.0.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Which attempt of the call this is: 0 for the first.
    pub fn attempt(&self) -> u8 {
        self.0.attempt
    }

    /// What the caller sent beside the arguments.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// Adds metadata to the answer. Only what is added before the answer begins is sent.
    ///
    /// # Errors
    /// When the key is not allowed or the metadata would exceed its limits.
    pub fn set_answer_metadata(&self, key: &str, value: &str) -> Result<(), MetadataError> {
        self.0.answer.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value)
    }

    pub(crate) fn take_answer_metadata(&self) -> Metadata {
        std::mem::take(&mut *self.0.answer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the caller has given up, is gone, or its deadline has passed. The handler itself is dropped then; this is
    /// for work that it has handed to tasks of its own.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Waits until [`Context::is_cancelled`]. Never completes for a call that is answered. Cancel safe.
    pub async fn cancelled(&self) {
        let token = self.0.token.get_or_init(CancellationToken::new);
        // The flag is set before the token is looked for, and here the other way round, so one of the two sides sees the other.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.is_cancelled() {
            return;
        }
        token.cancelled().await;
    }

    pub(crate) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        // Pairs with the order in `cancelled`: a full barrier between the store and the look.
        std::sync::atomic::fence(Ordering::SeqCst);
        if let Some(token) = self.0.token.get() {
            token.cancel();
        }
    }

    /// The context of the handler that runs here, if one does.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Reads the context of the handler that runs here without cloning it.
    pub(crate) fn with_current<T>(read: impl FnOnce(Option<&Self>) -> T) -> T {
        let mut read = Some(read);
        let inside = CURRENT.try_with(|context| read.take().map(|read| read(Some(context))));
        match (inside, read) {
            (Ok(Some(value)), _) => value,
            (_, Some(read)) => read(None),
            // `read` is taken only where its value is returned.
            (_, None) => unreachable!("the reader ran but returned nothing"),
        }
    }

    /// Runs `f`, here and now, as part of this call.
    pub(crate) fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), f)
    }

    /// Runs a future as part of this call, for tasks that a handler spawns: the calls it makes inherit.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// Runs a future whose calls inherit nothing from the handler in which it is made.
    pub async fn detached<F: Future>(future: F) -> F::Output {
        let nothing = Self::new("".into(), "".into(), Self::nobody(), None, 0, Metadata::default());
        CURRENT.scope(nothing, future).await
    }

    fn nobody() -> Arc<Peer> {
        static NOBODY: OnceLock<Arc<Peer>> = OnceLock::new();
        Arc::clone(NOBODY.get_or_init(|| Arc::new(Peer { node: "".into(), addr: None, incarnation: 0 })))
    }
}
