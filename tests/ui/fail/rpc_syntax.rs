//! Options that are not written like options.

#[picom::service]
pub trait Service {
    #[rpc = "idempotent"]
    async fn equals(&self) -> u8;

    #[rpc(deadline("1s"))]
    async fn call(&self) -> u8;

    #[rpc(name = own)]
    async fn word(&self) -> u8;
}

fn main() {}
