//! A registry that the nodes keep themselves, over TCP, with no server of its own.
//!
//! Owns [`Manifest`] and its options. It must never know what a service does. Look next at `record.rs` for what is told, at
//! `table/` for what is believed, at `join.rs` for who is let in, and at `engine.rs` for what keeps a member going.

mod engine;
mod events;
mod frame;
mod join;
mod link;
mod place;
mod record;
mod seal;
mod settings;
mod table;
mod trouble;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::engine::{FAREWELL, Shared, Standing};
use self::join::Side;
use self::link::Origin;
use self::record::Content;
use self::settings::{PORT, Settings, with_port};
use super::feed::Publisher;
use super::role::{self, Query};
use super::{Endpoints, Instance, Registration, Registry, RegistryError, Watch};

pub use events::{Event, Events, Refusals};
pub use record::{Details, MAX_DATA, Record, RecordId};

/// How long a registration waits for the first word of others.
const FIRST_WORD: Duration = Duration::from_secs(6);

/// A registry that the nodes keep themselves: every member holds the whole table, and tells the others what is new.
///
/// A member listens, joins others, or both; cycles do no harm, and a lost connection is made again for ever. What is registered
/// is everywhere as soon as it has travelled there. A member that is not heard for its lifetime is removed; one that leaves is
/// removed at once. Nothing is compared with a wall clock. While a member that looks for others has none, it keeps what it knew
/// last, as [`Freshness::Stale`](super::Freshness::Stale), because it cannot know who of all is cut off.
///
/// It is meant for up to about 200 members. Limits of one member: 1,024 records, 256 KiB of them, 8 KiB each; of the table:
/// 1,024 members, of whom 768 may be heard of through one connection, and 32 MiB. What is past them is refused and counted in
/// [`Manifest::refusals`], and the rest keeps working; but before a living member is refused, persistent records of members that
/// have left are forgotten, the oldest first.
///
/// A member that can only be reached by its own machine ([`Registry::is_local`]) makes nodes listen on loopback only, unless their
/// builder says where.
///
/// Clones are the same member. It lives until the last clone, watch and registration is gone, or until [`Manifest::close`].
///
/// # Who connects to whom
///
/// Any connections do, also in circles, as long as everybody is reached; best all join the same few, as with [`Manifest::local`] or
/// a common list of addresses. What changes is known everywhere at once. That a member lives waits for up to a quarter of a heartbeat
/// at each that passes it on: with more than about ten of them in a row a new member, of which only the news have come until then, is
/// taken for lost once, until its first beat has come all the way.
///
/// # Who may say what
///
/// Without a secret only connections within one machine are made or taken, unless [`Manifest::allow_remote`] was called. With
/// one, both sides of a connection prove that they know it before anything else is looked at. A record's id contains its owner,
/// and only the owner's word counts: what others say in its name is refused by the owner itself, counted, and corrected
/// everywhere as soon as it has heard of it. Members relay what they hear and do not sign it, therefore a member that knows the
/// secret *can* make others believe something false of an owner for as long as the owner has not heard of it, and for longer
/// if nothing but the liar connects the two. Whoever may not lie must not have the secret. With a secret every frame is proved,
/// so that nobody between two machines can change what they say; nothing is encrypted, and whoever listens there can read all
/// records. Persistent records may be freed by every member; and when their owner is gone nobody is left who would correct what
/// is said in its name, so that every member can also rewrite them, and others believe it until somebody frees them. Whoever has
/// the secret can also fill the table with members that do not exist: those that are known stay, and others are refused and
/// counted until the liar is gone for a lifetime. One connection alone brings no more than 768 of the 1,024 members.
///
/// ```no_run
/// # async fn example() -> Result<(), picom::registry::RegistryError> {
/// use picom::registry::{Details, Manifest};
///
/// let manifest = Manifest::local();
/// let record = manifest.register("calc@1.2.3", Details { port: 4000, ..Details::default() })?;
/// assert_eq!(manifest.get("calc@^1.2")?, [record.clone()]);
/// manifest.free(record.id)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Manifest {
    settings: Settings,
    core: Arc<OnceLock<Result<Arc<Core>, RegistryError>>>,
}

