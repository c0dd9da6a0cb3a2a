//! One list out of several.
//!
//! Owns the rules of [`Combine`](super::Combine) as functions of the lists alone. It must never wait or know a registry. Look
//! next at `combine.rs`, which feeds it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Endpoint, Endpoints, Freshness, Tier};
use crate::state::NodeState;

/// How several lists become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Those up to the first that needs no other.
    First,
    /// All of them.
    Union,
}

/// The lists up to the first whose registry has neither answered nor said what keeps it from that: until it does, those after it
/// are not asked for.
pub(super) fn settled(lists: &[Arc<Endpoints>]) -> &[Arc<Endpoints>] {
    let silent = |list: &Arc<Endpoints>| list.freshness == Freshness::Never && list.problem.is_none();
    &lists[..lists.iter().position(silent).map_or(lists.len(), |at| at + 1)]
}

/// One list out of several, in the order of their registries. Its generation has no meaning.
pub(super) fn merge(rule: Rule, lists: &[Arc<Endpoints>]) -> Endpoints {
    let (relevant, joined) = match rule {
        Rule::First => {
            let enough = lists.iter().position(|list| offer(list) == Some(Offer::Healthy));
            // Those after it do not matter now.
            let relevant = &lists[..enough.map_or(lists.len(), |at| at + 1)];
            (relevant, joined(relevant))
        }
        Rule::Union => (lists, lists.to_vec()),
    };
    let endpoints = union(&joined);
    let freshness = if endpoints.is_empty() { freshness_of_nothing(lists) } else { freshness(&joined) };
    let problems: Vec<_> = relevant.iter().filter_map(|list| list.problem.as_deref()).collect();
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    Endpoints { generation: 0, freshness, endpoints, problem }
}

/// What a list has for callers, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Offer {
    /// One that runs and that nothing is held against: no other list is needed.
    Healthy,
    /// Only such as are in doubt or busy.
    Poor,
    /// Only such as are remembered.
    Remembered,
}

fn offer(list: &Endpoints) -> Option<Offer> {
    // All that are usable are alike in this.
    let one = list.usable().into_iter().next()?;
    Some(match (one.tier, one.status.state) {
        (Tier::Healthy, NodeState::Running) => Offer::Healthy,
        (Tier::Healthy | Tier::Doubtful, _) => Offer::Poor,
        (Tier::Unhealthy, _) => Offer::Remembered,
    })
}

/// The lists with something to call, without those that only remember unless all do. If there is nothing to call, the first that
/// knows anybody, so that it is shown.
fn joined(lists: &[Arc<Endpoints>]) -> Vec<Arc<Endpoints>> {
    let offers: Vec<_> = lists.iter().filter_map(|list| Some((offer(list)?, list))).collect();
    if offers.is_empty() {
        return lists.iter().find(|list| !list.endpoints.is_empty()).cloned().into_iter().collect();
    }
    let trusted = offers.iter().any(|(offer, _)| *offer < Offer::Remembered);
    let wanted = offers.into_iter().filter(|(offer, _)| !trusted || *offer < Offer::Remembered);
    wanted.map(|(_, list)| Arc::clone(list)).collect()
}

/// Nobody is there for sure only if everybody says so.
fn freshness_of_nothing(lists: &[Arc<Endpoints>]) -> Freshness {
    if lists.iter().any(|list| list.freshness == Freshness::Never) {
        return Freshness::Never;
    }
    freshness(lists)
}

/// As old as the oldest that has answered.
fn freshness(lists: &[Arc<Endpoints>]) -> Freshness {
    let stale = lists.iter().filter_map(|list| match list.freshness {
        Freshness::Stale(since) => Some(since),
        Freshness::Never | Freshness::Live => None,
    });
    match stale.min() {
        Some(since) => Freshness::Stale(since),
        None if lists.iter().any(|list| list.freshness == Freshness::Live) => Freshness::Live,
        None => Freshness::Never,
    }
}

