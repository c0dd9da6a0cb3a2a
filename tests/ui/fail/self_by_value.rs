//! `self` by value.

#[picom::service]
pub trait Service {
    async fn get(self) -> u8;
}

fn main() {}
