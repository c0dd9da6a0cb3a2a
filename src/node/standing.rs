//! A node that stands for something that is no node.
//!
//! Owns the task that mirrors a dependency's health as the node's state. It must never expose anything. Look next at
//! [`crate::sentinel`] for how the dependency is looked at.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::{Part, Picom, life::Life};
use crate::registry::{Instance, Registry};
use crate::sentinel::{Change, Problem, Sentinel};
use crate::state::{NodeState, NodeStatus};
use crate::status::Status;

impl Picom {
    /// Stands for a dependency that is no node: registers the dependency's own address under the node's name, and mirrors its
    /// health as [`start`](Picom::start) and [`stop`](Picom::stop), so that [`pick`](Picom::pick) gives the address while it is
    /// well. It is looked at once before it is registered, for at most the time of a look, so that nobody sees one that is well in
    /// another state; if one look is not enough, the node is [up](NodeState::Up) until enough agree. What the program itself says of
    /// the node stands until the next change of health.
    ///
    /// The name of the dependency's host is looked up again for every look; when it leads to another address, that one is registered
    /// in place of the one before. Every sentinel of one address registers the same instance, so there should be one.
    /// [`Picom::end`] ends it.
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), picom::Status> {
    /// use picom::{Picom, Sentinel};
    /// let mongo = Picom::new("mongo");
    /// mongo.stand_for(Sentinel::tcp("127.0.0.1:27017")).await?;
    ///
    /// let addr = Picom::new("service1").pick("mongo").await?.addr;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) for an address, a URL, a name or a registry that cannot work;
    /// [`Code::Unavailable`](crate::Code::Unavailable) when the host's name cannot be looked up;
    /// [`Code::FailedPrecondition`](crate::Code::FailedPrecondition) for a node that exposes or stands for something already.
    /// Nothing has changed then.
    pub async fn stand_for(&self, sentinel: Sentinel) -> Result<(), Status> {
        let registry = self.registry()?;
        let mut part = self.inner.part.lock().await;
        if part.is_some() {
            return Err(Status::failed_precondition(format!(
                "node `{}` exposes or stands for something already; take another node",
                self.inner.name
            )));
        }
        let mut look = sentinel.prepare().await.map_err(|problem| match problem {
            Problem::Settings(text) => Status::invalid_argument(text),
            Problem::Lookup(text) => Status::unavailable(text),
        })?;
        // A registry may take seconds to answer, and show others what it was given meanwhile.
        let first = match look.first().await {
            None => NodeStatus::now(NodeState::Up, None),
            Some(seen) => state_of(&seen),
        };
        let stands =
            Stands { like: self.instance(look.addr(), first.clone()), life: Arc::clone(&self.inner.life), registry };
        self.register(&stands.registry, first, |status| stands.instance(look.addr(), status)).await?;
        let watching = tokio::spawn(async move {
            loop {
                match look.changed().await {
                    Change::Health(seen) => stands.mirror(seen),
                    Change::Address(addr) => stands.follow(addr).await,
                }
            }
        });
        *part = Some(Part::Standing(AbortOnDropHandle::new(watching)));
        Ok(())
    }
}

/// What a node says of itself whose dependency was seen so.
fn state_of(seen: &Result<(), String>) -> NodeStatus {
    match seen {
        Ok(()) => NodeStatus::now(NodeState::Running, None),
        Err(why) => NodeStatus::now(NodeState::Stopped, Some(why)),
    }
}

/// What the task has of the node, which it must not keep alive.
struct Stands {
    /// Everything that does not depend on where the dependency is.
    like: Instance,
    life: Arc<Life>,
    registry: Arc<dyn Registry>,
}

impl Stands {
    fn instance(&self, addr: SocketAddr, status: NodeStatus) -> Instance {
        Instance {
            // Whoever stands for it after a crash takes over the entry that was left.
            id: format!("{}-{}-{}", self.like.service, addr.ip(), addr.port()),
            address: Some(addr.ip()),
            port: addr.port(),
            status,
            ..self.like.clone()
        }
    }

    /// Registers the dependency where it is now, then takes back where it was.
    async fn follow(&self, addr: SocketAddr) {
        let status = self.life.status();
        match self.registry.register(self.instance(addr, status.clone())).await {
            Ok(registration) => {
                tracing::info!(service = self.like.service, %addr, "the dependency has moved");
                drop(self.life.replace(registration, &status));
            }
            Err(error) => self.mirror(Err(format!("it has moved to {addr}, which cannot be registered: {error}"))),
        }
    }

    fn mirror(&self, seen: Result<(), String>) {
        let service = &self.like.service;
        // The program may have said the same already, or the node may have ended: then there is nothing to tell.
        let NodeStatus { state, reason, .. } = state_of(&seen);
        let told = self.life.become_state(state, reason.as_deref());
        match (told, seen) {
            (Ok(()), Ok(())) => tracing::info!(service, "the dependency is well"),
            (Ok(()), Err(why)) => tracing::warn!(service, why, "the dependency is not well"),
            (Err(_), _) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::registry::Memory;

    #[tokio::test(start_paused = true)]
    async fn a_dependency_whose_name_leads_elsewhere_is_picked_there() {
        let registry = Memory::new();
        let node = |name: &str| Picom::builder(name).registry(registry.clone()).build().unwrap();
        let (mongo, service) = (node("mongo"), node("service1"));
        let at = |host: u8| SocketAddr::from(([127, 0, 0, host], 27017));
        let leads = Arc::new(Mutex::new(at(1)));
        let asked = Arc::clone(&leads);
        let sentinel = Sentinel::new("mongo.test:27017", async || Ok(())).resolved_by(move |_| {
            let addr = *asked.lock().unwrap();
            Box::pin(async move { Ok(vec![addr]) })
        });
        mongo.stand_for(sentinel).await.unwrap();
        assert_eq!(service.pick("mongo").await.unwrap().addr, at(1));
        for host in [2, 1] {
            *leads.lock().unwrap() = at(host);
            tokio::time::sleep(Duration::from_secs(3)).await;
            let known = service.watch("mongo").current();
            assert_eq!(known.endpoints.len(), 1, "only where it is now: {known:?}");
            let endpoint = &known.endpoints[0];
            assert_eq!((endpoint.addr, endpoint.status.state), (at(host), NodeState::Running));
            assert_eq!(endpoint.id, format!("mongo-127.0.0.{host}-27017"));
        }
        mongo.stop("maintenance").unwrap();
        *leads.lock().unwrap() = at(3);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let endpoint = Arc::clone(&service.watch("mongo").current().endpoints[0]);
        assert_eq!((endpoint.addr, endpoint.status.to_string()), (at(3), "stopped: maintenance".to_owned()));
        mongo.end().await.unwrap();
        assert!(service.watch("mongo").current().endpoints.is_empty());
    }
}
