//! A network between the hosts of a world: latency, pieces of any size, partitions in one or both directions, death.
//!
//! Owns the lines, each a pair of pipes with a relay between them. What a partition holds back arrives when it heals, as TCP would
//! send it again. It must never look into what it carries. Look next at [`super::relay`] for how, and at [`super::world`], which does the harm.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use fastrand::Rng;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use crate::proto::Side;
use crate::transport::link::Link;
use crate::transport::{Io, memory, simulated};

/// The largest piece.
const PIECES: [usize; 3] = [61, 1400, 16 << 10];

/// Number of a host: servers first, then clients.
pub(super) type Host = u16;

/// The network, as everybody in the world shares it.
pub(super) struct Net {
    journal: Arc<Journal>,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    /// Most milliseconds of one way.
    latency: u64,
    places: BTreeMap<u16, Place>,
    /// Until when nothing passes from one to the other.
    blocked: BTreeMap<(Host, Host), Instant>,
    lines: Vec<Line>,
    /// The line whose client makes its machine next.
    dialled: Option<usize>,
    /// Lines that a server has not accepted yet, by its incarnation.
    accepting: BTreeMap<u64, VecDeque<usize>>,
}

/// Who listens at a port.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) host: Host,
    pub(super) real: SocketAddr,
    pub(super) incarnation: u64,
    /// Its host has no power: nobody answers, not even with a refusal.
    pub(super) silent: bool,
}

/// A connection.
pub(super) struct Line {
    /// Who connected to whom.
    ends: (Host, Host),
    /// Cancelled to reset it.
    pub(super) cut: CancellationToken,
    /// Nothing arrives any more, and nobody hears of it.
    pub(super) silent: Arc<AtomicBool>,
    links: [Weak<Link>; 2],
}

/// What is installed for a thread.
pub(super) struct Installed(pub(super) Arc<Net>);

impl simulated::Network for Installed {
    fn connect(&self, addr: SocketAddr) -> BoxFuture<'static, io::Result<Io>> {
        Box::pin(Arc::clone(&self.0).connect(addr))
    }

    fn made(&self, side: Side, incarnation: u64, link: Weak<Link>) {
        let state = &mut *self.0.lock();
        let line = match side {
            Side::Client => state.dialled.take(),
            Side::Server => state.accepting.get_mut(&incarnation).and_then(VecDeque::pop_front),
        };
        if let Some(line) = line.and_then(|line| state.lines.get_mut(line)) {
            line.links[usize::from(side == Side::Server)] = link;
        }
    }
}

