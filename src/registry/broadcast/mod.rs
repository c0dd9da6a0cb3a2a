//! Discovery by UDP datagrams: every node tells of itself, again and again, and hears the others.
//!
//! Owns [`Broadcast`] and its options. It must never know what a service does. Look next at `table.rs` for who is known until
//! when, at `announce.rs` for what is sent, at `datagram.rs` and `seal.rs` for the bytes, and at `task.rs` for the socket.

mod announce;
mod datagram;
mod events;
mod node;
mod parsed;
mod seal;
mod settings;
mod table;
mod task;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::events::{Event, Gone, Refusal, Refused};

use self::announce::Left;
use self::datagram::MAX_DATAGRAM;
use self::node::Node;
use self::seal::Seal;
use self::settings::Settings;
use super::{Endpoints, Instance, Registration, RegistrationState, Registry, RegistryError, Watch, check_service_name};

/// How long `register` waits for the first announcement to be on its way.
const FIRST_OUTCOME: Duration = Duration::from_secs(1);

/// How long leaving waits until others have been told.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// Why a watch outside of a runtime learns nothing.
const NO_RUNTIME: &str = "discovery by datagrams needs a tokio runtime, and there is none here";

/// Nodes that find each other by UDP datagrams, without a server: on one machine, or on one network.
///
/// Each instance is advertised every 2 s ([`period`](Self::period)), at once when it is registered or its status changes, and
/// takes its leave when it is taken back. It is gone 3 s after the period that it announced was missed: 5 s after it was last
/// heard, by default. With periods below 3 s one lost datagram is forgiven. An observer that was itself asleep gives
/// everybody another chance. No clock but the monotone one of the observer plays a part.
///
/// Nothing is ever sent in answer to a datagram, so that nobody can use nodes to flood others; a newcomer knows everybody after
/// one period. Until then the snapshot of a service of which nothing was heard is [`Freshness::Never`](super::Freshness::Never).
///
/// Without a key everybody on the network can add instances and remove others. With one ([`key`](Self::key)) only its holders
/// can; who has the key is trusted.
///
/// Clones share one socket and what was heard; an option makes a registry of its own, so set options first. When the last
/// clone, watch, registration and stream of events is gone, the socket is closed.
///
/// What cannot be sent, and a port that cannot be had, is the state of the registrations and the problem of the snapshots, and is
/// tried again. A network that goes away, for example with its interface, is missed within 2 s and then looked for: after
/// 500 ms, and after pauses that double up to 4 s. Until it is back, what was heard last is kept as
/// [`Freshness::Stale`](super::Freshness::Stale), because nobody can know who is gone.
///
/// What does not fit into a datagram of 1,200 bytes cannot be registered. 4,096 instances of others are kept, 1,024 of them
/// from one address; what is past that, and everything that is no proper datagram, is refused and
/// [counted](Self::refused).
///
/// ```no_run
/// # use std::time::Duration;
/// # use picom::registry::Broadcast;
/// let registry = Broadcast::to("10.1.255.255:5000")?.period(Duration::from_secs(1)).key(std::fs::read("/run/secrets/key")?)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Broadcast {
    handle: Arc<Handle>,
}

/// What clones, watches and registrations hold; the task ends after the last of them.
struct Handle {
    node: Arc<Node>,
    stop: CancellationToken,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Handle {
    /// `None` if the task runs, else why it cannot.
    fn run(&self) -> Option<&'static str> {
        if self.node.run(&self.stop) { None } else { Some(NO_RUNTIME) }
    }
}

impl Broadcast {
    /// Everybody on this machine: broadcast to 127.255.255.255:5000.
    pub fn new() -> Self {
        Self::with(Settings::loopback())
    }

