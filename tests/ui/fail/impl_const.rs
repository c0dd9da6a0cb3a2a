//! A constant in an inherent block.

pub struct Own;

#[picom::service]
impl Own {
    const LIMIT: u8 = 0;

    pub async fn get(&self) -> u8 {
        Self::LIMIT
    }
}

fn main() {}
