//! A TCP proxy that breaks things on demand.
//!
//! Owns the faults of a network: lost connections, silence, slowness, a half that closes. Its delays are random but seeded. It must never look at the bytes.
//! Look next at `peer.rs` for faults of a peer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// What the proxy does with bytes at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes them on.
    Pass,
    /// Keeps them, both ways, like a network that loses everything.
    Hold,
    /// Keeps those that come from the target; the others get there.
    HoldBack,
    /// Passes them on, each piece up to so much later.
    Delay(Duration),
    /// Passes one byte at a time, so many apart.
    Trickle(Duration),
    /// Says to the caller that the target has nothing more to say; the caller's own half stays open.
    HalfClose,
    /// Closes every connection, and every new one.
    Cut,
    /// Resets every connection, and every new one.
    Reset,
}

/// Stands between a client and `target`.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    mode: watch::Sender<Mode>,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    open: AtomicUsize,
    to_target: AtomicU64,
    from_target: AtomicU64,
}

/// A connection, for as long as it is there.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), target).await
    }

    /// Listens at this address, which is one of the loopback interface.
    pub(crate) async fn start_at(addr: SocketAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode::Pass);
        let counts = Arc::new(Counts::default());
        let (for_task, counted) = (mode.clone(), Arc::clone(&counts));
        let mut seeds = fastrand::Rng::with_seed(seed());
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                counted.connections.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(target).await else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let ((client_read, client_write), (server_read, server_write)) =
                    (client.into_split(), server.into_split());
                let (there, back) = (seeds.fork(), seeds.fork());
                let open = Arc::new(Open::new(&counted));
                tokio::spawn(pump(client_read, server_write, for_task.subscribe(), Arc::clone(&open), true, there));
                tokio::spawn(pump(server_read, client_write, for_task.subscribe(), open, false, back));
            }
        });
        Self { addr, mode, counts, task }
    }

    /// What is done with bytes from now on.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes the connections of this moment; new ones work.
    pub(crate) async fn cut_once(&self) {
        self.set(Mode::Cut);
        // Every pump sees the mode before it changes again.
        while self.mode.receiver_count() > 0 {
            tokio::task::yield_now().await;
        }
        self.set(Mode::Pass);
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// How many connections there are.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// How many bytes went to the target and back.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.counts.to_target.load(Ordering::SeqCst), self.counts.from_target.load(Ordering::SeqCst))
    }
}

/// What the random delays begin with: `PICOM_TEST_SEED`, or another number each time; printed, so that it can be used again.
fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        let given = std::env::var("PICOM_TEST_SEED").ok();
        let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("PICOM_TEST_SEED is a number"));
        println!("the proxy's seed is PICOM_TEST_SEED={seed}");
        seed
    });
    *SEED
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Mode::Cut);
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    open: Arc<Open>,
    to_target: bool,
    mut random: fastrand::Rng,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let now = *mode.borrow_and_update();
        let size = match now {
            Mode::Cut => return,
            Mode::Reset => {
                // Both pumps do so; the second of them closes the sockets, which resets them.
                let _ = SockRef::from(to.as_ref()).set_linger(Some(Duration::ZERO));
                return to.forget();
            }
            Mode::HalfClose if !to_target => {
                let _ = to.shutdown().await;
                return;
            }
            Mode::HoldBack | Mode::Hold if now == Mode::Hold || !to_target => {
                if mode.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Mode::Pass | Mode::Hold | Mode::HoldBack | Mode::HalfClose | Mode::Delay(_) => buffer.len(),
            Mode::Trickle(gap) => {
                sleep(gap).await;
                1
            }
        };
        let read = tokio::select! {
            read = from.read(&mut buffer[..size]) => read,
            changed = mode.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let n = match read {
            Ok(n) if n > 0 => n,
            // The end of one half is passed on alone.
            _ => {
                let _ = to.shutdown().await;
                return;
            }
        };
        let count = if to_target { &open.0.to_target } else { &open.0.from_target };
        count.fetch_add(n as u64, Ordering::SeqCst);
        if let Mode::Delay(longest) = now {
            sleep(longest.mul_f64(random.f64())).await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
