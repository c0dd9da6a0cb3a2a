//! Whether a connection that nobody uses still lives.
//!
//! Owns [`Pulse`], what can be known without reading, and [`Woken`], of whom something was heard. It must never take bytes. Look
//! next at [`super::pool`], which asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::FutureExt;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::ledger::Id;

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    /// Nothing has come. If an ear was given, it hears what does.
    Quiet,
    /// There are bytes to be read, so nothing is heard of what comes behind them.
    Unread,
    /// The peer has closed it, or it is broken.
    Over,
}

impl Pulse {
    pub(super) fn of(stream: &TcpStream, ear: Option<Waker>) -> Self {
        let waker = ear.unwrap_or_else(|| Waker::noop().clone());
        let mut byte = [0];
        match stream.poll_peek(&mut Context::from_waker(&waker), &mut ReadBuf::new(&mut byte)) {
            Poll::Pending => Self::Quiet,
            Poll::Ready(Ok(0) | Err(_)) => Self::Over,
            Poll::Ready(Ok(_)) => match stream.ready(Interest::READABLE).now_or_never() {
                Some(Ok(ready)) if ready.is_read_closed() => Self::Over,
                _ => Self::Unread,
            },
        }
    }
}

/// The idle connections of which something was heard.
#[derive(Debug, Default)]
pub(super) struct Woken {
    ids: Mutex<Vec<Id>>,
    notify: Notify,
}

impl Woken {
    /// What hears of this connection, once.
    pub(super) fn ear(self: &Arc<Self>, id: Id) -> Waker {
        Waker::from(Arc::new(Ear { id, woken: Arc::clone(self) }))
    }

    /// Those of which something was heard since this was last asked.
    pub(super) fn take(&self) -> Vec<Id> {
        std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn notify(&self) {
        self.notify.notify_one();
    }

    pub(super) async fn notified(&self) {
        self.notify.notified().await;
    }
}

struct Ear {
    id: Id,
    woken: Arc<Woken>,
}

impl Wake for Ear {
    /// The pool looks later: here it may be locked.
    fn wake(self: Arc<Self>) {
        self.woken.ids.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        self.woken.notify();
    }
}
