//! The context by value.

use picom::Context;

#[picom::service]
pub trait Service {
    async fn get(&self, cx: Context) -> u8;
}

fn main() {}
