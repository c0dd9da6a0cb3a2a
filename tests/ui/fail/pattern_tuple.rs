//! A pattern as an argument.

pub struct Own;

#[picom::service]
impl Own {
    pub async fn get(&self, (a, b): (u8, u8)) -> u8 {
        a + b
    }
}

fn main() {}
