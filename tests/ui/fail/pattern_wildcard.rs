//! An argument without a name.

#[picom::service]
pub trait Service {
    async fn get(&self, _: u8) -> u8;
}

fn main() {}
