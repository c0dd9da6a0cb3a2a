//! A body that is not last.

use picom::Streaming;

#[picom::service]
pub trait Service {
    async fn get(&self, a: Streaming<u8>, b: u8) -> u8;
}

fn main() {}
