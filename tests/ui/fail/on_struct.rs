//! The attribute on a struct.

#[picom::service]
pub struct Service;

fn main() {}
