//! What a handler knows of its call, and what the calls it makes inherit.
//!
//! Owns [`Context`] and the place of each thread to which it is lent while its handler is polled, where nested calls read it.
//! It must never touch a connection: cancelling is done by the server's dispatch. Look next at `client/call.rs` for who inherits.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metadata::{Metadata, MetadataError};

thread_local! {
    /// The context of the handler that is being polled on this thread. It is moved here and back, which costs no count.
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// What a call without metadata came with.
static NO_METADATA: Metadata = Metadata::new();

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
    line: Arc<Line>,
    deadline: Option<Instant>,
    attempt: u8,
    metadata: Option<Box<Metadata>>,
    /// Most answers have none.
    answer: OnceLock<Mutex<Metadata>>,
    /// If it fails, it may be tried again.
    retryable: AtomicBool,
    cancelled: AtomicBool,
    token: OnceLock<CancellationToken>,
}

/// What all calls of one method have in common that come over one connection.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) service: Arc<str>,
    pub(crate) method: Arc<str>,
    pub(crate) peer: Arc<Peer>,
}

impl Line {
    /// Where calls come from that nobody made.
    fn none() -> Arc<Self> {
        static NONE: OnceLock<Arc<Line>> = OnceLock::new();
        let none = || {
            let peer = Peer { node: "".into(), addr: None, incarnation: 0 };
            Arc::new(Self { service: "".into(), method: "".into(), peer: Arc::new(peer) })
        };
        Arc::clone(NONE.get_or_init(none))
    }
}

impl Context {
    pub(crate) fn new(
        line: Arc<Line>,
        deadline: Option<Instant>,
        attempt: u8,
        metadata: Option<Box<Metadata>>,
    ) -> Self {
        Self(Arc::new(Inner {
            line,
            deadline,
            attempt,
            metadata,
            answer: OnceLock::new(),
            retryable: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            token: OnceLock::new(),
        }))
    }

    /// The context of a new call on a line. The one of a call that is over serves again, unless somebody still holds it.
    pub(crate) fn begin(
        over: Option<Self>,
        line: &Arc<Line>,
        deadline: Option<Instant>,
        attempt: u8,
        metadata: Option<Box<Metadata>>,
    ) -> Self {
        if let Some(mut context) = over {
            if let Some(inner) = Arc::get_mut(&mut context.0) {
                inner.deadline = deadline;
                inner.attempt = attempt;
                inner.metadata = metadata;
                inner.answer.take();
                *inner.retryable.get_mut() = false;
                *inner.cancelled.get_mut() = false;
                inner.token.take();
                return context;
            }
        }
        Self::new(Arc::clone(line), deadline, attempt, metadata)
    }

    /// Whether keeping it for [`begin`](Self::begin) keeps nothing large.
    pub(crate) fn is_small(&self) -> bool {
        self.0.metadata.is_none() && self.0.answer.get().is_none()
    }

    /// The service that was called.
    pub fn service(&self) -> &str {
        &self.0.line.service
    }

    /// The method that was called, by the name that the caller used.
    pub fn method(&self) -> &str {
        &self.0.line.method
    }

    /// Who called.
    pub fn peer(&self) -> &Peer {
        &self.0.line.peer
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
        self.0.metadata.as_deref().unwrap_or(&NO_METADATA)
    }

