//! Where an attempt goes: an endpoint, or an endpoint and the connection to it.
//!
//! Owns nothing but the handles, and which of several a thread takes: a call on the short way holds one count instead of two, and finds both with one look at the list.
//! It must never connect. Look next at [`super::target`], which does, and [`super::pool`], which keeps the routes.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::target::Target;
use crate::transport::link::Link;

/// What an attempt may be counted at.
pub(super) trait Place: fmt::Debug + Clone {
    /// The endpoint.
    fn target(&self) -> &Arc<Target>;
}

impl Place for Arc<Target> {
    fn target(&self) -> &Arc<Target> {
        self
    }
}

/// An endpoint and a connection to it, which may be lost by now.
#[derive(Debug)]
pub(super) struct Route {
    target: Arc<Target>,
    link: Arc<Link>,
    /// The others over which calls are spread.
    beside: Vec<Arc<Self>>,
    /// There is nothing beside it, and it is not outdated: a call needs no second look.
    is_plain: AtomicBool,
    is_outdated: AtomicBool,
}

impl Route {
    pub(super) fn new(target: Arc<Target>, link: Arc<Link>, beside: Vec<Arc<Link>>) -> Self {
        let beside: Vec<_> =
            beside.into_iter().map(|link| Arc::new(Self::new(Arc::clone(&target), link, Vec::new()))).collect();
        let is_plain = AtomicBool::new(beside.is_empty());
        Self { target, link, beside, is_plain, is_outdated: AtomicBool::new(false) }
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The one for calls from this thread, if its connection takes calls.
    #[inline]
    pub(super) fn usable(self: &Arc<Self>) -> Option<&Arc<Self>> {
        let route = if self.is_plain.load(Ordering::Relaxed) { self } else { self.of_this_thread()? };
        route.link.is_usable().then_some(route)
    }

    #[inline(never)]
    fn of_this_thread(self: &Arc<Self>) -> Option<&Arc<Self>> {
        if self.is_outdated.load(Ordering::Relaxed) {
            return None;
        }
        // The last of them is this one itself.
        Some(self.beside.get(lane() % (self.beside.len() + 1)).unwrap_or(self))
    }

    /// Connections have come, or are not to be used any more: whoever calls next asks the target.
    pub(super) fn outdate(&self) {
        self.is_outdated.store(true, Ordering::Relaxed);
        self.is_plain.store(false, Ordering::Relaxed);
    }
}

impl Place for Arc<Route> {
    fn target(&self) -> &Arc<Target> {
        &self.target
    }
}

thread_local! {
    static LANE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A number of this thread. Threads that need one after each other have numbers that follow each other, so those of one runtime are spread
/// evenly.
fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // A thread at its end has none any more.
    let number = LANE.try_with(|lane| match lane.get() {
        Some(number) => number,
        None => {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            lane.set(Some(number));
            number
        }
    });
    number.unwrap_or_default()
}
