//! Which connections a pool has, as numbers in a book.
//!
//! Owns [`Ledger`]: what is idle, what is leased, what has to leave. It must never hold a connection nor do I/O: the pool does
//! what it says. Look next at [`super::pool`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A connection in a ledger; never used again for another one.
pub(super) type Id = u64;

/// The connections of a pool: at most `limit` that are kept, and as many again that somebody still leases but that leave
/// as soon as they come back.
#[derive(Debug)]
pub(super) struct Ledger {
    limit: usize,
    /// Counts connections, and returns of them.
    clock: u64,
    entries: HashMap<Id, Entry>,
    /// Those that are kept, idle or leased, by slot.
    kept: BTreeSet<(u32, Id)>,
    /// Those that can be leased: the lowest slot first, of equal ones the one that has rested for longest.
    idle: BTreeSet<(u32, u64, Id)>,
}

#[derive(Debug)]
struct Entry {
    slot: u32,
    server: Arc<str>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Since that moment of the clock.
    Idle(u64),
    Leased,
    /// Leased, and to be closed when it comes back.
    Leaving,
}

/// What became of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is no better than what there is.
    Refused,
    /// It is kept and idle; another one that was idle has to be closed for it, perhaps.
    Kept { id: Id, close: Option<Id> },
}

impl Ledger {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, clock: 0, entries: HashMap::new(), kept: BTreeSet::new(), idle: BTreeSet::new() }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// How many are kept, idle or leased.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// How many are kept of each server.
    pub(super) fn holds(&self) -> BTreeMap<Arc<str>, usize> {
        let mut holds = BTreeMap::new();
        for (_, id) in &self.kept {
            if let Some(entry) = self.entries.get(id) {
                *holds.entry(Arc::clone(&entry.server)).or_default() += 1;
            }
        }
        holds
    }

    /// Takes in a newcomer. One too many evicts the highest slot, if its own is lower; of equal ones the one that is idle.
    pub(super) fn admit(&mut self, slot: u32, server: &Arc<str>) -> Admission {
        let mut close = None;
        if self.kept.len() >= self.limit {
            let Some(highest) = self.highest().filter(|(highest, _)| slot < *highest).map(|(_, id)| id) else {
                return Admission::Refused;
            };
            let is_idle = self.is_idle(highest);
            // Leases that last must not make the pool grow without end.
            if !is_idle && self.entries.len() >= 2 * self.limit {
                return Admission::Refused;
            }
            self.unkeep(highest);
            if is_idle {
                self.entries.remove(&highest);
                close = Some(highest);
            }
        } else if self.entries.len() >= 2 * self.limit {
            return Admission::Refused;
        }
        self.clock += 1;
        let id = self.clock;
        self.entries.insert(id, Entry { slot, server: Arc::clone(server), state: State::Idle(id) });
        self.kept.insert((slot, id));
        self.idle.insert((slot, id, id));
        Admission::Kept { id, close }
    }

    /// Leases the idle connection of the lowest slot.
    pub(super) fn lease(&mut self) -> Option<Id> {
        let (.., id) = self.idle.pop_first()?;
        self.entries.get_mut(&id)?.state = State::Leased;
        Some(id)
    }

    /// A lease is over. Returns whether the connection stays, idle; otherwise it is to be closed.
    pub(super) fn put_back(&mut self, id: Id) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        if entry.state == State::Leased {
            self.clock += 1;
            entry.state = State::Idle(self.clock);
            self.idle.insert((entry.slot, self.clock, id));
            return true;
        }
        self.entries.remove(&id);
        false
    }

    /// Counts a connection out, whatever it was. Returns whether it was kept until now.
    pub(super) fn remove(&mut self, id: Id) -> bool {
        let was_kept = self.unkeep(id);
        self.entries.remove(&id);
        was_kept
    }

    /// Counts all connections of a server out. Returns those to be closed now; those leased are to be closed when they come back.
    pub(super) fn drop_server(&mut self, server: &str) -> Vec<Id> {
        let of_server = |id: &Id| self.entries.get(id).is_some_and(|entry| *entry.server == *server);
        let ids: Vec<Id> = self.kept.iter().map(|(_, id)| *id).filter(of_server).collect();
        let (idle, leased): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| self.is_idle(*id));
        leased.iter().for_each(|id| _ = self.unkeep(*id));
        idle.iter().for_each(|id| _ = self.remove(*id));
        idle
    }

    /// The slot of a connection, and its server.
    pub(super) fn describe(&self, id: Id) -> Option<(u32, Arc<str>)> {
        self.entries.get(&id).map(|entry| (entry.slot, Arc::clone(&entry.server)))
    }

    fn is_idle(&self, id: Id) -> bool {
        self.entries.get(&id).is_some_and(|entry| matches!(entry.state, State::Idle(_)))
    }

    /// The highest slot that is kept.
    pub(super) fn highest_slot(&self) -> Option<u32> {
        self.kept.last().map(|(slot, _)| *slot)
    }

    fn highest(&self) -> Option<(u32, Id)> {
        let (slot, id) = *self.kept.last()?;
        let mut equal = self.kept.range((slot, 0)..).map(|(_, id)| *id);
        Some((slot, equal.find(|id| self.is_idle(*id)).unwrap_or(id)))
    }

    /// Takes a connection out of those kept; a leased one is then leaving.
    fn unkeep(&mut self, id: Id) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        if let State::Idle(since) = entry.state {
            self.idle.remove(&(entry.slot, since, id));
        }
        entry.state = State::Leaving;
        self.kept.remove(&(entry.slot, id))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may happen to a pool.
    #[derive(Clone, Debug)]
    enum Step {
        Admit {
            slot: u32,
            server: u8,
        },
        Lease,
        /// Any of those that were ever admitted comes back,
        PutBack(usize),
        /// or is dead.
        Remove(usize),
        DropServer(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_u32..8, 0_u8..3).prop_map(|(slot, server)| Step::Admit { slot, server }),
            4 => Just(Step::Lease),
            3 => any::<usize>().prop_map(Step::PutBack),
            1 => any::<usize>().prop_map(Step::Remove),
            1 => (0_u8..3).prop_map(Step::DropServer),
        ];
        proptest::collection::vec(step, 0..120)
    }

    /// A connection of the model: a plain list, searched from end to end.
    #[derive(Clone, Debug, PartialEq)]
    struct Known {
        id: Id,
        slot: u32,
        server: u8,
        is_leased: bool,
        is_leaving: bool,
        rested: usize,
    }

    fn name(server: u8) -> Arc<str> {
        Arc::from(server.to_string())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn a_ledger_does_what_a_plain_list_does(limit in 1_usize..5, steps in steps()) {
            let mut ledger = Ledger::new(limit);
            let (mut known, mut ever): (Vec<Known>, Vec<Id>) = Default::default();
            for (now, step) in steps.into_iter().enumerate() {
                let which = |at: usize| ever.get(at % ever.len().max(1)).copied().unwrap_or(999);
                match step {
                    Step::Admit { slot, server } => {
                        let admission = ledger.admit(slot, &name(server));
                        let kept: Vec<Known> = known.iter().filter(|one| !one.is_leaving).cloned().collect();
                        let highest = kept.iter().max_by_key(|one| (one.slot, !one.is_leased, one.id)).cloned();
                        let out = highest.filter(|_| kept.len() == limit);
                        let grows = out.as_ref().is_none_or(|out| out.is_leased);
                        let refused = out.as_ref().is_some_and(|out| slot >= out.slot)
                            || (grows && known.len() == 2 * limit);
                        prop_assert_eq!(refused, admission == Admission::Refused);
                        if let Admission::Kept { id, close } = admission {
                            prop_assert!(!ever.contains(&id), "a number for each");
                            prop_assert_eq!(close.is_some(), out.as_ref().is_some_and(|out| !out.is_leased));
                            if let Some(out) = out {
                                // Of equal ones any will do, so the ledger's choice counts.
                                let gone = close.unwrap_or_else(|| {
                                    let left = |id: &Id| ledger.entries[id].state == State::Leaving;
                                    kept.iter().map(|one| one.id).find(left).unwrap()
                                });
                                let one = kept.iter().find(|one| one.id == gone).unwrap();
                                prop_assert_eq!((one.slot, one.is_leased), (out.slot, out.is_leased));
                                known.iter_mut().find(|one| one.id == gone).unwrap().is_leaving = true;
                                known.retain(|one| one.id != gone || one.is_leased);
                            }
                            ever.push(id);
                            known.push(Known { id, slot, server, is_leased: false, is_leaving: false, rested: now });
                        }
                    }
                    Step::Lease => {
                        let idle = known.iter_mut().filter(|one| !one.is_leased);
                        let best = idle.min_by_key(|one| (one.slot, one.rested));
                        prop_assert_eq!(ledger.lease(), best.as_ref().map(|one| one.id));
                        if let Some(best) = best {
                            best.is_leased = true;
                        }
                    }
                    Step::PutBack(at) => {
                        let id = which(at);
                        // What is idle, or gone, is in nobody's hands.
                        if let Some(one) = known.iter_mut().find(|one| one.id == id && one.is_leased) {
                            (one.is_leased, one.rested) = (false, now);
                            prop_assert_eq!(ledger.put_back(id), !one.is_leaving);
                            known.retain(|one| one.is_leased || !one.is_leaving);
                        }
                    }
                    Step::Remove(at) => {
                        let id = which(at);
                        let was_kept = known.iter().any(|one| one.id == id && !one.is_leaving);
                        prop_assert_eq!(ledger.remove(id), was_kept, "counted out once");
                        known.retain(|one| one.id != id);
                    }
                    Step::DropServer(server) => {
                        let mut closed = ledger.drop_server(&name(server));
                        closed.sort_unstable();
                        let is_of = |one: &&mut Known| one.server == server && !one.is_leaving;
                        let of: Vec<&mut Known> = known.iter_mut().filter(is_of).collect();
                        let idle: Vec<Id> = of.iter().filter(|one| !one.is_leased).map(|one| one.id).collect();
                        prop_assert_eq!(closed, idle);
                        of.into_iter().for_each(|one| one.is_leaving = true);
                        known.retain(|one| one.is_leased || !one.is_leaving);
                    }
                }
                let kept = known.iter().filter(|one| !one.is_leaving);
                prop_assert_eq!(ledger.len(), kept.clone().count());
                prop_assert!(ledger.len() <= limit && ledger.entries.len() <= 2 * limit);
                prop_assert_eq!(ledger.entries.len(), known.len(), "nothing is left behind");
                prop_assert_eq!(ledger.idle(), kept.clone().filter(|one| !one.is_leased).count());
                for server in 0..3 {
                    let held = ledger.holds().get(&name(server)).copied().unwrap_or_default();
                    prop_assert_eq!(held, kept.clone().filter(|one| one.server == server).count());
                }
            }
        }
    }

    #[test]
    fn lasting_leases_make_a_pool_twice_its_limit_and_no_more() {
        let mut ledger = Ledger::new(2);
        for slot in [9, 8, 7, 6] {
            assert!(matches!(ledger.admit(slot, &name(0)), Admission::Kept { close: None, .. }), "slot {slot}");
            ledger.lease().unwrap();
        }
        assert_eq!((ledger.len(), ledger.entries.len()), (2, 4));
        assert_eq!(ledger.admit(0, &name(0)), Admission::Refused, "until one comes back");
        assert!(!ledger.put_back(1), "it was evicted");
        assert!(matches!(ledger.admit(0, &name(0)), Admission::Kept { .. }));
    }
}
