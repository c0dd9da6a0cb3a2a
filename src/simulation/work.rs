//! The calls of a world: those that clients plan, those that handlers make, and those that ask whether all is well again.
//!
//! Owns the random plans, and that each call is noted when it begins and when it ends, however that is. Look next at
//! [`super::service`] for who answers, and at [`super::journal`], which judges.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep, timeout};

use super::flaws::Flaw;
use super::journal::{CallId, Journal, Life, Terms};
use super::nature::{Caller, Policy, Pressure};
use super::net::Pid;
use super::service::{Ask, Leg, SERVICES, receive};
use crate::client::{Channel, First};
use crate::options::MAX_ATTEMPTS;
use crate::{Bytes, Call, Execution, Picom, Status, Streaming};

/// How much later than its deadline a call may end.
const LATE: Duration = Duration::from_millis(20);
/// How long a stream may stand still.
const IDLE: Duration = Duration::from_secs(3);
/// By then every call has ended, also one without a deadline.
const LONGEST: Duration = Duration::from_secs(100);
/// A time that no call may take.
const FOREVER: u64 = 1_000_000;

impl Client {
    /// A stream that is open, and is not read.
    pub(super) async fn hold(&self, service: &str) -> Result<Streaming<Bytes>, Status> {
        let id = self.journal.another();
        let ask = Ask { id, hold: 1, hold_again: None, items: 1000, size: 30_000, fails: false, next: None };
        self.journal.began(id, Terms { from: self.pid, idempotent: false, limit: None, most: 1 });
        self.node.stream(service, "items", ask).await
    }
}

/// One call as a client plans it.
#[derive(Debug)]
pub(super) struct Plan {
    ask: Ask,
    method: &'static str,
    idempotent: bool,
    start: Duration,
    timeout: Option<Duration>,
    gives_up: Option<Duration>,
    retries: Option<u32>,
    /// For this call only.
    policy: Option<Policy>,
    key: Option<u8>,
    /// A late attempt has another one beside it, and one that takes too long is left. Only where it may run twice.
    hedges: bool,
    attempt_timeout: Option<Duration>,
}

/// Who makes planned calls.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) node: Picom,
    pub(super) journal: Arc<Journal>,
    pub(super) pid: Pid,
    pub(super) caller: Caller,
    pub(super) flaw: Option<Flaw>,
}

impl Plan {
    /// `depth` is how many services there are behind the first one.
    pub(super) fn random(rng: &mut Rng, id: CallId, pressure: Pressure, depth: usize) -> Self {
        let method = pressure.method(rng);
        let (hold, hold_again) = (pressure.hold(rng), pressure.hold_again(rng));
        let unary = matches!(method, "once" | "again");
        let (items, size) =
            if unary { (0, 0) } else { (rng.usize(1..20), rng.choice([0, 10, 1000, 30_000]).unwrap_or(0)) };
        let next = if unary { leg(rng, pressure, depth) } else { None };
        let hold = if unary { hold } else { hold.min(100) };
        Self {
            ask: Ask { id, hold, hold_again, items, size, fails: rng.u8(..8) == 0, next },
            method,
            idempotent: method == "again" || (method != "once" && rng.u8(..4) == 0),
            start: pressure.start(rng),
            timeout: rng.choice([None, Some(50), Some(700), Some(4000)]).flatten().map(Duration::from_millis),
            gives_up: (rng.u8(..10) == 0).then(|| Duration::from_millis(rng.u64(..1500))),
            retries: rng.choice([None, None, Some(0), Some(1), Some(2), Some(3), Some(4)]).flatten(),
            policy: (rng.u8(..6) == 0).then(|| Policy::random(rng)),
            key: rng.bool().then(|| rng.u8(..4)),
            hedges: method == "again" && rng.u8(..4) > 0,
            attempt_timeout: (method == "again" && rng.u8(..3) == 0).then(|| Duration::from_millis(10 << rng.u8(..8))),
        }
    }

    /// Makes the call, and notes how it ended.
    pub(super) async fn run(mut self, client: Client) {
        sleep(self.start).await;
        let Client { journal, pid, caller, flaw, .. } = &client;
        if *flaw == Some(Flaw::Hangs) {
            (self.ask.hold, self.ask.hold_again, self.timeout) = (FOREVER, None, None);
        }
        let unary = matches!(self.method, "once" | "again");
        let limit = self.timeout.or(if unary { caller.deadline } else { None });
        let retries = self.retries.unwrap_or(caller.retries);
        let terms =
            Terms { from: *pid, idempotent: self.idempotent, limit, most: (retries + 1).min(MAX_ATTEMPTS) as usize };
        let made = Made::new(journal, self.ask.id, terms);
        journal.note(format_args!("{pid} calls {}: {self:?}", self.method));
        let limit = limit.unwrap_or(LONGEST) + LATE;
        let gives_up = self.gives_up.unwrap_or(limit * 2).min(limit * 2);
        let gave_up = self.gives_up.is_some();
        let ended = timeout(gives_up, self.call(&client)).await;
        match ended {
            Err(_) if gave_up => drop(made),
            Err(_) => made.never_ends(),
            Ok(Err(status)) if *flaw == Some(Flaw::Lies) && status.execution() == Execution::Maybe => {
                made.ended(&Err(status.with_execution(Execution::Never)), limit);
            }
            Ok(outcome) => made.ended(&outcome, limit),
        }
    }

