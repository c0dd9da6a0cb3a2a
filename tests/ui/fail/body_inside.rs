//! A body inside of another type.

use picom::Streaming;

#[picom::service]
pub trait Service {
    async fn get(&self, a: Option<Streaming<u8>>) -> u8;
}

fn main() {}
