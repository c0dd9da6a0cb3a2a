//! Values of method options that are none.

#[picom::service]
pub trait Service {
    #[rpc(deadline = "500")]
    async fn no_unit(&self) -> u8;

    #[rpc(deadline = 500)]
    async fn number(&self) -> u8;

    #[rpc(deadline = "5 minutes")]
    async fn wrong_unit(&self) -> u8;

    #[rpc(deadline = "0s")]
    async fn no_time(&self) -> u8;

    #[rpc(max_request = "1MB")]
    async fn decimal(&self) -> u8;

    #[rpc(max_response = 0)]
    async fn nothing(&self) -> u8;

    #[rpc(max_response)]
    async fn missing(&self) -> u8;

    #[rpc(max_concurrent = 0)]
    async fn nobody(&self) -> u8;

    #[rpc(max_concurrent = "8")]
    async fn counted(&self) -> u8;

    #[rpc(idempotent = true)]
    async fn flag(&self) -> u8;

    #[rpc(name = "two words")]
    async fn name(&self) -> u8;

    #[rpc(alias = 7)]
    async fn alias(&self) -> u8;
}

fn main() {}
