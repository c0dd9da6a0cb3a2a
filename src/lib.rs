//! picom: services that find each other and call each other.

pub mod descriptor;
mod metadata;
mod proto;
pub mod registry;
mod status;
mod wire;

pub use bytes::Bytes;
pub use metadata::{Metadata, MetadataError};
pub use status::{CallError, Code, Execution, Status};
