//! A network between the hosts of a world: latency, pieces of any size, partitions in one or both directions, death.
//!
//! Owns the lines, each a pair of pipes with a relay between them. What a partition holds back arrives when it heals, as TCP would
//! send it again. It must never look into what it carries. Look next at [`super::relay`] for how, and at [`super::world`], which does the harm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use fastrand::Rng;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::delays::{Delayed, Delays, Number};
use super::journal::Journal;
use super::relay::{Source, Way};
use crate::proto::Side;
use crate::transport::link::Link;
use crate::transport::{Io, WriteHalf, memory, simulated};

/// The largest piece.
const PIECES: [usize; 3] = [61, 1400, 16 << 10];

/// Number of a host: servers first, then clients.
pub(super) type Host = u16;
/// Number of a process; one that comes back on its host has another one.
pub(super) type Pid = u16;

/// How a process ends that was not asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// Killed. What it had written still leaves, and then the end of the connection.
    Killed,
    /// Killed with something unread: its connections are reset, and what was on its way is lost.
    Reset,
    /// Its host lost its power: nobody hears of it.
    Silent,
}

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
    /// Where each process runs, or ran.
    hosts: BTreeMap<Pid, Host>,
    dead: BTreeSet<Pid>,
    /// What goes to and from a host takes so much longer, until then.
    slow: BTreeMap<Host, (Instant, Duration)>,
    /// Until when nothing passes from one to the other.
    blocked: BTreeMap<(Host, Host), Instant>,
    delays: Delays,
    lines: Vec<Line>,
    /// The line whose client makes its machine next.
    dialled: Option<usize>,
    /// Lines that a server has not accepted yet, by its incarnation.
    accepting: BTreeMap<u64, VecDeque<usize>>,
}

/// Who listens at a port.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) pid: Pid,
    pub(super) host: Host,
    pub(super) real: SocketAddr,
    pub(super) incarnation: u64,
    /// Its host has no power: nobody answers, not even with a refusal.
    pub(super) silent: bool,
}

/// A connection. What carries it is gone when it is over.
struct Line {
    /// Who connected to whom.
    ends: [Pid; 2],
    /// Cancelled to reset it.
    cut: CancellationToken,
    /// Nothing arrives any more, and nobody hears of it.
    silent: Arc<AtomicBool>,
    /// What each end writes, and where it reads.
    sources: [Weak<Source>; 2],
    sinks: [Weak<dyn WriteHalf>; 2],
    links: [Weak<Link>; 2],
}

/// Something cannot go on its way, until this is dropped.
pub(super) struct HeldUp {
    net: Arc<Net>,
    number: Number,
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        self.net.lock().delays.ends(&self.number);
    }
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

