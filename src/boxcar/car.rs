//! A rover and a pool that know each other.
//!
//! Owns [`Boxcar`]. It must never do more than join the two. Look next at [`super::rover`] and [`super::pool`].

use std::time::Duration;

use super::{Events, Lease, LeaseError, Pool, Rover};

/// A [`Rover`] that fills a [`Pool`]: a client of several servers that are all alike.
///
/// The rover asks more often where the pool holds nothing, and less often once the pool is full and nothing better is found.
/// The guide of [this module](super) has an example.
#[derive(Debug, Default)]
pub struct Boxcar {
    rover: Rover,
    pool: Pool,
}

impl Boxcar {
    /// Joins the two.
    pub fn new(rover: Rover, pool: Pool) -> Self {
        Self { rover, pool }
    }

    /// Adds a server, at `host:port`. One of the same name is replaced if it was elsewhere, and its connections are dropped as by
    /// [`drop_server`](Self::drop_server). Returns whether anything changed.
    pub fn add_server(&self, id: &str, address: &str) -> bool {
        let changed = self.rover.add_server(id, address);
        if changed {
            self.pool.drop_server(id);
        }
        changed
    }

    /// Forgets a server and closes its connections, those that are leased as soon as they come back. Returns whether it was there.
    pub fn drop_server(&self, id: &str) -> bool {
        // In this order: a connection that comes in between is seen to be of a server that is gone.
        let was_there = self.rover.drop_server(id);
        self.pool.drop_server(id);
        was_there
    }

    /// Begins to fill the pool, and goes on until it is stopped or dropped. The events say what went wrong; no connection is among
    /// them. They may be ignored: those that nobody reads in time are lost.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(&self) -> Events {
        self.rover.launch(Some(self.pool.clone()))
    }

    /// Makes no more connections, until it is started again. Those of the pool stay.
    pub fn stop(&self) {
        self.rover.stop();
    }

    /// Leases a connection, as [`Pool::lease`] does.
    ///
    /// # Errors
    ///
    /// When none is free in time, or too many wait already.
    pub async fn lease(&self, wait: Duration) -> Result<Lease, LeaseError> {
        self.pool.lease(wait).await
    }

    /// Leases a connection if one is idle now.
    pub fn try_lease(&self) -> Option<Lease> {
        self.pool.try_lease()
    }

    /// Where the connections are kept.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What makes them.
    pub fn rover(&self) -> &Rover {
        &self.rover
    }
}
