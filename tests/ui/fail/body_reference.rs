//! A borrowed body.

use picom::Streaming;

#[picom::service]
pub trait Service {
    async fn get(&self, a: &mut Streaming<u8>) -> u8;
}

fn main() {}
