//! Why a call failed, and whether its handler may have run.
//!
//! Owns [`Status`], [`Code`], [`Execution`] and [`CallError`]. It must never know how a status travels (that is
//! `wire`) nor decide on retries (that is `client`). Look next at `client/retry.rs` for who reads [`Execution`].

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// Why a call failed: gRPC's sixteen codes. Success has no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// The caller gave the call up.
    Cancelled = 1,
    /// An error without a better code, among them application errors read by a caller that does not know their type.
    Unknown = 2,
    /// The arguments are wrong whatever the state of the system.
    InvalidArgument = 3,
    /// The deadline passed first.
    DeadlineExceeded = 4,
    /// Something asked for does not exist.
    NotFound = 5,
    /// Something to be created exists already.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A limit or quota is used up.
    ResourceExhausted = 8,
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9,
    /// The call lost against a concurrent one.
    Aborted = 10,
    /// A position past the end.
    OutOfRange = 11,
    /// The method is not offered.
    Unimplemented = 12,
    /// Something that must not happen did: a bug or a panic.
    Internal = 13,
    /// No instance could be reached, or the connection was lost.
    Unavailable = 14,
    /// Data was lost or damaged.
    DataLoss = 15,
    /// The caller did not prove who it is.
    Unauthenticated = 16,
}

impl Code {
    /// Every code, in the order of its number.
    pub const ALL: [Self; 16] = [
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The code with this number; numbers that this version does not know become [`Code::Unknown`].
    pub fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number).wrapping_sub(1)).copied().unwrap_or(Self::Unknown)
    }

    /// The number that stands for this code on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name for people: lower case words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalid argument",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the handler of a failed call ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Execution {
    /// It provably never ran; any call may be tried again.
    Never,
    /// It may have run, wholly or in part; only an idempotent call may be tried again.
    Maybe,
    /// It ran and answered.
    Done,
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "the handler never ran",
            Self::Maybe => "the handler may have run",
            Self::Done => "the handler ran",
        })
    }
}

/// Why a call failed. One pointer wide, cheap to clone.
///
/// A handler makes one with [`Status::new`] or a constructor named after the code. The client adds what only it
/// knows: service, method, endpoint, attempts and whether the handler may have run. [`Display`](fmt::Display) is one
/// line for the person on call.
#[derive(Clone)]
pub struct Status(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    message: String,
    service: Option<Arc<str>>,
    method: Option<Arc<str>>,
    endpoint: Option<Arc<str>>,
    attempts: u32,
    max_attempts: u32,
    execution: Option<Execution>,
    retry_after: Option<Duration>,
    retryable: bool,
    details: Option<Bytes>,
    /// `details` is the method's own error.
    application: bool,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($name:ident => $code:ident),* $(,)?) => {$(
        #[doc = concat!("A status with [`Code::", stringify!($code), "`].")]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(Code::$code, message)
        }
    )*};
}

