//! Options that contradict the inferred kind.

#[picom::service]
pub trait Service {
    #[rpc(server_streaming)]
    async fn get(&self) -> u8;

    #[rpc(kind = "unary")]
    async fn get_two(&self) -> u8;
}

fn main() {}
