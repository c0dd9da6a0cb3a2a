//! An implementation with another signature.

#[picom::service]
pub trait Service {
    async fn get(&self, a: u8) -> u8;
}

struct Own;

#[picom::service]
impl Service for Own {
    async fn get(&self, a: u16) -> u8 {
        a as u8
    }
}

fn main() {}
