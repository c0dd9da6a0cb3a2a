//! Options on an implementation.

#[picom::service]
pub trait Service {
    async fn get(&self, a: u8) -> u8;
}

struct Own;

#[picom::service(name = "own")]
impl Service for Own {
    #[rpc(idempotent)]
    async fn get(&self, a: u8) -> u8 {
        a
    }
}

fn main() {}
