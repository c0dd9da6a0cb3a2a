//! The attribute on an enum.

#[picom::service]
pub enum Service {
    One,
}

fn main() {}
