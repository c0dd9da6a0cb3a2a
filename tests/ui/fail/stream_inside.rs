//! A stream inside of another type.

#[picom::service]
pub trait Service {
    async fn get(&self) -> (u8, picom::Streaming<u8>);
}

fn main() {}
