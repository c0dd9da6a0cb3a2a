//! The client's side: going round the servers and asking for slots.
//!
//! Owns [`Rover`], what can be asked of it. It must never hold a connection that it has handed on. Look next at
//! [`super::travel`], its task, and at [`super::pool`] for what becomes of connections.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::pace::Pace;
use super::probe::Limits;
use super::travel::{Shared, Travel};
use super::{Event, Pool, Server};

/// The time from one visit to the next: as callosum's.
pub const ROVING_INTERVAL: Duration = Duration::from_secs(1);
/// The longest that this time becomes while visits bring nothing better, for a rover that fills a pool: an idle client costs its
/// servers 450 visits an hour instead of 3,600. One that is not there is asked at the pace of [`ROVING_INTERVAL`] all the same.
pub const MAX_ROVING_INTERVAL: Duration = Duration::from_secs(8);
/// How long connecting to a server may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a server may take to say its line, once connected. One that is silent would cost a socket for each visit.
pub const LINE_TIMEOUT: Duration = Duration::from_secs(1);
/// Most events, connections among them, that wait for whoever reads them. A rover of which nobody reads more makes no visits.
pub const MAX_EVENTS: usize = 64;

/// Visits a server at random every second, and hands on the connections and slots that it is given.
///
/// It prefers servers that it has not visited for longest, and, when it fills a [`Pool`], those of which the pool holds nothing.
/// Then it also asks those that it could not reach at a pace of their own, one every interval, and goes on to a server whose number
/// was less than half of the highest that the pool holds, ten times in an interval, until that is so no more.
/// A server is never visited twice at the same time. [`Boxcar`](super::Boxcar) joins a rover and a pool; a rover by itself
/// leaves it to you which connections to keep, and keeps its interval:
///
/// ```
/// use futures::StreamExt;
/// use picom::boxcar::{Event, Rover};
///
/// # #[tokio::main]
/// # async fn main() -> std::io::Result<()> {
/// # let mut listener = picom::boxcar::Listener::bind("127.0.0.1:0").await?;
/// # let server = listener.local_addr()?.to_string();
/// # tokio::spawn(async move { while let Some(connection) = listener.accept().await { drop(connection) } });
/// let rover = Rover::new();
/// rover.add_server("a", &server);
/// let mut events = rover.start();
/// match events.next().await {
///     Some(Event::Connection { slot, server, stream }) => println!("slot {slot} of {server}, {stream:?}"),
///     Some(Event::Unreachable { server, why }) => println!("{server} is unreachable: {why}"),
///     Some(Event::Refused { server, words }) => println!("{server} refuses: {words}"),
///     Some(Event::Error(error)) => println!("{error}"),
///     _ => println!("stopped"),
/// }
/// rover.stop();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rover {
    shared: Arc<Shared>,
    interval: Duration,
    max_interval: Duration,
    limits: Limits,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Rover {
    /// A rover that knows no server yet and has not started.
    pub fn new() -> Self {
        Self {
            shared: Arc::default(),
            interval: ROVING_INTERVAL,
            max_interval: MAX_ROVING_INTERVAL,
            limits: Limits { connect: CONNECT_TIMEOUT, line: LINE_TIMEOUT },
            task: Mutex::default(),
        }
    }

    /// The time from one visit to the next, 10 % more or less at random; default [`ROVING_INTERVAL`], at least 1 ms.
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// What that time grows to, doubling, while a pool is full and visits bring nothing better: the first time after 5 of them, or one
    /// for each server. It is back at once when a server is added or dropped, when one comes back, or when the pool is not full.
    /// Default [`MAX_ROVING_INTERVAL`].
    pub fn max_interval(self, max_interval: Duration) -> Self {
        Self { max_interval, ..self }
    }

    /// How long connecting may take, with looking up the name; default [`CONNECT_TIMEOUT`].
    pub fn connect_timeout(self, connect: Duration) -> Self {
        Self { limits: Limits { connect, ..self.limits }, ..self }
    }

    /// How long the line may take after that; default [`LINE_TIMEOUT`].
    pub fn line_timeout(self, line: Duration) -> Self {
        Self { limits: Limits { line, ..self.limits }, ..self }
    }

    /// Adds a server, at `host:port`, which is looked up for each visit. One of the same name is replaced if it was elsewhere.
    /// Returns whether anything changed.
    pub fn add_server(&self, id: &str, address: &str) -> bool {
        let changed = self.shared.route().add(id, address);
        self.shared.change();
        changed
    }

    /// Forgets a server, and a visit to it that is under way. Connections that were handed on stay; see
    /// [`Boxcar::drop_server`](super::Boxcar::drop_server). Returns whether it was there.
    pub fn drop_server(&self, id: &str) -> bool {
        let was_there = self.shared.route().drop_server(id);
        self.shared.change();
        was_there
    }

    /// The servers that it knows.
    pub fn servers(&self) -> Vec<Server> {
        self.shared.route().servers()
    }

    /// Visits a server now, and one every interval until it is stopped or dropped. Starting again starts anew, with new events.
    ///
    /// A rover waits while [`MAX_EVENTS`] are unread, and ends when the events are dropped.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use = "it ends when the events are dropped"]
    pub fn start(&self) -> Events {
        self.launch(None)
    }

    /// The same, with connections for a pool. Events that nobody reads in time are lost.
    pub(super) fn launch(&self, pool: Option<Pool>) -> Events {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let pace = Pace::new(self.interval, self.max_interval);
        let travel = Travel::new(Arc::clone(&self.shared), pace, self.limits, pool, sender);
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // The one before ends first: two would visit twice as often.
        *task = None;
        self.shared.route().rest();
        *task = Some(AbortOnDropHandle::new(tokio::spawn(travel.go())));
        Events { events }
    }

    /// Makes no more visits and gives up the one that is under way, until it is started again. The stream of events ends
    /// behind those that it has.
    pub fn stop(&self) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Default for Rover {
    fn default() -> Self {
        Self::new()
    }
}

/// What a rover says, as a stream that ends when it is stopped.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Event>,
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }
}
