//! The incoming body of one stream: chunks that came and were not read, and the credit they hold.
//!
//! Owns the queue and the stream's side of the ledger. It must never know how the stream ends; that is `streams.rs`.
//! Look next at `credit.rs`.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::credit::{Window, cost};
use super::error::Error;

/// Chunks shorter than this, in bytes, are copied together: by reference each would hold a whole read buffer.
const ALWAYS_COPY: usize = 1024;

/// The same for chunks that come while others wait: their reader is behind, so a copy costs nobody's latency, and
/// what waits long must not hold much more than it counts.
const COPY_BEHIND: usize = 16 * 1024;

/// Longest run of copied chunks, in bytes.
const RUN: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Incoming {
    queue: VecDeque<Chunk>,
    /// Chunks copied together, behind the queue.
    run: BytesMut,
    run_cost: u32,
    pub(super) window: Window,
    /// What the frames that came cost, less what was released.
    pub(super) held: u32,
    /// What was released since somebody looked; see `growth.rs`.
    pub(super) taken: u32,
    /// Payload that was read and not yet released.
    handed: u32,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    cost: u32,
}

impl Incoming {
    pub(super) fn new(window: u32) -> Self {
        Self {
            queue: VecDeque::new(),
            run: BytesMut::new(),
            run_cost: 0,
            window: Window::new(window),
            held: 0,
            taken: 0,
            handed: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.run.is_empty()
    }

    /// Takes the payload of a DATA frame.
    pub(super) fn push(&mut self, payload: Bytes) -> Result<(), Error> {
        let len = payload.len();
        let cost = cost(len);
        self.window.charge(cost)?;
        if len == 0 {
            // Only an END: nothing to be read, so nothing to be held.
            self.window.release(cost);
            return Ok(());
        }
        // Sums of what the window allows, which fits.
        self.held += cost;
        if len < ALWAYS_COPY || (len < COPY_BEHIND && !self.is_empty()) {
            if self.run.len() + len > RUN {
                self.end_run();
            }
            self.run.extend_from_slice(&payload);
            self.run_cost += cost;
        } else {
            self.end_run();
            self.queue.push_back(Chunk { bytes: payload, cost });
        }
        Ok(())
    }

    /// The next chunk, and how much credit its frames free at once: their overhead.
    pub(super) fn pop(&mut self) -> Option<(Bytes, u32)> {
        if self.queue.is_empty() {
            self.end_run();
        }
        let Chunk { bytes, cost } = self.queue.pop_front()?;
        // A payload is part of its cost.
        let len = bytes.len() as u32;
        let overhead = cost - len;
        self.handed += len;
        self.held -= overhead;
        self.taken = self.taken.saturating_add(overhead);
        self.window.release(overhead);
        Some((bytes, overhead))
    }

    /// Counts bytes that the application is done with and says how many of them held credit.
    pub(super) fn release(&mut self, bytes: usize) -> u32 {
        let released = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.handed);
        self.handed -= released;
        self.held -= released;
        self.taken = self.taken.saturating_add(released);
        self.window.release(released);
        released
    }

    /// Throws everything away and says how much credit it held.
    pub(super) fn clear(&mut self) -> u32 {
        self.queue = VecDeque::new();
        self.run = BytesMut::new();
        self.run_cost = 0;
        self.handed = 0;
        std::mem::take(&mut self.held)
    }

    fn end_run(&mut self) {
        if !self.run.is_empty() {
            let bytes = std::mem::take(&mut self.run).freeze();
            self.queue.push_back(Chunk { bytes, cost: std::mem::take(&mut self.run_cost) });
        }
    }
}