/// What users hold of a member. With the last of them the member ends.
struct Core(Arc<Shared>);

impl Drop for Core {
    fn drop(&mut self) {
        self.0.end.cancel();
    }
}

impl Manifest {
    /// A member that neither listens nor joins anybody until it is told to. Starts when it is first used.
    pub fn new() -> Self {
        Self::with(Settings::new())
    }

    /// The members on this machine. The first process takes 127.0.0.1:3100, the others join it, and when it dies another takes
    /// its place. Without a secret whatever process of this machine connects to the port is a member, of whichever user or container that
    /// shares its network, and may register services; [`Manifest::secret`] keeps others out. Nodes listen on 127.0.0.1 only,
    /// unless [`bind`](crate::Builder::bind) says where.
    pub fn local() -> Self {
        Self::local_on(PORT)
    }

    /// The same on another port.
    pub fn local_on(port: u16) -> Self {
        Self::new().change(|settings| settings.local = Some(port))
    }

    /// What `manifest://…` names.
    pub(super) fn from_url_parts(rest: &str) -> Result<Self, RegistryError> {
        Settings::parse(rest).map(Self::with)
    }

    fn with(settings: Settings) -> Self {
        Self { settings, core: Arc::default() }
    }

    fn change(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        Self::with(self.settings)
    }

    /// Also listens on this IP address and port; port 3100 if there is none, any free one for 0. May be called several times.
    #[must_use]
    pub fn listen(self, address: impl AsRef<str>) -> Self {
        self.change(|settings| settings.listen.push(with_port(address.as_ref())))
    }

    /// Also joins the member at this address, `host:port`, and again whenever that is lost; port 3100 if there is none. May be
    /// called several times; one that is this very member does no harm.
    #[must_use]
    pub fn join(self, address: impl AsRef<str>) -> Self {
        self.change(|settings| settings.join.push(with_port(address.as_ref())))
    }

    /// The secret that all members share, at least 16 bytes; default none. It is never shown.
    #[must_use]
    pub fn secret(self, secret: impl AsRef<[u8]>) -> Self {
        self.change(|settings| settings.set_secret(secret.as_ref().to_vec()))
    }

    /// A file with the secret, without white space around it, which is read for every connection. It wins over
    /// [`Self::secret`].
    #[must_use]
    pub fn secret_file(self, path: impl Into<PathBuf>) -> Self {
        self.change(|settings| settings.secret_file = Some(path.into()))
    }

    /// How often a member tells that it lives: 50 ms to 1 min, default 2 s. Should be the same for all members.
    #[must_use]
    pub fn heartbeat(self, heartbeat: Duration) -> Self {
        self.change(|settings| settings.heartbeat = heartbeat)
    }

    /// After which time without a word of it a member is removed: twice the heartbeat to 10 min, default 6 s. Measured by the
    /// monotonic clock of whoever removes it.
    #[must_use]
    pub fn lifetime(self, lifetime: Duration) -> Self {
        self.change(|settings| settings.lifetime = lifetime)
    }

    /// Lets other machines join, and joins them, also without a secret. Whoever can reach the port can then add services.
    #[must_use]
    pub fn allow_remote(self) -> Self {
        self.change(|settings| settings.allow_remote = true)
    }

