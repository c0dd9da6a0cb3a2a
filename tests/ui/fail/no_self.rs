//! A method without `self`.

#[picom::service]
pub trait Service {
    async fn get(a: u8) -> u8;
}

fn main() {}
