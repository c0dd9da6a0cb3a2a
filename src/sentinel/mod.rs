//! Looking after something that is no node: a database, a queue, somebody else's server.
//!
//! Owns [`Sentinel`], what looking means, and when to believe what was seen. It must never know who is told. Look next at
//! `node/standing.rs`, which mirrors it, and at `http.rs` for one kind of look.

#[cfg(feature = "http")]
mod http;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// How often a dependency is looked at: two looks that fail are noticed within 4 s, and one look in 2 s is no burden.
const INTERVAL: Duration = Duration::from_secs(2);

/// Nothing is looked at more often: a mistake in the unit must not become a flood.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How long a look may take. What needs longer to accept a connection is not well.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Looks that must fail in a row: a single one may be bad luck.
const FAILURES: u32 = 2;

/// Looks that must succeed in a row.
const SUCCESSES: u32 = 1;

/// How long the name of a dependency may take to be looked up the first time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks after a dependency that is no node, for [`Picom::stand_for`](crate::Picom::stand_for).
///
/// The name of its host is looked up again for every look, within the look's [time](Self::timeout). Of several addresses the first
/// one is used, for as long as the name leads there; a name that cannot be looked up is a look that failed.
///
/// ```
/// # use std::time::Duration;
/// use picom::Sentinel;
/// let mongo = Sentinel::tcp("127.0.0.1:27017").interval(Duration::from_secs(1));
/// let redis = Sentinel::new("127.0.0.1:6379", async || Err("it does not answer PING".to_owned()));
/// ```
#[must_use = "a sentinel looks only when a node stands for it"]
pub struct Sentinel {
    /// `host:port`.
    address: Result<String, String>,
    way: Way,
    resolve: Resolve,
    interval: Duration,
    timeout: Duration,
    failures: u32,
    successes: u32,
}

/// How to look.
enum Way {
    Tcp,
    #[cfg(feature = "http")]
    Http(String),
    Custom(Check),
}

/// One look at the dependency there; the error says why it is not well.
type Check = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Where `host:port` is now.
type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

impl Sentinel {
    /// Healthy is what accepts a connection at `host:port`. The connection is closed at once.
    pub fn tcp(address: impl Into<String>) -> Self {
        Self::with(Ok(address.into()), Way::Tcp)
    }

    /// Healthy is what answers a GET of this URL with a status from 200 to 299. Redirects are not followed, the body is not
    /// read, and no proxy is used. The dependency's address is the URL's host and port. With the feature `http`.
    #[cfg(feature = "http")]
    pub fn http(url: impl Into<String>) -> Self {
        let url = url.into();
        Self::with(http::address(&url), Way::Http(url))
    }

    /// Healthy is what `check` says of the dependency at `host:port`; its error is the reason for which the node stops. A check
    /// that panics, or does not return in time, has failed.
    pub fn new<F>(address: impl Into<String>, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self::with(Ok(address.into()), Way::Custom(Arc::new(move |_| Box::pin(check()))))
    }

    fn with(address: Result<String, String>, way: Way) -> Self {
        let resolve: Resolve = Arc::new(|address| Box::pin(async { Ok(lookup_host(address).await?.collect()) }));
        Self { address, way, resolve, interval: INTERVAL, timeout: TIMEOUT, failures: FAILURES, successes: SUCCESSES }
    }

    /// Asks somebody else than the system where a name leads.
    #[cfg(test)]
    pub(crate) fn resolved_by(
        self,
        resolve: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        Self { resolve: Arc::new(resolve), ..self }
    }

    /// The time from one look to the next; default 2 s, at least 10 ms.
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval: interval.max(MIN_INTERVAL), ..self }
    }

    /// How long one look may take; default 1 s.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How many looks in a row must fail before the node stops; default 2, at least 1.
    pub fn failures(self, failures: u32) -> Self {
        Self { failures: failures.max(1), ..self }
    }

    /// How many looks in a row must succeed before the node starts; default 1, at least 1.
    pub fn successes(self, successes: u32) -> Self {
        Self { successes: successes.max(1), ..self }
    }

    /// Finds out where the dependency is now. It is to be looked at at once.
    pub(crate) async fn prepare(self) -> Result<Look, Problem> {
        let address = self.address.map_err(Problem::Settings)?;
        let addr = first(&address, &self.resolve).await?;
        let check: Check = match self.way {
            Way::Custom(check) => check,
            Way::Tcp => Arc::new(|addr| {
                Box::pin(
                    async move { TcpStream::connect(addr).await.map(drop).map_err(|error| error.kind().to_string()) },
                )
            }),
            #[cfg(feature = "http")]
            Way::Http(url) => http::check(&url).map_err(Problem::Settings)?,
        };
        let judge = Judge { failures: self.failures, successes: self.successes, well: None, last: None, run: 0 };
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Look { address, addr, resolve: self.resolve, check, ticks, timeout: self.timeout, judge, next: None })
    }
}