    /// Everybody on the network with this broadcast address, like `10.1.255.255:5000`; without a port it is 5000.
    ///
    /// The machine must have an address in that network; as long as it has none, registrations say so, and picom keeps trying.
    ///
    /// # Errors
    /// [`RegistryError::Settings`] for what cannot be a broadcast address, and for 255.255.255.255, which leaves it to the machine
    /// which network is meant.
    pub fn to(address: &str) -> Result<Self, RegistryError> {
        Settings::broadcast(address).map(Self::with)
    }

    /// Everybody who listens to this multicast group, like `239.1.2.3:5000`; without a port it is 5000. Not beyond the first
    /// router. On loopback, unless an [`interface`](Self::interface) is named.
    ///
    /// # Errors
    /// [`RegistryError::Settings`] for what is no IPv4 multicast group.
    pub fn multicast(group: &str) -> Result<Self, RegistryError> {
        Settings::multicast(group).map(Self::with)
    }

    /// Everybody at these addresses, up to 256, each like `10.0.0.7:5000`; without a port it is 5000.
    ///
    /// Everybody is given the same list. A process listens at the first address of it that is its machine's own and free, and
    /// sends to all others.
    ///
    /// # Errors
    /// [`RegistryError::Settings`] for an empty list, one that is too long, and addresses that are not of one machine.
    pub fn unicast<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Self, RegistryError> {
        Settings::unicast(addresses).map(Self::with)
    }

    /// What `broadcast://…` names.
    pub(super) fn from_url_rest(rest: &str) -> Result<Self, RegistryError> {
        Settings::from_url(rest).map(Self::with)
    }

    fn with(settings: Settings) -> Self {
        Self { handle: Arc::new(Handle { node: Arc::new(Node::new(settings)), stop: CancellationToken::new() }) }
    }

    fn change(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.handle.node.settings.clone();
        change(&mut settings);
        Self::with(settings)
    }

    /// The time between two advertisements of an instance: 100 ms to 60 s, default 2 s. Up to a fifth of it is cut at random.
    /// Others go by what the sender announces. [`Registry::validate`] refuses other values.
    #[must_use]
    pub fn period(self, period: Duration) -> Self {
        self.change(|settings| settings.period = period)
    }

    /// The address of the interface where multicast is sent and listened to; default 127.0.0.1. [`Registry::validate`] refuses
    /// it for anything but multicast.
    #[must_use]
    pub fn interface(self, address: Ipv4Addr) -> Self {
        self.change(|settings| settings.interface = Some(address))
    }

    /// A key that everybody has: datagrams are sealed with it (XChaCha20-Poly1305), and others are refused. Use one key per
    /// network.
    ///
    /// A datagram that was heard is refused when it is shown again, for as long as its sender is remembered: 10 minutes after it
    /// was last heard, and at least the 4,096 that were heard last. What an observer has not heard, because it was started later
    /// or forgot, can be shown to it once: an instance that is long gone then seems to be there for its period and 3 s. Calls to
    /// it fail over, because nobody with its incarnation answers.
    ///
    /// # Errors
    /// [`RegistryError::Settings`] unless it has 32 bytes.
    pub fn key(self, key: impl AsRef<[u8]>) -> Result<Self, RegistryError> {
        let key = settings::key(key.as_ref())?;
        Ok(self.change(|settings| settings.key = Some(key)))
    }

    /// Whether to ignore other registries of the same process; default no. A registry never hears itself: its own instances it
    /// knows without the network.
    #[must_use]
    pub fn ignore_process(self, ignore: bool) -> Self {
        self.change(|settings| settings.ignore_process = ignore)
    }

    /// Whether to hear only: nothing is ever sent, and what is registered is known in this process only; default no. Such
    /// a registration counts as registered.
    #[must_use]
    pub fn listen_only(self, listen_only: bool) -> Self {
        self.change(|settings| settings.listen_only = listen_only)
    }

    /// Whether several processes may register one id: each is known as `id:incarnation` then, under the plain name of the service;
    /// default no. Otherwise the second user of an id is refused and reported by everybody who hears it.
    #[must_use]
    pub fn replica(self, replica: bool) -> Self {
        self.change(|settings| settings.replica = replica)
    }

