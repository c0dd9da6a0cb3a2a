//! Waiting for an endpoint without calling it.
//!
//! Owns [`Pick`]. It must never connect, and leave nothing behind when it is dropped. Look next at [`super::pool`], which chooses.

use std::fmt;
use std::future::{IntoFuture, pending};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::call::at;
use super::pool::{Pool, Preference};
use crate::balance::{self, Balancer};
use crate::registry::Endpoint;
use crate::status::{Execution, Status};

/// A pick that is about to be made; see [`Picom::pick`](crate::Picom::pick). Awaiting it gives the endpoint. Cancel safe.
#[must_use = "a pick does nothing until it is awaited"]
pub struct Pick {
    pool: Arc<Pool>,
    preference: Preference,
    timeout: Option<Duration>,
    token: Option<CancellationToken>,
}

impl Pick {
    pub(super) const fn new(pool: Arc<Pool>, policy: Option<Arc<dyn Balancer>>) -> Self {
        Self { pool, preference: Preference { policy, key: None }, timeout: None, token: None }
    }

    /// Picks by this policy instead of the node's.
    pub fn balance(mut self, policy: impl Balancer) -> Self {
        self.preference.policy = Some(Arc::new(policy));
        self
    }

    /// What picks that belong together share; see [`Call::key`](crate::Call::key).
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.preference.key = Some(balance::key(key.as_ref()));
        self
    }

    /// How long to wait, counted from when it is awaited; the default is the node's `pick_wait`, 5 minutes. Zero does not
    /// wait: either the endpoint is known, or it is an error.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ends the waiting with [`Code::Cancelled`](crate::Code::Cancelled) when this token is cancelled.
    pub fn token(mut self, token: CancellationToken) -> Self {
        self.token = Some(token);
        self
    }

    async fn make(self) -> Result<Arc<Endpoint>, Status> {
        let limit = self.timeout.unwrap_or(self.pool.identity.options.pick_wait);
        let cancelled = async {
            match &self.token {
                Some(token) => token.cancelled().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cancelled => {
                let text = format!("the pick of an instance of `{}` was cancelled", self.pool.asked());
                Err(Status::cancelled(text).with_execution(Execution::Never))
            }
            picked = self.pool.pick_endpoint(Some(&self.preference), at(Instant::now(), limit)) => picked?.map_err(|why| {
                let text = format!("picked no instance of `{}` within {limit:?}: {why}", self.pool.asked());
                Status::deadline_exceeded(text).with_execution(Execution::Never)
            }),
        }
    }
}

impl IntoFuture for Pick {
    type Output = Result<Arc<Endpoint>, Status>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.make())
    }
}

impl fmt::Debug for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick").field("service", &self.pool.asked()).finish_non_exhaustive()
    }
}
