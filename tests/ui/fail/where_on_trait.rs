//! A `where` clause on a trait.

#[picom::service]
pub trait Service
where
    Self: Clone,
{
    async fn get(&self) -> u8;
}

fn main() {}
