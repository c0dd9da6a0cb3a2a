//! Liveness: when to ask the peer whether it is there, and when to believe that it is not.
//!
//! Owns the times of section 10. It must never send anything itself. Look next at `connection.rs`, which asks it.

use std::time::{Duration, Instant};

use super::config::Config;
use super::timers::NEVER;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Ping,
    /// The peer is dead.
    GiveUp,
}

/// The silence of one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalive {
    busy: Duration,
    idle: Duration,
    patience: Duration,
    /// When something came last.
    heard: Instant,
    /// Since when calls are open.
    busy_since: Option<Instant>,
    /// When the PING was sent that nothing came after.
    asked: Option<Instant>,
}

impl Keepalive {
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        // Cut here, because the sums are made for every call.
        Self {
            busy: config.ping_busy.min(NEVER),
            idle: config.ping_idle.min(NEVER),
            patience: config.ping_timeout.min(NEVER),
            heard: now,
            busy_since: None,
            asked: None,
        }
    }

    /// Something came, whatever it was.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// The first call was opened. Its silence counts from here: what the peer did not say before it was not asked.
    pub(super) fn busy(&mut self, now: Instant) {
        self.busy_since = Some(now);
    }

    /// The last call is over.
    pub(super) fn rest(&mut self) {
        self.busy_since = None;
    }

    /// When [`check`](Self::check) has something to do.
    pub(super) fn due(&self) -> Instant {
        match (self.asked, self.busy_since) {
            (Some(asked), _) => asked + self.patience,
            (None, Some(since)) => (self.heard.max(since) + self.busy).min(self.heard + self.idle),
            (None, None) => self.heard + self.idle,
        }
    }

    pub(super) fn check(&mut self, now: Instant) -> Action {
        if now < self.due() {
            return Action::Nothing;
        }
        if self.asked.is_some() {
            return Action::GiveUp;
        }
        self.asked = Some(now);
        Action::Ping
    }
}
