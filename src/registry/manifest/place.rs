//! The addresses at which members meet.
//!
//! Owns the tasks that listen and dial, each for ever, and the one that does whichever of the two is needed on this machine.
//! It must never let in an address that the settings do not allow. Look next at `link.rs` for a connection that stands.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::engine::{Place, Shared};
use super::join::{Refusal, Side};
use super::link::{self, End, JOIN_TIMEOUT, Origin};
use crate::options::RESOLVE_WAIT;

/// Pauses between attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The same on this machine, where somebody else must take the port's place within a second.
const LOCAL_PAUSES: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(500));

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

// Within the time that a first call waits it is to know what is wrong with whoever does not answer.
const _: () = assert!(CONNECT_TIMEOUT.as_millis() + JOIN_TIMEOUT.as_millis() < RESOLVE_WAIT.as_millis());

/// The pause after a connection could not be taken, for example for want of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Growing pauses, each randomised down to its half, so that many do not knock at once.
struct Pauses {
    next: Duration,
    limits: (Duration, Duration),
}

impl Pauses {
    const fn new(limits: (Duration, Duration)) -> Self {
        Self { next: limits.0, limits }
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 3 / 2).min(self.limits.1);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn reset(&mut self) {
        self.next = self.limits.0;
    }
}

/// Begins to listen on one address, if that is possible now.
pub(super) async fn bind(shared: &Shared, place: usize, address: &str) -> Option<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => {
            if let Ok(local) = listener.local_addr() {
                shared.listens(place, local);
                if !local.ip().is_unspecified() {
                    shared.seen_as(Some(place), local.ip());
                }
            }
            shared.set_place(place, Place::Fine);
            Some(listener)
        }
        Err(error) => {
            shared.set_place(place, Place::Trouble(format!("cannot listen on {address}: {error}").into()));
            None
        }
    }
}

/// Listens on one address for ever, with what has been bound already.
pub(super) async fn listen(shared: Arc<Shared>, place: usize, address: String, mut bound: Option<TcpListener>) {
    let mut pauses = Pauses::new(PAUSES);
    loop {
        if let Some(listener) = bound {
            serve(&shared, &listener).await;
        }
        sleep(pauses.next()).await;
        bound = bind(&shared, place, &address).await;
    }
}

async fn serve(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be taken");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !shared.settings.allows(peer.ip()) {
            shared.with(|table, _| table.refusals.joins += 1);
            continue;
        }
        let permit = shared.joins();
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let own = stream.local_addr().ok().map(|own| own.ip().to_canonical());
            let peer_ip = Some(peer.ip().to_canonical());
            let origin = Origin { side: Side::Answered, peer: peer_ip, own, place: None, permit };
            if let End::Refused(refusal) = link::run(&shared, stream, origin).await {
                refused(&shared, peer, &refusal);
            }
        });
    }
}

/// Tells that one who came was not let in: so that everybody sees it where it can be mended, and nobody can fill the log.
fn refused(shared: &Shared, peer: SocketAddr, refusal: &Refusal) {
    let why = &refusal.why;
    if refusal.is_mistake && shared.may_warn_of_refusals() {
        let refused = shared.peek(|table| table.refusals.joins);
        tracing::warn!(%peer, why, refused, "others are refused: do all have the same secret and version?");
    } else {
        tracing::debug!(%peer, why, "refused to join");
    }
}

/// Keeps a connection to one address for ever.
pub(super) async fn dial(shared: Arc<Shared>, place: usize, address: String) {
    // Who was cut off shall not be missed for longer than who has died, once the way is free again.
    let mut pauses = Pauses::new((PAUSES.0, PAUSES.1.min(shared.settings.lifetime)));
    loop {
        let end = match connect(&shared, &address).await {
            Ok((stream, peer)) => join(&shared, place, stream, peer).await,
            Err(why) => End::Refused(why.into()),
        };
        let now = match end {
            End::Myself => Place::Myself,
            End::Refused(refusal) => Place::trouble_at(&address, &refusal),
            End::Lost { synced, why } => {
                if synced {
                    pauses.reset();
                }
                Place::trouble_at(&address, &why.into())
            }
        };
        shared.set_place(place, now);
        tokio::select! {
            () = sleep(pauses.next()) => {}
            // Whoever asks all the time gets no more than the shortest pause.
            () = shared.redial.notified() => sleep(PAUSES.0).await,
        }
    }
}

async fn join(shared: &Arc<Shared>, place: usize, stream: TcpStream, peer: SocketAddr) -> End {
    let _ = stream.set_nodelay(true);
    let peer = Some(peer.ip().to_canonical());
    link::run(
        shared,
        stream,
        Origin { side: Side::Dialled, peer, own: None, place: Some(place), permit: CancellationToken::new() },
    )
    .await
}

async fn connect(shared: &Shared, address: &str) -> Result<(TcpStream, SocketAddr), String> {
    let attempt = async {
        let mut last = "its name has no address".to_owned();
        let addresses = lookup_host(address).await.map_err(|error| format!("its name cannot be looked up: {error}"))?;
        for address in addresses {
            if !shared.settings.allows(address.ip()) {
                last = format!("{address} is on another machine, which needs a secret or allow_remote()");
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    };
    timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| Err(format!("no connection within {CONNECT_TIMEOUT:?}")))
}

/// Takes the port of this machine, or joins whoever has it, and takes its place when it dies.
pub(super) async fn local(shared: Arc<Shared>, place: usize, port: u16) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let written = address.to_string();
    let mut pauses = Pauses::new(LOCAL_PAUSES);
    loop {
        let problem = match TcpListener::bind(address).await {
            Ok(listener) => {
                shared.listens(place, address);
                shared.set_rooted(true);
                shared.set_place(place, Place::Fine);
                serve(&shared, &listener).await;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match connect(&shared, &written).await {
                Ok((stream, peer)) => match join(&shared, place, stream, peer).await {
                    End::Myself => "it joined itself".into(),
                    End::Refused(why) => why,
                    End::Lost { synced, why } => {
                        if synced {
                            pauses.reset();
                        }
                        why.into()
                    }
                },
                Err(why) => why.into(),
            },
            Err(error) => error.to_string().into(),
        };
        shared.set_place(place, Place::trouble_at(&written, &problem));
        sleep(pauses.next()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_are_spread_over_their_upper_half() {
        for limits in [PAUSES, LOCAL_PAUSES] {
            let mut pauses = Pauses::new(limits);
            let mut whole = limits.0;
            for attempt in 0..40 {
                let pause = pauses.next();
                assert!(pause >= whole / 2 && pause <= whole, "attempt {attempt} waits for {pause:?}, of {whole:?}");
                whole = (whole * 3 / 2).min(limits.1);
            }
            assert_eq!(whole, limits.1);
            let last: Vec<_> = (0..40).map(|_| pauses.next()).collect();
            assert!(last.iter().any(|pause| *pause != last[0]), "many would knock at once");
            pauses.reset();
            assert!(pauses.next() <= limits.0, "who was reached begins anew");
        }
    }
}
