//! A stream whose items fail with another error than the method.

use futures::Stream;
use picom::Status;

#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Other;

#[picom::service]
pub trait Service {
    async fn get(&self) -> Result<impl Stream<Item = Result<u8, Other>>, Status>;
}

fn main() {}
