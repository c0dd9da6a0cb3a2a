//! What the servers of a world do: the methods, of which each execution is noted.
//!
//! Owns the handlers, those that call other services among them. Nothing of a handler runs once its process is dead. Look next at
//! [`super::work`] for who calls.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::flaws::Flaw;
use super::journal::{CallId, Life};
use super::runs::{Judge, Run};
use super::turns::Turns;
use super::work;
use crate::client::Channel;
use crate::{Bytes, Context, Methods, Status, Streaming};

/// The services of a world; handlers of each call the next one.
pub(super) const SERVICES: [&str; 3] = ["front", "middle", "leaf"];

/// What a call asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) id: CallId,
    /// How long the handler takes, in milliseconds; for streams that of each item.
    pub(super) hold: u64,
    /// The same for attempts after the first, if that is another time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hold_again: Option<u64>,
    pub(super) items: usize,
    pub(super) size: usize,
    pub(super) fails: bool,
    pub(super) next: Option<Box<Leg>>,
}

/// What a handler asks of the next service before it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Leg {
    pub(super) is_idempotent: bool,
    /// In milliseconds.
    pub(super) timeout: Option<u64>,
    pub(super) ask: Ask,
}

impl Ask {
    /// An item, by its number.
    pub(super) fn item(&self, number: usize) -> Bytes {
        vec![(self.id as usize + number) as u8; self.size].into()
    }

    fn outcome(&self) -> Result<u64, Status> {
        if self.fails { Err(Status::aborted("as asked")) } else { Ok(self.id) }
    }
}

/// One process that serves.
pub(super) struct Host {
    pub(super) judge: Judge,
    pub(super) life: Arc<Life>,
    pub(super) turns: Turns,
    /// The way to the next service, if there is one. No node, which would keep itself alive by its own methods.
    pub(super) next: Option<Channel>,
}

impl Host {
    fn begins(&self, cx: &Context, ask: &Ask) -> Run {
        self.judge.journal.ran(ask.id, &self.life, cx.remaining());
        self.judge.begins(&self.life, ask.id)
    }

    fn ends(&self, ask: &Ask, run: &mut Run) {
        self.judge.journal.finished(ask.id, &self.life);
        run.finishes();
    }

    fn stands_still(&self) -> bool {
        self.life.is_over() && self.judge.flaw != Some(Flaw::Haunts)
    }

    /// Does this work as long as the process lives.
    async fn living<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(self.turns.run(work));
        poll_fn(|cx| if self.stands_still() { Poll::Pending } else { work.as_mut().poll(cx) }).await
    }

    /// Handles one call, and notes its beginning and its end.
    async fn handles<T>(self: Arc<Self>, cx: Context, ask: &Ask, work: impl Future<Output = T>) -> T {
        self.living(async {
            let mut run = self.begins(&cx, ask);
            let done = work.await;
            self.ends(ask, &mut run);
            done
        })
        .await
    }

    /// An answer that streams, as long as the process lives; its end is that of the handler.
    fn streams<T>(
        self: Arc<Self>,
        ask: Ask,
        mut run: Run,
        items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
        let (mut items, mut is_over, turn) = (Box::pin(items), false, self.turns.turn());
        stream::poll_fn(move |cx| {
            if self.stands_still() {
                return Poll::Pending;
            }
            let item = items.as_mut().poll_next(&mut TaskContext::from_waker(&turn.waker(cx)));
            if matches!(item, Poll::Ready(None | Some(Err(_)))) && !std::mem::replace(&mut is_over, true) {
                self.ends(&ask, &mut run);
            }
            item
        })
    }

    async fn answer(self: Arc<Self>, cx: Context, ask: Ask) -> Result<u64, Status> {
        let host = Arc::clone(&self);
        let work = async {
            let again = ask.hold_again.filter(|_| cx.attempt() > 0);
            sleep(Duration::from_millis(again.unwrap_or(ask.hold))).await;
            if let (Some(leg), Some(next)) = (&ask.next, &host.next) {
                work::nested(&host.judge.journal, &host.life, next, leg, cx.remaining()).await?;
            }
            ask.outcome()
        };
        self.handles(cx.clone(), &ask, work).await
    }

    async fn sum(self: Arc<Self>, cx: Context, ask: Ask, mut body: Streaming<Bytes>) -> Result<u64, Status> {
        let journal = Arc::clone(&self.judge.journal);
        let work = async {
            let mut count = 0;
            while let Some(item) = body.message().await? {
                count += u64::from(item == ask.item(count as usize));
                sleep(Duration::from_millis(ask.hold)).await;
            }
            if count != ask.items as u64 {
                journal.violation(format_args!("the body of call {} ends well after {count} right items", ask.id));
            }
            ask.outcome()
        };
        self.handles(cx, &ask, work).await
    }
}

/// The methods of a process; of those that change something it has at most `at_once` at once, if that is said.
pub(super) fn methods(host: Host, at_once: Option<usize>) -> Methods {
    let host = Arc::new(host);
    let [once, again, items, sum, echo] = [0; 5].map(|_| Arc::clone(&host));
    let methods = Methods::new().unary("once", move |cx: Context, ask: Ask| Arc::clone(&once).answer(cx, ask));
    let methods = if let Some(at_once) = at_once { methods.max_concurrent(at_once) } else { methods };
    methods
        .unary("again", move |cx: Context, ask: Ask| Arc::clone(&again).answer(cx, ask))
        .idempotent()
        .server_streaming("items", move |cx: Context, ask: Ask| {
            let host = Arc::clone(&items);
            async move {
                let run = host.living(async { host.begins(&cx, &ask) }).await;
                let asked = ask.clone();
                Ok::<_, Status>(host.streams(
                    ask,
                    run,
                    stream::iter(0..asked.items).then(move |number| {
                        let ask = asked.clone();
                        async move {
                            sleep(Duration::from_millis(ask.hold)).await;
                            if ask.fails && number + 1 == ask.items {
                                Err(Status::aborted("as asked"))
                            } else {
                                Ok(ask.item(number))
                            }
                        }
                    }),
                ))
            }
        })
        .client_streaming("sum", move |cx: Context, ask: Ask, body: Streaming<Bytes>| {
            Arc::clone(&sum).sum(cx, ask, body)
        })
        .bidi("echo", move |cx: Context, ask: Ask, body: Streaming<Bytes>| {
            let host = Arc::clone(&echo);
            async move {
                let run = host.living(async { host.begins(&cx, &ask) }).await;
                Ok::<_, Status>(host.streams(ask, run, body))
            }
        })
}

/// What a stream of items must be.
pub(super) async fn receive(ask: &Ask, mut items: Streaming<Bytes>) -> Result<(), Status> {
    let mut count = 0;
    while let Some(item) = items.next().await {
        if item? != ask.item(count) {
            return Err(Status::data_loss(format!("item {count} of call {} is another", ask.id)));
        }
        count += 1;
    }
    if count == ask.items { Ok(()) } else { Err(Status::data_loss(format!("{count} items of {}", ask.items))) }
}