    async fn call(&self, client: &Client) -> Result<(), Status> {
        let (ask, node) = (&self.ask, &client.node);
        match self.method {
            "items" => {
                let call = node.stream::<Bytes>(SERVICES[0], "items", ask.clone()).idle_timeout(IDLE);
                receive(ask, self.with_choices(call, client).await?).await
            }
            "echo" => {
                let call = node.stream::<Bytes>(SERVICES[0], "echo", ask.clone()).body(self.body()).idle_timeout(IDLE);
                receive(ask, self.with_choices(call, client).await?).await
            }
            method => {
                let mut call = node.fetch::<u64>(SERVICES[0], method, ask.clone());
                if method == "sum" {
                    call = call.body(self.body()).idle_timeout(IDLE);
                }
                right(ask.id, self.with_choices(call, client).await?)
            }
        }
    }

    fn with_choices<A, R>(&self, mut call: Call<A, R>, client: &Client) -> Call<A, R> {
        if let Some(timeout) = self.timeout {
            call = call.timeout(timeout);
        }
        if let Some(retries) = self.retries {
            call = call.retries(retries);
        }
        if let Some(policy) = self.policy {
            call = call.balance(policy.balancer());
        }
        if let Some(key) = self.key {
            call = call.key([key]);
        }
        if self.hedges {
            client.journal.hedged(client.pid);
            if client.flaw == Some(Flaw::Squanders) {
                client.node.channel(SERVICES[0]).fill_budget();
            }
            call = call.hedge();
        }
        if let Some(timeout) = self.attempt_timeout {
            call = call.attempt_timeout(timeout);
        }
        // Of one method the server says it, for any call its caller may.
        if client.flaw == Some(Flaw::SaysIdempotent) || (self.idempotent && self.method != "again") {
            call = call.idempotent();
        }
        call
    }

    fn body(&self) -> impl stream::Stream<Item = Bytes> + Send + 'static + use<> {
        let ask = self.ask.clone();
        stream::iter(0..ask.items).then(move |number| {
            let ask = ask.clone();
            async move {
                sleep(Duration::from_millis(ask.hold)).await;
                ask.item(number)
            }
        })
    }
}

/// What a handler asks of the next service, and that one of the one behind it.
fn leg(rng: &mut Rng, pressure: Pressure, depth: usize) -> Option<Box<Leg>> {
    if depth == 0 || rng.bool() {
        return None;
    }
    let next = leg(rng, pressure, depth - 1);
    // Its number comes with the call: a handler that runs twice makes two calls.
    let ask =
        Ask { id: 0, hold: pressure.hold(rng), hold_again: None, items: 0, size: 0, fails: rng.u8(..8) == 0, next };
    let timeout = rng.choice([None, Some(100), Some(1000)]).flatten();
    Some(Box::new(Leg { is_idempotent: rng.bool(), timeout, ask }))
}

/// Makes the call of a handler that has so much time left.
pub(super) async fn nested(
    journal: &Arc<Journal>,
    life: &Life,
    channel: &Channel,
    leg: &Leg,
    remaining: Option<Duration>,
) -> Result<(), Status> {
    let ask = Ask { id: journal.another(), ..leg.ask.clone() };
    let id = ask.id;
    let own = leg.timeout.map_or(crate::options::DEADLINE, Duration::from_millis);
    let limit = remaining.map_or(own, |remaining| remaining.min(own));
    let most = MAX_ATTEMPTS as usize;
    let made =
        Made::new(journal, id, Terms { from: life.pid, idempotent: leg.is_idempotent, limit: Some(limit), most });
    journal.note(format_args!("{} calls {}: {leg:?}", life.pid, channel.service()));
    let method = if leg.is_idempotent { "again" } else { "once" };
    let mut call = channel.call_by_name::<_, First<u64>>(method, ask);
    if let Some(timeout) = leg.timeout {
        call = call.timeout(Duration::from_millis(timeout));
    }
    let outcome = call.await;
    made.ended(&outcome.clone().and_then(|answer| right(id, answer)), limit + LATE);
    outcome.map(drop)
}

/// Asks a service something that is done at once.
pub(super) async fn ask(client: &Client, service: &str, method: &str, limit: Duration) -> Result<(), Status> {
    let Client { journal, pid, .. } = client;
    let id = journal.another();
    let ask = Ask { id, hold: 0, hold_again: None, items: 0, size: 0, fails: false, next: None };
    let terms = Terms { from: *pid, idempotent: method == "again", limit: Some(limit), most: MAX_ATTEMPTS as usize };
    let made = Made::new(journal, id, terms);
    // Whatever else the client chooses.
    let call = client.node.fetch::<u64>(service, method, ask).timeout(limit).retries(crate::options::RETRIES);
    let outcome = call.await.and_then(|answer| right(id, answer));
    made.ended(&outcome, limit + LATE);
    outcome
}

fn right(id: CallId, answer: u64) -> Result<(), Status> {
    if answer == id { Ok(()) } else { Err(Status::data_loss(format!("answer {answer} to call {id}"))) }
}

/// A call that was noted. Dropped, it was given up.
struct Made {
    journal: Arc<Journal>,
    id: CallId,
    began: Instant,
    is_over: bool,
}

impl Made {
    fn new(journal: &Arc<Journal>, id: CallId, terms: Terms) -> Self {
        journal.began(id, terms);
        Self { journal: Arc::clone(journal), id, began: Instant::now(), is_over: false }
    }

    fn ended(mut self, outcome: &Result<(), Status>, limit: Duration) {
        self.is_over = true;
        self.journal.ended(self.id, outcome, self.began.elapsed().saturating_sub(limit));
    }

    fn never_ends(self) {
        let after = self.began.elapsed();
        self.journal.violation(format_args!("call {} does not end: {after:?} after it began", self.id));
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.is_over {
            self.journal.given_up(self.id);
        }
    }
}
