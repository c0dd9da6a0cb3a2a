//! A generic method.

#[picom::service]
pub trait Service {
    async fn get<T>(&self, value: T) -> u8;
}

fn main() {}
