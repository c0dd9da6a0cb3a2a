//! Two bodies.

use picom::Streaming;

#[picom::service]
pub trait Service {
    async fn get(&self, a: Streaming<u8>, b: Streaming<u8>) -> u8;
}

fn main() {}
