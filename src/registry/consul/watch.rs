//! Keeps the list of one service up to date.
//!
//! Owns the loop of blocking queries, the rules of their index, and what is believed of an answer. It must never
//! lose a list that was good because of an answer that is not. Look next at `entries.rs` for one answer, and at
//! `../feed.rs` for who runs this and for how long.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Group;
use super::entries;
use super::http::{CALL_TIMEOUT, Health, Read};
use super::pace::{Backoff, Bucket, LogGate, about, up_to};
use super::trouble::{Kind, Trouble};
use crate::registry::feed::Publisher;
use crate::registry::{Endpoint, Freshness, Tier};

/// How often the list is read without waiting. It bounds any blindness of the blocking query, whatever its cause.
const REREAD: Duration = Duration::from_secs(60);

/// From when on a server without a leader is too far behind to be believed.
const MAX_LAG: Duration = Duration::from_secs(30);

/// The pause after a refusal for lack of rights, at its longest.
const DENIED_CAP: Duration = Duration::from_secs(60);

/// The longest pause after a failure while there is a list, which goes on being used: the TTL, for by so much any list may be
/// behind, but never more than this. When an agent comes back, all who watch through it come back too: in one moment, or spread
/// over this time. Whoever loses a connection or finds nobody to call does not wait for its end.
const MAX_SPREAD: Duration = Duration::from_secs(30);

/// Runs until it is dropped.
pub(super) async fn run(group: Arc<Group>, service: String, publisher: Publisher, refresh: Arc<Notify>) {
    let watcher = Watcher {
        group,
        service,
        publisher,
        refresh,
        bucket: Bucket::new(),
        reread_at: Instant::now() + REREAD,
        newest: 0,
        remembered: None,
        empty_note: None,
        rejected: BTreeSet::new(),
        gate: LogGate::default(),
        troubled: false,
    };
    watcher.run().await;
}

struct Watcher {
    group: Arc<Group>,
    service: String,
    publisher: Publisher,
    refresh: Arc<Notify>,
    bucket: Bucket,
    reread_at: Instant,
    /// The index of the last answer.
    newest: u64,
    /// Those who are not listed any more and yet may be there.
    remembered: Option<Remembered>,
    /// What there is to say about an empty list, once it has been found out.
    empty_note: Option<Option<String>>,
    /// What was wrong with the last list.
    rejected: BTreeSet<String>,
    gate: LogGate,
    troubled: bool,
}

/// Who was known before a list that is not to be believed yet.
#[derive(Default)]
struct Remembered {
    /// As they were listed last, and until when that counts.
    missing: HashMap<SocketAddr, (Arc<Endpoint>, Instant)>,
    /// Whether Consul was away or went back: then it may have forgotten everybody, and they register again one by one. Calls must
    /// not all go to the first of them.
    forgotten: bool,
}

