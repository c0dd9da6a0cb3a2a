//! What time does: deadlines, idle limits, keepalive, the handshake's limit, idle connections.
//!
//! Owns `timeout` and `handle_timeout`. Streams are looked at only when the earliest limit that was ever set has passed,
//! so that a call costs no timer. It must never read a clock. Look next at `keepalive.rs`.

use std::time::{Duration, Instant};

use super::connection::{Connection, Phase};
use super::error::Error;
use super::event::{Event, Failure};
use super::keepalive::Action;
use crate::wire::{CloseReason, Kind, StreamId};

/// A time that never comes: thirty years. Limits above it, which may be written as `Duration::MAX`, would overflow.
pub(super) const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The end of a limit that begins at a time.
pub(super) fn after(time: Instant, limit: Duration) -> Instant {
    time + limit.min(NEVER)
}

impl Connection {
    /// When [`handle_timeout`](Self::handle_timeout) is next due; may be earlier than necessary, never later.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            Phase::Preface | Phase::Hello => Some(self.handshake_until),
            Phase::Ready => {
                let due = self.keepalive.due();
                let due = self.earliest.map_or(due, |earliest| due.min(earliest));
                Some(self.idle_until().map_or(due, |until| due.min(until)))
            }
        }
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        self.now = now;
        match self.phase {
            Phase::Closed => return Ok(()),
            Phase::Preface | Phase::Hello if now >= self.handshake_until => return Err(self.handshake_timed_out()),
            Phase::Preface | Phase::Hello => return Ok(()),
            Phase::Ready => (),
        }
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.scan(now);
        }
        match self.keepalive.check(now) {
            Action::Nothing => (),
            // The bytes are of no meaning, but never those of `growth.rs`: that anything comes is enough.
            Action::Ping => self.outbox.frame(Kind::Ping, StreamId::CONNECTION, &self.calls.to_be_bytes()),
            Action::GiveUp => {
                self.give_up(&Error::KeepaliveTimeout);
                return Err(Error::KeepaliveTimeout);
            }
        }
        if self.idle_until().is_some_and(|until| until <= now) {
            return self.idle_too_long();
        }
        Ok(())
    }

    /// Counts the peer's silence anew: what it has sent was not read yet.
    pub(crate) fn excuse_silence(&mut self, now: Instant) {
        self.keepalive.hear(now);
    }

    /// Remembers that a stream has to be looked at.
    pub(super) fn look_at(&mut self, time: Instant) {
        self.earliest = Some(self.earliest.map_or(time, |earliest| earliest.min(time)));
    }

    /// When the connection will have been idle for too long.
    pub(crate) fn idle_until(&self) -> Option<Instant> {
        let limit = self.config.idle_close.filter(|_| self.streams.len() == 0)?;
        Some(after(self.idle_since, limit))
    }

    /// Nobody has used the connection. A server first asks the client to leave, for a call may be on its way; a client
    /// knows that there is none.
    fn idle_too_long(&mut self) -> Result<(), Error> {
        if !self.is_client() && !self.draining {
            self.drain();
            self.idle_since = self.now;
            return Ok(());
        }
        self.close(CloseReason::Idle, "no call for too long");
        Err(Error::Idle)
    }

    /// Looks at every stream for what is due.
    fn scan(&mut self, now: Instant) {
        let client = self.is_client();
        let mut earliest: Option<Instant> = None;
        let mut due = Vec::new();
        let mut look_at = |time: Instant| earliest = Some(earliest.map_or(time, |earliest| earliest.min(time)));
        for (id, stream) in self.streams.iter_mut() {
            if let Some(deadline) = stream.deadline {
                if deadline <= now {
                    stream.deadline = None;
                    stream.expired = true;
                    due.push((id, true));
                    continue;
                }
                look_at(deadline);
            }
            let waits = stream.flagged || stream.has_chunk();
            if let Some(idle) = stream.body.as_deref_mut().and_then(|body| body.idle.as_mut()) {
                // While something waits to be read, or nobody asks for more, it is not the peer that rests.
                if std::mem::take(&mut idle.moved) || waits {
                    idle.since = now;
                }
                if after(idle.since, idle.limit) <= now {
                    due.push((id, false));
                } else {
                    look_at(after(idle.since, idle.limit));
                }
            }
        }
        self.earliest = earliest;
        for (id, deadline) in due {
            if !client {
                self.events.push_back(Event::Expired(id));
                continue;
            }
            let Some(stream) = self.streams.get(id) else { continue };
            let answered = stream.answered;
            let sent = self.abandon(id);
            let failure =
                if deadline { Failure::Deadline { sent, answered } } else { Failure::Idle { sent, answered } };
            self.fail_stream(id, failure);
        }
    }
}
