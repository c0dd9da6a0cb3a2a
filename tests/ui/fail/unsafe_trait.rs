//! An `unsafe` trait.

#[picom::service]
pub unsafe trait Service {
    async fn get(&self) -> u8;
}

fn main() {}