    /// How many datagrams have been refused, by reason.
    pub fn refused(&self) -> Refused {
        self.handle.node.refused()
    }

    /// How often the socket was opened again, also in vain, because the network was gone or not there yet.
    pub fn reopened(&self) -> u64 {
        self.handle.node.reopened()
    }

    /// What happens from now on. Listens as long as the stream is there; a reader that falls behind by more than 1,024 events is
    /// told how many it [missed](Event::Skipped). The stream does not end.
    pub fn events(&self) -> impl Stream<Item = Event> + Send + Unpin + use<> {
        let events = self.handle.node.events();
        let handle = Arc::clone(&self.handle);
        handle.run();
        Box::pin(futures::stream::unfold((events, handle), |(mut events, handle)| async move {
            let event = match events.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(missed)) => Event::Skipped(missed),
                Err(RecvError::Closed) => return None,
            };
            Some((event, (events, handle)))
        }))
    }
}

impl Default for Broadcast {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Broadcast").field(&self.handle.node.settings).finish()
    }
}

#[async_trait]
impl Registry for Broadcast {
    fn describe(&self) -> String {
        self.handle.node.settings.to_string()
    }

    fn validate(&self) -> Result<(), RegistryError> {
        self.handle.node.settings.validate()
    }

    fn is_local(&self) -> bool {
        self.handle.node.settings.is_loopback()
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        instance.check()?;
        self.validate()?;
        let settings = &self.handle.node.settings;
        let longest = datagram::longest(&instance, settings.replica).map_err(RegistryError::Invalid)?;
        let size = longest + Seal::overhead(settings.key.is_some());
        if size > MAX_DATAGRAM {
            return Err(RegistryError::Invalid(format!(
                "instance of service {:?}: its announcement can become {size} bytes, and a datagram has room for \
                 {MAX_DATAGRAM}: give it fewer or shorter tags and meta",
                instance.service
            )));
        }
        let handle = Arc::clone(&self.handle);
        if let Some(why) = handle.run() {
            return Err(RegistryError::Unreachable(why.to_owned()));
        }
        let (key, states) = handle.node.register(instance);
        let owned = Owned { handle, key };
        let mut first = states.clone();
        let settled = first.wait_for(|state| *state != announce::first());
        // After that the state tells the rest.
        let _ = timeout(FIRST_OUTCOME, settled).await;
        Ok(registration(owned, states))
    }

    fn watch(&self, service: &str) -> Watch {
        let handle = Arc::clone(&self.handle);
        if let Err(error) = check_service_name(service).and_then(|()| self.validate()) {
            let publisher = super::feed::Publisher::new();
            publisher.trouble(error.to_string());
            return Watch::new(publisher.subscribe(), Arc::default(), Some(Arc::new(publisher)));
        }
        let alone = handle.run();
        let snapshots = handle.node.watch(service, alone);
        // There is nobody to ask again, so nobody listens to the wish.
        Watch::new(snapshots, Arc::default(), Some(handle))
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        self.handle.node.known()
    }
}

fn registration(owned: Owned, states: watch::Receiver<RegistrationState>) -> Registration {
    let node = Arc::clone(&owned.handle.node);
    let key = owned.key;
    let registration = Registration::new(states, move || {
        let left = owned.leave();
        Box::pin(async move {
            let Some(left) = left else { return Ok(()) };
            let outcome = timeout(LEAVE_LIMIT, left).await;
            drop(owned);
            outcome.ok().and_then(Result::ok).unwrap_or_else(|| {
                Err(RegistryError::Unreachable("nobody could be told; others miss it after a while".to_owned()))
            })
        })
    });
    registration.with_status(move |status| node.set_status(key, status))
}

/// Takes its registration back when dropped.
struct Owned {
    handle: Arc<Handle>,
    key: u64,
}

impl Owned {
    fn leave(&self) -> Option<Left> {
        self.handle.node.leave(self.key)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _nobody_waits = self.leave();
    }
}
