//! What the failure of an attempt means: to balancing, to the throttle, and to the caller.
//!
//! Owns the words of errors that a client makes of failures. It must never make another attempt, nor say whether there may be one (that
//! is [`super::retry`]). Look next at [`super::attempts`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::args::Arguments;
use super::attempts::{Attempts, Failed, Failing};
use super::retry::Class;
use super::stream::Attempt;
use crate::body::BodyError;
use crate::proto::{Error, Failure};
use crate::status::{Code, Execution, Status};
use crate::wire::Refusal;

impl<A: Arguments> Attempts<A> {
    /// What a failed attempt means: `Err` is the error of the call, because nothing else can follow.
    pub(super) fn judge(&self, mut attempt: Attempt, error: BodyError) -> Result<Failing, Failed> {
        let target = Arc::clone(attempt.target());
        if let BodyError::Failed(failure) = &error {
            self.note(&mut attempt, failure);
        }
        drop(attempt);
        let failure = match error {
            BodyError::Failed(failure) => failure,
            BodyError::Truncated => {
                let status = Status::data_loss("the answer ends within a message").with_execution(Execution::Maybe);
                return Err(self.failed(Some(&target), status));
            }
            // Only servers count messages under way.
            BodyError::NoRoom => Failure::Truncated,
            BodyError::TooLong { len, limit } => {
                let option = match self.method.described().and_then(|method| method.max_response) {
                    Some(_) => "`max_response` of the method",
                    None => "`max_message` here",
                };
                let text = format!("an answer of {len} bytes exceeds the limit of {limit}; raise {option}");
                let status = Status::resource_exhausted(text).with_execution(Execution::Done);
                return Err(self.failed(Some(&target), status));
            }
        };
        let class = Class::of(&failure);
        let asked = match &failure {
            Failure::Refused { retry_after, .. } => *retry_after,
            Failure::Status { status, .. } => status.retry_after.map(|millis| Duration::from_millis(millis.into())),
            _ => None,
        };
        if let Failure::Refused { reason: Refusal::Busy, .. } = failure {
            let now = Instant::now();
            if let Some(overloaded) = self.pool.throttle.refused(now, || self.pool.budget.recent(now)) {
                let (status, _) = self.status_of(failure);
                let text = format!("{overloaded}; {}", status.message());
                return Err(self.failed(Some(&target), status.with_message(text)));
            }
        }
        let (status, application) = self.status_of(failure);
        Ok(Failing { target, class, status, asked, application })
    }

    /// Tells balancing what a failure says of the endpoint. Whatever the application says speaks for it, except that it is
    /// unavailable: whoever says only that, at once, must not seem to be the fastest of all.
    fn note(&self, attempt: &mut Attempt, failure: &Failure) {
        match failure {
            // One full method says nothing of the others.
            Failure::Refused { reason: Refusal::MethodBusy, .. } => attempt.ticket().declined(),
            Failure::Refused { retry_after, .. } => attempt.ticket().refused(*retry_after),
            Failure::Lost { .. } => {
                attempt.target().lost(attempt.link());
                attempt.ticket().unreachable();
                self.pool.refresh();
            }
            Failure::Deadline { sent: true, answered: false } => attempt.ticket().failed(),
            Failure::Status { status, answered: false } if status.code == Code::Unavailable.number() && !status.app => {
                attempt.ticket().failed();
            }
            Failure::Status { .. } => attempt.ticket().answered(),
            Failure::Deadline { .. } | Failure::Idle { .. } | Failure::NotAccepted | Failure::Truncated => {}
        }
    }

    fn status_of(&self, failure: Failure) -> (Status, Option<Bytes>) {
        let ran = |sent| if sent { Execution::Maybe } else { Execution::Never };
        let status = match failure {
            Failure::Status { status, .. } => {
                let application = if status.app { status.details.clone() } else { None };
                return (status.into_status(), application);
            }
            Failure::Refused { reason: Refusal::Draining, text, .. } => {
                Status::unavailable(format!("the server is leaving: {text}")).with_execution(Execution::Never)
            }
            Failure::Refused { text, retry_after, .. } => {
                let status = Status::resource_exhausted(format!("the server is busy: {text}"));
                let status = if let Some(after) = retry_after { status.with_retry_after(after) } else { status };
                status.with_execution(Execution::Never)
            }
            Failure::NotAccepted => Status::unavailable("the server is leaving").with_execution(Execution::Never),
            Failure::Lost { error, sent, .. } => {
                Status::unavailable(format!("connection lost: {error}")).with_execution(ran(sent))
            }
            Failure::Deadline { sent, .. } => {
                let waited = self.elapsed();
                Status::deadline_exceeded(format!("no answer within {waited:.1?}")).with_execution(ran(sent))
            }
            Failure::Idle { sent, .. } => {
                let idle = self.settled.idle.unwrap_or_default();
                Status::deadline_exceeded(format!("nothing moved for {idle:?}; allow more with `.idle_timeout()`"))
                    .with_execution(ran(sent))
            }
            Failure::Truncated => Status::data_loss("the answer was cut short").with_execution(Execution::Maybe),
        };
        (status, None)
    }
}

/// What a failure to connect means to the caller.
pub(super) fn connect_status(error: &Arc<Error>) -> Status {
    let text = match &**error {
        Error::Io { kind: std::io::ErrorKind::UnexpectedEof, .. } => {
            "the peer closed the connection before hello".to_owned()
        }
        Error::Io { kind, .. } if *kind != std::io::ErrorKind::TimedOut && *kind != std::io::ErrorKind::Other => {
            kind.to_string()
        }
        error => error.to_string(),
    };
    Status::unavailable(text).with_execution(Execution::Never).with_source(Error::clone(error))
}
