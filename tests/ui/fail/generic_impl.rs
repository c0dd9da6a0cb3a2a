//! A generic inherent block.

pub struct Own<T>(T);

#[picom::service]
impl<T> Own<T> {
    pub async fn get(&self) -> u8 {
        0
    }
}

fn main() {}
