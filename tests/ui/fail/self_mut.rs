//! `&mut self`.

#[picom::service]
pub trait Service {
    async fn get(&mut self) -> u8;
}

fn main() {}
