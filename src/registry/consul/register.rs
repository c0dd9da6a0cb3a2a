//! Keeps one instance registered.
//!
//! Owns one task per registration: register, beat, see it listed, beat, register again whatever happened, take back.
//! Its steps follow each other in one task, so that no beat can be under way when the instance is taken back. It runs
//! on the runtime that serves calls: when that one hangs, the beats must stop. Look next at `http.rs` for the calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Group;
use super::entries::{self, INCARNATION, ZONE, own_check};
use super::http::{CALL_TIMEOUT, Read};
use super::note;
use super::pace::{Backoff, LogGate, about, up_to};
use super::trouble::{Kind, Trouble};
use crate::registry::{Instance, Registration, RegistrationState, RegistryError};
use crate::state::{NodeState, NodeStatus};

/// How often the instance is registered again although nothing seems wrong.
const REREGISTER: Duration = Duration::from_secs(60);

/// The same for one that is not to be called, which is also how often it beats at least. Its check is critical, and Consul
/// removes what has been critical for `deregister_after`, of which the least is a minute; to be registered anew starts that time
/// anew.
const REREGISTER_CRITICAL: Duration = Duration::from_secs(20);

/// How long `register` waits for the outcome of the first attempt.
const FIRST_OUTCOME: Duration = Duration::from_secs(5);

/// From this TTL on there is room for a lost beat on a busy machine.
const COMFORTABLE_TTL: Duration = Duration::from_secs(3);

/// How long a pause for lack of rights becomes.
const DENIED_CAP: Duration = Duration::from_secs(60);

/// How often it is tried to take the instance back.
const LEAVE_TRIES: u32 = 3;

/// How long an agent that has never answered may take for that, the only time that it is asked: it probably has nothing to take
/// back, and what it has nevertheless heard of it forgets by itself.
const LEAVE_UNHEARD: Duration = Duration::from_secs(1);

/// How long after that its disappearance from the list is waited for.
const VANISH: Duration = Duration::from_secs(2);

/// How long the pause after a failed step becomes.
const FAILED_CAP: Duration = Duration::from_secs(10);

/// The looks at the list after which a registration that is not there counts as trouble: about 1.3 s.
const PATIENT_LOOKS: u32 = 6;

/// Starts the task and waits for the outcome of its first attempt, at most 5 s.
pub(super) async fn start(group: Arc<Group>, instance: &Instance) -> Result<Registration, RegistryError> {
    let body = body(&group, instance)?;
    let ttl = group.api.settings.ttl;
    if ttl < COMFORTABLE_TTL {
        tracing::warn!(?ttl, "with a TTL under 3 s a busy machine may look dead");
    }
    let waiting = format!("{} has not answered yet", group.api.describe());
    let (state, states) = watch::channel(RegistrationState::Retrying(waiting));
    let (status, statuses) = watch::channel(instance.status.clone());
    let (first, outcome) = oneshot::channel();
    let stop = CancellationToken::new();
    let registrar = Registrar {
        service: instance.service.clone(),
        id: instance.id.clone(),
        incarnation: instance.incarnation,
        check_id: own_check(&instance.id),
        body,
        status: instance.status.clone(),
        statuses,
        ttl,
        state,
        first: Some(first),
        unknown: true,
        due: Instant::now(),
        reregister_at: Instant::now(),
        look_at: None,
        looks: 0,
        was_listed: false,
        comes_back: false,
        forgotten: false,
        failures: Backoff::new(Duration::from_millis(250), (ttl / 3).min(FAILED_CAP)),
        denials: Backoff::new(Duration::from_secs(1), DENIED_CAP),
        denied: false,
        gate: LogGate::default(),
        group,
    };
    let guard = stop.clone().drop_guard();
    let task = tokio::spawn(registrar.run(stop));
    let registration = Registration::new(states, move || {
        drop(guard);
        Box::pin(async move {
            task.await.unwrap_or_else(|error| Err(RegistryError::Unreachable(format!("not taken back: {error}"))))
        })
    });
    let registration = registration.with_status(move |new| {
        // One that goes down is taken back right away, and Consul has no place for what it said last.
        if new.state != NodeState::Down {
            status.send_replace(new);
        }
    });
    match timeout(FIRST_OUTCOME, outcome).await {
        Ok(Ok(Err(refusal))) => Err(refusal),
        _ => Ok(registration),
    }
}

