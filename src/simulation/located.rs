//! The registry of a server in a world: it tells Consul of the network's port instead of the process's own.
//!
//! Owns that change and nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::consul::View;
use crate::NodeStatus;
use crate::registry::{Endpoints, Instance, Registration, Registry, RegistryError, Watch};
use crate::transport::simulated;

type Places = dyn Fn(SocketAddr, u64) + Send + Sync;

/// A view for the server with one port of the network.
pub(super) struct Located {
    view: View,
    port: u16,
    places: Box<Places>,
}

impl Located {
    /// `places` is told where in this process the server listens, and its incarnation, before anybody is.
    pub(super) fn new(view: View, port: u16, places: impl Fn(SocketAddr, u64) + Send + Sync + 'static) -> Self {
        Self { view, port, places: Box::new(places) }
    }
}

#[async_trait]
impl Registry for Located {
    fn describe(&self) -> String {
        self.view.describe()
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        let addr = simulated::addr(0, self.port);
        let real = instance.address.map(|ip| SocketAddr::new(ip, instance.port));
        (self.places)(real.unwrap_or(addr), instance.incarnation);
        // What would differ between two runs of one world: the time of the day, and the port that was free.
        let status = NodeStatus { since: None, ..instance.status };
        let id = format!("at-{}", self.port);
        self.view.register(Instance { address: Some(addr.ip()), port: self.port, id, status, ..instance }).await
    }

    fn watch(&self, service: &str) -> Watch {
        self.view.watch(service)
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        self.view.known()
    }
}

impl fmt::Debug for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Located({})", self.port)
    }
}
