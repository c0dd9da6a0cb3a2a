//! The only names that the expansion of macros may use.
//!
//! Owns nothing: it is a list. What is not on it may change without notice to generated code. Nothing here is for people.

#![allow(missing_docs, reason = "nothing here is for people")]

pub use futures::Stream;
pub use serde;

pub use crate::client::args::argument_name;
pub use crate::client::{Args, Call, Channel, IntoBody, Items, TypedClient, Unary};
pub use crate::context::Context;
pub use crate::descriptor::{ArgDescriptor, Kind, MethodDescriptor, ServiceDescriptor};
pub use crate::message::bytes_field;
pub use crate::server::{Incoming, answer, answer_items, answer_try_items, fail};
pub use crate::service::{Fault, HandlerFuture, Service};
pub use crate::status::Status;
pub use crate::streaming::Streaming;

/// The two halves of a `Result`, also behind an alias.
pub trait ResultLike {
    type Ok;
    type Err;
}

impl<T, E> ResultLike for Result<T, E> {
    type Ok = T;
    type Err = E;
}
