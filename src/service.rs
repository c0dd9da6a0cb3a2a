//! What can be exposed: the erased [`Service`], and how errors of handlers travel.
//!
//! Owns the seam between dispatch and the handlers that macros or [`Methods`](crate::Methods) provide. It must never know
//! sockets. Look next at `server/incoming.rs` for what a handler is given.

use std::any::Any;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::descriptor::ServiceDescriptor;
use crate::message;
use crate::server::Incoming;
use crate::status::{CallError, Status};

/// The work of one call; it answers the call before it completes.
pub type HandlerFuture = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// Something that a node can expose: a generated server, a type marked with `#[picom::service]`, or
/// [`Methods`](crate::Methods).
pub trait Service: Send + Sync + 'static {
    /// What it offers. Must always be the same.
    fn descriptor(&self) -> &ServiceDescriptor;

    /// Starts the handler of the method at this position of the descriptor.
    fn call(self: Arc<Self>, method: usize, call: Incoming) -> HandlerFuture;
}

/// An error type of methods. `Status` stands for itself; any other type travels as an application error and reaches
/// typed clients as [`CallError::App`].
pub trait Fault: Sized + Send + 'static {
    /// What the client of the method gets as its error.
    type Client: Failure;

    /// The status as which it travels.
    #[doc(hidden)]
    fn into_status(self) -> Status;
}

impl Fault for Status {
    type Client = Self;

    fn into_status(self) -> Status {
        self
    }
}

impl<E: Serialize + DeserializeOwned + Debug + Send + 'static> Fault for E {
    type Client = CallError<E>;

    fn into_status(self) -> Status {
        let mut details = BytesMut::new();
        match message::encode(&self, &mut details) {
            Ok(()) => Status::application(format!("{self:?}"), details.freeze()),
            Err(error) => Status::internal(format!("the error of the method cannot be encoded: {error}")),
        }
    }
}

/// An error that a client can return: made from the framework's status, or from an application error as it came.
pub trait Failure: From<Status> + Send + 'static {
    /// Makes it from the encoded application error. `status` describes the same error for callers that do not know
    /// its type.
    #[doc(hidden)]
    fn from_application(details: &Bytes, status: Status) -> Self;
}

impl Failure for Status {
    fn from_application(_details: &Bytes, status: Status) -> Self {
        status
    }
}

impl<E: DeserializeOwned + Send + 'static> Failure for CallError<E> {
    fn from_application(details: &Bytes, status: Status) -> Self {
        match message::decode(details) {
            Ok(error) => Self::App(error),
            Err(error) => {
                Self::Rpc(status.with_message(format!("the application's error is not of the type expected: {error}")))
            }
        }
    }
}

impl Status {
    /// The method's own error, for callers by name that know its type; `None` if the failure is another one, or the error of
    /// another type.
    pub fn application_error<E: DeserializeOwned + 'static>(&self) -> Option<E> {
        self.details().and_then(|details| message::decode(details).ok())
    }
}

/// What a panic said, if it said it in text.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