impl State {
    fn host(&self, pid: Pid) -> Host {
        self.hosts.get(&pid).copied().unwrap_or_default()
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
            hosts: BTreeMap::new(),
            dead: BTreeSet::new(),
            slow: BTreeMap::new(),
            blocked: BTreeMap::new(),
            delays: Delays::default(),
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

    /// A process begins on a host.
    pub(super) fn begins(&self, pid: Pid, host: Host) {
        self.lock().hosts.insert(pid, host);
    }

    /// Nothing passes from one host to another for a while.
    pub(super) fn block(&self, from: Host, to: Host, time: Duration) {
        let state = &mut *self.lock();
        state.blocked.insert((from, to), Instant::now() + time);
        state.delays.begins(Delayed::From(from, to), Some(time));
    }

    /// What goes to and from a host takes longer for a while.
    pub(super) fn slow(&self, host: Host, more: Duration, time: Duration) {
        let state = &mut *self.lock();
        state.slow.insert(host, (Instant::now() + time, more));
        state.delays.begins(Delayed::At(host), Some(time + more));
    }

    /// Every partition is over.
    pub(super) fn heal(&self) {
        let state = &mut *self.lock();
        state.blocked.values_mut().for_each(|until| *until = Instant::now());
        state.slow.clear();
        state.delays.heal();
    }

    /// A process dies. From this moment on nothing of it reaches anybody, and nobody reaches it.
    pub(super) fn dies(&self, pid: Pid, death: Death) {
        let state = &mut *self.lock();
        state.dead.insert(pid);
        for line in &state.lines {
            for (end, _) in line.ends.iter().enumerate().filter(|(_, owner)| **owner == pid) {
                if let Some(source) = line.sources[end].upgrade() {
                    source.shut(death == Death::Killed);
                }
                if let Some(sink) = line.sinks[end].upgrade() {
                    sink.shutdown();
                }
                match death {
                    Death::Killed => {}
                    Death::Reset => line.cut.cancel(),
                    Death::Silent => line.silent.store(true, Ordering::Relaxed),
                }
            }
        }
        let is_silent = death == Death::Silent;
        state.places.retain(|_, place| place.pid != pid || is_silent);
        state.places.values_mut().filter(|place| place.pid == pid).for_each(|place| place.silent = true);
    }

    /// Nobody listens at this port any more.
    pub(super) fn leaves(&self, port: u16) {
        self.lock().places.remove(&port);
    }

    /// A host is back: what was open before is reset.
    pub(super) fn returns(&self, host: Host) {
        let state = &mut *self.lock();
        let is_of_it = |line: &&Line| line.ends.iter().any(|pid| state.hosts.get(pid) == Some(&host));
        let dumb = state.lines.iter().filter(is_of_it).filter(|line| line.silent.load(Ordering::Relaxed));
        dumb.for_each(|line| line.cut.cancel());
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
    pub(super) fn latency(&self, from: Pid, to: Pid) -> Duration {
        let State { rng, latency, slow, hosts, .. } = &mut *self.lock();
        let now = Instant::now();
        let more = |pid| hosts.get(&pid).and_then(|host| slow.get(host)).filter(|(until, _)| now < *until);
        let more = [from, to].into_iter().filter_map(more).map(|(_, more)| *more).max();
        Duration::from_micros(rng.u64(..=*latency * 1000)) + more.unwrap_or_default()
    }

    /// How long something is on its way there and back at most, if nothing holds it up.
    pub(super) fn round_trip(&self) -> Duration {
        Duration::from_millis(2 * self.lock().latency)
    }

    /// What goes from one to the other is held up, because a line is full.
    pub(super) fn holds_up(self: &Arc<Self>, from: Pid, to: Pid) -> HeldUp {
        let state = &mut *self.lock();
        let number = state.delays.begins(Delayed::From(state.host(from), state.host(to)), None);
        HeldUp { net: Arc::clone(self), number }
    }

    /// How much of the time since then nothing held up what goes from one to the other; `None` if one of them is dead.
    pub(super) fn without_delays(&self, (from, to): (Pid, Pid), since: Instant) -> Option<Duration> {
        let state = self.lock();
        let live = !state.dead.contains(&from) && !state.dead.contains(&to);
        live.then(|| state.delays.without((state.host(from), state.host(to)), since))
    }

    /// Waits until bytes pass from one to the other.
    pub(super) async fn unblocked(&self, from: Pid, to: Pid) {
        loop {
            let until = {
                let state = self.lock();
                state.blocked.get(&(state.host(from), state.host(to))).copied()
            };
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
        if !self.lock().dead.contains(&from) {
            self.journal.dials(addr);
        }
        let to = self.lock().places.get(&port).map_or(from, |place| place.pid);
        sleep(self.latency(from, to) + self.latency(to, from)).await;
        self.unblocked(from, to).await;
        self.unblocked(to, from).await;
        let (place, is_dead) = {
            let state = self.lock();
            (state.places.get(&port).cloned(), state.dead.contains(&from))
        };
        // The dead have no network, and whoever has no power does not even refuse.
        if is_dead || place.as_ref().is_some_and(|place| place.silent) {
            std::future::pending::<()>().await;
        }
        let Some(Place { pid: to, real, incarnation, .. }) = place else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let far = memory::connect(real)?;
        let (ours, near) = memory::pair();
        let sources = [Source::new(near.read), Source::new(far.read)];
        let sinks: [Arc<dyn WriteHalf>; 2] = [near.write.into(), far.write.into()];
        let (cut, silent) = (CancellationToken::new(), Arc::default());
        let state = &mut *self.lock();
        state.dialled = Some(state.lines.len());
        state.accepting.entry(incarnation).or_default().push_back(state.lines.len());
        state.lines.push(Line {
            ends: [from, to],
            cut: cut.clone(),
            silent: Arc::clone(&silent),
            sources: [0, 1].map(|end| Arc::downgrade(&sources[end])),
            sinks: [0, 1].map(|end| Arc::downgrade(&sinks[end])),
            links: [Weak::new(), Weak::new()],
        });
        let piece = state.rng.choice(PIECES).unwrap_or(PIECES[0]);
        let [near_source, far_source] = sources;
        let [near_sink, far_sink] = sinks;
        let there =
            Way { from, to, source: near_source, sink: far_sink, cut: cut.clone(), silent: Arc::clone(&silent), piece };
        self.relay(there);
        self.relay(Way { from: to, to: from, source: far_source, sink: near_sink, cut, silent, piece });
        Ok(ours)
    }
}
