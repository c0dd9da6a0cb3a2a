//! STATUS: how a call's failure travels.
//!
//! Owns the map of section 8 and its translation from and to [`Status`]. It must never decide whether to try again.
//! Look next at `status.rs` for what people see.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::frame::MAX_PAYLOAD;
use super::strict;
use crate::status::{Code, Execution, Status};

/// Room, in bytes, that the map needs beside `message` and `details`.
const OVERHEAD: usize = 128;

/// A status on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireStatus {
    pub(crate) code: u8,
    pub(crate) message: String,
    /// Whether the handler may have run.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub(crate) ran: bool,
    /// Milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after: Option<u32>,
    /// Whether the handler has done nothing that speaks against another try.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) retryable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<Bytes>,
    /// Whether `details` is the method's own error.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) app: bool,
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl WireStatus {
    /// The payload of a STATUS frame. What does not fit one frame is cut from the message, and details that do not fit
    /// are left out: the failure itself must get through.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let details = self.details.as_ref().map_or(0, Bytes::len);
        if self.message.len() + details + OVERHEAD <= MAX_PAYLOAD {
            return strict::encode(self);
        }
        let mut shorter = self.clone();
        if details + OVERHEAD + 1024 > MAX_PAYLOAD {
            shorter.details = None;
            shorter.app = false;
        }
        let room = MAX_PAYLOAD - OVERHEAD - shorter.details.as_ref().map_or(0, Bytes::len);
        let mut end = shorter.message.len().min(room);
        while !shorter.message.is_char_boundary(end) {
            end -= 1;
        }
        shorter.message.truncate(end);
        strict::encode(&shorter)
    }

    /// Reads a payload.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let status: Self = strict::decode(payload)?;
        if status.code == 0 {
            return Err("code 0 is no failure".to_owned());
        }
        Ok(status)
    }

    /// The status that people see, with what the server said about execution.
    pub(crate) fn into_status(self) -> Status {
        let code = Code::from_number(self.code);
        let execution = match (self.ran, code) {
            (false, _) => Execution::Never,
            // The server may have cut the handler, wherever it was.
            (true, Code::DeadlineExceeded) => Execution::Maybe,
            (true, _) => Execution::Done,
        };
        let mut status = Status::new(code, self.message).with_execution(execution);
        if let Some(millis) = self.retry_after {
            status = status.with_retry_after(Duration::from_millis(u64::from(millis)));
        }
        if self.retryable {
            status = status.retryable();
        }
        if let Some(details) = self.details {
            status = status.with_details(details);
        }
        status
    }
}

impl From<&Status> for WireStatus {
    fn from(status: &Status) -> Self {
        Self {
            code: status.code().number(),
            message: status.message().to_owned(),
            ran: status.execution() != Execution::Never,
            retry_after: status.retry_after().map(|after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX)),
            retryable: status.is_retryable(),
            details: status.details().cloned(),
            app: status.is_application(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_status_survives_the_round_trip() {
        let mut status = WireStatus::from(&Status::aborted("größer"));
        assert_eq!(WireStatus::decode(&status.encode()), Ok(status.clone()));
        status.ran = false;
        status.retry_after = Some(50);
        status.retryable = true;
        status.details = Some(vec![0xc0].into());
        status.app = true;
        assert_eq!(WireStatus::decode(&status.encode()), Ok(status.clone()));
        let seen = status.into_status();
        assert_eq!((seen.code(), seen.message(), seen.execution()), (Code::Aborted, "größer", Execution::Never));
        assert_eq!(seen.retry_after(), Some(Duration::from_millis(50)));
        let back = WireStatus::from(&seen);
        assert_eq!((back.code, back.ran, back.retry_after, back.app), (10, false, Some(50), false));
        assert!(back.retryable);
    }

    #[test]
    fn a_status_always_fits_its_frame() {
        for (message, details) in [(100_000, 0), (70_000, 60_000), (10, 100_000), (100_000, 100_000), (0, 66_500)] {
            let mut status = WireStatus::from(&Status::internal("ü".repeat(message / 2)));
            status.details = Some(vec![7; details].into());
            let bytes = status.encode();
            assert!(bytes.len() <= MAX_PAYLOAD, "{}", bytes.len());
            assert_eq!(WireStatus::decode(&bytes).unwrap().code, Code::Internal.number());
        }
    }

    #[test]
    fn maps_that_are_wrong_are_refused() {
        assert!(WireStatus::decode(b"\x82\xa4code\x00\xa7message\xa0").is_err(), "code 0");
        assert!(WireStatus::decode(b"\x82\xa4code\x01\xa4code\x01").is_err(), "a key twice");
        assert!(WireStatus::decode(b"\x82\xa4code\x01\xa7message\xa0\x00").is_err(), "a byte behind");
        assert!(WireStatus::decode(b"\x83\xa4code\x01\xa7message\xa0\xa3new\x01").is_ok(), "an unknown key");
        let retryable = b"\x83\xa4code\x0a\xa7message\xa0\xa9retryable\xc3";
        assert!(WireStatus::decode(retryable).unwrap().retryable);
        assert!(WireStatus::decode(b"\x83\xa4code\x0a\xa7message\xa0\xa9retryable\x01").is_err(), "a number");
    }
}
