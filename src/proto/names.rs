//! Method names and the numbers that stand for them on one connection.
//!
//! Owns both sides' tables, bounded alike. It must never know what a method does. Look next at `wire/head.rs` for how a
//! name travels.

use std::collections::HashMap;
use std::sync::Arc;

/// Most numbers on one connection: what a peer may make the other side remember is at most 256 KiB.
const MAX_NUMBERS: usize = 1024;

/// How many names are compared before one is hashed: a connection mostly calls a few methods.
const RECENT: usize = 4;

/// The client's side: numbers by name.
#[derive(Debug, Default)]
pub(super) struct GivenNames {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u16>,
    /// Numbers used last; 0 is none.
    recent: [u16; RECENT],
    oldest: usize,
}

/// How a method is to be named in a CALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Naming {
    pub(super) number: u16,
    /// The name goes along.
    pub(super) named: bool,
}

impl Naming {
    /// The CALL gives the number to the name.
    pub(super) fn defines(self) -> bool {
        self.named && self.number != 0
    }
}

impl GivenNames {
    /// How to name a method; a new number is only given by [`define`](Self::define).
    pub(super) fn resolve(&mut self, method: &str) -> Naming {
        for number in self.recent {
            if number != 0 && self.names.get(usize::from(number) - 1).is_some_and(|name| &**name == method) {
                return Naming { number, named: false };
            }
        }
        if let Some(&number) = self.numbers.get(method) {
            self.remember(number);
            return Naming { number, named: false };
        }
        // Below `MAX_NUMBERS`, so it fits.
        let number = if self.names.len() < MAX_NUMBERS { self.names.len() as u16 + 1 } else { 0 };
        Naming { number, named: true }
    }

    /// The CALL that defines this number was queued.
    pub(super) fn define(&mut self, method: &str, number: u16) {
        debug_assert_eq!(self.names.len() + 1, usize::from(number), "numbers are given in order");
        let name: Arc<str> = method.into();
        self.numbers.insert(Arc::clone(&name), number);
        self.names.push(name);
        self.remember(number);
    }

    fn remember(&mut self, number: u16) {
        self.recent[self.oldest] = number;
        self.oldest = (self.oldest + 1) % RECENT;
    }
}

/// The server's side: names by number.
#[derive(Debug, Default)]
pub(super) struct TakenNames {
    names: Vec<(Arc<str>, bool)>,
}

impl TakenNames {
    /// Takes the method of a CALL; the name is there if it has no number. The error is a text for people.
    pub(super) fn take(&mut self, number: u16, name: Option<&str>) -> Result<Option<Arc<str>>, &'static str> {
        match name {
            None if number == 0 => Err("a CALL names no method"),
            None if usize::from(number) > self.names.len() => Err("a CALL has a method number that was not given"),
            None => Ok(None),
            Some(name) if number == 0 => Ok(Some(name.into())),
            Some(_) if usize::from(number) > MAX_NUMBERS => Err("a method number is above 1024"),
            Some(_) if usize::from(number) != self.names.len() + 1 => Err("method numbers are not given in order"),
            Some(name) => {
                self.names.push((name.into(), false));
                Ok(None)
            }
        }
    }

    pub(super) fn name(&self, number: u16) -> Option<&Arc<str>> {
        self.names.get(usize::from(number).checked_sub(1)?).map(|(name, _)| name)
    }

    /// The name, once for each number.
    pub(super) fn report(&mut self, number: u16) -> Option<Arc<str>> {
        let (name, reported) = self.names.get_mut(usize::from(number).checked_sub(1)?)?;
        (!std::mem::replace(reported, true)).then(|| Arc::clone(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn names_get_numbers_in_order_until_they_are_used_up() {
        let mut given = GivenNames::default();
        let mut taken = TakenNames::default();
        for n in 0..MAX_NUMBERS + 10 {
            let method = format!("m{n}");
            let naming = given.resolve(&method);
            assert!(naming.named);
            assert_eq!(usize::from(naming.number), if n < MAX_NUMBERS { n + 1 } else { 0 });
            let unnumbered = taken.take(naming.number, Some(&method)).unwrap();
            assert_eq!(unnumbered.as_deref(), (n >= MAX_NUMBERS).then_some(method.as_str()));
            if naming.defines() {
                given.define(&method, naming.number);
                assert_eq!(taken.name(naming.number).unwrap().as_ref(), method);
            }
        }
        for n in (0..MAX_NUMBERS).rev() {
            let naming = given.resolve(&format!("m{n}"));
            assert_eq!(naming, Naming { number: n as u16 + 1, named: false });
            assert_eq!(taken.take(naming.number, None), Ok(None));
            assert!(taken.report(naming.number).is_some() && taken.report(naming.number).is_none());
        }
    }

    #[test]
    fn numbers_out_of_order_are_refused() {
        let mut taken = TakenNames::default();
        assert!(taken.take(0, None).is_err());
        assert!(taken.take(1, None).is_err());
        assert!(taken.take(2, Some("b")).is_err());
        assert!(taken.take(1, Some("a")).is_ok());
        assert!(taken.take(1, Some("a")).is_err());
        assert!(taken.take(2, None).is_err());
    }
}
