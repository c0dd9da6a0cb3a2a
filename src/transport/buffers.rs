//! Large buffers that are used again.
//!
//! An allocator gives large blocks back to the kernel when they are freed, and gets them anew page by page; for bulk that
//! costs as much as the bytes themselves. Owns the buffers of the process that were used lately, whose bytes others may still
//! hold: such a buffer is used again once nobody does. It must never keep more than its limit. Look next at
//! [`super::driver`], which reads into them, and `crate::body`, which puts long messages together in them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

/// Most bytes kept, in all of the process: a few long messages and the read buffers around them.
const LIMIT: usize = 16 << 20;

/// Smaller buffers are not worth keeping: an allocator keeps those itself.
pub(crate) const LEAST: usize = 64 << 10;

struct Buffer {
    bytes: BytesMut,
    size: usize,
}

static BUFFERS: Mutex<VecDeque<Buffer>> = Mutex::new(VecDeque::new());

fn lock() -> MutexGuard<'static, VecDeque<Buffer>> {
    BUFFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An empty buffer that was used before, for `size` bytes and not much more, if there is one that nobody uses.
pub(crate) fn used(size: usize) -> Option<BytesMut> {
    if size < LEAST {
        return None;
    }
    let mut buffers = lock();
    // The one that was used last is the one that may still be in a cache.
    let fits = |buffer: &mut Buffer| {
        buffer.size >= size && buffer.size <= size + size / 4 && buffer.bytes.try_reclaim(buffer.size)
    };
    let found = (0..buffers.len()).rev().find(|&index| buffers.get_mut(index).is_some_and(fits))?;
    buffers.remove(found).map(|buffer| buffer.bytes)
}

/// Keeps a buffer of `size` bytes, which it was made for. Parts that were split off may still be in use.
pub(crate) fn keep(mut bytes: BytesMut, size: usize) {
    if !(LEAST..=LIMIT).contains(&size) {
        return;
    }
    bytes.clear();
    let mut buffers = lock();
    buffers.push_back(Buffer { bytes, size });
    let mut kept: usize = buffers.iter().map(|buffer| buffer.size).sum();
    while kept > LIMIT {
        kept -= buffers.pop_front().map_or(kept, |buffer| buffer.size);
    }
}

/// Gives all of them back.
pub(crate) fn forget() {
    let buffers = std::mem::take(&mut *lock());
    drop(buffers);
}

/// Held by a test that must have them for itself.
#[cfg(test)]
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    /// Sizes that no other test of this process asks for.
    const SIZE: usize = 6_000_000;

    #[test]
    fn a_buffer_is_used_again_once_nobody_uses_it() {
        let _alone = ALONE.lock();
        let mut bytes = BytesMut::zeroed(SIZE);
        let place = bytes.as_ptr();
        let part = bytes.split_to(10).freeze();
        keep(bytes, SIZE);
        assert!(used(SIZE).is_none(), "somebody reads it");
        drop(part);
        assert!(used(SIZE / 2).is_none(), "it is much too large");
        assert!(used(SIZE + 1).is_none(), "it is too small");
        let again = used(SIZE - 1000).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert!(again.capacity() >= SIZE);
        assert!(used(SIZE).is_none(), "it is taken");

        for _ in 0..10 {
            keep(BytesMut::with_capacity(SIZE), SIZE);
        }
        assert!(lock().iter().map(|buffer| buffer.size).sum::<usize>() <= LIMIT);
        keep(BytesMut::with_capacity(LIMIT + 1), LIMIT + 1);
        assert!(used(LIMIT + 1).is_none());
    }
}
