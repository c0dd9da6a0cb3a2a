//! Deprecation warns whoever calls or implements a method, and nobody else: not the generated code.
#![deny(warnings)]

use picom::Status;

#[picom::service]
pub trait Old {
    #[deprecated = "call `new`"]
    async fn old(&self) -> Result<u8, Status>;

    async fn new(&self) -> Result<u8, Status>;
}

struct Implementation;

impl Old for Implementation {
    async fn old(&self) -> Result<u8, Status> {
        Ok(1)
    }

    async fn new(&self) -> Result<u8, Status> {
        Ok(2)
    }
}

fn main() {
    let _ = OldServer::new(Implementation);
    let _ = |client: OldClient| {
        drop(client.new());
        #[expect(deprecated)]
        drop(client.old());
    };
}
