//! The server's side: every connection gets a number.
//!
//! Owns [`Listener`]. It must never lose a slot, nor end because of a connection that fails. Look next at [`super::slots`]
//! for the numbers and at [`super::line`] for how they are said.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::accepted::{Accepted, Free, SlotGuard};
use super::{Slots, line, set_options};

/// Most connections of one listener, unless it says otherwise: they fit the 1,024 open files that a process usually may have,
/// so that one more is refused in words.
pub const SERVER_SLOTS: u32 = 1_000;
/// How long a connection may take to get its number and its line. Both take microseconds, unless an application's own
/// numbers come from elsewhere.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections that wait for their number at once; no more are accepted meanwhile.
pub const MAX_GREETINGS: usize = 256;
/// How long one that was refused may take to read why, before it is closed.
const REFUSED_LIMIT: Duration = Duration::from_secs(1);
/// Most of those at once, beyond which they are closed right behind the words.
const MAX_REFUSED: usize = 64;
/// Pause after an accept that failed: the usual cause, too many open files, passes only with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a slot comes from; the error is why there is none, in words for the client.
type Request = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, Result<u32, String>> + Send + Sync>;

/// A TCP listener whose connections begin with the number of their slot.
///
/// The lowest free number is written as one line, `13\r\n`, and all else on the connection is the application's. A client of
/// callosum understands it. When there is no number left, the line is `refused: ` and why, in printable ASCII, of at most
/// [`MAX_LINE`](super::MAX_LINE) bytes with its CR LF, and the connection is closed. No client can take that for a number.
///
/// ```
/// use picom::boxcar::Listener;
/// use tokio::io::{AsyncBufReadExt, BufReader};
/// use tokio::net::TcpStream;
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// let mut listener = Listener::bind("127.0.0.1:0").await?.max_slots(1);
/// let addr = listener.local_addr()?;
/// let serving = tokio::spawn(async move {
///     // Each is held until the listener closes. A real server would spawn a task for each.
///     let mut held = Vec::new();
///     while let Some(connection) = listener.accept().await {
///         held.push(connection);
///     }
/// });
///
/// let mut first = BufReader::new(TcpStream::connect(addr).await?).lines();
/// assert_eq!(first.next_line().await?.as_deref(), Some("0"));
/// let mut second = BufReader::new(TcpStream::connect(addr).await?).lines();
/// assert_eq!(second.next_line().await?.as_deref(), Some("refused: full, with 1 connections"));
/// # serving.abort();
/// # Ok(())
/// # }
/// ```
pub struct Listener {
    /// None once it is closed.
    listener: Option<TcpListener>,
    closing: CancellationToken,
    request: Request,
    free: Free,
    greeting: FuturesUnordered<BoxFuture<'static, Greeted>>,
    refused: FuturesUnordered<BoxFuture<'static, ()>>,
}

/// What became of a connection.
enum Greeted {
    Accepted(Accepted),
    Refused(TcpStream),
    Failed,
}

impl Listener {
    /// Listens at this address. callosum's own default is port [`PORT`](super::PORT).
    ///
    /// # Errors
    ///
    /// What the operating system says, such as that the port is taken.
    pub async fn bind(addr: impl ToSocketAddrs) -> std::io::Result<Self> {
        Ok(Self::new(TcpListener::bind(addr).await?))
    }

    /// Numbers the connections of a listener that is there already.
    pub fn new(listener: TcpListener) -> Self {
        let unnumbered = Self {
            listener: Some(listener),
            closing: CancellationToken::new(),
            request: Arc::new(|_| Box::pin(async { Err(String::new()) })),
            free: Arc::new(|_| {}),
            greeting: FuturesUnordered::new(),
            refused: FuturesUnordered::new(),
        };
        unnumbered.max_slots(SERVER_SLOTS)
    }

    /// How many connections there may be at once; default [`SERVER_SLOTS`]. One more is refused in words.
    pub fn max_slots(self, limit: u32) -> Self {
        let slots = Arc::new(Mutex::new(Slots::new(limit)));
        let back = Arc::clone(&slots);
        self.numbered_by(
            move |_| {
                let slot = slots.lock().unwrap_or_else(PoisonError::into_inner).get();
                std::future::ready(slot.ok_or_else(|| format!("full, with {limit} connections")))
            },
            move |slot| {
                if let Err(error) = back.lock().unwrap_or_else(PoisonError::into_inner).put(slot) {
                    tracing::error!(%error, "a connection gave back what it never had");
                }
            },
        )
    }

