//! Why a call to Consul failed, in a kind to act on and in words for people.
//!
//! Owns [`Trouble`] and the reading of Consul's refusals, which differ between its versions. What Consul wrote is cut
//! and cleaned before it is repeated. It must never contain a token. Look next at `http.rs`.

use std::error::Error;

use reqwest::StatusCode;

/// How much of a foreign text is repeated, in characters.
const MAX_QUOTE_LEN: usize = 128;

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rights are missing: rarely try again.
    Denied,
    /// The agent does not know the check or the instance: register again.
    Unknown,
    /// Consul cannot make sense of the request: trying the same again is of no use.
    Refused,
    /// Too much is asked for: try again after a moment.
    Limited,
    /// Anything else: try again, ever more slowly.
    Failed,
}

#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) kind: Kind,
    /// Names Consul's address, the request and the answer.
    pub(super) text: String,
}

impl Trouble {
    /// What an answer other than success means.
    pub(super) fn of_answer(status: StatusCode, body: &[u8]) -> (Kind, String) {
        let text = quote(body);
        // Older versions say with 500 what newer ones say with 404, in other words.
        let lost = text.contains("does not have associated TTL") || text.to_lowercase().contains("unknown check");
        let kind = match status.as_u16() {
            401 | 403 => Kind::Denied,
            404 => Kind::Unknown,
            400..=499 if lost => Kind::Unknown,
            500 if lost => Kind::Unknown,
            429 => Kind::Limited,
            400 => Kind::Refused,
            _ => Kind::Failed,
        };
        // Some versions wrap a refusal of rights into a server error.
        let kind = if status == StatusCode::INTERNAL_SERVER_ERROR && text.contains("Permission denied") {
            Kind::Denied
        } else {
            kind
        };
        let hint = if status.is_redirection() { "; redirects are not followed" } else { "" };
        let text = if text.is_empty() { "no text" } else { &text };
        (kind, format!("answered {status}: {text}{hint}"))
    }

    /// What to say about an answer that should have been JSON.
    pub(super) fn not_json(body: &[u8]) -> String {
        let what = if body.trim_ascii_start().starts_with(b"<") { "HTML" } else { "something" };
        format!("answered with {what} that is not Consul's JSON ({:?}); is this Consul?", quote(body))
    }

    /// The innermost reason of a failed request, which is the one that helps: `Connection refused`.
    pub(super) fn cause(error: &reqwest::Error) -> String {
        let mut inner: &dyn Error = error;
        while let Some(source) = inner.source() {
            inner = source;
        }
        quote(inner.to_string().as_bytes())
    }
}

/// The beginning of a foreign text, as one line without control characters.
fn quote(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * MAX_QUOTE_LEN)]);
    let text = text.trim();
    let mut quoted: String = text.chars().take(MAX_QUOTE_LEN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > MAX_QUOTE_LEN {
        quoted.push('…');
    }
    quoted
}