    /// Registers a role, `name` or `name@version` with a whole [semantic version](https://semver.org), and returns its record. It
    /// stays until it is freed or the member ends.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] for a name, an address or data that no member would take, past the limits of one member, and
    /// after [`Manifest::close`]; [`RegistryError::Settings`] for settings that cannot work or outside of a tokio runtime.
    pub fn register(&self, role: &str, details: Details) -> Result<Record, RegistryError> {
        role::check(role)?;
        let core = self.core()?;
        let content = Content::of_details(role, details);
        let record = core.0.with(|table, now| {
            let id = table.add(content, now)?;
            table.find(|record| record.id == id).pop().ok_or_else(|| RegistryError::Invalid("it was freed".to_owned()))
        })?;
        core.0.publish();
        Ok(record)
    }

    /// Takes back a record of one's own, or a persistent one of anybody's, and returns it. The others learn of it at once.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] if there is no such record or it is not one's own.
    pub fn free(&self, id: RecordId) -> Result<Record, RegistryError> {
        let core = self.core()?;
        let record = core.0.with(|table, now| table.free(id, now))?;
        if record.id.owner == core.0.owner() {
            core.0.unfollow(record.id.number);
        }
        core.0.publish();
        Ok(record)
    }

    /// Copies of the records of a role, oldest first: `calc`, `calc@1.2.3`, or a range as in `calc@^1.2`.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] for what is not a role.
    pub fn get(&self, role: &str) -> Result<Vec<Record>, RegistryError> {
        let query = Query::parse(role)?;
        Ok(self.core()?.0.peek(|table| table.get(&query)))
    }

    /// Copies of the records that fit, oldest first. Looks at all; [`Manifest::get`] is quicker where a role is wanted.
    ///
    /// # Errors
    /// As [`Manifest::services`].
    pub fn find(&self, fits: impl FnMut(&Record) -> bool) -> Result<Vec<Record>, RegistryError> {
        Ok(self.core()?.0.peek(|table| table.find(fits)))
    }

    /// Copies of all records, oldest first.
    ///
    /// # Errors
    /// [`RegistryError::Settings`] for settings that cannot work or outside of a tokio runtime.
    pub fn services(&self) -> Result<Vec<Record>, RegistryError> {
        self.find(|_| true)
    }

    /// What happens from now on.
    ///
    /// # Errors
    /// As [`Manifest::services`].
    pub fn events(&self) -> Result<Events, RegistryError> {
        Ok(Events::new(self.core()?.0.events.subscribe()))
    }

    /// How often something was refused.
    pub fn refusals(&self) -> Refusals {
        self.core().map(|core| core.0.peek(|table| table.refusals)).unwrap_or_default()
    }

    /// The members that are connected to this one.
    pub fn connected(&self) -> Vec<u64> {
        self.core().map(|core| core.0.peek(|table| table.links())).unwrap_or_default()
    }

    /// This member's own number, which all ids of its records begin with. It changes only when another member abuses it.
    ///
    /// # Errors
    /// As [`Manifest::services`].
    pub fn owner(&self) -> Result<u64, RegistryError> {
        Ok(self.core()?.0.owner())
    }

    /// Where it listens, once it listens on as many addresses as it was told. Waits for ever if one of them is taken for ever;
    /// cancel safe.
    ///
    /// # Errors
    /// As [`Manifest::services`].
    pub async fn listening(&self) -> Result<Vec<SocketAddr>, RegistryError> {
        let core = self.core()?;
        let wanted = self.settings.listen.len();
        let mut listening = core.0.listening.subscribe();
        let all = listening.wait_for(|listening| listening.len() >= wanted).await;
        Ok(all.map(|listening| listening.values().copied().collect()).unwrap_or_default())
    }

    /// Leaves: takes back all records except for persistent ones, tells those who are connected, and ends. Takes at most about
    /// a second. Nothing can be registered afterwards. Giving up on it does not stop it.
    pub async fn close(&self) {
        let Ok(core) = self.core() else { return };
        core.0.end.cancel();
        // The engine gives itself as long; without one there is nothing to wait for.
        let _ = timeout(FAREWELL * 2, core.0.stop.cancelled()).await;
    }

