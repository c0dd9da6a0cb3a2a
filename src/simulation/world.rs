//! One world: servers, clients, a network, a Consul, and what befalls them. All of it follows from the seed.
//!
//! Owns the order of events. Look next at [`super::nature`] for what differs between worlds, at [`super::net`] and
//! [`super::work`], and at [`super::peace`] for what is looked at in the end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::consul::{Consul, View};
use super::faults::{Fault, Faults};
use super::flaws::Flaw;
use super::journal::{Journal, Life};
use super::located::Located;
use super::nature::{Caller, Nature};
use super::net::{Death, Host, Installed, Net, Pid, Place};
use super::runs::Judge;
use super::service::{self, SERVICES, methods};
use super::turns::Turns;
use super::work::{Client, Plan};
use crate::registry::Endpoints;
use crate::transport::simulated;
use crate::{Picom, Status};

/// The first client; servers come before it. Each client is the only process of its host, with the same number.
const CLIENTS: Host = 100;
/// Numbers of processes that serve begin after this one.
pub(super) const PROCESSES: Pid = 1000;
/// The first port of the network.
const PORTS: u16 = 4000;
/// By then, in virtual time, every call has ended.
const DOOMSDAY: Duration = Duration::from_secs(250);

/// What is left of a world.
pub(super) struct Outcome {
    pub(super) log: Vec<String>,
    pub(super) violations: Vec<String>,
    pub(super) counts: [usize; 7],
}

/// Runs the world of this seed.
pub(super) fn run(seed: u64) -> Outcome {
    run_flawed(seed, None)
}

/// The same with something wrong in it.
pub(super) fn run_flawed(seed: u64, flaw: Option<Flaw>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    fastrand::seed(seed);
    let outcome = runtime.block_on(async {
        let mut world = World::new(seed, flaw);
        world.live().await;
        let journal = Arc::clone(&world.journal);
        world.end().await;
        let counts = journal.counts();
        let mut book = journal.book();
        Outcome { log: std::mem::take(&mut book.log), violations: std::mem::take(&mut book.violations), counts }
    });
    simulated::install(None);
    outcome
}

pub(super) struct World {
    rng: Rng,
    pub(super) flaw: Option<Flaw>,
    pub(super) nature: Nature,
    pub(super) journal: Arc<Journal>,
    pub(super) net: Arc<Net>,
    pub(super) consul: Consul,
    pub(super) servers: BTreeMap<Host, Server>,
    pub(super) clients: BTreeMap<Host, (Client, View)>,
    /// The calls of each client.
    crews: BTreeMap<Host, JoinSet<()>>,
    turns: Turns,
    pub(super) handing_out: AbortHandle,
    /// Servers that are leaving.
    pub(super) ending: Vec<Ending>,
    /// What was killed, and goes on all the same.
    haunting: Vec<Picom>,
    next_port: u16,
    next_pid: Pid,
}

/// The process of a host.
pub(super) struct Server {
    service: usize,
    life: Arc<Life>,
    pub(super) node: Option<Picom>,
    pub(super) view: View,
}

