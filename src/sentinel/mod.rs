//! Looking after something that is no node: a database, a queue, somebody else's server.
//!
//! Owns [`Sentinel`], what looking means, and when to believe what was seen. It must never know who is told. Look next at
//! `node/standing.rs`, which mirrors it, and at `http.rs` for one kind of look.

#[cfg(feature = "http")]
mod http;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
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

/// How long the name of a dependency may take to be looked up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks after a dependency that is no node, for [`Picom::stand_for`](crate::Picom::stand_for).
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

/// One look; the error says why the dependency is not well.
type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

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
        Self::with(Ok(address.into()), Way::Custom(Arc::new(move || Box::pin(check()))))
    }

    fn with(address: Result<String, String>, way: Way) -> Self {
        Self { address, way, interval: INTERVAL, timeout: TIMEOUT, failures: FAILURES, successes: SUCCESSES }
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

    /// Finds out where the dependency is, once and for all.
    pub(crate) async fn prepare(self) -> Result<Look, Problem> {
        let address = self.address.map_err(Problem::Settings)?;
        let addr = resolve(&address).await?;
        let check: Check = match self.way {
            Way::Custom(check) => check,
            Way::Tcp => Arc::new(move || {
                Box::pin(
                    async move { TcpStream::connect(addr).await.map(drop).map_err(|error| error.kind().to_string()) },
                )
            }),
            #[cfg(feature = "http")]
            Way::Http(url) => http::check(&url, addr).map_err(Problem::Settings)?,
        };
        let judge = Judge { failures: self.failures, successes: self.successes, well: None, last: None, run: 0 };
        Ok(Look { addr, check, interval: self.interval, timeout: self.timeout, judge })
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

async fn resolve(address: &str) -> Result<SocketAddr, Problem> {
    let shown: String = address.chars().take(128).flat_map(char::escape_default).collect();
    let wrong = |why: &str| Problem::Settings(format!("sentinel: \"{shown}\" {why}"));
    let port = address.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
    if port.is_none() {
        return Err(wrong("is not an address such as 127.0.0.1:27017"));
    }
    let found = match timeout(LOOKUP_TIMEOUT, lookup_host(address)).await {
        Ok(Ok(mut found)) => found.next(),
        Ok(Err(error)) => return Err(Problem::Lookup(format!("sentinel: \"{shown}\": {error}"))),
        Err(_) => {
            return Err(Problem::Lookup(format!("sentinel: \"{shown}\" was not found within {LOOKUP_TIMEOUT:?}")));
        }
    };
    match found {
        Some(addr) if addr.port() != 0 && !addr.ip().is_unspecified() => Ok(addr),
        Some(_) => Err(wrong("is not an address to connect to")),
        None => Err(Problem::Lookup(format!("sentinel: \"{shown}\" has no address"))),
    }
}

/// A dependency that is looked at.
pub(crate) struct Look {
    addr: SocketAddr,
    check: Check,
    interval: Duration,
    timeout: Duration,
    judge: Judge,
}

impl Look {
    /// Where the dependency is.
    pub(crate) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Looks for ever, and tells each change: whether it is well, or why not.
    pub(crate) async fn watch(mut self, tell: impl Fn(Result<(), String>) + Send) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let seen = self.once().await;
            if self.judge.believes(seen.is_ok()) {
                tell(seen);
            }
        }
    }

    /// In a task of its own, so that a look that panics or blocks harms only itself.
    async fn once(&self) -> Result<(), String> {
        let check = Arc::clone(&self.check);
        let looking = AbortOnDropHandle::new(tokio::spawn(async move { check().await }));
        match timeout(self.timeout, looking).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => Err("the check panicked".to_owned()),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
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
mod tests {
    use super::*;

    #[test]
    fn only_enough_looks_in_a_row_change_a_belief() {
        let beliefs = |failures, successes, seen: &str| -> String {
            let mut judge = Judge { failures, successes, well: None, last: None, run: 0 };
            seen.chars().map(|c| if judge.believes(c == '+') { c } else { '.' }).collect()
        };
        assert_eq!(beliefs(2, 1, "+--+-+--"), "+.-+...-");
        assert_eq!(beliefs(2, 1, "-+---"), ".+.-.");
        assert_eq!(beliefs(2, 1, "----"), ".-..");
        assert_eq!(beliefs(1, 3, "-++-+++"), "-.....+");
    }
}
