//! A constructor and a plain method in an inherent block.

pub struct Own;

#[picom::service]
impl Own {
    pub fn new() -> Own {
        Own
    }

    pub fn helper(&self) -> u8 {
        0
    }

    pub async fn get(&self) -> u8 {
        0
    }
}

fn main() {}