impl Net {
    pub(super) fn new(seed: u64, journal: Arc<Journal>) -> Arc<Self> {
        let mut rng = Rng::with_seed(seed);
        let latency = [0, 1, 10, 60][rng.usize(..4)];
        let state = State {
            rng,
            latency,
            places: BTreeMap::new(),
            blocked: BTreeMap::new(),
            lines: Vec::new(),
            dialled: None,
            accepting: BTreeMap::new(),
        };
        Arc::new(Self { journal, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Somebody listens at a port of the network.
    pub(super) fn place(&self, port: u16, place: Place) {
        self.lock().places.insert(port, place);
    }

    /// Nothing passes from one host to another for a while.
    pub(super) fn block(&self, from: Host, to: Host, time: Duration) {
        self.lock().blocked.insert((from, to), Instant::now() + time);
    }

    /// Every partition is over.
    pub(super) fn heal(&self) {
        self.lock().blocked.values_mut().for_each(|until| *until = Instant::now());
    }

    /// A host dies, or loses its power: then nobody hears of it.
    pub(super) fn dies(&self, host: Host, silently: bool) {
        let state = &mut *self.lock();
        for line in state.lines.iter().filter(|line| line.ends.0 == host || line.ends.1 == host) {
            if silently {
                line.silent.store(true, Ordering::Relaxed);
            } else {
                line.cut.cancel();
            }
        }
        state.places.retain(|_, place| place.host != host || silently);
        state.places.values_mut().filter(|place| place.host == host).for_each(|place| place.silent = true);
    }

    /// Nobody listens at this port any more.
    pub(super) fn leaves(&self, port: u16) {
        self.lock().places.remove(&port);
    }

    /// A host is back: what was open before is reset.
    pub(super) fn returns(&self, host: Host) {
        let state = &mut *self.lock();
        let of_it = |line: &&Line| line.ends.1 == host && line.silent.load(Ordering::Relaxed);
        state.lines.iter().filter(of_it).for_each(|line| line.cut.cancel());
        // Others of the host are on their way out, and still answer.
        state.places.retain(|_, place| !(place.host == host && place.silent));
    }

    /// Resets one of the lines that were opened last.
    pub(super) fn reset_one(&self, which: usize) {
        let state = self.lock();
        if let Some(line) = state.lines.iter().rev().nth(which) {
            line.cut.cancel();
        }
    }

    /// Nothing of the network is left.
    pub(super) fn end(&self) {
        self.lock().lines.iter().for_each(|line| line.cut.cancel());
    }

    /// What of the connections between those who live is not in order while nobody calls.
    pub(super) fn disorder(&self) -> Vec<String> {
        let state = self.lock();
        let mut wrong = Vec::new();
        for (number, line) in state.lines.iter().enumerate() {
            let [client, server] = [0, 1].map(|end| line.links[end].upgrade());
            let of = |link: &Option<Arc<Link>>| link.as_ref().and_then(|link| link.accounts());
            let (client, server) = (of(&client), of(&server));
            for (name, accounts) in [("client", client), ("server", server)] {
                match accounts {
                    Some((0, true, ..)) | None => {}
                    Some((open, whole, ..)) => {
                        wrong.push(format!("line {number}, {name}: {open} calls are open, credit whole: {whole}"));
                    }
                }
            }
            let (Some(client), Some(server)) = (client, server) else { continue };
            if client.2 != server.3 || server.2 != client.3 {
                wrong.push(format!("line {number}: what one has left the other may not send: {client:?} {server:?}"));
            }
        }
        wrong
    }

    /// How many connections still exist in memory.
    pub(super) fn left(&self) -> usize {
        self.lock().lines.iter().flat_map(|line| &line.links).filter(|link| link.strong_count() > 0).count()
    }

    /// How long the next piece is on its way.
    pub(super) fn latency(&self) -> Duration {
        let State { rng, latency, .. } = &mut *self.lock();
        Duration::from_micros(rng.u64(..=*latency * 1000))
    }

    /// Waits until bytes pass from one to the other.
    pub(super) async fn unblocked(&self, from: Host, to: Host) {
        loop {
            let until = self.lock().blocked.get(&(from, to)).copied();
            match until {
                // Healed in between: it is looked at again at least every second.
                Some(until) if until > Instant::now() => {
                    sleep_until(until.min(Instant::now() + Duration::from_secs(1))).await
                }
                _ => return,
            }
        }
    }

    async fn connect(self: Arc<Self>, addr: SocketAddr) -> io::Result<Io> {
        let Some((from, port)) = simulated::parts(addr) else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        self.journal.dials(addr);
        sleep(self.latency() + self.latency()).await;
        let host = self.lock().places.get(&port).map(|place| place.host);
        let Some(host) = host else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        self.unblocked(from, host).await;
        self.unblocked(host, from).await;
        let place = self.lock().places.get(&port).cloned();
        let Some(place) = place else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        if place.silent {
            std::future::pending::<()>().await;
        }
        let far = memory::connect(place.real)?;
        let (ours, near) = memory::pair();
        let line = Line {
            ends: (from, host),
            cut: CancellationToken::new(),
            silent: Arc::default(),
            links: [Weak::new(), Weak::new()],
        };
        let piece = self.lock().rng.choice(PIECES).unwrap_or(PIECES[0]);
        self.relay((from, host), near.read, far.write, &line, piece);
        self.relay((host, from), far.read, near.write, &line, piece);
        let state = &mut *self.lock();
        state.dialled = Some(state.lines.len());
        state.accepting.entry(place.incarnation).or_default().push_back(state.lines.len());
        state.lines.push(line);
        Ok(ours)
    }
}
