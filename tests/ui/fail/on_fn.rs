//! The attribute on a function.

#[picom::service]
pub async fn service() {}

fn main() {}
