//! Making one connection: the socket, hello, and what the other side says of its load from then on.
//!
//! Owns nothing that lasts. It must never decide when or how often to connect, nor what a failure means. Look next at
//! [`super::target`], which does.

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::pool::Identity;
use super::strain::{Gauge, Strain};
use super::target::{Outcome, Target};
use crate::options::CLIENT_IDLE_CLOSE;
use crate::proto::{CloseReason, Config, Error, Load, Side};
use crate::transport;
use crate::transport::driver::{self, Handler, Happened};
use crate::transport::link::{Link, Phase};

/// What a connection has to say to its target: nobody calls a client.
struct Reports {
    target: Weak<Target>,
    identity: Arc<Identity>,
    /// How many threads the runtime has. More connections than that bring nothing, and one thread waits for nobody.
    workers: usize,
    gauge: Gauge,
}

impl Handler for Reports {
    fn ready(&mut self, _link: &Arc<Link>) {}
    fn event(&mut self, _link: &Arc<Link>, _happened: Happened) {}
    fn rest(&mut self) {}

    fn load(&mut self, load: Load) {
        if let Some(target) = self.target.upgrade() {
            target.reported(load.slot, load.capacity);
        }
    }

    fn read(&mut self, link: &Arc<Link>, now: Instant) {
        if self.workers > 1 && self.gauge.is_due(now) {
            match (self.gauge.look(now, link.crowd()), self.target.upgrade()) {
                (Some(Strain::Crowded), Some(target)) => target.spread(&self.identity, self.workers),
                (Some(Strain::Calm), Some(target)) => target.gather(now),
                _ => {}
            }
        }
    }
}

/// Makes a connection to this endpoint, within the time that the options allow.
pub(super) async fn dial(target: &Arc<Target>, identity: &Arc<Identity>) -> Outcome {
    let limit = identity.options.connect_timeout;
    match tokio::time::timeout(limit, shake_hands(target, identity)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Arc::new(Error::Io {
            kind: std::io::ErrorKind::TimedOut,
            text: format!("no connection within {limit:?}"),
        })),
    }
}

async fn shake_hands(target: &Arc<Target>, identity: &Arc<Identity>) -> Outcome {
    let endpoint = target.endpoint();
    let io = transport::connect(endpoint.addr).await.map_err(|error| Arc::new(Error::from(error)))?;
    let options = &identity.options;
    let config = Config {
        node: identity.node.to_string(),
        service: identity.service.to_string(),
        incarnation: identity.incarnation,
        expect: endpoint.incarnation,
        stream_window: options.stream_window,
        connection_window: options.connection_window,
        max_message: options.max_message,
        handshake_timeout: options.connect_timeout,
        idle_close: Some(CLIENT_IDLE_CLOSE),
        wants_load: identity.wants_load(),
        ..Config::new(Side::Client)
    };
    let reports = Reports {
        target: Arc::downgrade(target),
        identity: Arc::clone(identity),
        workers: tokio::runtime::Handle::current().metrics().num_workers(),
        gauge: Gauge::new(tokio::time::Instant::now().into_std()),
    };
    let (link, driver) = driver::connection(io, Some(endpoint.addr), Arc::new(config), reports);
    let mut phase = link.phase();
    // If this is cancelled, by the limit above, the connection must go too; once hello is through it lives by itself.
    let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move { driver.run().await }));
    let reached = phase.wait_for(|phase| !matches!(phase, Phase::Handshaking)).await.map(|phase| phase.clone());
    match reached {
        Ok(Phase::Closed(error)) => Err(error),
        Ok(Phase::Draining) => {
            let text = "it takes no more calls".to_owned();
            Err(Arc::new(Error::PeerClosed { reason: CloseReason::ShuttingDown, text }))
        }
        Ok(_) => {
            task.detach();
            Ok(link)
        }
        Err(_) => Err(Arc::new(Error::Closed)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::balance::{Fleet, Member, Seat};
    use crate::options::Options;
    use crate::registry::Endpoint;

    #[test]
    fn what_a_connection_says_of_the_load_is_known_and_may_come_too_late() {
        let endpoint = Arc::new(Endpoint::new(([127, 0, 0, 1], 1).into()));
        let fleet = Arc::new(Fleet::new("service1".into(), Instant::now().into_std()));
        let member = Arc::new(Member::new(endpoint.addr, Arc::clone(&fleet)));
        let target = Arc::new(Target::new(Arc::clone(&endpoint), Arc::clone(&member)));
        let identity = Identity::new("service1".into(), "caller".into(), 1, Options::default());
        let mut reports = Reports {
            target: Arc::downgrade(&target),
            identity: Arc::new(identity),
            workers: 1,
            gauge: Gauge::new(Instant::now().into_std()),
        };
        let seat = Seat { endpoint, member };
        let known = || seat.state(true, fleet.at(Instant::now().into_std())).reported;
        assert_eq!(known(), None, "nothing was said yet");
        reports.load(Load { slot: 75, capacity: 100 });
        assert!(known().is_some_and(|share| (0.7..=0.75).contains(&share)), "{:?}", known());
        drop(target);
        reports.load(Load { slot: 5, capacity: 100 });
    }
}
