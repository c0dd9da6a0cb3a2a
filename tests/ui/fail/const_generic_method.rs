//! A method with a const parameter.

#[picom::service]
pub trait Service {
    async fn get<const N: usize>(&self, value: [u8; N]) -> u8;
}

fn main() {}
