//! An inherent block of something that is no type of its own.

#[picom::service]
impl [u8] {
    pub async fn get(&self) -> u8 {
        0
    }
}

fn main() {}