fn union(lists: &[Arc<Endpoints>]) -> Vec<Arc<Endpoint>> {
    let mut lists: Vec<_> = lists.iter().collect();
    // Who knows comes before who remembers, and who remembers what is newer before the others.
    lists.sort_by_key(|list| match list.freshness {
        Freshness::Live => None,
        Freshness::Stale(since) => Some(Some(Reverse(since))),
        Freshness::Never => Some(None),
    });
    let mut union: BTreeMap<SocketAddr, Arc<Endpoint>> = BTreeMap::new();
    for endpoint in lists.iter().flat_map(|list| &list.endpoints) {
        union
            .entry(endpoint.addr)
            .and_modify(|known| {
                // What is said of another process at this address says nothing of this one.
                if known.incarnation.zip(endpoint.incarnation).is_some_and(|(known, other)| known != other) {
                    return;
                }
                let tier = known.tier.min(endpoint.tier);
                // A table knows an address; who has an incarnation has spoken for itself, and may have stopped.
                if known.incarnation.is_none() && endpoint.incarnation.is_some() {
                    *known = Arc::clone(endpoint);
                }
                if known.tier != tier {
                    Arc::make_mut(known).tier = tier;
                }
            })
            .or_insert_with(|| Arc::clone(endpoint));
    }
    union.into_values().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::slice::from_ref;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::state::NodeStatus;

    fn at(port: u16, tier: Tier) -> Endpoint {
        Endpoint { tier, ..Endpoint::new(([10, 0, 0, 7], port).into()) }
    }

    fn list(freshness: Freshness, endpoints: &[Endpoint], problem: Option<&str>) -> Arc<Endpoints> {
        let endpoints = endpoints.iter().cloned().map(Arc::new).collect();
        Arc::new(Endpoints { generation: 1, freshness, endpoints, problem: problem.map(str::to_owned) })
    }

    fn live(endpoints: &[Endpoint]) -> Arc<Endpoints> {
        list(Freshness::Live, endpoints, None)
    }

    fn ports(merged: &Endpoints) -> Vec<u16> {
        merged.endpoints.iter().map(|endpoint| endpoint.addr.port()).collect()
    }

    #[test]
    fn the_first_that_can_be_called_is_believed_and_troubles_before_it_are_told() {
        let dead = list(Freshness::Never, &[], Some("no answer"));
        let stopped = Endpoint { status: NodeStatus::now(NodeState::Stopped, None), ..at(1, Tier::Healthy) };
        let after = list(Freshness::Never, &[], Some("not of interest"));
        let merged =
            merge(Rule::First, &[dead.clone(), live(from_ref(&stopped)), live(&[at(2, Tier::Healthy)]), after]);
        assert_eq!((ports(&merged), merged.freshness), (vec![2], Freshness::Live));
        assert_eq!(merged.problem.as_deref(), Some("no answer"));
        let none = merge(Rule::First, &[dead, live(&[stopped])]);
        assert_eq!(ports(&none), [1], "what is known is shown, even if nobody may call it");
    }

    #[test]
    fn one_that_runs_is_worth_more_than_the_order_of_the_registries() {
        let is = |state, endpoint| Endpoint { status: NodeStatus::only(state), ..endpoint };
        let running = |port| at(port, Tier::Healthy);
        let warned = |port| at(port, Tier::Doubtful);
        let doing = |port| is(NodeState::Doing, at(port, Tier::Healthy));
        let stopped = |port| is(NodeState::Stopped, at(port, Tier::Healthy));
        let lost = |endpoint| list(Freshness::Stale(Instant::now()), &[endpoint], Some("lost"));
        let remembered = |port| lost(at(port, Tier::Unhealthy));
        let first = |lists: &[Arc<Endpoints>]| {
            let merged = merge(Rule::First, lists);
            let usable = merged.usable();
            // What nobody may call is shown.
            ports(&Endpoints {
                endpoints: if usable.is_empty() { merged.endpoints } else { usable },
                ..Endpoints::unknown()
            })
        };

        assert_eq!(first(&[live(&[stopped(1), doing(2)]), live(&[running(3)])]), [3], "a busy one waits");
        assert_eq!(
            first(&[live(&[doing(1)]), live(&[warned(2)]), live(&[running(3)])]),
            [3],
            "a doubtful one may be dead: whoever is well goes before it"
        );
        assert_eq!(
            first(&[live(&[warned(1)]), live(&[doing(2)]), live(&[warned(3)])]),
            [1, 3],
            "in doubt all are tried"
        );
        assert_eq!(
            first(&[live(&[doing(1), running(2)]), live(&[running(3)])]),
            [2],
            "the first that has one that runs"
        );
        assert_eq!(
            first(&[live(&[stopped(1)]), live(&[doing(2)]), live(&[doing(3)])]),
            [2, 3],
            "busy ones for want of others"
        );
        assert_eq!(first(&[live(&[stopped(1)]), live(&[stopped(2)])]), [1], "what nobody may call is shown");
        assert_eq!(first(&[lost(running(1)), live(&[running(2)])]), [1], "a list is kept while its registry is lost");
        assert_eq!(first(&[remembered(1), live(&[doing(2)])]), [2], "but not what is only remembered");
        assert_eq!(first(&[live(&[stopped(1)]), remembered(2)]), [2]);
        assert_eq!(
            first(&[live(&[at(1, Tier::Unhealthy)]), live(&[doing(2)])]),
            [2],
            "nobody calls what fails its check"
        );
        let merged = merge(Rule::First, &[live(&[warned(1), running(2)]), lost(running(3))]);
        assert_eq!(
            (ports(&merged), merged.freshness, merged.problem),
            (vec![1, 2], Freshness::Live, None),
            "one is enough"
        );
        let merged = merge(Rule::First, &[remembered(1), live(&[warned(2)])]);
        assert_eq!((ports(&merged), merged.freshness), (vec![2], Freshness::Live), "what is known is not made old");
    }

    #[test]
    fn of_one_address_the_best_tier_counts_and_the_word_of_the_instance_itself() {
        let told = Endpoint {
            incarnation: Some(7),
            id: "told".to_owned(),
            status: NodeStatus::now(NodeState::Stopped, Some("deploy")),
            ..at(1, Tier::Unhealthy)
        };
        for lists in [
            [live(&[at(1, Tier::Healthy)]), live(from_ref(&told))],
            [live(from_ref(&told)), live(&[at(1, Tier::Healthy)])],
        ] {
            let merged = merge(Rule::Union, &lists);
            assert_eq!(merged.endpoints.len(), 1);
            let only = &merged.endpoints[0];
            assert_eq!((only.tier, only.id.as_str(), &only.status), (Tier::Healthy, "told", &told.status));
        }
        let merged = merge(
            Rule::Union,
            &[
                live(&[at(3, Tier::Doubtful), at(9, Tier::Healthy)]),
                live(&[at(3, Tier::Healthy), at(1, Tier::Unhealthy)]),
            ],
        );
        let tiers: Vec<_> = merged.endpoints.iter().map(|endpoint| endpoint.tier).collect();
        assert_eq!((ports(&merged), tiers), (vec![1, 3, 9], vec![Tier::Unhealthy, Tier::Healthy, Tier::Healthy]));
    }

    #[test]
    fn nobody_is_there_only_if_everybody_says_so() {
        let (never, empty) = (list(Freshness::Never, &[], Some("no answer")), live(&[]));
        let since = Instant::now();
        let old = list(Freshness::Stale(since), &[], Some("lost"));
        let older = list(Freshness::Stale(since - Duration::from_secs(1)), &[], None);
        for rule in [Rule::First, Rule::Union] {
            let of = |lists: &[&Arc<Endpoints>]| {
                let lists: Vec<_> = lists.iter().map(|list| Arc::clone(list)).collect();
                merge(rule, &lists)
            };
            assert_eq!(of(&[&empty, &never]).freshness, Freshness::Never);
            assert_eq!(of(&[&empty, &empty]).freshness, Freshness::Live);
            assert_eq!(of(&[&empty, &old, &older]).freshness, older.freshness);
            assert_eq!(of(&[&never, &old]).problem.as_deref(), Some("no answer; lost"));
        }
        let some = live(&[at(1, Tier::Healthy)]);
        assert_eq!(merge(Rule::Union, &[some.clone(), never]).freshness, Freshness::Live);
        assert_eq!(merge(Rule::Union, &[some, old.clone()]).freshness, old.freshness);
    }
}
