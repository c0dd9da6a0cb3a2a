//! What the hosts of a world do for each other: the service, and the calls that clients make of it.
//!
//! Owns the methods, of which each execution is noted, and the random calls. Look next at [`super::journal`], which judges.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::journal::{CallId, Journal};
use crate::{Bytes, Context, Methods, Picom, Status, Streaming};

/// The service of every world.
pub(super) const SERVICE: &str = "service";
/// How much later than its deadline a call may end.
const LATE: Duration = Duration::from_millis(20);
/// How long a stream may stand still.
const IDLE: Duration = Duration::from_secs(3);
/// By then every call has ended, also one without a deadline.
const LONGEST: Duration = Duration::from_secs(100);

/// What a call asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    id: CallId,
    /// How long the handler takes, in milliseconds; for streams that of each item.
    hold: u64,
    items: usize,
    size: usize,
    fails: bool,
}

impl Ask {
    /// An item, by its number.
    fn item(&self, number: usize) -> Bytes {
        vec![(self.id as usize + number) as u8; self.size].into()
    }

    fn outcome(&self) -> Result<u64, Status> {
        if self.fails { Err(Status::aborted("as asked")) } else { Ok(self.id) }
    }
}

/// The service at the server with this port.
pub(super) fn methods(journal: &Arc<Journal>, port: u16) -> Methods {
    let ran = |journal: &Arc<Journal>| {
        let journal = Arc::clone(journal);
        move |ask: &Ask| journal.ran(ask.id, port)
    };
    let (once, again, items, sum, echo) = (ran(journal), ran(journal), ran(journal), ran(journal), ran(journal));
    let summing = Arc::clone(journal);
    let unary = |ask: Ask| async move {
        sleep(Duration::from_millis(ask.hold)).await;
        ask.outcome()
    };
    Methods::new()
        .unary("once", move |_cx: Context, ask: Ask| {
            once(&ask);
            unary(ask)
        })
        .unary("again", move |_cx: Context, ask: Ask| {
            again(&ask);
            unary(ask)
        })
        .idempotent()
        .server_streaming("items", move |_cx: Context, ask: Ask| {
            items(&ask);
            async move {
                Ok(stream::iter(0..ask.items).then(move |number| {
                    let ask = ask.clone();
                    async move {
                        sleep(Duration::from_millis(ask.hold)).await;
                        if ask.fails && number + 1 == ask.items {
                            Err(Status::aborted("as asked"))
                        } else {
                            Ok(ask.item(number))
                        }
                    }
                }))
            }
        })
        .client_streaming("sum", move |_cx: Context, ask: Ask, mut body: Streaming<Bytes>| {
            sum(&ask);
            let journal = Arc::clone(&summing);
            async move {
                let mut count = 0;
                while let Some(item) = body.message().await? {
                    count += u64::from(item == ask.item(count as usize));
                    sleep(Duration::from_millis(ask.hold)).await;
                }
                if count != ask.items as u64 {
                    journal.violation(format_args!("the body of call {} ends well after {count} right items", ask.id));
                }
                ask.outcome()
            }
        })
        .bidi("echo", move |_cx: Context, ask: Ask, body: Streaming<Bytes>| {
            echo(&ask);
            async move { Ok(body) }
        })
}

/// One call as a client plans it.
#[derive(Debug)]
pub(super) struct Plan {
    ask: Ask,
    method: &'static str,
    start: Duration,
    timeout: Option<Duration>,
    gives_up: Option<Duration>,
}

impl Plan {
    pub(super) fn random(rng: &mut Rng, id: CallId) -> Self {
        let method = rng.choice(["once", "once", "again", "items", "sum", "echo"]).unwrap_or("once");
        let hold = rng.choice([0, 0, 1, 20, 300, 2000]).unwrap_or(0);
        let unary = matches!(method, "once" | "again");
        let (items, size) =
            if unary { (0, 0) } else { (rng.usize(1..20), rng.choice([0, 10, 1000, 30_000]).unwrap_or(0)) };
        Self {
            ask: Ask { id, hold: if unary { hold } else { hold.min(100) }, items, size, fails: rng.u8(..8) == 0 },
            method,
            start: Duration::from_millis(rng.u64(..6000)),
            timeout: rng.choice([None, Some(50), Some(700), Some(4000)]).flatten().map(Duration::from_millis),
            gives_up: (rng.u8(..10) == 0).then(|| Duration::from_millis(rng.u64(..1500))),
        }
    }

    /// Makes the call, and notes how it ended.
    pub(super) async fn run(self, node: Picom, journal: Arc<Journal>, from: u16) {
        sleep(self.start).await;
        let id = self.ask.id;
        let began = Instant::now();
        let idempotent = self.method == "again";
        journal.began(id, from, idempotent);
        journal.note(format_args!("client {from} calls {}: {self:?}", self.method));
        let default = if matches!(self.method, "once" | "again") { crate::options::DEADLINE } else { LONGEST };
        let limit = self.timeout.unwrap_or(default) + LATE;
        let gives_up = self.gives_up.unwrap_or(limit * 2).min(limit * 2);
        let gave_up = self.gives_up.is_some();
        let ended = tokio::time::timeout(gives_up, self.call(&node)).await;
        match ended {
            Err(_) if gave_up => journal.given_up(id),
            Err(_) => journal.violation(format_args!("call {id} does not end: {:?} after it began", began.elapsed())),
            Ok(outcome) => journal.ended(id, &outcome, began.elapsed().saturating_sub(limit)),
        }
    }

    async fn call(&self, node: &Picom) -> Result<(), Status> {
        let ask = &self.ask;
        match self.method {
            "items" => {
                let call = node.stream::<Bytes>(SERVICE, "items", ask.clone()).idle_timeout(IDLE);
                let items = match self.timeout {
                    Some(timeout) => call.timeout(timeout).await?,
                    None => call.await?,
                };
                self.receive(items).await
            }
            "echo" => {
                let call = node.stream::<Bytes>(SERVICE, "echo", ask.clone()).body(self.body()).idle_timeout(IDLE);
                let items = match self.timeout {
                    Some(timeout) => call.timeout(timeout).await?,
                    None => call.await?,
                };
                self.receive(items).await
            }
            method => {
                let mut call = node.fetch::<u64>(SERVICE, method, ask.clone());
                if method == "sum" {
                    call = call.body(self.body()).idle_timeout(IDLE);
                }
                if let Some(timeout) = self.timeout {
                    call = call.timeout(timeout);
                }
                if method == "again" && ask.id % 2 == 0 {
                    // Some attempts are left for another host, and a late one has another one beside it.
                    call = call.attempt_timeout(Duration::from_millis(10 << (ask.id / 2 % 6))).hedge();
                }
                let answer = call.await?;
                if answer == ask.id {
                    Ok(())
                } else {
                    Err(Status::data_loss(format!("answer {answer} to call {}", ask.id)))
                }
            }
        }
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

    async fn receive(&self, mut items: Streaming<Bytes>) -> Result<(), Status> {
        let mut count = 0;
        while let Some(item) = items.message().await? {
            if item != self.ask.item(count) {
                return Err(Status::data_loss(format!("item {count} of call {} is another", self.ask.id)));
            }
            count += 1;
        }
        if count == self.ask.items {
            Ok(())
        } else {
            Err(Status::data_loss(format!("{count} items of {}", self.ask.items)))
        }
    }
}
