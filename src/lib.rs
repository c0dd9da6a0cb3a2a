//! picom: services that find each other and call each other.

mod body;
mod builder;
mod client;
mod context;
pub mod descriptor;
mod message;
mod metadata;
mod methods;
mod node;
pub mod options;
mod pack;
#[doc(hidden)]
pub mod private;
mod proto;
pub mod registry;
mod server;
mod service;
mod signal;
mod status;
mod streaming;
mod transport;
mod wire;

pub use builder::Builder;
pub use bytes::Bytes;
pub use client::{
    All, Args, Arguments, Call, CallFuture, CallInfo, Channel, First, IntoBody, Items, Response, TypedClient, Unary,
    WithInfo,
};
pub use context::{Context, Peer};
pub use metadata::{Metadata, MetadataError};
pub use methods::{Item, Methods};
pub use node::{Exposed, Picom};
#[cfg(feature = "macros")]
pub use picom_macros::service;
pub use service::{Failure, Fault, HandlerFuture, Service};
pub use signal::{Signal, shutdown_signal};
pub use status::{CallError, Code, Execution, Status};
pub use streaming::{SendError, Sender, Streaming, channel};