impl Status {
    /// A status with a code and a message for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            service: None,
            method: None,
            endpoint: None,
            attempts: 0,
            max_attempts: 0,
            execution: None,
            retry_after: None,
            retryable: false,
            details: None,
            application: false,
            source: None,
        }))
    }

    constructors! {
        cancelled => Cancelled,
        unknown => Unknown,
        invalid_argument => InvalidArgument,
        deadline_exceeded => DeadlineExceeded,
        not_found => NotFound,
        already_exists => AlreadyExists,
        permission_denied => PermissionDenied,
        resource_exhausted => ResourceExhausted,
        failed_precondition => FailedPrecondition,
        aborted => Aborted,
        out_of_range => OutOfRange,
        unimplemented => Unimplemented,
        internal => Internal,
        unavailable => Unavailable,
        data_loss => DataLoss,
        unauthenticated => Unauthenticated,
    }

    /// Why the call failed.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What happened, without the place where it did.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The service that was called; `None` on a status that no client has seen yet.
    pub fn service(&self) -> Option<&str> {
        self.0.service.as_deref()
    }

    /// The method that was called; `None` on a status that no client has seen yet.
    pub fn method(&self) -> Option<&str> {
        self.0.method.as_deref()
    }

    /// Where the last attempt went, as `address:port`; `None` if no endpoint was chosen.
    pub fn endpoint(&self) -> Option<&str> {
        self.0.endpoint.as_deref()
    }

    /// How many times the call was tried; 0 on a status that no client has seen yet.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Whether the handler of the call ran. A status fresh from a handler says [`Execution::Done`].
    pub fn execution(&self) -> Execution {
        self.0.execution.unwrap_or(Execution::Done)
    }

    /// After which time the server asks to be tried again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the handler said that the call may be tried again; see [`Status::retryable`].
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The application error as it came, in MessagePack, when the caller did not know its type.
    pub fn details(&self) -> Option<&Bytes> {
        self.0.details.as_ref()
    }

    /// Says that the call may be tried again, whatever the method: a handler that answers so has done nothing, or has undone it, and
    /// to run it anew may bring another outcome. The client does so by itself, as far as `retries`, deadline and budget allow; after
    /// the time of [`with_retry_after`](Self::with_retry_after) if there is one, else after a short pause.
    ///
    /// Any other status of a handler is final, also with a time. A method that streams its answer can say it with its own `Err`, but not with
    /// that of an item, for then its answer has begun. It is no longer said when a handler passes on what another call came to: that one
    /// has been tried again already. An error type of one's own has no place for it; beside it the handler says
    /// [`Context::allow_retry`](crate::Context::allow_retry).
    ///
    /// ```
    /// use picom::Status;
    ///
    /// fn conflict() -> Status {
    ///     Status::aborted("another transaction was first; rolled back").retryable()
    /// }
    /// assert!(conflict().is_retryable());
    /// ```
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }

    /// Adds the time after which the caller may try again. The client waits for it only if the status is
    /// [`retryable`](Self::retryable); else it is for the caller to see.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Adds the error that caused this one; it stays in this process.
    #[must_use]
    pub fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// Adds an encoded application error.
    #[must_use]
    pub fn with_details(mut self, details: Bytes) -> Self {
        self.0.details = Some(details);
        self
    }

    /// Says whether the handler ran.
    #[must_use]
    pub fn with_execution(mut self, execution: Execution) -> Self {
        self.0.execution = Some(execution);
        self
    }

    /// The status as which a method's own error travels.
    pub(crate) fn application(message: String, details: Bytes) -> Self {
        let mut status = Self::new(Code::Unknown, message).with_details(details);
        status.0.application = true;
        status
    }

    /// Whether [`Status::details`] are the method's own error.
    pub(crate) fn is_application(&self) -> bool {
        self.0.application
    }

    /// As a handler passes it on: whatever an inner call was, this handler ran; and where the inner call failed is part of
    /// what happened, because the caller would otherwise take the place for its own.
    pub(crate) fn passed_on(mut self) -> Self {
        let inner = &mut *self.0;
        inner.execution = None;
        inner.attempts = 0;
        if let (Some(service), Some(method)) = (inner.service.take(), inner.method.take()) {
            inner.retryable = false;
            let place = inner.endpoint.take().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
            inner.message = format!("{service}.{method}{place}: {}", inner.message);
        }
        self
    }

    pub(crate) fn with_message(mut self, message: String) -> Self {
        self.0.message = message;
        self
    }

    pub(crate) fn with_call(mut self, service: &Arc<str>, method: &Arc<str>) -> Self {
        self.0.service = Some(Arc::clone(service));
        self.0.method = Some(Arc::clone(method));
        self
    }

    pub(crate) fn with_endpoint(mut self, endpoint: &Arc<str>) -> Self {
        self.0.endpoint = Some(Arc::clone(endpoint));
        self
    }

    pub(crate) fn with_attempts(mut self, attempts: u32, max_attempts: u32) -> Self {
        self.0.attempts = attempts;
        self.0.max_attempts = max_attempts;
        self
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        write!(f, "{}: ", inner.code)?;
        if let (Some(service), Some(method)) = (&inner.service, &inner.method) {
            write!(f, "{service}.{method}")?;
            if let Some(endpoint) = &inner.endpoint {
                write!(f, " at {endpoint}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&inner.message)?;
        match (inner.attempts, inner.execution) {
            (0, None) => Ok(()),
            (0, Some(execution)) => write!(f, " ({execution})"),
            (attempts, _) => {
                write!(f, " (attempt {attempts} of {}; {})", inner.max_attempts.max(attempts), self.execution())
            }
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Status").field(&format_args!("{self}")).finish()
    }
}

impl Error for Status {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0.source {
            Some(source) => Some(&**source),
            None => None,
        }
    }
}

/// Why a call of a method with an error type of its own failed.
#[derive(Clone, Debug)]
pub enum CallError<E> {
    /// The handler answered with its own error.
    App(E),
    /// The call failed before, during or after the handler.
    Rpc(Status),
}

impl<E> CallError<E> {
    /// The framework's status, unless the application answered with its own error.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::App(_) => None,
            Self::Rpc(status) => Some(status),
        }
    }

    /// The application's error, if that is what came.
    pub fn app(&self) -> Option<&E> {
        match self {
            Self::App(error) => Some(error),
            Self::Rpc(_) => None,
        }
    }
}

impl<E> From<Status> for CallError<E> {
    fn from(status: Status) -> Self {
        Self::Rpc(status)
    }
}

/// For handlers that pass the failure of an inner call on: an application error becomes [`Code::Unknown`] with its text.
impl<E: fmt::Debug> From<CallError<E>> for Status {
    fn from(error: CallError<E>) -> Self {
        match error {
            CallError::App(error) => Self::unknown(format!("{error:?}")),
            CallError::Rpc(status) => status,
        }
    }
}

impl<E: fmt::Debug> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(error) => write!(f, "application error: {error:?}"),
            Self::Rpc(status) => status.fmt(f),
        }
    }
}

impl<E: fmt::Debug> Error for CallError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::App(_) => None,
            Self::Rpc(status) => status.source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_for_the_person_on_call() {
        let status = Status::unavailable("connection refused")
            .with_call(&"service1".into(), &"add".into())
            .with_endpoint(&"10.0.0.7:4000".into())
            .with_attempts(4, 4)
            .with_execution(Execution::Never);
        assert_eq!(
            status.to_string(),
            "unavailable: service1.add at 10.0.0.7:4000: connection refused (attempt 4 of 4; the handler never ran)"
        );
        assert_eq!(Status::not_found("no order 7").to_string(), "not found: no order 7");
    }

    #[test]
    fn code_numbers_survive_the_round_trip_and_unknown_ones_are_unknown() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), code);
        }
        assert_eq!(Code::from_number(0), Code::Unknown);
        assert_eq!(Code::from_number(17), Code::Unknown);
    }

    #[test]
    fn that_a_call_may_be_tried_again_is_not_passed_on_for_another_call() {
        let own = Status::aborted("lost").retryable();
        assert!(own.clone().passed_on().is_retryable());
        let inner = own.with_call(&"service1".into(), &"add".into());
        assert!(!inner.passed_on().is_retryable());
    }

    #[test]
    fn a_status_is_one_pointer_wide() {
        assert_eq!(size_of::<Status>(), size_of::<usize>());
    }
}
