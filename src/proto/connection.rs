//! The machine: the state of one connection, and how it ends.
//!
//! Owns [`Connection`] and what all its parts share. It must never touch a socket, a task, a waker or a clock. Look next
//! at `receive.rs` and `transmit.rs` for the way of bytes in and out, at `timers.rs` for what time does, and at `client.rs`
//! and `server.rs` for what each side adds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::budget::Budget;
use super::config::{Config, Side};
use super::credit::{Credit, Window};
use super::error::Error;
use super::event::{Event, Failure, Peer};
use super::growth::Growth;
use super::keepalive::Keepalive;
use super::names::{GivenNames, TakenNames};
use super::outbox::Outbox;
use super::streams::{Body, Sending, Streams};
use super::timers::after;
use crate::wire::close::put_close;
use crate::wire::hello::{MAX_CREDIT, MIN_WINDOW};
use crate::wire::load::Load;
use crate::wire::{CloseReason, PREFACE, StreamId};

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The peer's preface is awaited.
    Preface,
    /// The peer's HELLO is awaited.
    Hello,
    Ready,
    Closed,
}

/// One connection, of either side.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) config: Arc<Config>,
    pub(super) phase: Phase,
    /// The own preface was queued.
    pub(super) prefaced: bool,
    pub(super) peer: Option<Box<Peer>>,
    pub(super) streams: Streams,
    pub(super) outbox: Outbox,
    /// Streams with pending bytes and the credit for some of them, in the order of their turns.
    pub(super) turns: VecDeque<StreamId>,
    pub(super) events: VecDeque<Event>,
    /// What this side may send, over all streams.
    pub(super) credit: Credit,
    /// What the peer may send, over all streams.
    pub(super) window: Window,
    pub(super) given: GivenNames,
    pub(super) taken: TakenNames,
    pub(super) cancels: Budget,
    pub(super) control: Budget,
    pub(super) keepalive: Keepalive,
    pub(super) growth: Growth,
    /// The latest time that was told.
    pub(super) now: Instant,
    pub(super) handshake_until: Instant,
    /// Since when no call is open.
    pub(super) idle_since: Instant,
    /// No stream has to be looked at before this time.
    pub(super) earliest: Option<Instant>,
    /// CALL frames queued (client) or accepted (server).
    pub(super) calls: u64,
    /// How many of them were put into a batch, and how many may have left with one.
    pub(super) batched: u64,
    pub(super) written: u64,
    pub(super) draining: bool,
    /// Somebody was told `Full`.
    pub(super) slot_wanted: bool,
    /// Client: how busy the server said last that it is, until somebody asks.
    pub(super) load: Option<Load>,
}

impl Connection {
    /// A fresh connection. A client queues its preface and HELLO at once.
    pub(crate) fn new(config: Arc<Config>, now: Instant) -> Self {
        let window = config.connection_window.clamp(MIN_WINDOW, MAX_CREDIT);
        let mut connection = Self {
            phase: Phase::Preface,
            prefaced: false,
            peer: None,
            streams: Streams::default(),
            outbox: Outbox::default(),
            turns: VecDeque::new(),
            // Most connections rest, and then hello was all there was to tell: without room for one it would be made for four.
            events: VecDeque::with_capacity(1),
            credit: Credit::new(0),
            window: Window::new(window),
            given: GivenNames::default(),
            taken: TakenNames::default(),
            cancels: Budget::new(config.cancel_budget, config.cancel_refill, now),
            control: Budget::new(config.control_budget, config.control_refill, now),
            keepalive: Keepalive::new(&config, now),
            growth: Growth::new(window, now),
            now,
            handshake_until: after(now, config.handshake_timeout),
            idle_since: now,
            earliest: None,
            calls: 0,
            batched: 0,
            written: 0,
            draining: false,
            slot_wanted: false,
            load: None,
            config,
        };
        if connection.is_client() {
            connection.greet();
        }
        connection
    }