/// What Consul is told of the instance. Consul refuses fields that it does not know.
fn body(group: &Group, instance: &Instance) -> Result<Value, RegistryError> {
    let mut meta: BTreeMap<&str, String> = instance.meta.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    meta.insert(INCARNATION, format!("{:016x}", instance.incarnation));
    if let Some(zone) = &instance.zone {
        meta.insert(ZONE, zone.clone());
    }
    let legal_key = |key: &str| {
        (1..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if meta.len() > 64 || !meta.iter().all(|(key, value)| legal_key(key) && value.len() <= 512) {
        return Err(RegistryError::Invalid(format!(
            "service {:?}: consul holds at most 62 pairs of meta and a zone, with keys of 1 to 128 letters, digits, - \
             and _, and values of up to 512 bytes",
            instance.service
        )));
    }
    let settings = &group.api.settings;
    let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
    // Left empty, it means the address of the agent's machine.
    let address = instance.address.filter(|ip| !ip.is_unspecified()).map_or_else(String::new, |ip| ip.to_string());
    Ok(json!({
        "ID": instance.id,
        "Name": instance.service,
        "Address": address,
        "Port": instance.port,
        "Tags": instance.tags,
        "Meta": meta,
        "Weights": { "Passing": instance.weight, "Warning": 1 },
        "Check": {
            "CheckID": own_check(&instance.id),
            "Name": format!("{} lives", instance.service),
            "TTL": milliseconds(settings.ttl),
            "DeregisterCriticalServiceAfter": milliseconds(settings.deregister_after()),
        },
    }))
}

struct Registrar {
    group: Arc<Group>,
    service: String,
    id: String,
    incarnation: u64,
    check_id: String,
    /// Everything but its status.
    body: Value,
    /// What it says of itself.
    status: NodeStatus,
    statuses: watch::Receiver<NodeStatus>,
    ttl: Duration,
    state: watch::Sender<RegistrationState>,
    /// Told once, when the first attempt has an outcome.
    first: Option<oneshot::Sender<Result<(), RegistryError>>>,
    /// Whether the agent may not know the instance.
    unknown: bool,
    /// When the next beat or attempt is to be made.
    due: Instant,
    reregister_at: Instant,
    /// When to look next whether the instance is listed; `None` once it was.
    look_at: Option<Instant>,
    looks: u32,
    /// Whether it has ever been seen listed.
    was_listed: bool,
    /// Whether it is to be registered again because its agent was away: then many others are, and nobody waits for it.
    comes_back: bool,
    /// Whether the agent has said that it does not know the check, which therefore begins as the registration says.
    forgotten: bool,
    failures: Backoff,
    denials: Backoff,
    /// Whether the last step was refused for lack of rights, so that another token is worth a step.
    denied: bool,
    gate: LogGate,
}

impl Registrar {
    /// Until stopped; then takes the instance back. A step that has begun is waited for, because a request that the
    /// agent handles late would bring the instance back; but not if no step has ever come to an end.
    async fn run(mut self, stop: CancellationToken) -> Result<(), RegistryError> {
        let mut tokens = self.group.api.tokens();
        loop {
            let look_at = self.look_at.filter(|at| *at <= self.due);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(look_at.unwrap_or(self.due)) => {}
                _ = tokens.changed(), if self.denied => {}
                Ok(()) = self.statuses.changed() => {
                    // Registered anew, because the notes of a check are part of its definition; and seen listed again.
                    self.lost();
                    (self.comes_back, self.forgotten) = (false, false);
                    self.due = Instant::now();
                    continue;
                }
            }
            self.denied = false;
            let group = Arc::clone(&self.group);
            let in_vain = async {
                stop.cancelled().await;
                if group.api.has_answered() {
                    std::future::pending::<()>().await;
                }
            };
            let step = async { if look_at.is_some() { self.look().await } else { self.beat().await } };
            let step = tokio::select! {
                step = step => step,
                () = in_vain => break,
            };
            if let Err(trouble) = step {
                if trouble.kind == Kind::Refused && self.first.is_some() {
                    self.settle(Err(RegistryError::Invalid(trouble.text)));
                    return Ok(());
                }
                self.failed(trouble);
            }
        }
        let outcome = self.leave().await;
        self.state.send_replace(RegistrationState::Left);
        outcome
    }

    /// A sign of life, with a registration before or after it if one is due.
    async fn beat(&mut self) -> Result<(), Trouble> {
        if self.unknown {
            self.status = self.statuses.borrow_and_update().clone();
        }
        let passes = note::passes(self.status.state);
        let api = &self.group.api;
        let quick = (self.ttl / 6).min(CALL_TIMEOUT);
        let patient = (self.ttl / 3).clamp(Duration::from_millis(500), CALL_TIMEOUT);
        let told = if self.unknown { api.register(&self.body(), patient).await } else { Ok(()) };
        if matches!(&told, Err(trouble) if matches!(trouble.kind, Kind::Denied | Kind::Refused)) {
            return told;
        }
        // Without a leader an agent takes the instance but answers only after 7 s. The beats must go on meanwhile: an
        // instance that turns critical now is what everybody sees when there is a leader again. Where the check is new, the
        // next beat is soon enough: a restarted agent hears enough from everybody.
        let alive = if self.forgotten && told.is_ok() { Ok(()) } else { api.beat(&self.check_id, passes, quick).await };
        if let Err(trouble) = alive {
            return Err(told.err().unwrap_or(trouble));
        }
        let now = Instant::now();
        let pause = if passes { self.ttl / 3 } else { (self.ttl / 3).min(REREGISTER_CRITICAL) };
        self.due = now + about(pause);
        if self.unknown {
            // Whoever comes back looks after the next beat, when the others have registered too.
            self.look_at = Some(if self.comes_back { self.due + up_to(self.ttl / 3) } else { now });
            self.looks = 0;
            self.reregister_at = next_reregister(passes);
            (self.unknown, self.comes_back, self.forgotten) = (false, false, false);
        }
        self.failures.reset();
        self.denials.reset();
        if now >= self.reregister_at {
            self.reregister_at = next_reregister(passes);
            // Consul keeps the status of a check that it knows.
            api.register(&self.body(), patient).await?;
        }
        Ok(())
    }

    /// What Consul is told, with the state of the node.
    fn body(&self) -> Value {
        let mut body = self.body.clone();
        let status = if note::passes(self.status.state) { "passing" } else { "critical" };
        body["Check"]["Status"] = status.into();
        body["Check"]["Notes"] = note::write(&self.status).into();
        body
    }

    /// Whether others can see the instance: an agent without a leader takes it too, but nobody learns of it.
    async fn look(&mut self) -> Result<(), Trouble> {
        self.looks += 1;
        let timeout = (self.ttl / 3).min(CALL_TIMEOUT);
        let api = &self.group.api;
        let hidden = match api.health(&self.service, Read::Own, timeout).await {
            Ok(health) if entries::shows_as(&health.entries, &self.id, self.incarnation, &self.status) => {
                self.registered();
                return Ok(());
            }
            Ok(health) => {
                self.looks >= PATIENT_LOOKS
                    && health.entries.is_empty()
                    && (health.filtered || api.checks_rights().await)
            }
            Err(trouble) if trouble.kind == Kind::Denied => true,
            Err(trouble) => {
                self.look_again();
                self.not_seen(trouble.text);
                return Ok(());
            }
        };
        if hidden {
            tracing::debug!(service = self.service, "the token may register but not read: not seen in consul's list");
            self.registered();
            return Ok(());
        }
        self.look_again();
        if self.looks >= PATIENT_LOOKS {
            // What is listed may be the entry of a predecessor with the same id: the next beat registers again.
            self.unknown = true;
            let text = format!(
                "{} has taken the registration but does not list it as {}",
                self.group.api.describe(),
                self.status.state
            );
            self.not_seen(text);
        }
        Ok(())
    }

    fn look_again(&mut self) {
        let pause = Duration::from_millis(20 << self.looks.min(6));
        self.look_at = Some(Instant::now() + about(pause));
    }

    fn not_seen(&mut self, text: String) {
        self.become_state(RegistrationState::Retrying(text));
        self.settle(Ok(()));
    }

    fn registered(&mut self) {
        self.look_at = None;
        self.was_listed = true;
        self.become_state(RegistrationState::Registered);
        self.settle(Ok(()));
    }

    /// Decides what a failed step means and when the next one is made.
    fn failed(&mut self, trouble: Trouble) {
        self.forgotten = false;
        let pause = match trouble.kind {
            Kind::Unknown if !self.unknown => {
                self.lost();
                self.forgotten = true;
                self.comes_back = self.was_listed;
                self.become_state(RegistrationState::Retrying(trouble.text));
                // A restarted agent hears from everybody at once, unless they spread.
                self.due = Instant::now() + up_to(self.ttl / 6);
                return;
            }
            Kind::Denied => {
                self.lost();
                self.denied = true;
                self.group.api.reload_token();
                self.become_state(RegistrationState::Denied(trouble.text));
                about(self.denials.next())
            }
            // An agent that forgets what it was just told is in trouble of another kind.
            Kind::Unknown | Kind::Limited | Kind::Refused | Kind::Failed => {
                let pause = self.failures.next();
                // One lost beat is nothing; two may mean that the agent has lost its memory.
                if self.unknown || self.failures.tries() >= 2 {
                    self.lost();
                    self.become_state(RegistrationState::Retrying(trouble.text));
                }
                if self.was_listed && self.failures.tries() >= 2 {
                    // The agent is away. All others have noticed too, and would be back with it within the same moment; so
                    // each of them takes any moment of a beat, which leaves the TTL room for two more tries.
                    self.comes_back = true;
                    up_to((self.ttl / 3).min(FAILED_CAP))
                } else {
                    about(pause)
                }
            }
        };
        self.due = Instant::now() + pause;
        self.settle(Ok(()));
    }

    /// The agent may have forgotten the instance: nothing seen in the list counts before it is registered again.
    fn lost(&mut self) {
        self.unknown = true;
        self.look_at = None;
    }

    /// Shows the state, and logs a change of its kind at once but a change of its words once a minute.
    fn become_state(&mut self, state: RegistrationState) {
        let same = std::mem::discriminant(&*self.state.borrow()) == std::mem::discriminant(&state);
        if !same || self.gate.open() {
            let (service, id) = (&self.service, &self.id);
            match &state {
                RegistrationState::Registered => tracing::info!(service, id, "registered"),
                RegistrationState::Retrying(why) => tracing::warn!(service, id, why, "not registered, trying again"),
                RegistrationState::Denied(why) => tracing::error!(service, id, why, "not allowed to register"),
                RegistrationState::Left => {}
            }
        }
        self.state.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
    }

    fn settle(&mut self, outcome: Result<(), RegistryError>) {
        if let Some(first) = self.first.take() {
            // Nobody listens any more after 5 s; the state tells the rest.
            let _ = first.send(outcome);
        }
    }

    async fn leave(&self) -> Result<(), RegistryError> {
        let api = &self.group.api;
        if !api.has_answered() {
            let in_time = timeout(LEAVE_UNHEARD, api.deregister(&self.id)).await;
            let why = match in_time {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(trouble)) => trouble.text,
                Err(_) => format!("{} has never answered", api.describe()),
            };
            return Err(RegistryError::Unreachable(why));
        }
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(1));
        while let Err(trouble) = api.deregister(&self.id).await {
            if backoff.tries() + 1 >= LEAVE_TRIES || trouble.kind == Kind::Denied {
                return Err(RegistryError::Unreachable(trouble.text));
            }
            sleep(about(backoff.next())).await;
        }
        // Watchers learn of it when the list does; a caller who leaves to stop serving wants to wait for that.
        let vanished = async {
            while let Ok(health) = api.health(&self.service, Read::Own, VANISH).await {
                if !entries::shows(&health.entries, &self.id) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = timeout(VANISH, vanished).await;
        Ok(())
    }
}

fn next_reregister(passes: bool) -> Instant {
    let interval = if passes { REREGISTER } else { REREGISTER_CRITICAL };
    Instant::now() + interval.mul_f64(0.8 + 0.4 * fastrand::f64())
}
