//! What an instance says of itself, as the notes of its check in Consul.
//!
//! Owns the text, `picom doing @1763740000: backup`, its reading, and which status of the check goes with which state. It stands
//! in the check's definition and not in its output, because Consul spreads a changed output only minutes later. It must never
//! believe more than it would write. Look next at `register.rs` and `entries.rs`.

use std::time::{Duration, SystemTime};

use crate::state::{MAX_REASON, NodeState, NodeStatus};

/// What picom's own notes begin with.
const MARK: &str = "picom ";

/// The notes that say it.
pub(super) fn write(status: &NodeStatus) -> String {
    let mut note = format!("{MARK}{}", status.state);
    if let Some(since) = status.since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok()) {
        note = format!("{note} @{}", since.as_secs());
    }
    match &status.reason {
        Some(reason) => format!("{note}: {reason}"),
        None => note,
    }
}

/// What the notes say; `None` if picom would not write them so.
pub(super) fn read(note: &str) -> Option<NodeStatus> {
    let rest = note.strip_prefix(MARK)?;
    let (head, reason) = rest.split_once(": ").map_or((rest, None), |(head, reason)| (head, Some(reason)));
    let legal = |reason: &str| (1..=MAX_REASON).contains(&reason.len()) && !reason.chars().any(char::is_control);
    if reason.is_some_and(|reason| !legal(reason)) {
        return None;
    }
    let (state, since) = head.split_once(" @").map_or((head, None), |(state, since)| (state, Some(since)));
    let state = NodeState::from_name(state).filter(|state| *state != NodeState::Down)?;
    let since = match since {
        Some(since) if !since.starts_with('+') => {
            Some(SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since.parse().ok()?))?)
        }
        Some(_) => return None,
        None => None,
    };
    Some(NodeStatus { state, reason: reason.map(str::to_owned), since })
}

/// Whether the check passes in this state. Where it does not, nobody who goes by the checks calls the instance.
pub(super) const fn passes(state: NodeState) -> bool {
    matches!(state, NodeState::Running | NodeState::Doing)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_status_comes_back_from_its_note() {
        for state in [NodeState::Up, NodeState::Running, NodeState::Doing, NodeState::Stopped] {
            for reason in [None, Some("backup"), Some("a: b @3: c"), Some("€")] {
                let status = NodeStatus::now(state, reason);
                assert_eq!(read(&write(&status)), Some(status));
                let bare = NodeStatus { since: None, ..NodeStatus::now(state, reason) };
                assert_eq!(read(&write(&bare)), Some(bare));
            }
        }
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_740_000);
        let status = NodeStatus { since: Some(since), ..NodeStatus::now(NodeState::Doing, Some("backup")) };
        assert_eq!(write(&status), "picom doing @1763740000: backup");
    }

    #[test]
    fn what_picom_would_not_write_is_not_believed() {
        let longest = format!("picom doing: {}", "x".repeat(MAX_REASON));
        assert!(read(&longest).is_some());
        for note in [
            "",
            "picom",
            "picom ",
            "running",
            "picom down",
            "picom idle",
            "picom running ",
            "picom running @",
            "picom running @-3",
            "picom running @+3",
            "picom running @18446744073709551615",
            "picom running @99999999999999999999",
            "picom doing: ",
            "picom doing: two\nlines",
            "TTL expired (last output before timeout follows): picom running",
            &format!("{longest}x"),
        ] {
            assert_eq!(read(note), None, "{note:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_does_harm(tail in ".*", head in "(picom )?(up|running|doing|stopped|down)?( @[0-9]{1,25})?(: )?") {
            if let Some(status) = read(&format!("{head}{tail}")) {
                prop_assert_eq!(read(&write(&status)), Some(status));
            }
        }
    }
}
