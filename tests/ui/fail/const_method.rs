//! A `const` method.

#[picom::service]
pub trait Service {
    const fn get(&self) -> u8;
}

fn main() {}
