//! References as arguments.

#[picom::service]
pub trait Service {
    async fn text(&self, a: &str) -> u8;
    async fn bytes(&self, a: &[u8]) -> u8;
    async fn inside(&self, a: Option<&u8>) -> u8;
    async fn unique(&self, a: &mut String) -> u8;
}

fn main() {}
