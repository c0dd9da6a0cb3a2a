//! A server whose calls end when the test says so, and a client whose connections to it are counted.
//!
//! Owns [`Scene`], for tests of how many connections there are. It must never reach below the public API. Look next at `proxy.rs`, which
//! counts.

use std::collections::HashMap;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use picom::balance::EndpointState;
use picom::registry::Fixed;
use picom::{Builder, Context, Methods, Picom, Status};
use serde::ser::{Serialize, SerializeMap, Serializer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::eventually;
use super::nodes::{Pair, SERVICE, pair_with};
use super::proxy::Proxy;

/// Longer than any test holds a call.
const LONG: Duration = Duration::from_secs(3_600);

/// Calls that are held, and what became of them.
pub(crate) type Held = JoinSet<Result<u64, Status>>;

/// A server whose calls of `hold` end when they may, behind a proxy that counts connections.
pub(crate) struct Scene {
    pub(crate) pair: Pair,
    pub(crate) proxy: Proxy,
    pub(crate) client: Picom,
    running: Arc<AtomicUsize>,
    /// The most that ran at once.
    pub(crate) most: Arc<AtomicUsize>,
    /// How often calls of `hold` ran.
    ran: Arc<AtomicUsize>,
    pub(crate) may_end: Arc<Semaphore>,
    /// How many calls of `quick` came on each connection.
    quick: Arc<Mutex<HashMap<Option<SocketAddr>, usize>>>,
}

impl Scene {
    pub(crate) async fn new(server: impl FnOnce(Builder) -> Builder, client: impl FnOnce(Builder) -> Builder) -> Self {
        let [running, most, ran] = [(); 3].map(|()| Arc::<AtomicUsize>::default());
        let may_end = Arc::new(Semaphore::new(0));
        let (now, peak, runs, wait) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&ran), Arc::clone(&may_end));
        let quick = Arc::<Mutex<HashMap<_, _>>>::default();
        let came = Arc::clone(&quick);
        let methods = Methods::new()
            .unary("hold", move |_cx: Context, (): ()| {
                let (now, peak, wait) = (Arc::clone(&now), Arc::clone(&peak), Arc::clone(&wait));
                runs.fetch_add(1, Ordering::SeqCst);
                async move {
                    peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    wait.acquire().await.map_err(|_| Status::internal("gone"))?.forget();
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, Status>(7u64)
                }
            })
            .unary("quick", move |cx: Context, (): ()| {
                *came.lock().unwrap().entry(cx.peer().addr).or_default() += 1;
                async move { Ok::<_, Status>(7u64) }
            });
        let pair = pair_with(methods, server, |client| client).await;
        let proxy = Proxy::start(pair.exposed.local_addr()).await;
        let client = self::client(client, &[proxy.addr.to_string()]);
        Self { pair, proxy, client, running, most, ran, may_end, quick }
    }

    /// So many calls at once, each from a task of its own. They may be made once.
    pub(crate) fn hold(&self, calls: usize) -> Held {
        let call = || self.client.fetch::<u64>(SERVICE, "hold", ()).retries(0).timeout(LONG).into_future();
        (0..calls).map(|_| call()).collect()
    }

    /// The same from this client, for this server alone, with as many retries as are usual.
    pub(crate) fn hold_from(&self, client: &Picom, calls: usize) -> Held {
        let call = || client.fetch::<u64>(SERVICE, "hold", ()).on(self.proxy.addr).timeout(LONG).into_future();
        (0..calls).map(|_| call()).collect()
    }

    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub(crate) fn ran(&self) -> usize {
        self.ran.load(Ordering::SeqCst)
    }

    pub(crate) async fn until_running(&self, calls: usize) {
        eventually(&format!("{calls} calls run"), async || self.running() == calls).await;
    }

    /// Lets all of these end, well. If others run, those that came first must be these.
    pub(crate) async fn finish(&self, calls: Held) {
        self.may_end.add_permits(calls.len());
        for result in calls.join_all().await {
            assert_eq!(result.expect("a call that has or gets a place succeeds"), 7);
        }
    }

    pub(crate) async fn quick(&self) {
        assert_eq!(self.client.fetch::<u64>(SERVICE, "quick", ()).await.unwrap(), 7);
    }

    /// On how many connections calls of `quick` came since one last asked.
    pub(crate) fn used(&self) -> usize {
        std::mem::take(&mut *self.quick.lock().unwrap()).len()
    }

    pub(crate) fn state(&self) -> EndpointState {
        self.client.channel(SERVICE).endpoints().pop().expect("there is one")
    }

    /// Sixteen callers that keep their threads busy, half of the time with the connection, until `enough`.
    pub(crate) async fn crowd(&self, enough: impl AsyncFnOnce()) {
        let mut callers = JoinSet::new();
        for _ in 0..16 {
            let client = self.client.clone();
            callers.spawn(async move {
                loop {
                    std::thread::sleep(Duration::from_micros(20));
                    assert_eq!(client.fetch::<u64>(SERVICE, "quick", Slow).await.expect("every call succeeds"), 7);
                }
            });
        }
        enough().await;
        callers.abort_all();
        while let Some(ended) = callers.join_next().await {
            assert!(ended.is_err_and(|error| error.is_cancelled()), "no call failed");
        }
    }
}

pub(crate) fn client(options: impl FnOnce(Builder) -> Builder, addrs: &[String]) -> Picom {
    options(Picom::builder("caller").registry(Fixed::new([(SERVICE, addrs)]))).build().unwrap()
}

/// No arguments, which take their time to be written. The connection is locked meanwhile, so that threads find it so on any machine.
struct Slow;

impl Serialize for Slow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        std::thread::sleep(Duration::from_micros(20));
        serializer.serialize_map(Some(0))?.end()
    }
}
