//! picom: services that find each other and call each other.

pub mod descriptor;
pub mod registry;
mod status;

pub use bytes::Bytes;
pub use status::{CallError, Code, Execution, Status};
