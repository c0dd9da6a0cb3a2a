//! Method options given twice.

#[picom::service]
pub trait Service {
    #[rpc(idempotent, idempotent)]
    async fn flag(&self) -> u8;

    #[rpc(name = "a")]
    #[rpc(name = "b")]
    async fn name(&self) -> u8;

    #[rpc(alias = "c", alias = "c")]
    async fn alias(&self) -> u8;
}

fn main() {}
