//! Replicas of one service that can be made slow, and callers that can tell which of them they use.
//!
//! Owns what tests of attempts that are looked after while they run share. It must never reach below the public API. Look next at
//! `nodes.rs`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream;
use picom::balance::ConsistentHash;
use picom::registry::Memory;
use picom::{Arguments, Builder, Call, Context, First, Methods, Picom, Status};
use tokio::time::sleep;

use super::nodes::{Guards, SERVICE, Witness, witness};

/// Calls after which it is known when one is late, and several second attempts may be made, even if some were for calls that took longer
/// because the machine was busy.
pub(crate) const PRACTICE: usize = 300;

/// One replica.
pub(crate) struct Replica {
    pub(crate) node: Picom,
    pub(crate) addr: SocketAddr,
    pub(crate) hand: Hand,
    pub(crate) witness: Witness,
}

/// What a replica's handlers obey and count.
#[derive(Clone)]
pub(crate) struct Hand {
    pub(crate) guards: Guards,
    /// How long each call takes, in milliseconds.
    pub(crate) pause: Arc<AtomicU64>,
    /// How often it was called for something else than a first attempt.
    pub(crate) again: Arc<AtomicUsize>,
    pub(crate) is_sick: Arc<AtomicBool>,
}

impl Hand {
    async fn work(self, cx: Context) -> Result<u64, Status> {
        let _held = self.guards.guard();
        self.again.fetch_add(usize::from(cx.attempt() > 0), Ordering::SeqCst);
        if self.is_sick.load(Ordering::SeqCst) {
            return Err(Status::unavailable("out of order"));
        }
        sleep(Duration::from_millis(self.pause.load(Ordering::SeqCst))).await;
        Ok(7)
    }
}

impl Replica {
    /// From now on each call takes so long.
    pub(crate) fn takes(&self, pause: Duration) {
        self.hand.pause.store(u64::try_from(pause.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// How often it was called.
    pub(crate) fn calls(&self) -> usize {
        self.hand.guards.made()
    }

    /// How often it was called for something else than a first attempt.
    pub(crate) fn again(&self) -> usize {
        self.hand.again.load(Ordering::SeqCst)
    }

    /// Forgets the handlers that have begun and ended so far.
    pub(crate) async fn settle(&mut self) {
        while self.hand.guards.alive() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        let (guards, witness) = (&self.hand.guards, &mut self.witness);
        witness.forget();
        assert_eq!(guards.alive(), 0, "a call began meanwhile");
    }
}

/// So many replicas, each of which takes `pause` for a call.
pub(crate) async fn replicas(
    registry: &Memory,
    count: usize,
    pause: Duration,
    options: impl Fn(Builder) -> Builder,
) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for _ in 0..count {
        let (guards, witness) = witness();
        let hand = Hand { guards, pause: Arc::default(), again: Arc::default(), is_sick: Arc::default() };
        let (once, again, items, sum) = (hand.clone(), hand.clone(), hand.clone(), hand.clone());
        let methods = Methods::new()
            .unary("once", move |cx: Context, (): ()| once.clone().work(cx))
            .unary("again", move |cx: Context, (): ()| again.clone().work(cx))
            .idempotent()
            .server_streaming("items", move |cx: Context, (): ()| {
                let hand = items.clone();
                async move { hand.work(cx).await.map(|first| stream::iter([first, 8, 9])) }
            })
            .idempotent()
            .client_streaming("sum", move |cx: Context, (): (), _body: picom::Streaming<u64>| sum.clone().work(cx))
            .idempotent();
        let node = options(Picom::builder(SERVICE).registry(registry.clone())).build().unwrap();
        let addr = node.expose(methods).await.unwrap().local_addr();
        let replica = Replica { node, addr, hand, witness };
        replica.takes(pause);
        replicas.push(replica);
    }
    replicas
}

/// A call of an idempotent method.
pub(crate) fn again(client: &Picom) -> Call<impl Arguments, First<u64>> {
    client.fetch(SERVICE, "again", ())
}

/// Makes so many hedged calls, one after the other, which must go well.
pub(crate) async fn practise(client: &Picom, calls: usize) {
    for _ in 0..calls {
        again(client).hedge().await.expect("nothing is wrong yet");
    }
}

/// A key whose calls go to this endpoint first.
pub(crate) async fn key_of(client: &Picom, addr: SocketAddr) -> String {
    for n in 0..1000 {
        let key = format!("key {n}");
        let (_, info) = again(client).balance(ConsistentHash).key(&key).with_info().await.unwrap();
        if info.endpoint() == addr {
            return key;
        }
    }
    panic!("of a thousand keys none leads to {addr}");
}
