//! What the client waits for, by place and generation.
//!
//! Owns the places. Must never lock. Next: `client`.

use std::collections::VecDeque;
use std::task::Waker;

use bytes::{Bytes, BytesMut};

use super::frame::Key;

/// What a place is waiting for or has got.
#[derive(Debug)]
pub(crate) enum Entry {
    Free {
        next: u32,
    },
    /// Its caller has gone; the answer frees it.
    Gone,
    /// A call for a number.
    Waiting(Waker),
    Number(u64),
    /// A call for a message of about this size: its parts, and all of it.
    Body {
        size: usize,
        parts: BytesMut,
        whole: Option<Bytes>,
        waker: Option<Waker>,
    },
    Down {
        queue: VecDeque<Bytes>,
        ended: bool,
        waker: Option<Waker>,
    },
    Up {
        credit: i64,
        total: Option<u64>,
        waker: Option<Waker>,
    },
}

#[derive(Debug)]
struct Place {
    generation: u32,
    entry: Entry,
}

const NONE: u32 = u32::MAX;
const GENERATIONS: u32 = 1 << 24;

#[derive(Debug)]
pub(crate) struct Slab {
    places: Vec<Place>,
    free: u32,
    pub(crate) used: usize,
}

impl Slab {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), free: NONE, used: 0 }
    }

    #[inline]
    pub(crate) fn insert(&mut self, entry: Entry) -> Key {
        self.used += 1;
        if self.free == NONE {
            self.places.push(Place { generation: 0, entry });
            return Key { slot: self.places.len() as u32 - 1, generation: 0 };
        }
        let slot = self.free;
        let place = &mut self.places[slot as usize];
        let Entry::Free { next } = place.entry else { unreachable!("the list of free places has only such") };
        self.free = next;
        place.entry = entry;
        Key { slot, generation: place.generation }
    }

    /// What this key stands for; `None` if that is over.
    #[inline]
    pub(crate) fn get(&mut self, key: Key) -> Option<&mut Entry> {
        let place = self.places.get_mut(key.slot as usize)?;
        (place.generation == key.generation).then_some(&mut place.entry)
    }

    #[inline]
    pub(crate) fn remove(&mut self, key: Key) -> Entry {
        let place = &mut self.places[key.slot as usize];
        place.generation = (place.generation + 1) % GENERATIONS;
        let entry = std::mem::replace(&mut place.entry, Entry::Free { next: self.free });
        self.free = key.slot;
        self.used -= 1;
        entry
    }
}
