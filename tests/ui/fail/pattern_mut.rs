//! `mut` in a trait.

#[picom::service]
pub trait Service {
    async fn get(&self, mut a: u8) -> u8;
}

fn main() {}
