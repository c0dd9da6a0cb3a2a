//! A stream whose items fail with another error than the method.

use futures::Stream;
use picom::{Status, Streaming};

#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Other;

#[picom::service]
pub trait Service {
    async fn items(&self) -> Result<impl Stream<Item = Result<u8, Other>>, Status>;
    async fn body(&self, body: Streaming<u8>) -> Result<Streaming<u8>, Other>;
}

fn main() {}
