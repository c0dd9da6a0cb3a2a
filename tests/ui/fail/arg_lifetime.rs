//! An argument with a lifetime.

#[picom::service]
pub trait Service {
    async fn get(&self, a: std::borrow::Cow<'_, str>) -> u8;
}

fn main() {}
