//! What a member tells its own process: events, and what it has refused.
//!
//! Owns [`Event`], [`Events`] and [`Refusals`]. It must never make anybody wait: who reads slowly is told how much it missed.
//! Look next at `table/mod.rs` for where events arise.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::record::Record;

/// How many events wait for a slow reader before it misses the oldest.
pub(super) const EVENTS: usize = 1024;

/// Something that happened to the manifest as this member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A record was seen for the first time, one's own or another's.
    Registered(Record),
    /// A record is not what it was.
    Changed(Record),
    /// A record is gone: it was freed, or its owner left or died. Where it was freed for a reason, as by a node that ends, its state
    /// is [`Down`](crate::NodeState::Down) with that reason.
    Freed(Record),
    /// A connection to another member is up, whichever of the two made it.
    Connected {
        /// The member at its other end.
        owner: u64,
    },
    /// That member has said everything that this one lacked.
    Synced {
        /// The member at the other end of the connection.
        owner: u64,
    },
    /// A connection to another member has ended.
    Disconnected {
        /// The member that was at its other end.
        owner: u64,
    },
    /// This member has told the others that it lives.
    Heartbeat,
    /// The manifest was closed; nothing follows.
    Closed,
    /// Events were lost, because they were read too slowly; so many.
    Missed(u64),
}

/// The events from now on, as a stream. It never waits for its reader: up to 1,024 events are kept for one that is slow, then
/// it is told by [`Event::Missed`] how many it missed. Ends when the manifest is closed or all its other handles are gone.
pub struct Events(Pin<Box<dyn Stream<Item = Event> + Send>>);

impl Events {
    pub(super) fn new(events: broadcast::Receiver<Event>) -> Self {
        Self(Box::pin(futures::stream::unfold(Some(events), |events| async {
            let mut events = events?;
            match events.recv().await {
                Ok(Event::Closed) => Some((Event::Closed, None)),
                Ok(event) => Some((event, Some(events))),
                Err(RecvError::Lagged(count)) => Some((Event::Missed(count), Some(events))),
                Err(RecvError::Closed) => None,
            }
        })))
    }

    /// The next event; `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.0.as_mut().poll_next(cx)).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// How often something was refused since the member started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusals {
    /// Connections that were not let in, or did not prove that they know the secret.
    pub joins: u64,
    /// Frames in which no sense could be made; each closed its connection.
    pub malformed_frames: u64,
    /// Frames of a kind that is not known.
    pub unknown_frames: u64,
    /// News with a record that is not acceptable or too large, or with too many of them.
    pub records: u64,
    /// News of members for whom there was no room, in the table or for the connection that brought them.
    pub owners: u64,
    /// Members of whom the other side of a connection said that it lacks them, when it had been told everything four times within a
    /// heartbeat. They are compared again later.
    pub repeats: u64,
    /// Attempts to speak in the name of this member, or to free what is not one's own.
    pub takeovers: u64,
    /// How often this process had stood still for so long that it did not believe its own impatience. Not a refusal of others.
    pub pauses: u64,
}
