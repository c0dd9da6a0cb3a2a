//! A stream of unknown items.

use futures::Stream;
use picom::Status;

#[picom::service]
pub trait Service {
    async fn get(&self) -> Result<impl Stream, Status>;
}

fn main() {}
