//! An inherent block of a type with parameters.

pub struct Own<T>(T);

#[picom::service]
impl Own<u8> {
    pub async fn get(&self) -> u8 {
        self.0
    }
}

fn main() {}
