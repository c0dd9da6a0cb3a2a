//! The context by `&mut`.

use picom::Context;

#[picom::service]
pub trait Service {
    async fn get(&self, cx: &mut Context) -> u8;
}

fn main() {}
