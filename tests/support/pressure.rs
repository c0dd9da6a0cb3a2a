//! More calls than a service can serve, and how many it serves all the same.
//!
//! Owns an open loop, whose callers know nothing of each other, and a closed one, whose callers wait for their answers. It must
//! never judge. Look next at `load.rs` for calls at a rate that a service bears.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use picom::Status;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// One call and what became of it.
pub(crate) struct Outcome {
    pub(crate) id: u64,
    /// Since the load began.
    pub(crate) at: Duration,
    pub(crate) took: Duration,
    pub(crate) error: Option<Status>,
}

/// Makes `per_second` calls a second with ids from `first`, whatever becomes of them, and waits for all of them.
pub(crate) async fn open_loop<T, C>(
    first: u64,
    per_second: f64,
    time: Duration,
    call: impl Fn(u64) -> C,
) -> Vec<Outcome>
where
    C: IntoFuture<Output = Result<T, Status>, IntoFuture: Send + 'static>,
{
    let (begun, mut calls) = (Instant::now(), JoinSet::new());
    let mut ticks = interval(Duration::from_secs_f64(1.0 / per_second));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for id in first.. {
        ticks.tick().await;
        if begun.elapsed() >= time {
            break;
        }
        let call = call(id).into_future();
        calls.spawn(async move {
            let asked = Instant::now();
            let error = call.await.err();
            Outcome { id, at: asked - begun, took: asked.elapsed(), error }
        });
    }
    calls.join_all().await
}

/// Lets so many callers make one call after the other, with ids from the largest down, and says how many a second were answered.
pub(crate) async fn closed_loop<T, C>(callers: usize, time: Duration, call: impl Fn(u64) -> C) -> f64
where
    C: IntoFuture<Output = Result<T, Status>>,
{
    let (begun, begun_calls, served) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
    let caller = || async {
        while begun.elapsed() < time {
            let id = u64::MAX - begun_calls.fetch_add(1, Ordering::Relaxed) as u64;
            call(id).await.expect("so few calls at once are served");
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    join_all((0..callers).map(|_| caller())).await;
    served.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

/// Calls a second that succeeded, of those made between two moments of the load.
pub(crate) fn goodput(outcomes: &[Outcome], from: Duration, to: Duration) -> f64 {
    let good = outcomes.iter().filter(|call| call.error.is_none() && call.at >= from && call.at < to);
    good.count() as f64 / (to - from).as_secs_f64()
}
