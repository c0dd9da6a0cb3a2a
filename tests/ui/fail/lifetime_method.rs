//! A method with a lifetime.

#[picom::service]
pub trait Service {
    async fn get<'a>(&'a self, value: u8) -> u8;
}

fn main() {}