    /// Connects to another member over anything that carries bytes, as the one who dialled or the one who answered. For tests
    /// and measurements without a network.
    #[doc(hidden)]
    pub fn attach<I>(&self, io: I, dialled: bool) -> Result<(), RegistryError>
    where
        I: AsyncRead + AsyncWrite + Send + 'static,
    {
        let shared = Arc::clone(&self.core()?.0);
        let side = if dialled { Side::Dialled } else { Side::Answered };
        tokio::spawn(async move {
            link::run(
                &shared,
                io,
                Origin { side, peer: None, own: None, place: None, permit: CancellationToken::new() },
            )
            .await;
        });
        Ok(())
    }

    fn core(&self) -> Result<Arc<Core>, RegistryError> {
        let make = || Shared::new(self.settings.clone()).map(|shared| Arc::new(Core(Arc::new(shared))));
        let core = self.core.get_or_init(make).clone()?;
        core.0.start()?;
        Ok(core)
    }
}

impl Default for Manifest {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

#[async_trait]
impl Registry for Manifest {
    fn describe(&self) -> String {
        self.settings.describe()
    }

    fn validate(&self) -> Result<(), RegistryError> {
        self.settings.validate()?;
        self.settings.secret().map(drop)
    }

    fn is_local(&self) -> bool {
        self.settings.is_local()
    }

    async fn register(&self, instance: Instance) -> Result<Registration, RegistryError> {
        instance.check()?;
        let core = self.core()?;
        let (id, replaced) = core.0.with(|table, now| {
            let id = table.add(Content::of_instance(instance), now)?;
            let replaced = table.predecessors(id);
            replaced.iter().try_for_each(|old| table.free(*old, now).map(drop))?;
            Ok::<_, RegistryError>((id, replaced))
        })?;
        replaced.iter().for_each(|old| core.0.unfollow(old.number));
        // Taken back from here on, also when nobody waits for the rest.
        let owned = Owned { core: Arc::clone(&core), id };
        let states = core.0.follow(id.number);
        core.0.publish();
        let mut standing = core.0.standing.subscribe();
        let _ = timeout(FIRST_WORD, standing.wait_for(|standing| *standing != Standing::Unknown)).await;
        let shared = Arc::clone(&core.0);
        let registration = Registration::new(states, move || {
            Box::pin(async move {
                let core = Arc::clone(&owned.core);
                drop(owned);
                match timeout(FAREWELL, core.0.all_told()).await {
                    Ok(()) => Ok(()),
                    Err(_) => Err(RegistryError::Unreachable(
                        "manifest: a member that is connected does not listen; it will learn that the service left later"
                            .to_owned(),
                    )),
                }
            })
        });
        Ok(registration.with_status(move |status| shared.with(|table, now| table.set_status(id.number, &status, now))))
    }

    fn watch(&self, service: &str) -> Watch {
        match Query::parse(service).and_then(|query| Ok((query, self.core()?))) {
            Ok((query, core)) => {
                let refresh = Arc::clone(&core.0.refresh);
                Watch::new(core.0.subscribe(query), refresh, Some(core))
            }
            Err(error) => {
                let publisher = Publisher::new();
                publisher.trouble(error.to_string());
                Watch::new(publisher.subscribe(), Arc::default(), Some(Arc::new(publisher)))
            }
        }
    }

    fn known(&self) -> BTreeMap<String, Arc<Endpoints>> {
        self.core().map(|core| core.0.known()).unwrap_or_default()
    }
}

/// Takes its registration back when dropped.
struct Owned {
    core: Arc<Core>,
    id: RecordId,
}

impl Drop for Owned {
    fn drop(&mut self) {
        let shared = &self.core.0;
        // It may have been freed by its id. Under which name does not matter: numbers are never used again.
        let _ = shared.with(|table, now| table.free(RecordId { owner: table.me, ..self.id }, now));
        shared.unfollow(self.id.number);
        shared.publish();
    }
}