    /// Numbers by the application, which may count other things than connections: a server that hands out every second number
    /// gets half the load, one that is busy answers high ones.
    ///
    /// `request` gives a number for the client at this address, or says why there is none; it may take [`GREETING_TIMEOUT`].
    /// `free` gets every number back once, when its connection is over, also when that was before the number was sent.
    pub fn numbered_by<F>(
        mut self,
        request: impl Fn(SocketAddr) -> F + Send + Sync + 'static,
        free: impl Fn(u32) + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<u32, String>> + Send + 'static,
    {
        self.request = Arc::new(move |peer| Box::pin(request(peer)));
        self.free = Arc::new(free);
        self
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// When it is closed, or the operating system does not say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.as_ref().ok_or(std::io::ErrorKind::NotConnected)?.local_addr()
    }

    /// Stops accepting, at once. Connections that were accepted go on.
    pub fn close(&mut self) {
        self.closing.cancel();
        if let Some(listener) = self.listener.take() {
            tracing::info!(addr = ?listener.local_addr().ok(), "a listener for slots has closed");
        }
    }

    /// Closes the listener when it is cancelled, from wherever that is, as [`close`](Self::close) does; it is cancelled once the
    /// listener is closed.
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// The next connection that has its number; none once the listener is closed and all that it had accepted are here.
    ///
    /// What fails with one connection is logged and ends nothing; an accept that fails, as with too many open files, is tried
    /// again after 50 ms. Connections get their numbers only while this is awaited. It may be cancelled at any time: nothing is lost.
    pub async fn accept(&mut self) -> Option<Accepted> {
        loop {
            if self.closing.is_cancelled() {
                self.close();
            }
            let has_room = self.greeting.len() < MAX_GREETINGS;
            tokio::select! {
                Some(greeted) = self.greeting.next() => match greeted {
                    Greeted::Accepted(accepted) => return Some(accepted),
                    Greeted::Refused(stream) if self.refused.len() < MAX_REFUSED => {
                        self.refused.push(Box::pin(let_it_read(stream)));
                    }
                    Greeted::Refused(_) | Greeted::Failed => {}
                },
                Some(()) = self.refused.next() => {}
                accepted = accept(self.listener.as_ref()), if has_room && self.listener.is_some() => match accepted {
                    Ok((stream, peer)) => {
                        let (request, free) = (Arc::clone(&self.request), Arc::clone(&self.free));
                        self.greeting.push(Box::pin(greet(stream, peer, request, free)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = self.closing.cancelled(), if self.listener.is_some() => {}
                else => return None,
            }
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("addr", &self.local_addr().ok()).finish_non_exhaustive()
    }
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn greet(mut stream: TcpStream, peer: SocketAddr, request: Request, free: Free) -> Greeted {
    set_options(&stream);
    let greeting = async {
        let slot = request(peer).await.map(|slot| SlotGuard::new(slot, free));
        let line = slot.as_ref().map_or_else(|words| line::refusal(words), |guard| line::slot(guard.slot()));
        stream.write_all(line.as_bytes()).await.map(|()| slot)
    };
    match timeout(GREETING_TIMEOUT, greeting).await {
        Ok(Ok(Ok(guard))) => return Greeted::Accepted(Accepted::new(stream, guard, peer)),
        Ok(Ok(Err(words))) => {
            tracing::debug!(%peer, words, "refused");
            return Greeted::Refused(stream);
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection failed before it had its slot"),
        Err(_) => tracing::warn!(%peer, "a connection got no slot within {GREETING_TIMEOUT:?}"),
    }
    Greeted::Failed
}

/// Closing at once with bytes unread would reset the connection, and the words might never be read.
async fn let_it_read(mut stream: TcpStream) {
    let mut unread = [0; 1024];
    let read = async {
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    // However it ends, the client has had its chance.
    let _ = timeout(REFUSED_LIMIT, read).await;
}
