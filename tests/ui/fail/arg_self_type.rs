//! `Self` as a type.

#[picom::service]
pub trait Service: Sized {
    async fn get(&self, a: Option<Self>) -> Result<Self, picom::Status>;
}

fn main() {}
