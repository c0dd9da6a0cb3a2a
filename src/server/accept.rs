//! Accepting connections, within limits.
//!
//! Owns the accept loop. It must never die of an error that may pass, such as too many open files. Look next at
//! [`super::dispatch`] for what happens on a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;

use super::Shared;
use super::connections::Place;
use super::dispatch::Dispatch;
use crate::options::SERVER_IDLE_CLOSE;
use crate::proto::{CloseReason, Config, Error, Side};
use crate::transport::{Io, Listener, driver};

/// Pause after an accept that failed: the usual cause, too many open files, passes only with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// By what part of it the age of a connection may be missed, either way, so that those of a burst do not end together.
const AGE_SPREAD: f64 = 0.1;
/// Longer than any connection lasts, and short enough for a clock.
const MAX_AGE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a connection that was refused for a limit may take to read why.
const REFUSED_LIMIT: Duration = Duration::from_secs(2);
/// Connections being refused at once, beyond which new ones are closed without a word.
const MAX_REFUSING: usize = 64;

pub(super) async fn accept(mut listener: Listener, shared: Arc<Shared>) {
    let refusing = Arc::new(tokio::sync::Semaphore::new(MAX_REFUSING));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop_accepting.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (io, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(service = %shared.service, %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match shared.connections.refuses(peer.map(|peer| peer.ip())) {
            None => Arc::clone(&shared).serve(io, peer),
            Some(limit) => {
                tracing::warn!(service = %shared.service, ?peer, "refused: {limit}");
                let Ok(permit) = Arc::clone(&refusing).try_acquire_owned() else { continue };
                let (link, driver) = driver::connection(io, peer, shared.config(), driver::NoCalls);
                link.close(CloseReason::Busy, &limit);
                tokio::spawn(async move {
                    // It ends by itself or by the limit; either way the peer has had its chance.
                    let _ = tokio::time::timeout(REFUSED_LIMIT, driver.run()).await;
                    drop(permit);
                });
            }
        }
    }
}

/// A time near this one.
fn spread(age: Duration) -> Duration {
    age.min(MAX_AGE).mul_f64(1.0 - AGE_SPREAD + 2.0 * AGE_SPREAD * fastrand::f64())
}

impl Shared {
    /// Serves one connection until it ends.
    pub(super) fn serve(self: Arc<Self>, io: Io, peer: Option<SocketAddr>) {
        let (link, driver) = driver::connection(io, peer, self.config(), Dispatch::new(Arc::clone(&self)));
        let (driver, place) = (Box::new(driver), Place::take(&self, &link));
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            let mut phase = link.phase();
            let greeted = async {
                // Only the driver below changes the phase, and it ends after it does.
                let _ = phase.changed().await;
                place.greeted();
                std::future::pending::<()>().await;
            };
            let aged: BoxFuture<'_, ()> = match self.options.max_connection_age {
                None => Box::pin(std::future::pending()),
                Some(age) => {
                    let (sleep, link, place) = (tokio::time::sleep(spread(age)), &link, &place);
                    Box::pin(async move {
                        sleep.await;
                        place.left();
                        link.drain();
                        std::future::pending().await
                    })
                }
            };
            let error = tokio::select! {
                biased;
                error = self.io_threads.drive(driver, &self.service) => error,
                () = greeted => return,
                () = aged => return,
            };
            match &*error {
                Error::PeerClosed { .. } | Error::Io { .. } | Error::Idle | Error::Closed => {
                    tracing::debug!(service = %self.service, ?peer, %error, "connection over");
                }
                error => tracing::warn!(service = %self.service, ?peer, %error, "connection closed"),
            }
            drop(place);
        });
    }

    fn config(&self) -> Arc<Config> {
        let (options, router) = (&self.options, self.router());
        Arc::new(Config {
            node: self.node.to_string(),
            service: self.service.to_string(),
            incarnation: self.incarnation,
            max_calls: options.max_calls,
            stream_window: options.stream_window,
            connection_window: options.connection_window,
            // Callers are told one limit: the longest that any method takes. Each method's own holds all the same.
            max_message: options.max_message.max(router.longest_request()),
            handshake_timeout: options.handshake_timeout,
            idle_close: Some(SERVER_IDLE_CLOSE),
            idempotent: router.idempotent().to_vec(),
            gauge: Some(Arc::clone(&self.admission.gauge)),
            ..Config::new(Side::Server)
        })
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}
