//! A body of references.

use picom::Streaming;

#[picom::service]
pub trait Service {
    async fn get(&self, a: Streaming<&str>) -> u8;
}

fn main() {}
