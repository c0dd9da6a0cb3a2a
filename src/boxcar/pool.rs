//! The client's connections: the lowest slots, each leased by one user at a time.
//!
//! Owns [`Pool`], and who waits for a connection. It must never drop a lease while it holds its lock, which a lease takes when it is
//! dropped. Look next at [`super::ledger`], which decides, and at [`super::lease`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Server;
use super::lease::Lease;
use super::ledger::{Admission, Id, Ledger};
use super::pulse::{Pulse, Woken};

/// Most connections that a pool keeps, unless it says otherwise: as callosum's.
pub const MAX_SLOTS: usize = 100;
/// Most that wait for a connection of one pool at once; one more fails at once.
pub const MAX_WAITING: usize = 1_024;

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// No connection became free in time.
    #[error("no connection became free within {waited:?}")]
    Late {
        /// How long that was.
        waited: Duration,
    },
    /// Too many wait already.
    #[error("{limit} wait for a connection already")]
    TooMany {
        /// [`MAX_WAITING`].
        limit: usize,
    },
}

/// Keeps the connections with the lowest slots, up to a limit, and leases them.
///
/// A newcomer with a lower slot than the highest that is kept replaces it; an equal one does not. What is replaced is closed,
/// if it is leased as soon as it comes back: so there are never more than twice as many connections as the limit, and never
/// more than the limit that can be leased. A connection that its server closes while nobody uses it is counted out.
///
/// Clones are the same pool. What is idle is closed when the last of them is dropped.
///
/// ```
/// use std::time::Duration;
/// use picom::boxcar::Pool;
/// use tokio::io::AsyncWriteExt;
///
/// # async fn f(pool: Pool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut connection = pool.lease(Duration::from_secs(1)).await?;
/// if connection.write_all(b"hello\n").await.is_err() {
///     connection.discard(); // it is of no use to anybody
/// } // otherwise it goes back by itself
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    books: Mutex<Books>,
    woken: Arc<Woken>,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger,
    idle: HashMap<Id, TcpStream>,
    /// Those of them that have bytes to be read, so that nothing wakes when they end.
    unread: BTreeSet<Id>,
    /// Nobody waits while anything is idle.
    waiting: VecDeque<oneshot::Sender<Lease>>,
    /// Whether anything was counted out that nothing came in for.
    has_lost: bool,
}

impl Pool {
    /// A pool that keeps at most this many connections, at least 1.
    pub fn new(max_slots: usize) -> Self {
        let books = Books {
            ledger: Ledger::new(max_slots.max(1)),
            idle: HashMap::new(),
            unread: BTreeSet::new(),
            waiting: VecDeque::new(),
            has_lost: false,
        };
        Self { shared: Arc::new(Shared { books: Mutex::new(books), woken: Arc::default() }) }
    }

    /// Takes in a connection, which begins idle, or goes to who has waited for longest. Returns whether it was kept; it was not
    /// if its slot is no lower than what is there, and then it is closed.
    pub fn add(&self, slot: u32, server: &Server, stream: TcpStream) -> bool {
        let mut books = self.look();
        let Admission::Kept { id, close } = books.ledger.admit(slot, &server.id) else { return false };
        close.and_then(|id| books.take(id));
        let next = self.shared.rest(&mut books, id, stream);
        drop(books);
        hand_over(next);
        true
    }

    /// Leases the idle connection of the lowest slot; of equal ones, the one that was not used for longest. Waits for one as long
    /// as this, in turn: who came first is served first. May be cancelled at any time: nothing is lost.
    ///
    /// # Errors
    ///
    /// When none is free in time, or [`MAX_WAITING`] wait already.
    pub async fn lease(&self, wait: Duration) -> Result<Lease, LeaseError> {
        let turn = {
            let mut books = self.look();
            if let Some(lease) = self.shared.lease(&mut books) {
                return Ok(lease);
            }
            if books.waiting.len() >= MAX_WAITING {
                books.waiting.retain(|waiting| !waiting.is_closed());
            }
            if books.waiting.len() >= MAX_WAITING {
                return Err(LeaseError::TooMany { limit: MAX_WAITING });
            }
            let (sender, turn) = oneshot::channel();
            books.waiting.push_back(sender);
            turn
        };
        match timeout(wait, turn).await {
            Ok(Ok(lease)) => Ok(lease),
            _ => Err(LeaseError::Late { waited: wait }),
        }
    }

    /// The same, if there is one idle now.
    pub fn try_lease(&self) -> Option<Lease> {
        let mut books = self.look();
        self.shared.lease(&mut books)
    }

