//! An associated type in a trait.

#[picom::service]
pub trait Service {
    type Item;
}

fn main() {}