    /// Who is at the other end, after [`Event::Ready`].
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.peer.as_deref()
    }

    /// What happened first since it was last asked; [`pop_event`](Self::pop_event) takes it. Receiving, sending, timeouts and
    /// ends may all produce events.
    pub(crate) fn peek_event(&mut self) -> Option<&Event> {
        loop {
            // A stream may have ended between the event and this question; nobody needs to hear of it any more.
            let alive = match self.events.front_mut()? {
                Event::Call { id, method, .. } => match self.streams.get_mut(*id) {
                    Some(stream) => {
                        stream.announced = true;
                        if let Some(name) = self.taken.report(method.number) {
                            method.name = Some(name);
                        }
                        true
                    }
                    None => false,
                },
                Event::Answer { id, .. } | Event::Expired(id) => self.streams.get(*id).is_some(),
                // Whoever reads a request's body may be told by this that there is nothing to be read any more.
                Event::Readable(id) => self.config.side == Side::Server || self.streams.get(*id).is_some(),
                _ => true,
            };
            if alive {
                return self.events.front();
            }
            self.events.pop_front();
        }
    }

    /// Whether [`peek_event`](Self::peek_event) may show one.
    #[inline]
    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Takes what [`peek_event`](Self::peek_event) has just shown.
    pub(crate) fn pop_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Both at once.
    #[cfg(test)]
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.peek_event()?;
        self.pop_event()
    }

    /// How many streams are in use; on the client also those whose end was not read yet.
    pub(crate) fn open_calls(&self) -> usize {
        self.streams.len()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether nothing more will be received or opened. What was queued before may still be transmitted.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Queues CLOSE, and nothing after it. Open streams stay as they are until [`lost`](Self::lost).
    pub(crate) fn close(&mut self, reason: CloseReason, text: &str) {
        if self.phase == Phase::Closed {
            return;
        }
        let preface = !std::mem::replace(&mut self.prefaced, true);
        self.outbox.put(|bytes| {
            if preface {
                bytes.extend_from_slice(PREFACE);
            }
            put_close(bytes, reason, text);
        });
        self.phase = Phase::Closed;
        self.turns.clear();
    }

    /// The I/O is gone: every open stream fails, and nothing can be opened any more.
    pub(crate) fn lost(&mut self, error: Error) {
        self.phase = Phase::Closed;
        self.outbox.clear();
        self.turns.clear();
        let error = Arc::new(error);
        for id in self.streams.ids() {
            if self.is_client() {
                let Some(stream) = self.streams.get(id) else { continue };
                let (sent, answered) = (stream.sequence <= self.written, stream.answered);
                self.fail_stream(id, Failure::Lost { error: Arc::clone(&error), sent, answered });
            } else {
                self.cancel_stream(id);
            }
        }
    }

    /// Ends the connection because of an error, and tells the peer if it can be told.
    pub(super) fn give_up(&mut self, error: &Error) {
        match error.close_reason() {
            Some(reason) => self.close(reason, &error.to_string()),
            None => {
                self.phase = Phase::Closed;
                self.turns.clear();
            }
        }
    }

    pub(super) fn is_client(&self) -> bool {
        self.config.side == Side::Client
    }

    /// First credit of a stream that this side receives.
    pub(super) fn receive_window(&self) -> u32 {
        self.config.stream_window.clamp(MIN_WINDOW, MAX_CREDIT)
    }

    /// First credit of a stream that this side sends.
    pub(super) fn send_window(&self) -> u32 {
        self.peer.as_ref().map_or(0, |peer| peer.stream_window)
    }

    /// Longest message that the peer accepts.
    pub(super) fn message_limit(&self) -> usize {
        let limit = self.peer.as_ref().map_or(0, |peer| peer.max_message);
        // The long prefix has 32 bits.
        usize::try_from(limit.min(u64::from(u32::MAX))).unwrap_or(usize::MAX)
    }

    /// The box of a stream.
    pub(super) fn body(&mut self, id: StreamId) -> Option<&mut Body> {
        let (receive, send) = (self.receive_window(), self.send_window());
        self.streams.get_mut(id).map(|stream| stream.body(receive, send))
    }

    /// Says once that something can be read.
    pub(super) fn notify(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id) {
            if !std::mem::replace(&mut stream.flagged, true) {
                self.events.push_back(Event::Readable(id));
            }
        }
    }

    /// Client: the peer's direction is over, and with it the stream. What came is still to be read.
    pub(super) fn end_response(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        stream.receiving = false;
        stream.deadline = None;
        if let Some(body) = stream.body.as_deref_mut() {
            body.idle = None;
        }
        self.stop_sending(id);
        self.notify(id);
    }

    /// Client: the same, with a failure to be read at the end.
    pub(super) fn fail_stream(&mut self, id: StreamId, failure: Failure) {
        if let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.receiving) {
            stream.failure = Some(Box::new(failure));
            self.end_response(id);
        }
    }

    /// Server: the stream is gone, and whoever handles it is told.
    pub(super) fn cancel_stream(&mut self, id: StreamId) {
        if self.streams.get(id).is_some_and(|stream| stream.announced) {
            self.events.push_back(Event::Cancelled(id));
        }
        self.free(id);
    }

    /// Drops what waits to be sent, and tells the sender if it waits too.
    pub(super) fn stop_sending(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        stream.sending = Sending::Ended;
        if std::mem::take(&mut stream.waiting) | std::mem::take(&mut stream.watching) {
            self.events.push_back(Event::Writable(id));
        }
        let mut queued = false;
        if let Some(body) = stream.body.as_deref_mut() {
            queued = std::mem::take(&mut body.outgoing.queued);
            body.outgoing.clear();
        }
        if queued {
            self.turns.retain(|turn| *turn != id);
        }
    }

    /// Ends a stream for good, tells those who wait, and returns all credit that it holds.
    pub(super) fn free(&mut self, id: StreamId) {
        let client = self.is_client();
        let Some(left) = self.streams.end(id, client) else { return };
        if left.sender_waits {
            self.events.push_back(Event::Writable(id));
        }
        // A request's body may be in other hands than the handler's, which wait.
        if left.reader_waits && !client {
            self.events.push_back(Event::Readable(id));
        }
        if let Some(mut body) = left.body {
            if body.outgoing.queued {
                self.turns.retain(|turn| *turn != id);
            }
            let grown = body.incoming.window.size() - self.receive_window();
            self.growth.forget(id, grown);
            let held = body.incoming.clear();
            self.window.release(held);
            self.return_credit();
        }
        if self.streams.len() == 0 {
            self.keepalive.rest();
            self.idle_since = self.now;
        }
        if client {
            self.offer_slot();
            self.close_if_drained();
        }
    }
}