    /// Adds metadata to the answer. Only what is added before the answer begins is sent.
    ///
    /// # Errors
    /// When the key is not allowed or the metadata would exceed its limits.
    pub fn set_answer_metadata(&self, key: &str, value: &str) -> Result<(), MetadataError> {
        let answer = self.0.answer.get_or_init(Mutex::default);
        answer.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value)
    }

    pub(crate) fn take_answer_metadata(&self) -> Option<Metadata> {
        let answer = self.0.answer.get()?;
        Some(std::mem::take(&mut *answer.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Says that the call may be tried again if this handler fails now, whatever the method: it has done nothing, or has undone it, and to
    /// run it anew may bring another outcome. This is how a method with an error type of its own says what others say with
    /// [`Status::retryable`](crate::Status::retryable), and it means the same. If the call is not tried again, or fails in the end, the
    /// caller gets the error as it is.
    ///
    /// It is not said of an error that a stream yields, for then its answer has begun.
    ///
    /// ```
    /// use picom::Context;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Debug, Serialize, Deserialize)]
    /// enum BookingError {
    ///     /// Another transaction was first; rolled back.
    ///     Conflict,
    ///     /// Somebody else has that seat.
    ///     Taken,
    /// }
    ///
    /// #[picom::service]
    /// trait Booking {
    ///     async fn book(&self, cx: &Context, seat: u32) -> Result<u64, BookingError>;
    /// }
    ///
    /// struct Theatre;
    ///
    /// impl Booking for Theatre {
    ///     async fn book(&self, cx: &Context, seat: u32) -> Result<u64, BookingError> {
    ///         let booked = reserve(seat);
    ///         if let Err(BookingError::Conflict) = booked {
    ///             cx.allow_retry();
    ///         }
    ///         booked
    ///     }
    /// }
    /// # fn reserve(seat: u32) -> Result<u64, BookingError> { if seat == 0 { Err(BookingError::Taken) } else { Ok(7) } }
    /// ```
    pub fn allow_retry(&self) {
        self.0.retryable.store(true, Ordering::Relaxed);
    }

    pub(crate) fn allows_retry(&self) -> bool {
        self.0.retryable.load(Ordering::Relaxed)
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
        Self::with_current(|context| context.cloned())
    }

    /// Reads the context of the handler that runs here without cloning it.
    pub(crate) fn with_current<T>(read: impl FnOnce(Option<&Self>) -> T) -> T {
        let mut read = Some(read);
        let inside = CURRENT.try_with(|current| read.take().map(|read| read(current.borrow().as_ref())));
        match (inside, read) {
            (Ok(Some(value)), _) => value,
            // The thread is at its end.
            (_, Some(read)) => read(None),
            // `read` is taken only where its value is returned.
            (_, None) => unreachable!("the reader ran but returned nothing"),
        }
    }

    /// Runs `f`, here and now, as part of the call whose context is lent.
    pub(crate) fn enter<T>(context: &mut Option<Self>, f: impl FnOnce() -> T) -> T {
        let _inside = Inside::of(context);
        f()
    }

    /// Runs a future as part of this call, for tasks that a handler spawns: the calls it makes inherit.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        let (mut context, mut future) = (Some(self), pin!(future));
        std::future::poll_fn(|cx| Self::enter(&mut context, || future.as_mut().poll(cx))).await
    }

    /// Runs a future whose calls inherit nothing from the handler in which it is made.
    pub async fn detached<F: Future>(future: F) -> F::Output {
        Self::new(Line::none(), None, 0, None).scope(future).await
    }
}

/// A context lent to this thread; it goes back to where it came from, however the work in it ends.
struct Inside<'a>(&'a mut Option<Context>);

impl<'a> Inside<'a> {
    fn of(context: &'a mut Option<Context>) -> Self {
        swap(context);
        Self(context)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        swap(self.0);
    }
}

fn swap(context: &mut Option<Context>) {
    // A thread at its end has no place for it; then nothing is inherited.
    let _ = CURRENT.try_with(|current| std::mem::swap(&mut *current.borrow_mut(), context));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_context_serves_again_only_when_nobody_holds_it_and_remembers_nothing() {
        let line = Line::none();
        let mut metadata = Metadata::new();
        metadata.insert("tenant", "acme").unwrap();
        let first = Context::begin(None, &line, Some(Instant::now()), 3, Some(Box::new(metadata)));
        first.set_answer_metadata("cost", "1").unwrap();
        first.allow_retry();
        let held = first.clone();
        assert!(held.cancelled().now_or_never().is_none(), "it waits, so there is a token");
        first.cancel();
        held.cancelled().await;

        let second = Context::begin(Some(first), &line, None, 0, None);
        assert!(held.is_cancelled() && !second.is_cancelled(), "the first is still held");
        assert_eq!((held.attempt(), held.metadata().len()), (3, 1));
        drop(second);

        let third = Context::begin(Some(held), &line, None, 0, None);
        assert_eq!((third.attempt(), third.deadline(), third.is_cancelled()), (0, None, false));
        assert!(third.metadata().is_empty() && third.take_answer_metadata().is_none() && !third.allows_retry());
        assert!(third.0.token.get().is_none(), "whoever waited for the first must not hear of the third");
    }

    #[test]
    fn a_context_that_is_lent_comes_back_however_the_work_ends() {
        let mut lent = Some(Context::begin(None, &Line::none(), None, 7, None));
        let seen = || Context::current().map(|context| context.attempt());
        assert_eq!(Context::enter(&mut lent, seen), Some(7));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Context::enter(&mut lent, || std::panic::resume_unwind(Box::new("on purpose")))
        }));
        assert!(panicked.is_err() && lent.is_some() && seen().is_none());
    }
}
