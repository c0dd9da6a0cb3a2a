//! Round robin: each in turn.
//!
//! Owns the turn, which starts at a random place, so that many short-lived clients do not all begin with the same endpoint.
//! It must never look at load. Look next at [`super`] for the trait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Balance;
use crate::client::target::Target;

/// Each endpoint in turn; those that the call has tried come last, and before them those that failed just now.
#[derive(Debug)]
pub(in crate::client) struct RoundRobin(AtomicUsize);

impl RoundRobin {
    pub(in crate::client) fn new() -> Self {
        Self(AtomicUsize::new(fastrand::usize(..)))
    }
}

impl Balance for RoundRobin {
    fn pick(&self, targets: &[Arc<Target>], tried: &[Arc<Target>]) -> Option<usize> {
        let len = targets.len();
        if len == 0 {
            return None;
        }
        let start = self.0.fetch_add(1, Ordering::Relaxed) % len;
        let mut best = None;
        for index in (start..len).chain(0..start) {
            let target = &targets[index];
            let drawbacks = (tried.iter().any(|other| Arc::ptr_eq(other, target)), target.is_resting());
            if drawbacks == (false, false) {
                return Some(index);
            }
            if best.is_none_or(|(least, _)| drawbacks < least) {
                best = Some((drawbacks, index));
            }
        }
        best.map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Endpoint;

    fn targets(count: u16) -> Vec<Arc<Target>> {
        (0..count).map(|n| Arc::new(Target::new(Arc::new(Endpoint::new(([127, 0, 0, 1], 1 + n).into()))))).collect()
    }

    #[test]
    fn each_gets_its_turn() {
        let (policy, three) = (RoundRobin::new(), targets(3));
        let mut counts = [0; 3];
        for _ in 0..30 {
            counts[policy.pick(&three, &[]).unwrap_or(usize::MAX)] += 1;
        }
        assert_eq!(counts, [10; 3]);
    }

    #[test]
    fn the_untried_goes_first_then_the_rested_then_anything() {
        let (policy, three) = (RoundRobin::new(), targets(3));
        three[1].failed_for_test();
        for _ in 0..10 {
            assert_eq!(policy.pick(&three, &three[..1]), Some(2), "neither tried nor resting");
            assert_eq!(policy.pick(&three[..2], &three[..1]), Some(1), "resting, but not tried");
            assert_eq!(policy.pick(&three[..1], &three[..1]), Some(0), "better than nothing");
        }
        assert_eq!(policy.pick(&[], &[]), None);
    }
}
