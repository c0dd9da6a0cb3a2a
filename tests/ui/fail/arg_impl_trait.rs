//! `impl Trait` as an argument.

#[picom::service]
pub trait Service {
    async fn get(&self, a: impl Into<String>) -> u8;
    async fn inside(&self, a: Vec<impl Into<String>>) -> u8;
}

fn main() {}
