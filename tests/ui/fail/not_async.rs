//! A method that is no `async fn`.

#[picom::service]
pub trait Service {
    fn get(&self) -> u8;
}

fn main() {}
