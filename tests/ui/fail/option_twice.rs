//! An option given twice.

#[picom::service(name = "a", name = "b")]
pub trait Service {
    async fn get(&self) -> u8;
}

fn main() {}
