//! What a node says of itself: up, running, doing something, stopped, down.
//!
//! Owns the states, the ways from one to another, and what belongs to a state. It must never know who is told. Look next at
//! [`crate::node`] for who changes it, and at [`crate::registry`] for how others learn of it.

use std::fmt;
use std::time::SystemTime;

/// What a node is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeState {
    /// It can be found, but was not started yet. Gets no calls.
    Up,
    /// It gets calls.
    Running,
    /// It is busy with something of its own. Gets calls only where no other instance is running.
    Doing,
    /// It was stopped, and may be started again. Gets no calls.
    Stopped,
    /// It has left, or was never there.
    Down,
}

impl NodeState {
    /// The states that may follow this one.
    pub const fn next(self) -> &'static [Self] {
        match self {
            Self::Up => &[Self::Running, Self::Doing, Self::Stopped, Self::Down],
            Self::Running => &[Self::Doing, Self::Stopped, Self::Down],
            Self::Stopped => &[Self::Doing, Self::Running, Self::Down],
            Self::Doing => &[Self::Doing, Self::Running, Self::Stopped, Self::Down],
            Self::Down => &[Self::Up],
        }
    }

    /// Its name: `up`, `running`, `doing`, `stopped` or `down`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Running => "running",
            Self::Doing => "doing",
            Self::Stopped => "stopped",
            Self::Down => "down",
        }
    }

    /// The state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Up, Self::Running, Self::Doing, Self::Stopped, Self::Down]
            .into_iter()
            .find(|state| state.as_str() == name)
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a node with why and since when it is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The state.
    pub state: NodeState,
    /// Why, in words for people; `None` where nobody gave a reason.
    pub reason: Option<String>,
    /// Since when, by the clock of the node itself, in whole seconds; for people, never to compare. `None` if it is not known.
    pub since: Option<SystemTime>,
}

/// Longest reason, in bytes; a longer one is cut. What a datagram has room for beside everything else.
pub const MAX_REASON: usize = 64;

impl NodeStatus {
    /// A state that begins now. Of a reason longer than [`MAX_REASON`] the beginning is kept, and control characters become
    /// spaces, because it stands in logs, errors and the lists of registries.
    pub fn now(state: NodeState, reason: Option<&str>) -> Self {
        let reason = reason.and_then(|reason| {
            let plain: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let plain = plain.trim();
            let end = (0..=plain.len().min(MAX_REASON)).rev().find(|at| plain.is_char_boundary(*at)).unwrap_or(0);
            Some(plain[..end].trim_end().to_owned()).filter(|reason| !reason.is_empty())
        });
        // Whole seconds, which survive every registry.
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .ok()
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(since.as_secs())));
        Self { state, reason, since }
    }

    /// A state of which nothing else is known.
    pub const fn only(state: NodeState) -> Self {
        Self { state, reason: None, since: None }
    }

    /// What follows, if it may.
    ///
    /// # Errors
    /// [`TransitionError`] with the states that may follow.
    pub fn then(&self, state: NodeState, reason: Option<&str>) -> Result<Self, TransitionError> {
        if self.state.next().contains(&state) {
            return Ok(Self::now(state, reason));
        }
        Err(TransitionError { from: self.state, to: state })
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{}: {reason}", self.state),
            None => write!(f, "{}", self.state),
        }
    }
}

/// A node cannot go from its state to the one that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransitionError {
    /// The state that it is in.
    pub from: NodeState,
    /// The state that was asked for.
    pub to: NodeState,
}

impl fmt::Display for TransitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a node that is {} cannot become {}; from here it can become", self.from, self.to)?;
        self.from.next().iter().enumerate().try_for_each(|(at, state)| {
            let separator = if at == 0 { " " } else { ", " };
            write!(f, "{separator}{state}")
        })
    }
}

impl std::error::Error for TransitionError {}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_may_not_follow_is_refused_with_those_that_may() {
        let running = NodeStatus::now(NodeState::Running, None);
        let error = running.then(NodeState::Up, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a node that is running cannot become up; from here it can become doing, stopped, down"
        );
        let doing = running.then(NodeState::Doing, Some("backup")).unwrap();
        assert_eq!(doing.to_string(), "doing: backup");
        assert_eq!(doing.then(NodeState::Doing, Some("another")).unwrap().reason.unwrap(), "another");
        assert!(running.then(NodeState::Running, None).is_err());
    }

    #[test]
    fn a_reason_is_cut_at_its_limit_between_characters() {
        let of = |reason: &str| NodeStatus::now(NodeState::Stopped, Some(reason)).reason;
        assert_eq!(of(&"x".repeat(MAX_REASON)).unwrap().len(), MAX_REASON);
        assert_eq!(of(&"x".repeat(MAX_REASON + 1)).unwrap().len(), MAX_REASON);
        assert_eq!(of(&format!("{}é", "x".repeat(MAX_REASON - 1))).unwrap().len(), MAX_REASON - 1);
        assert_eq!(of(""), None);
        assert_eq!(of("\0two\nlines\u{85}\0").unwrap(), "two lines");
    }

    #[test]
    fn names_lead_back_to_their_states() {
        for state in [NodeState::Up, NodeState::Running, NodeState::Doing, NodeState::Stopped, NodeState::Down] {
            assert_eq!(NodeState::from_name(state.as_str()), Some(state));
        }
        assert_eq!(NodeState::from_name("idle"), None);
    }
}
