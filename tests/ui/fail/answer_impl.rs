//! An `impl` that is no stream.

use futures::Stream;
use picom::Status;

#[picom::service]
pub trait Service {
    async fn bare(&self) -> impl Iterator<Item = u8>;
    async fn inside(&self) -> Result<Option<impl Stream<Item = u8>>, Status>;
}

fn main() {}
