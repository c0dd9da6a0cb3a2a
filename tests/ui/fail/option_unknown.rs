//! An option that does not exist.

#[picom::service(naem = "calc")]
pub trait Service {
    async fn get(&self) -> u8;
}

fn main() {}
