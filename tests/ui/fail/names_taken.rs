//! Two methods with one name on the wire.

#[picom::service(prefix = "calc")]
pub trait Service {
    #[rpc(name = "get")]
    async fn one(&self) -> u8;

    async fn get(&self) -> u8;

    #[rpc(alias = "calc.get")]
    async fn alias(&self) -> u8;

    #[rpc(alias = "calc.itself")]
    async fn itself(&self) -> u8;

    #[cfg(unix)]
    #[rpc(alias = "calc.one_side")]
    async fn conditional(&self) -> u8;

    async fn one_side(&self) -> u8;
}

fn main() {}
