//! The numbers that a server gives to its connections.
//!
//! Owns [`Slots`]: which numbers are out. It must never hand out a number twice. Look next at [`super::listener`], which
//! gives one to each connection.

use std::collections::BTreeSet;

/// Numbers from 0, of which the lowest free one is given out first.
///
/// ```
/// use picom::boxcar::Slots;
///
/// let mut slots = Slots::new(3);
/// assert_eq!((slots.get(), slots.get(), slots.get()), (Some(0), Some(1), Some(2)));
/// assert_eq!(slots.get(), None); // all are out
/// slots.put(1)?;
/// assert!(slots.put(1).is_err()); // it is not out any more
/// assert_eq!(slots.get(), Some(1));
/// # Ok::<(), picom::boxcar::InvalidSlot>(())
/// ```
///
/// Both ways take O(log n), and memory is in proportion to the most numbers that were ever out at once.
#[derive(Clone, Debug)]
pub struct Slots {
    limit: u32,
    /// Every number below this has been given out at least once.
    fresh: u32,
    /// Those of them that came back.
    back: BTreeSet<u32>,
}

/// A number was given back that is not out: it was never given, or came back already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot {0} is not out")]
pub struct InvalidSlot(
    /// The number.
    pub u32,
);

impl Slots {
    /// The numbers from 0 up to, not including, `limit`. With a limit of 0 there are none.
    pub fn new(limit: u32) -> Self {
        Self { limit, fresh: 0, back: BTreeSet::new() }
    }

    /// The lowest number that is free; none when all are out.
    pub fn get(&mut self) -> Option<u32> {
        // What came back is lower than whatever is fresh.
        if let Some(slot) = self.back.pop_first() {
            return Some(slot);
        }
        let slot = Some(self.fresh).filter(|slot| *slot < self.limit)?;
        self.fresh += 1;
        Some(slot)
    }

    /// Gives a number back.
    ///
    /// # Errors
    ///
    /// When it is not out; then nothing has changed.
    pub fn put(&mut self, slot: u32) -> Result<(), InvalidSlot> {
        if slot < self.fresh && self.back.insert(slot) { Ok(()) } else { Err(InvalidSlot(slot)) }
    }

    /// How many numbers are out.
    pub fn taken(&self) -> usize {
        self.fresh as usize - self.back.len()
    }

    /// How many there are in all.
    pub fn limit(&self) -> u32 {
        self.limit
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_free_number_comes_first_and_the_limit_is_a_limit() {
        let mut slots = Slots::new(4);
        assert_eq!([0; 4].map(|_| slots.get()), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!((slots.get(), slots.taken()), (None, 4));
        slots.put(2).unwrap();
        slots.put(0).unwrap();
        assert_eq!([0; 3].map(|_| slots.get()), [Some(0), Some(2), None]);
        assert_eq!(Slots::new(0).get(), None);
    }

    #[test]
    fn a_number_that_is_not_out_cannot_come_back() {
        let mut slots = Slots::new(10);
        slots.get();
        assert_eq!(slots.put(1), Err(InvalidSlot(1)), "never given");
        assert_eq!(slots.put(u32::MAX), Err(InvalidSlot(u32::MAX)), "far outside");
        slots.put(0).unwrap();
        assert_eq!(slots.put(0), Err(InvalidSlot(0)), "twice");
        assert_eq!(slots.taken(), 0);
        assert_eq!((slots.get(), slots.get()), (Some(0), Some(1)), "each number once");
    }

    proptest! {
        /// Any order of taking and giving back does what a list of what is out does.
        #[test]
        fn any_order_is_right(limit in 0_u32..12, steps in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let (mut slots, mut out) = (Slots::new(limit), BTreeSet::new());
            for step in steps {
                match step {
                    None => {
                        let lowest = (0..limit).find(|slot| !out.contains(slot));
                        prop_assert_eq!(slots.get(), lowest);
                        out.extend(lowest);
                    }
                    Some(slot) => {
                        let slot = u32::from(slot % 16);
                        prop_assert_eq!(slots.put(slot).is_ok(), out.remove(&slot), "giving back {}", slot);
                    }
                }
                prop_assert_eq!(slots.taken(), out.len());
            }
        }
    }
}
