//! A stream boxed by hand.

use futures::Stream;
use picom::Status;

#[picom::service]
pub trait Service {
    async fn get(&self) -> Result<Box<dyn Stream<Item = u8> + Send>, Status>;
}

fn main() {}
