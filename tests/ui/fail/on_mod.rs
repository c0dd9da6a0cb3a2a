//! The attribute on a module.

#[picom::service]
mod service {}

fn main() {}
