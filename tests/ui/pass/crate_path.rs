//! picom under another path, as a crate that re-exports it would have it.
#![deny(warnings)]

mod vendor {
    pub use ::picom as rpc;
}

use vendor::rpc::{Status, Streaming};

#[vendor::rpc::service(crate = "crate::vendor::rpc")]
pub trait Vendored {
    async fn data(&self, data: Vec<u8>, body: Streaming<u8>) -> Result<Vec<u8>, Status>;
}

fn main() {
    let _ = |client: VendoredClient| drop(client.data(vec![], futures::stream::empty()));
    let _ = std::mem::size_of::<VendoredServer<()>>();
}