pub(super) struct Ending {
    host: Host,
    life: Arc<Life>,
    view: View,
    pub(super) task: JoinHandle<Result<(), Status>>,
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let journal = Arc::new(Journal::new());
        let net = Net::new(rng.u64(..), Arc::clone(&journal));
        simulated::install(Some(Box::new(Installed(Arc::clone(&net)))));
        let consul = Consul::new(Duration::from_secs(3));
        let (nature, turns) = (Nature::random(&mut rng), Turns::default());
        journal.note(format_args!("{nature:?}"));
        Self {
            rng,
            flaw,
            nature,
            journal,
            net,
            consul,
            servers: BTreeMap::new(),
            clients: BTreeMap::new(),
            crews: BTreeMap::new(),
            handing_out: tokio::spawn(turns.clone().hand_out()).abort_handle(),
            turns,
            ending: Vec::new(),
            haunting: Vec::new(),
            next_port: PORTS,
            next_pid: PROCESSES,
        }
    }

    /// From the first server to the last call.
    async fn live(&mut self) {
        let services = self.nature.servers.clone().into_iter().enumerate();
        let hosts = services.flat_map(|(service, servers)| (0..servers).map(move |_| service));
        for (host, service) in (0..).zip(hosts) {
            self.start(host, service, None).await;
        }
        for client in CLIENTS..CLIENTS + self.nature.clients {
            self.join(client);
        }
        let start = Instant::now();
        let hosts = (self.servers.keys().copied().collect(), self.clients.keys().copied().collect());
        let faults = Faults::random(&mut self.rng, hosts);
        for (at, fault) in faults {
            sleep_until(start + at).await;
            self.journal.note(format_args!("{fault:?}"));
            self.befall(fault).await;
        }
        let all_end = async {
            for mut crew in std::mem::take(&mut self.crews).into_values() {
                while let Some(ended) = crew.join_next().await {
                    if let Err(panic) = ended {
                        self.journal.violation(format_args!("a caller panics: {panic}"));
                    }
                }
            }
        };
        if timeout(DOOMSDAY, all_end).await.is_err() {
            self.journal.violation("calls never end");
        }
        self.clients.keys().for_each(|client| self.count_second_attempts(*client));
    }

    /// Says how many second attempts a client has made.
    fn count_second_attempts(&self, client: Host) {
        if let Some((client, _)) = self.clients.get(&client) {
            let made = client.node.channel(SERVICES[0]).second_attempts();
            self.journal.made_second_attempts(client.pid, made);
        }
    }

    /// Consul as a process sees it.
    fn view(&self, pid: Pid) -> View {
        let (journal, deaf) = (Arc::clone(&self.journal), self.flaw == Some(Flaw::Deaf));
        let known = std::sync::Mutex::new(BTreeMap::new());
        self.consul.view(Duration::from_secs(6), move |service: &str, list: &mut Endpoints| {
            for endpoint in &mut list.endpoints {
                let addr = simulated::addr(pid, endpoint.addr.port());
                Arc::make_mut(endpoint).addr = addr;
            }
            journal.listed(pid, service, list);
            if deaf {
                let mut known = known.lock().unwrap();
                let known: &mut BTreeMap<_, _> = known.entry(service.to_owned()).or_default();
                known.extend(list.endpoints.iter().map(|endpoint| (endpoint.addr, Arc::clone(endpoint))));
                list.endpoints = known.values().cloned().collect();
            }
        })
    }

    /// A client comes, and begins to call.
    fn join(&mut self, pid: Pid) {
        self.net.begins(pid, pid);
        let (view, caller) = (self.view(pid), Caller::random(&mut self.rng));
        self.journal.note(format_args!("client {pid}: {caller:?}"));
        let node = caller.apply(Picom::builder("caller").registry(view.clone())).build().unwrap();
        let client = Client { node, journal: Arc::clone(&self.journal), pid, caller, flaw: self.flaw };
        let (pressure, depth) = (self.nature.pressure, self.nature.servers.len() - 1);
        let ids = (1..=pressure.calls(&mut self.rng)).map(|number| u64::from(pid) * 1000 + number);
        let plans: Vec<_> = ids.map(|id| Plan::random(&mut self.rng, id, pressure, depth)).collect();
        let mut crew = JoinSet::new();
        for plan in plans {
            let (client, turns) = (client.clone(), self.turns.clone());
            crew.spawn(async move { turns.run(plan.run(client)).await });
        }
        self.crews.insert(pid, crew);
        self.clients.insert(pid, (client, view));
    }

    /// A server comes, at the port where it was or at another one.
    async fn start(&mut self, host: Host, service: usize, port: Option<u16>) {
        let port = port.unwrap_or_else(|| {
            self.next_port += 1;
            self.next_port
        });
        self.next_pid += 1;
        let (pid, kind) = (self.next_pid, self.nature.server(&mut self.rng));
        self.journal.note(format_args!("{pid} begins at host {host} as {}: {kind:?}", SERVICES[service]));
        self.net.begins(pid, host);
        let (view, life) = (self.view(pid), Life::new(pid, port));
        let registry = Located::new(view.clone(), port, {
            let (net, journal) = (Arc::clone(&self.net), Arc::clone(&self.journal));
            move |real: SocketAddr, incarnation: u64| {
                journal.note(format_args!("{pid} is at {port}"));
                net.returns(host);
                net.place(port, Place { pid, host, real, incarnation, silent: false });
            }
        });
        let builder = Picom::builder(SERVICES[service]).registry(registry).in_memory().port(real_port());
        let node = kind.apply(builder).build().unwrap();
        let next = (service + 1 < self.nature.servers.len()).then(|| node.channel(SERVICES[service + 1]));
        let judge = Judge { journal: Arc::clone(&self.journal), net: Arc::clone(&self.net), flaw: self.flaw };
        let place = service::Host { judge, life: Arc::clone(&life), turns: self.turns.clone(), next };
        node.expose(methods(place, kind.at_once)).await.unwrap();
        self.servers.insert(host, Server { service, life, node: Some(node), view });
    }

    async fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::Block { from, to, time } => self.net.block(from, to, time),
            Fault::Slow { host, more, time } => self.net.slow(host, more, time),
            Fault::Crash { host, death } => self.crash(host, death),
            Fault::Vanish { client, death } => {
                let Some(mut crew) = self.crews.remove(&client) else { return };
                self.count_second_attempts(client);
                self.net.dies(client, death);
                crew.abort_all();
                self.clients.remove(&client);
            }
            Fault::Restart { host, same_port } => {
                let Some(server) = self.servers.get(&host).filter(|server| server.node.is_none()) else { return };
                let (service, port) = (server.service, server.life.port);
                let is_taken = self.ending.iter().any(|old| old.life.port == port && !old.task.is_finished());
                self.start(host, service, (same_port && !is_taken).then_some(port)).await;
            }
            Fault::End { host } => {
                let Some(server) = self.servers.get_mut(&host) else { return };
                let Some(node) = server.node.take() else { return };
                let (journal, net, port) = (Arc::clone(&self.journal), Arc::clone(&self.net), server.life.port);
                let task = tokio::spawn(async move {
                    let ended = node.end().await;
                    net.leaves(port);
                    journal.note(format_args!("host {host} has ended: {ended:?}"));
                    ended
                });
                let (life, view) = (Arc::clone(&server.life), server.view.clone());
                self.ending.push(Ending { host, life, view, task });
            }
            Fault::Stop { host, running } => {
                if let Some(node) = self.servers.get(&host).and_then(|server| server.node.as_ref()) {
                    // It may be in that state already.
                    let _ = if running { node.start() } else { node.stop("as the script says") };
                }
            }
            Fault::Consul { down } => self.consul.set_down(down),
            Fault::Amnesia => self.consul.restart(),
            Fault::Cut { host, cut } => self.each_view(host, |view| view.set_cut(cut)),
            Fault::Deaf { host, deaf } => self.each_view(host, |view| view.set_deaf(deaf)),
            Fault::Lag { host, lag } => self.each_view(host, |view| view.set_lag(lag)),
            Fault::Reset { which } => self.net.reset_one(which),
        }
    }

    /// The process of a host dies, between two polls of anything: the network and Consul hear no more of it, and its handlers
    /// stand still. A host without power takes also those down that were leaving.
    fn crash(&mut self, host: Host, death: Death) {
        let Some(server) = self.servers.get_mut(&host) else { return };
        let mut dying = Vec::new();
        if let Some(node) = server.node.take() {
            dying.push((Arc::clone(&server.life), server.view.clone()));
            if self.flaw == Some(Flaw::Haunts) {
                self.haunting.push(node);
            }
        }
        for old in self.ending.iter().filter(|old| old.host == host && death == Death::Silent) {
            if !old.task.is_finished() {
                old.task.abort();
                dying.push((Arc::clone(&old.life), old.view.clone()));
            }
        }
        for (life, view) in dying {
            life.ends();
            view.set_cut(true);
            if self.flaw != Some(Flaw::Haunts) {
                self.net.dies(life.pid, death);
            }
        }
    }

    fn each_view(&self, host: Host, change: impl Fn(&View)) {
        let server = self.servers.get(&host).filter(|server| server.node.is_some()).map(|server| &server.view);
        server.into_iter().chain(self.clients.get(&host).map(|(_, view)| view)).for_each(change);
    }
}

/// A port within this process that none of the worlds has used of late: one that ended must not seem to be at that of another. The first
/// ten thousand are for those who take any that is free.
fn real_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed) % 50_000 + 10_001
}
