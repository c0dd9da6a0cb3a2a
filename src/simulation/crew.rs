//! Several futures as one task, polled in the order of their numbers.
//!
//! Owns that order. tokio wakes those who wait for one `watch` in an order of its own choice, which differs between runs; here it
//! does not matter who of a crew was woken first. It must never know what its members do.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::BoxFuture;

/// All members' work; over when all of them are.
pub(super) struct Crew {
    members: BTreeMap<usize, BoxFuture<'static, ()>>,
    awake: Arc<Mutex<Awake>>,
}

#[derive(Default)]
struct Awake {
    numbers: BTreeSet<usize>,
    crew: Option<Waker>,
}

struct Member {
    number: usize,
    awake: Arc<Mutex<Awake>>,
}

impl Crew {
    pub(super) fn new(members: Vec<BoxFuture<'static, ()>>) -> Self {
        let members: BTreeMap<_, _> = members.into_iter().enumerate().collect();
        let awake = Awake { numbers: members.keys().copied().collect(), crew: None };
        Self { members, awake: Arc::new(Mutex::new(awake)) }
    }
}

impl Wake for Member {
    fn wake(self: Arc<Self>) {
        let mut awake = self.awake.lock().unwrap();
        awake.numbers.insert(self.number);
        let crew = awake.crew.take();
        drop(awake);
        if let Some(crew) = crew {
            crew.wake();
        }
    }
}

impl Future for Crew {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let numbers = {
            let mut awake = self.awake.lock().unwrap();
            awake.crew = Some(cx.waker().clone());
            std::mem::take(&mut awake.numbers)
        };
        for number in numbers {
            let waker = Waker::from(Arc::new(Member { number, awake: Arc::clone(&self.awake) }));
            let Some(member) = self.members.get_mut(&number) else { continue };
            if member.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.members.remove(&number);
            }
        }
        if self.members.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}
