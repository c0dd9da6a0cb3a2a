//! Credit: how many bytes of DATA may be sent, and how many the peer was promised.
//!
//! Owns both ledgers of section 9 and their checked arithmetic. It must never know which stream it counts for. Look next
//! at `recv.rs`, which charges and releases, and `send.rs`, which spends.

use super::error::Error;
use crate::wire::HEADER;
use crate::wire::hello::MAX_CREDIT;

/// Least credit, in bytes, that is returned before half a window has gathered; smaller CREDITs count as control frames.
const MIN_RETURN: u32 = 1024;

/// What a DATA frame costs with this many bytes of payload.
pub(super) fn cost(payload: usize) -> u32 {
    // Payloads are at most `MAX_PAYLOAD` bytes.
    (payload + HEADER) as u32
}

/// What this side may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credit(u32);

impl Credit {
    pub(super) fn new(first: u32) -> Self {
        Self(first)
    }

    pub(super) fn get(self) -> usize {
        self.0 as usize
    }

    /// Spends what a frame costs, which the caller knows to be there.
    pub(super) fn spend(&mut self, cost: u32) {
        debug_assert!(cost <= self.0, "frames are cut to the credit before they are made");
        self.0 = self.0.saturating_sub(cost);
    }

    /// Adds what the peer granted.
    pub(super) fn add(&mut self, granted: u32) -> Result<(), Error> {
        match self.0.checked_add(granted) {
            Some(sum) if sum <= MAX_CREDIT => {
                self.0 = sum;
                Ok(())
            }
            _ => Err(Error::FlowControl),
        }
    }
}

/// What the peer may still send. What is neither left nor gathered is held: by frames on their way, in a queue or taken
/// by the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    size: u32,
    left: u32,
    /// Released, but not yet returned to the peer.
    gathered: u32,
}

impl Window {
    pub(super) fn new(size: u32) -> Self {
        Self { size, left: size, gathered: 0 }
    }

    /// The first credit, and what the window has grown since.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Counts a frame that came.
    pub(super) fn charge(&mut self, cost: u32) -> Result<(), Error> {
        self.left = self.left.checked_sub(cost).ok_or(Error::FlowControl)?;
        Ok(())
    }

    /// Counts what is no longer held.
    pub(super) fn release(&mut self, cost: u32) {
        self.gathered = self.gathered.saturating_add(cost);
        debug_assert!(self.left.saturating_add(self.gathered) <= self.size, "nothing is released twice");
    }

    /// What to return to the peer now. Half a window is worth a frame; so is as much as the peer has left, lest one
    /// stream that nobody reads makes the others wait for a half that never gathers.
    pub(super) fn due(&mut self) -> Option<u32> {
        let enough = self.gathered >= self.size / 2 || (self.gathered >= self.left && self.gathered >= MIN_RETURN);
        if !enough || self.gathered == 0 {
            return None;
        }
        let returned = std::mem::take(&mut self.gathered);
        self.left = self.left.saturating_add(returned).min(self.size);
        Some(returned)
    }

    /// Makes the window larger. What it grows by is to be granted beside what is returned.
    pub(super) fn grow(&mut self, by: u32) {
        debug_assert!(self.size.checked_add(by).is_some_and(|size| size <= MAX_CREDIT), "growth has a bound");
        self.size = self.size.saturating_add(by);
        self.left = self.left.saturating_add(by);
    }

    /// Whether nothing is held.
    #[cfg(test)]
    pub(super) fn is_whole(&self) -> bool {
        self.left + self.gathered == self.size
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (u32, u32, u32) {
        (self.size, self.left, self.gathered)
    }
}
