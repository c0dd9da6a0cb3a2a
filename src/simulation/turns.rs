//! An order among those who are woken together: that of their numbers.
//!
//! Owns that order. tokio wakes those who wait for one `watch` in an order of its own choice, which differs between runs. Here
//! whoever is woken is noted, and one task wakes all of them for good. It must never know what they do.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// Gives out turns. Clones give out the same ones.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    awake: BTreeMap<u64, Arc<Member>>,
    waker: Option<Waker>,
}

/// The place of one future in the order.
pub(super) struct Turn(Arc<Member>);

struct Member {
    number: u64,
    turns: Turns,
    task: Mutex<Waker>,
}

impl Turns {
    /// Wakes whoever is awake; never ends.
    pub(super) async fn hand_out(self) {
        poll_fn(|cx| {
            let awake = {
                let mut state = self.0.lock().unwrap();
                state.waker = Some(cx.waker().clone());
                std::mem::take(&mut state.awake)
            };
            awake.values().for_each(|member| member.task.lock().unwrap().wake_by_ref());
            Poll::<()>::Pending
        })
        .await;
    }

    /// The next place.
    pub(super) fn turn(&self) -> Turn {
        let mut state = self.0.lock().unwrap();
        state.next += 1;
        let member = Member { number: state.next, turns: self.clone(), task: Mutex::new(Waker::noop().clone()) };
        Turn(Arc::new(member))
    }

    /// Runs a future in its turn.
    pub(super) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let (turn, mut work) = (self.turn(), pin!(work));
        poll_fn(|cx| work.as_mut().poll(&mut Context::from_waker(&turn.waker(cx)))).await
    }
}

impl Turn {
    /// What wakes the task that polls now, when it is its turn.
    pub(super) fn waker(&self, cx: &Context<'_>) -> Waker {
        self.0.task.lock().unwrap().clone_from(cx.waker());
        Waker::from(Arc::clone(&self.0))
    }
}

impl Wake for Member {
    fn wake(self: Arc<Self>) {
        let mut state = self.turns.0.lock().unwrap();
        state.awake.insert(self.number, Arc::clone(&self));
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
