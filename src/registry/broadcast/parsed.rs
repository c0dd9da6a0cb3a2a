//! Instances that were read before, by the bytes in which they came: most datagrams say what the one before them said.
//!
//! Owns nothing of an instance: it finds those that somebody else keeps, which is the table. It must never be asked about bytes that
//! a seal has not let through. Look next at `datagram.rs`, which asks, and at `table.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::table::MAX_INSTANCES;
use crate::registry::Instance;

/// Most bytes that are remembered: those of a full table, and as many again of what nobody keeps any more, so that it is seldom
/// looked which those are. With datagrams of 1,200 bytes it is 10 MiB.
const MAX_PARSED: usize = 2 * MAX_INSTANCES;

/// What an instance says of itself, and whether others may share its id.
pub(super) type Said = (Arc<Instance>, bool);

#[derive(Default)]
pub(super) struct Parsed(HashMap<Box<[u8]>, (Weak<Instance>, bool)>);

impl Parsed {
    /// What these bytes say: as it was read before, while somebody keeps it, else as `parse` reads it now.
    pub(super) fn read(&mut self, bytes: &[u8], parse: impl FnOnce(&[u8]) -> Option<(Instance, bool)>) -> Option<Said> {
        let known = self.0.get(bytes).and_then(|(instance, replica)| Some((instance.upgrade()?, *replica)));
        if known.is_some() {
            return known;
        }
        let (instance, replica) = parse(bytes)?;
        let instance = Arc::new(instance);
        if self.0.len() >= MAX_PARSED {
            self.0.retain(|_, (instance, _)| instance.strong_count() > 0);
        }
        if self.0.len() < MAX_PARSED {
            self.0.insert(bytes.into(), (Arc::downgrade(&instance), replica));
        }
        Some((instance, replica))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::datagram::tests::usual;
    use super::*;

    /// Reads a number as an instance with that port, and says whether it had to.
    fn read(parsed: &mut Parsed, number: u16) -> (Arc<Instance>, bool) {
        let mut was_parsed = false;
        let said = parsed.read(&number.to_be_bytes(), |bytes| {
            was_parsed = true;
            let port = u16::from_be_bytes(bytes.try_into().ok()?);
            Some((Instance { port, ..Instance::clone(&usual().instance) }, port % 2 == 1))
        });
        let (instance, replica) = said.unwrap();
        assert_eq!((instance.port, replica), (number, number % 2 == 1));
        (instance, was_parsed)
    }

    #[test]
    fn what_is_kept_is_read_once_and_what_is_not_is_read_again() {
        let mut parsed = Parsed::default();
        let (one, first) = read(&mut parsed, 1);
        let (same, again) = read(&mut parsed, 1);
        assert!(first && !again && Arc::ptr_eq(&one, &same));
        assert!(read(&mut parsed, 2).1, "other bytes say something else");
        drop((one, same));
        assert!(read(&mut parsed, 1).1, "nobody has kept it");
        assert!(parsed.read(b"nonsense", |_| None).is_none());
        assert_eq!(parsed.0.len(), 2, "nonsense is not remembered");
    }

    #[test]
    fn it_remembers_so_much_and_makes_room_by_what_nobody_keeps() {
        let mut parsed = Parsed::default();
        let limit = u16::try_from(MAX_PARSED).unwrap();
        let mut kept: Vec<_> = (0..limit).map(|number| read(&mut parsed, number).0).collect();
        assert_eq!(parsed.0.len(), MAX_PARSED);
        for _ in 0..2 {
            assert!(read(&mut parsed, limit).1, "one past the limit is read, and not remembered");
        }
        assert_eq!(parsed.0.len(), MAX_PARSED);
        kept.truncate(10);
        let (_new, _) = read(&mut parsed, limit);
        assert_eq!(parsed.0.len(), 11, "those that are kept, and the new one");
        assert!(!read(&mut parsed, 9).1 && !read(&mut parsed, limit).1);
    }
}
