//! Options under a condition.

#[picom::service]
pub trait Service {
    #[cfg_attr(unix, rpc(idempotent))]
    async fn get(&self) -> u8;

    #[cfg_attr(unix, cfg(windows), deprecated)]
    async fn mixed(&self) -> u8;
}

fn main() {}
