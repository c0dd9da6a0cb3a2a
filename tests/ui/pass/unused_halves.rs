//! A program that only calls, one that only serves, and one that merely declares: none of it is dead code.
#![deny(warnings)]

use picom::Status;

#[picom::service]
trait OnlyCalled {
    async fn used(&self) -> Result<u8, Status>;
    async fn unused(&self) -> Result<u8, Status>;
}

#[picom::service]
trait OnlyServed {
    async fn used(&self) -> Result<u8, Status>;
}

struct Implementation;

impl OnlyServed for Implementation {
    async fn used(&self) -> Result<u8, Status> {
        Ok(1)
    }
}

struct Own;

#[picom::service]
impl Own {
    async fn used(&self, list: Vec<u8>) -> usize {
        list.len()
    }
}

fn main() {
    let _ = |client: OnlyCalledClient| drop(client.used());
    let _ = OnlyServedServer::new(Implementation);
    let _ = Own;
}