impl fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinel").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Why a dependency cannot be looked after.
#[derive(Debug)]
pub(crate) enum Problem {
    /// What was asked for cannot work.
    Settings(String),
    /// The name could not be looked up now.
    Lookup(String),
}

async fn first(address: &str, resolve: &Resolve) -> Result<SocketAddr, Problem> {
    let shown: String = address.chars().take(128).flat_map(char::escape_default).collect();
    let wrong = |why: &str| Problem::Settings(format!("sentinel: \"{shown}\" {why}"));
    let port = address.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
    if port.is_none() {
        return Err(wrong("is not an address such as 127.0.0.1:27017"));
    }
    let found = match timeout(LOOKUP_TIMEOUT, resolve(address.to_owned())).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(Problem::Lookup(format!("sentinel: \"{shown}\": {error}"))),
        Err(_) => {
            return Err(Problem::Lookup(format!("sentinel: \"{shown}\" was not found within {LOOKUP_TIMEOUT:?}")));
        }
    };
    match found.iter().find(|addr| is_callable(addr)) {
        Some(addr) => Ok(*addr),
        None if found.is_empty() => Err(Problem::Lookup(format!("sentinel: \"{shown}\" has no address"))),
        None => Err(wrong("is not an address to connect to")),
    }
}

fn is_callable(addr: &SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified()
}

/// What a look has changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The dependency is somewhere else.
    Address(SocketAddr),
    /// Whether it is well, or why not.
    Health(Result<(), String>),
}

/// A dependency that is looked at.
pub(crate) struct Look {
    /// `host:port`.
    address: String,
    /// Where that led last.
    addr: SocketAddr,
    resolve: Resolve,
    check: Check,
    ticks: Interval,
    timeout: Duration,
    judge: Judge,
    /// What is to be told after what was told last.
    next: Option<Change>,
}

impl Look {
    /// Where the dependency is.
    pub(crate) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Looks for the first time, at where the dependency is by now, and says what is believed if one look is enough for that.
    pub(crate) async fn first(&mut self) -> Option<Result<(), String>> {
        self.ticks.tick().await;
        let seen = self.once().await;
        self.judge.believes(seen.is_ok()).then_some(seen)
    }

    /// Looks until something has changed. An address is told before what was seen there.
    pub(crate) async fn changed(&mut self) -> Change {
        loop {
            if let Some(change) = self.next.take() {
                return change;
            }
            self.ticks.tick().await;
            let before = self.addr;
            let seen = self.once().await;
            if self.judge.believes(seen.is_ok()) {
                self.next = Some(Change::Health(seen));
            }
            if self.addr != before {
                return Change::Address(self.addr);
            }
        }
    }

    async fn once(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + self.timeout;
        let late = format!("within {:?}", self.timeout);
        let found = match timeout_at(deadline, (self.resolve)(self.address.clone())).await {
            Ok(found) => found.map_err(|error| format!("its name cannot be looked up: {error}"))?,
            Err(_) => return Err(format!("its name was not found {late}")),
        };
        // Names of several addresses list them in another order each time, which is no reason to go elsewhere.
        if !found.contains(&self.addr) {
            self.addr = found.into_iter().find(is_callable).ok_or("its name has no address")?;
        }
        // In a task of its own, so that a look that panics or blocks harms only itself.
        let (check, addr) = (Arc::clone(&self.check), self.addr);
        let looking = AbortOnDropHandle::new(tokio::spawn(async move { check(addr).await }));
        match timeout_at(deadline, looking).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => Err("the check panicked".to_owned()),
            Err(_) => Err(format!("no answer {late}")),
        }
    }
}

/// Believes what was seen often enough in a row.
struct Judge {
    failures: u32,
    successes: u32,
    /// What is believed.
    well: Option<bool>,
    /// What was seen last, and how often in a row.
    last: Option<bool>,
    run: u32,
}

impl Judge {
    /// Whether this makes for another belief.
    fn believes(&mut self, well: bool) -> bool {
        self.run = if self.last == Some(well) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(well);
        let enough = if well { self.successes } else { self.failures };
        let changes = self.well != Some(well) && self.run >= enough;
        if changes {
            self.well = Some(well);
        }
        changes
    }
}

#[cfg(test)]
mod tests;
