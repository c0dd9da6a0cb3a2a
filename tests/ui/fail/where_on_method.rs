//! A `where` clause on a method.

#[picom::service]
pub trait Service {
    async fn get(&self) -> u8
    where
        Self: Clone;
}

fn main() {}
