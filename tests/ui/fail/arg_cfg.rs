//! A conditional argument.

#[picom::service]
pub trait Service {
    async fn get(&self, #[cfg(unix)] a: u8) -> u8;
}

fn main() {}