    /// Closes the connections of a server, those that are leased as soon as they come back. Returns how many it were.
    pub fn drop_server(&self, id: &str) -> usize {
        let mut books = self.look();
        let before = books.ledger.len();
        for id in books.ledger.drop_server(id) {
            books.take(id);
        }
        let dropped = before - books.ledger.len();
        if dropped > 0 {
            self.shared.lose(&mut books);
        }
        dropped
    }

    /// How many connections it keeps, idle or leased.
    pub fn len(&self) -> usize {
        self.look().ledger.len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of them are idle.
    pub fn idle(&self) -> usize {
        self.look().ledger.idle()
    }

    /// How many wait for one.
    pub fn waiting(&self) -> usize {
        self.look().waiting.iter().filter(|waiting| !waiting.is_closed()).count()
    }

    /// How many it keeps of each server, by its name.
    pub fn holds(&self) -> BTreeMap<Arc<str>, usize> {
        let mut books = self.look();
        for id in std::mem::take(&mut books.unread) {
            self.shared.look_at(&mut books, id);
        }
        books.ledger.holds()
    }

    /// The most that it keeps.
    pub fn max_slots(&self) -> usize {
        self.shared.books().ledger.limit()
    }

    /// The highest number that it keeps.
    pub(super) fn highest(&self) -> Option<u32> {
        self.look().ledger.highest_slot()
    }

    /// Waits until it has lost a connection for which nothing came in.
    pub(super) async fn lost(&self) {
        loop {
            self.shared.woken.notified().await;
            if std::mem::take(&mut self.look().has_lost) {
                return;
            }
            // Something was heard, and was nothing; waiting for it is no rest.
            tokio::task::yield_now().await;
        }
    }

    /// The books, without the idle connections that are known to be dead.
    fn look(&self) -> MutexGuard<'_, Books> {
        let mut books = self.shared.books();
        for id in self.shared.woken.take() {
            self.shared.look_at(&mut books, id);
        }
        books
    }
}

impl Default for Pool {
    /// A pool of at most [`MAX_SLOTS`].
    fn default() -> Self {
        Self::new(MAX_SLOTS)
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection becomes idle. Returns who is served with it.
    fn rest(self: &Arc<Self>, books: &mut Books, id: Id, stream: TcpStream) -> Option<Next> {
        books.idle.insert(id, stream);
        self.look_at(books, id);
        while let Some(waiting) = books.waiting.pop_front() {
            if waiting.is_closed() {
                continue;
            }
            match self.lease(books) {
                Some(lease) => return Some((waiting, lease)),
                None => books.waiting.push_front(waiting),
            }
            break;
        }
        None
    }

    /// Leases the best idle connection that lives.
    fn lease(self: &Arc<Self>, books: &mut Books) -> Option<Lease> {
        while let Some(id) = books.ledger.lease() {
            let Some(stream) = books.take(id) else { continue };
            if Pulse::of(&stream, None) != Pulse::Over {
                let (slot, server) = books.ledger.describe(id)?;
                return Some(Lease::new(Arc::clone(self), id, slot, server, stream));
            }
            books.ledger.remove(id);
            self.lose(books);
        }
        None
    }

    /// A lease is over: its connection goes back, or is closed.
    pub(super) fn put_back(self: &Arc<Self>, id: Id, stream: TcpStream) {
        let mut books = self.books();
        if books.ledger.put_back(id) {
            let next = self.rest(&mut books, id, stream);
            drop(books);
            hand_over(next);
        }
    }

    /// A lease is over, and its connection with it.
    pub(super) fn discard(&self, id: Id) {
        let mut books = self.books();
        if books.ledger.remove(id) {
            self.lose(&mut books);
        }
    }

    /// Counts an idle connection out if it is over, else sees to it that its end is heard.
    fn look_at(&self, books: &mut Books, id: Id) {
        let Some(stream) = books.idle.get(&id) else { return };
        match Pulse::of(stream, Some(self.woken.ear(id))) {
            Pulse::Quiet => {}
            Pulse::Unread => _ = books.unread.insert(id),
            Pulse::Over => {
                books.take(id);
                books.ledger.remove(id);
                self.lose(books);
            }
        }
    }

    fn lose(&self, books: &mut Books) {
        books.has_lost = true;
        self.woken.notify();
    }
}

impl Books {
    /// Takes an idle connection out.
    fn take(&mut self, id: Id) -> Option<TcpStream> {
        self.unread.remove(&id);
        self.idle.remove(&id)
    }
}

/// Who is next, and what he gets.
type Next = (oneshot::Sender<Lease>, Lease);

/// Not under the lock: a lease whose receiver has just gone is dropped here, and goes back.
fn hand_over(next: Option<Next>) {
    if let Some((waiting, lease)) = next {
        drop(waiting.send(lease));
    }
}
