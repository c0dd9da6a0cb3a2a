//! An associated constant in a trait.

#[picom::service]
pub trait Service {
    const LIMIT: usize;
}

fn main() {}
