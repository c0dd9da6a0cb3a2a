//! What is said of members that are not reached: in errors, in the states of registrations, and in the log.
//!
//! Owns the text of the reasons, and the task that writes outages into the log. It must never decide whether anybody is
//! reached. Look next at `engine.rs` for that, and at `place.rs` for where the reasons come from.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::engine::{Place, Shared, Standing};
use super::join::Refusal;

/// Most reasons that are told; of more it is told how many there are.
const REASONS: usize = 4;

/// How long nobody must be reached before the log warns of it. When the one who holds the port of a machine ends, another takes
/// its place within that time, and nobody has to do anything about it.
const LASTING: Duration = Duration::from_secs(1);

impl Place {
    pub(super) fn trouble_at(address: &str, refusal: &Refusal) -> Self {
        Self::Trouble(Refusal { why: format!("{address}: {}", refusal.why), is_mistake: refusal.is_mistake })
    }

    pub(super) const fn trouble(&self) -> Option<&Refusal> {
        match self {
            Self::Trouble(refusal) => Some(refusal),
            Self::Trying | Self::Fine | Self::Myself => None,
        }
    }
}

/// What is wrong with all of these places, if anything is: first what somebody has to mend.
pub(super) fn reasons(places: &[Place]) -> Option<String> {
    let mut troubles: Vec<_> = places.iter().filter_map(Place::trouble).collect();
    troubles.sort_by_key(|refusal| !refusal.is_mistake);
    let mut told: Vec<_> = troubles.iter().take(REASONS).map(|refusal| refusal.why.clone()).collect();
    if troubles.len() > REASONS {
        told.push(format!("and {} more", troubles.len() - REASONS));
    }
    (!told.is_empty()).then(|| told.join("; "))
}

/// Writes into the log when nobody is reached for long, and the end of that.
pub(super) async fn log(shared: Arc<Shared>) {
    let registry = shared.settings.describe();
    let mut standing = shared.standing.subscribe();
    let is_isolated = |standing: &Standing| matches!(standing, Standing::Isolated(_));
    // The channel is as old as the member, so waiting on it does not fail.
    loop {
        if standing.wait_for(is_isolated).await.is_err() {
            return;
        }
        if timeout(LASTING, standing.wait_for(|now| !is_isolated(now))).await.is_ok() {
            tracing::debug!(registry, "no other member was reached for a moment");
            continue;
        }
        let Standing::Isolated(problem) = standing.borrow().clone() else { continue };
        tracing::warn!(registry, problem, "no other member is reached; tried again");
        if standing.wait_for(|now| !is_isolated(now)).await.is_err() {
            return;
        }
        // At the same level, or whoever reads warnings only would never learn that it is over.
        if shared.peek(|table| table.links().is_empty()) {
            tracing::warn!(registry, "this member is now the one that others join: no longer cut off");
        } else {
            tracing::warn!(registry, "other members are reached again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_reasons_those_that_somebody_must_mend_come_first_and_the_rest_is_counted() {
        let refused = |n: usize| Place::trouble_at(&format!("a{n}"), &"refused".into());
        let mut places: Vec<_> = (0..REASONS - 1).map(refused).collect();
        places.extend([Place::Fine, Place::Trying, Place::Myself]);
        places.push(Place::trouble_at("last", &Refusal::mistake("other secret")));
        let all = reasons(&places).unwrap_or_default();
        assert_eq!(all, "last: other secret; a0: refused; a1: refused; a2: refused");
        places.push(refused(9));
        assert_eq!(reasons(&places), Some(format!("{all}; and 1 more")));
        assert_eq!(reasons(&[Place::Fine]), None);
    }
}
