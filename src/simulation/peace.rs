//! The end of a world: everything is well again, and everybody notices; then everybody leaves, and nothing is left.
//!
//! Owns what is looked at when nothing fails any more. Look next at [`super::world`] for what came before.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::flaws::Flaw;
use super::service::SERVICES;
use super::work::{Client, ask};
use super::world::World;

/// How long after the end of all faults each service answers each client again.
const HEALED: Duration = Duration::from_secs(10);
/// How long one who asks for that waits for an answer, and before asking again.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// When all is well again, how long until what was held back is there and everybody has noticed; connections that are not used are
/// kept for longer.
const REST: Duration = Duration::from_secs(20);
/// How long it may take after the end until nothing is left.
const FAREWELL: Duration = Duration::from_secs(40);

impl World {
    /// Everything is well again, then everybody leaves; nothing may be left.
    pub(super) async fn end(mut self) {
        if self.flaw != Some(Flaw::StaysBroken) {
            self.heal();
        } else if let Some(host) = self.servers.keys().next() {
            self.clients.keys().for_each(|client| self.net.block(*client, *host, REST * 10));
        }
        let clients: Vec<Client> = self.clients.values().map(|(client, _)| client.clone()).collect();
        let services = &SERVICES[..self.nature.servers.len()];
        let since = Instant::now();
        for client in &clients {
            for service in services {
                self.answers_again(client, service, since).await;
            }
        }
        sleep(REST).await;
        for client in &clients {
            for service in services {
                if let Err(status) = ask(client, service, "once", PATIENCE).await {
                    self.journal.violation(format_args!("{service} fails although all is well: {status:?}"));
                }
            }
        }
        self.journal.close();
        let held = match (&clients[..], self.flaw) {
            ([client, ..], Some(Flaw::HoldsStream)) => Some(client.hold(SERVICES[0]).await),
            _ => None,
        };
        sleep(REST).await;
        for wrong in self.net.disorder() {
            self.journal.violation(wrong);
        }
        drop((held, clients));
        self.farewell().await;
    }

    fn heal(&mut self) {
        self.net.heal();
        self.consul.set_down(false);
        let views = self.servers.values().filter(|server| server.node.is_some()).map(|server| &server.view);
        for view in views.chain(self.clients.values().map(|(_, view)| view)) {
            view.set_deaf(false);
            view.set_lag(Duration::from_millis(1));
            view.set_cut(false);
        }
    }

    async fn answers_again(&self, client: &Client, service: &str, since: Instant) {
        loop {
            let outcome = ask(client, service, "again", PATIENCE).await;
            let after = since.elapsed();
            match outcome {
                Ok(()) => return,
                Err(status) if after > HEALED => {
                    let pid = client.pid;
                    let text = format_args!("{service} does not answer again, after {after:?}, to {pid}: {status:?}");
                    return self.journal.violation(text);
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn farewell(mut self) {
        for (host, server) in std::mem::take(&mut self.servers) {
            if let Some(node) = server.node {
                if timeout(FAREWELL, node.end()).await.is_err() {
                    self.journal.violation(format_args!("server {host} does not end"));
                }
            }
        }
        for ending in std::mem::take(&mut self.ending) {
            if timeout(FAREWELL, ending.task).await.is_err() {
                self.journal.violation("a server does not end");
            }
        }
        if self.flaw == Some(Flaw::LeavesTask) {
            tokio::spawn(std::future::pending::<()>());
        }
        self.handing_out.abort();
        let (journal, net) = (self.journal.clone(), self.net.clone());
        drop(self);
        net.end();
        sleep(FAREWELL).await;
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if tasks > 0 {
            journal.violation(format_args!("{tasks} tasks are left"));
        }
        let links = net.left();
        if links > 0 {
            journal.violation(format_args!("{links} connections are left in memory"));
        }
    }
}
