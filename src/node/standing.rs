//! A node that stands for something that is no node.
//!
//! Owns the task that mirrors a dependency's health as the node's state. It must never expose anything. Look next at
//! [`crate::sentinel`] for how the dependency is looked at.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::{Part, Picom, life::Life};
use crate::registry::Instance;
use crate::sentinel::{Problem, Sentinel};
use crate::state::NodeState;
use crate::status::Status;

impl Picom {
    /// Stands for a dependency that is no node: registers the dependency's own address under the node's name, and mirrors its
    /// health as [`start`](Picom::start) and [`stop`](Picom::stop), so that [`pick`](Picom::pick) gives the address while it is
    /// well. The node is [up](NodeState::Up) until enough looks agree. What the program itself says of the node stands until the
    /// next change of health.
    ///
    /// The name of the dependency's host is looked up once, and its first address is used. Every sentinel of one address registers the same instance, so
    /// there should be one. [`Picom::end`] ends it.
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
        let look = sentinel.prepare().await.map_err(|problem| match problem {
            Problem::Settings(text) => Status::invalid_argument(text),
            Problem::Lookup(text) => Status::unavailable(text),
        })?;
        let addr = look.addr();
        let instance = |status| Instance {
            // Whoever stands for it after a crash takes over the entry that was left.
            id: format!("{}-{}-{}", self.inner.name, addr.ip(), addr.port()),
            address: Some(addr.ip()),
            ..self.instance(addr, status)
        };
        self.register(&registry, NodeState::Up, instance).await?;
        let life = Arc::clone(&self.inner.life);
        let name = Arc::clone(&self.inner.name);
        let watching = tokio::spawn(look.watch(move |seen| mirror(&life, &name, seen)));
        *part = Some(Part::Standing(AbortOnDropHandle::new(watching)));
        Ok(())
    }
}

fn mirror(life: &Life, name: &str, seen: Result<(), String>) {
    // The program may have said the same already, or the node may have ended: then there is nothing to tell.
    let told = match &seen {
        Ok(()) => life.become_state(NodeState::Running, None),
        Err(why) => life.become_state(NodeState::Stopped, Some(why)),
    };
    match (told, seen) {
        (Ok(()), Ok(())) => tracing::info!(service = name, "the dependency is well"),
        (Ok(()), Err(why)) => tracing::warn!(service = name, why, "the dependency is not well"),
        (Err(_), _) => {}
    }
}
