//! One world: servers, clients, a network, a Consul, and what befalls them. All of it follows from the seed.
//!
//! Owns the order of events and what is looked at in the end. Look next at [`super::net`] and [`super::work`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::consul::{Consul, View};
use super::crew::Crew;
use super::faults::{Fault, Faults};
use super::journal::Journal;
use super::located::Located;
use super::net::{Host, Installed, Net, Place};
use super::work::{Plan, SERVICE, methods};
use crate::registry::Endpoints;
use crate::transport::simulated;
use crate::{Concurrency, Picom};

/// The first client; servers come before it.
const CLIENTS: Host = 100;
/// The first port of the network.
const PORTS: u16 = 4000;
/// By then, in virtual time, every call has ended.
const DOOMSDAY: Duration = Duration::from_secs(250);
/// When all is well again, how long until what was held back is there and everybody has noticed; connections that are not used are
/// kept for longer.
const REST: Duration = Duration::from_secs(20);
/// How long it may take after the end until nothing is left.
const FAREWELL: Duration = Duration::from_secs(40);

/// What is left of a world.
pub(super) struct Outcome {
    pub(super) log: Vec<String>,
    pub(super) violations: Vec<String>,
    pub(super) counts: [usize; 4],
}

/// Runs the world of this seed.
pub(super) fn run(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    fastrand::seed(seed);
    let outcome = runtime.block_on(async {
        let mut world = World::new(seed);
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

struct World {
    rng: Rng,
    journal: Arc<Journal>,
    net: Arc<Net>,
    consul: Consul,
    servers: BTreeMap<Host, Server>,
    clients: BTreeMap<Host, Client>,
    /// The calls of each client.
    crews: BTreeMap<Host, JoinHandle<()>>,
    /// Servers that are leaving, by their ports.
    ending: Vec<(u16, JoinHandle<()>)>,
    next_port: u16,
    tight: bool,
}

struct Server {
    port: u16,
    node: Option<Picom>,
    view: View,
}

struct Client {
    node: Picom,
    view: View,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let journal = Arc::new(Journal::new());
        let net = Net::new(rng.u64(..), Arc::clone(&journal));
        simulated::install(Some(Box::new(Installed(Arc::clone(&net)))));
        let consul = Consul::new(Duration::from_secs(3));
        let tight = rng.u8(..4) == 0;
        Self {
            rng,
            journal,
            net,
            consul,
            servers: BTreeMap::new(),
            clients: BTreeMap::new(),
            crews: BTreeMap::new(),
            ending: Vec::new(),
            next_port: PORTS,
            tight,
        }
    }

    /// From the first server to the last call.
    async fn live(&mut self) {
        for host in 0..self.rng.u16(1..4) {
            self.start(host, None).await;
        }
        for client in CLIENTS..CLIENTS + self.rng.u16(1..4) {
            self.join(client);
            let ids = (1..=self.rng.u64(1..14)).map(|number| u64::from(client) * 100 + number);
            let plans: Vec<_> = ids.map(|id| Plan::random(&mut self.rng, id)).collect();
            let node = &self.clients[&client].node;
            let work = |plan: Plan| plan.run(node.clone(), Arc::clone(&self.journal), client).boxed();
            let members: Vec<BoxFuture<'static, ()>> = plans.into_iter().map(work).collect();
            self.crews.insert(client, tokio::spawn(Crew::new(members)));
        }
        let start = Instant::now();
        let hosts = (self.servers.keys().copied().collect(), self.clients.keys().copied().collect());
        let faults = Faults::random(&mut self.rng, hosts);
        for (at, fault) in faults {
            sleep_until(start + at).await;
            self.journal.note(format_args!("{fault:?}"));
            self.befall(fault).await;
        }
        for (_, crew) in std::mem::take(&mut self.crews) {
            match timeout(DOOMSDAY, crew).await {
                Ok(Ok(())) => {}
                Ok(Err(panic)) => self.journal.violation(format_args!("a caller panics: {panic}")),
                Err(_) => self.journal.violation("calls never end"),
            }
        }
        self.journal.close();
    }

    fn view(&self, client: Option<Host>) -> View {
        let journal = Arc::clone(&self.journal);
        self.consul.view(Duration::from_secs(6), move |list: &mut Endpoints| {
            let Some(client) = client else { return };
            for endpoint in &mut list.endpoints {
                let addr = simulated::addr(client, endpoint.addr.port());
                Arc::make_mut(endpoint).addr = addr;
            }
            journal.listed(client, list);
        })
    }

    /// A client comes.
    fn join(&mut self, client: Host) {
        let view = self.view(Some(client));
        let node = Picom::builder("caller").registry(view.clone()).build().unwrap();
        self.clients.insert(client, Client { node, view });
    }

    /// A server comes, at the port where it was or at another one.
    async fn start(&mut self, host: Host, port: Option<u16>) {
        let port = port.unwrap_or_else(|| {
            self.next_port += 1;
            self.next_port
        });
        let view = self.view(None);
        let registry = Located::new(view.clone(), port, {
            let (net, journal) = (Arc::clone(&self.net), Arc::clone(&self.journal));
            move |real: SocketAddr, incarnation: u64| {
                journal.note(format_args!("server {host} is at {port}"));
                net.returns(host);
                net.place(port, Place { host, real, incarnation, silent: false });
            }
        });
        let mut builder = Picom::builder(SERVICE)
            .registry(registry)
            .in_memory()
            .drain_delay(Duration::from_millis(self.rng.choice([0, 50, 500]).unwrap_or(0)))
            .drain_timeout(Duration::from_secs(self.rng.choice([0, 1, 10]).unwrap_or(1)));
        if self.tight {
            builder = builder
                .max_calls(2)
                .concurrency(Concurrency::Fixed(2))
                .stream_window(4096)
                .connection_window(16_384)
                .max_connection_age(Duration::from_secs(2));
        }
        let node = builder.build().unwrap();
        node.expose(methods(&self.journal, port)).await.unwrap();
        self.servers.insert(host, Server { port, node: Some(node), view });
    }

    async fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::Block { from, to, time } => self.net.block(from, to, time),
            Fault::Crash { host, silently } => {
                let Some(server) = self.servers.get_mut(&host) else { return };
                server.view.set_cut(true);
                self.net.dies(host, silently);
                server.node = None;
            }
            Fault::Vanish { client, silently } => {
                let Some(crew) = self.crews.remove(&client) else { return };
                self.net.dies(client, silently);
                crew.abort();
                self.journal.vanished(client);
                self.clients.remove(&client);
            }
            Fault::Restart { host, same_port } => {
                let Some(server) = self.servers.get(&host).filter(|server| server.node.is_none()) else { return };
                let is_taken = self.ending.iter().any(|(port, ending)| *port == server.port && !ending.is_finished());
                let port = (same_port && !is_taken).then_some(server.port);
                self.start(host, port).await;
            }
            Fault::End { host } => {
                let Some(server) = self.servers.get_mut(&host) else { return };
                let (port, Some(node)) = (server.port, server.node.take()) else { return };
                let (journal, net) = (Arc::clone(&self.journal), Arc::clone(&self.net));
                let ending = tokio::spawn(async move {
                    let ended = node.end().await;
                    net.leaves(port);
                    journal.note(format_args!("server {host} has ended: {ended:?}"));
                });
                self.ending.push((port, ending));
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

    fn each_view(&self, host: Host, change: impl Fn(&View)) {
        let server = self.servers.get(&host).filter(|server| server.node.is_some()).map(|server| &server.view);
        server.into_iter().chain(self.clients.get(&host).map(|client| &client.view)).for_each(change);
    }

    /// Everything is well again, then everybody leaves; nothing may be left.
    async fn end(mut self) {
        self.net.heal();
        self.consul.set_down(false);
        sleep(REST).await;
        for wrong in self.net.disorder() {
            self.journal.violation(wrong);
        }
        for (host, server) in std::mem::take(&mut self.servers) {
            if let Some(node) = server.node {
                if timeout(FAREWELL, node.end()).await.is_err() {
                    self.journal.violation(format_args!("server {host} does not end"));
                }
            }
        }
        for (_, ending) in std::mem::take(&mut self.ending) {
            if timeout(FAREWELL, ending).await.is_err() {
                self.journal.violation("a server does not end");
            }
        }
        self.clients.clear();
        self.net.end();
        sleep(FAREWELL).await;
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if tasks > 0 {
            self.journal.violation(format_args!("{tasks} tasks are left"));
        }
        let links = self.net.left();
        if links > 0 {
            self.journal.violation(format_args!("{links} connections are left in memory"));
        }
    }
}
