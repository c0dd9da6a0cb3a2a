//! A method option that does not exist.

#[picom::service]
pub trait Service {
    #[rpc(retries = 3)]
    async fn get(&self) -> u8;
}

fn main() {}