impl Watcher {
    async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
        let mut denied = Backoff::new(Duration::from_secs(1), DENIED_CAP);
        let mut tokens = self.group.api.tokens();
        // 0 means: read at once. Whatever is in doubt leads back to it, because a query with too high an index would
        // sleep through every change.
        let mut index = 0;
        loop {
            self.bucket.wait().await;
            let outcome = match self.ask(index).await {
                Ok(health) => {
                    index = next_index(index, health.index);
                    self.accept(health).await
                }
                Err(trouble) => Err(trouble),
            };
            match outcome {
                Ok(()) => {
                    self.recovered();
                    backoff.reset();
                    denied.reset();
                    if self.rest().await {
                        index = 0;
                    }
                }
                Err(trouble) => {
                    index = 0;
                    self.report(&trouble);
                    if trouble.kind == Kind::Denied {
                        // Wishes to look again are not heard here: more questions do not make for more rights.
                        self.group.api.reload_token();
                        tokio::select! {
                            () = sleep(about(denied.next())) => {}
                            _ = tokens.changed() => {}
                        }
                    } else {
                        let pause = self.pause(&mut backoff);
                        tokio::select! {
                            () = sleep(pause) => {}
                            () = self.refresh.notified() => {}
                        }
                    }
                }
            }
        }
    }

    /// The pause after a failure. The first is short, for what failed may have been one connection; who has no list goes on
    /// with doubling ones, for somebody may wait for it.
    fn pause(&self, backoff: &mut Backoff) -> Duration {
        let pause = backoff.next();
        let has_list = self.publisher.current().freshness != Freshness::Never;
        up_to(if has_list && backoff.tries() > 1 { self.spread() } else { pause })
    }

    fn spread(&self) -> Duration {
        self.group.api.settings.ttl.min(MAX_SPREAD)
    }

    /// The pause before the next answer while Consul hears again from those it has forgotten. Each of them is news to all who watch,
    /// and if all of these asked every time, that would be many questions; whoever remembers the others can wait until all are back
    /// and everybody has asked once. Says whether somebody wants the list at once.
    async fn rest(&self) -> bool {
        let Some(remembered) = self.remembered.as_ref().filter(|remembered| remembered.forgotten) else { return false };
        // In time for another answer before all of them are given up.
        let until = remembered.missing.values().map(|(_, until)| *until).max();
        let most = until.unwrap_or_else(Instant::now).saturating_duration_since(Instant::now()) / 2;
        tokio::select! {
            () = sleep(about(self.spread()).min(most)) => false,
            () = self.refresh.notified() => true,
        }
    }

    /// The next answer: at once for index 0, else when something may have changed.
    async fn ask(&mut self, index: u64) -> Result<Health, Trouble> {
        if index == 0 {
            return self.read_now().await;
        }
        let group = Arc::clone(&self.group);
        let service = self.service.clone();
        let mut query = pin!(group.api.health(&service, Read::StaleAfter(index), CALL_TIMEOUT));
        loop {
            let forget_at = self.remembered.iter().flat_map(|r| r.missing.values()).map(|(_, until)| *until).min();
            tokio::select! {
                answer = &mut query => return answer,
                () = self.refresh.notified() => {}
                () = sleep_until(self.reread_at) => {}
                () = sleep_until(forget_at.unwrap_or(self.reread_at)), if forget_at.is_some() => {
                    self.forget();
                    continue;
                }
            }
            // The query goes on meanwhile: Consul would count an abandoned one until its wait ends.
            self.bucket.wait().await;
            let health = self.read_now().await?;
            if health.index.max(1) < index {
                return Ok(health);
            }
            self.accept(health).await?;
        }
    }

    async fn read_now(&mut self) -> Result<Health, Trouble> {
        self.reread_at = Instant::now() + about(REREAD);
        self.group.api.health(&self.service, Read::Stale, CALL_TIMEOUT).await
    }

    /// Publishes what the answer says, as far as it can be believed.
    async fn accept(&mut self, mut health: Health) -> Result<(), Trouble> {
        if health.last_contact > MAX_LAG {
            match self.group.api.health(&self.service, Read::Leader, CALL_TIMEOUT).await {
                Ok(current) => health = current,
                Err(trouble) => {
                    if self.publisher.current().freshness == Freshness::Never {
                        // An old list is better than none.
                        self.publisher.stale(entries::parse(health.entries).endpoints, trouble.text.clone());
                    }
                    return Err(trouble);
                }
            }
        }
        let parsed = entries::parse(health.entries);
        self.note_rejected(parsed.rejected);
        let went_back = health.index.max(1) < self.newest;
        self.newest = health.index.max(1);
        let is_empty = parsed.endpoints.is_empty();
        self.doubt(&parsed.endpoints, self.troubled || went_back);
        if self.remembered.is_some() {
            self.publish_remembered(&parsed.endpoints);
        } else if is_empty {
            self.publish_empty();
        } else {
            self.publisher.live(parsed.endpoints, None);
        }
        if !is_empty {
            self.empty_note = None;
        } else if self.empty_note.is_none() && self.remembered.is_none() {
            // Not while those known before are remembered: a restarted agent has enough to answer.
            // An answer that rights have emptied looks like any other; it must not look like "nobody is there".
            let hidden = health.filtered || self.group.api.checks_rights().await;
            self.empty_note = Some(hidden.then(|| self.note_on_rights()));
            self.publish_empty();
        }
        Ok(())
    }

    /// Works out who is remembered although this list lacks them. A restarted agent answers with an empty list, and then with whoever
    /// has registered again so far; so does one that was `away`, as far as can be seen. What was known is kept for a while, for
    /// calls to find out for themselves. Who has been seen again counts as any other does, and is gone when the list lacks it.
    fn doubt(&mut self, listed: &[Endpoint], away: bool) {
        let (now, until) = (Instant::now(), Instant::now() + self.group.api.settings.stale_grace());
        let mut remembered = self.remembered.take().unwrap_or_default();
        remembered.forgotten |= away;
        if away || listed.is_empty() {
            for endpoint in &self.publisher.current().endpoints {
                let missing = remembered.missing.entry(endpoint.addr).or_insert_with(|| (Arc::clone(endpoint), until));
                // The time in which Consul was away does not count: nobody could come back.
                if away && missing.1 <= now {
                    missing.1 = until;
                }
            }
        }
        let addresses: HashSet<_> = listed.iter().map(|endpoint| endpoint.addr).collect();
        remembered.missing.retain(|addr, (_, until)| *until > now && !addresses.contains(addr));
        if !remembered.missing.is_empty() && (remembered.forgotten || listed.is_empty()) {
            self.remembered = Some(remembered);
        }
    }

    fn publish_remembered(&self, listed: &[Endpoint]) {
        let Some(Remembered { missing, .. }) = &self.remembered else { return };
        let (consul, service, more) = (self.group.api.describe(), &self.service, missing.len());
        let grace = self.group.api.settings.stale_grace();
        let problem = match listed.len() {
            0 => format!(
                "{consul} lists no instance of {service:?} any more; the {more} known before are remembered for {grace:?}"
            ),
            some => format!(
                "{consul} lists only {some} of {service:?} since it was away; {more} others known before are remembered for \
                 {grace:?}"
            ),
        };
        // For want of others; where there are some, they are to be called as much as those.
        let tier = |endpoint: &Endpoint| if listed.is_empty() { Tier::Unhealthy } else { endpoint.tier };
        let remembered =
            missing.values().map(|(endpoint, _)| Endpoint { tier: tier(endpoint), ..(**endpoint).clone() });
        let all = remembered.chain(listed.iter().cloned()).collect();
        self.publisher.stale(all, problem);
    }

    /// Gives up those whose time is over.
    fn forget(&mut self) {
        let Some(mut remembered) = self.remembered.take() else { return };
        let known = self.publisher.current();
        let listed = known.endpoints.iter().filter(|endpoint| !remembered.missing.contains_key(&endpoint.addr));
        let listed: Vec<_> = listed.map(|endpoint| (**endpoint).clone()).collect();
        remembered.missing.retain(|_, (_, until)| *until > Instant::now());
        if !remembered.missing.is_empty() {
            self.remembered = Some(remembered);
            self.publish_remembered(&listed);
        } else if listed.is_empty() {
            // To find out why nobody is there.
            self.reread_at = Instant::now();
            self.publish_empty();
        } else {
            self.publisher.live(listed, None);
        }
    }

    fn publish_empty(&self) {
        let rejected = self.rejected.first().map(|first| {
            let number = self.rejected.len();
            format!("{} lists {number} unusable entries of {:?}: {first}", self.group.api.describe(), self.service)
        });
        self.publisher.live(Vec::new(), rejected.or_else(|| self.empty_note.clone().flatten()));
    }

    fn note_on_rights(&self) -> String {
        format!(
            "{} lists no instance of {:?}; it checks rights, and answers so too when the token lacks service:read on \
             that name or node:read",
            self.group.api.describe(),
            self.service
        )
    }

    /// Counts what was not wrong in the last list already.
    fn note_rejected(&mut self, rejected: Vec<String>) {
        let rejected: BTreeSet<_> = rejected.into_iter().collect();
        let fresh: Vec<_> = rejected.difference(&self.rejected).collect();
        if let Some(first) = fresh.first() {
            let number = fresh.len();
            self.group.rejected.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
            tracing::warn!(service = self.service, number, first, "entries in consul are unusable and left out");
        }
        self.rejected = rejected;
    }

    fn report(&mut self, trouble: &Trouble) {
        if self.gate.open() {
            tracing::warn!(service = self.service, problem = trouble.text, "cannot read the instances of a service");
        }
        self.troubled = true;
        self.publisher.trouble(trouble.text.clone());
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.troubled) {
            tracing::info!(service = self.service, "{} answers again", self.group.api.describe());
        }
    }
}

/// Where to wait on. An index that went down belongs to another Consul than the one before, so the list is read anew;
/// 0 and 1 ask for nothing newer than what any Consul has.
fn next_index(before: u64, now: u64) -> u64 {
    let now = now.max(1);
    if now < before { 0 } else { now }
}
