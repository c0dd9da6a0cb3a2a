//! Items that are references.

use futures::Stream;
use picom::Status;

#[picom::service]
pub trait Service {
    async fn bare(&self) -> impl Stream<Item = &str>;
    async fn inside(&self) -> Result<impl Stream<Item = &'static str>, Status>;
    async fn fallible(&self) -> impl Stream<Item = Result<&str, Status>>;
}

fn main() {}
