//! A body with an error type.

use picom::Streaming;

#[picom::service]
pub trait Service {
    async fn get(&self, a: Streaming<u8, String>) -> u8;
}

fn main() {}
