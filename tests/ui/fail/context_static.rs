//! The context with a lifetime.

use picom::Context;

#[picom::service]
pub trait Service {
    async fn get(&self, cx: &'static Context) -> u8;
}

fn main() {}
