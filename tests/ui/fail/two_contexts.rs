//! Two contexts.

use picom::Context;

#[picom::service]
pub trait Service {
    async fn get(&self, cx: &Context, again: &Context) -> u8;
}

fn main() {}
