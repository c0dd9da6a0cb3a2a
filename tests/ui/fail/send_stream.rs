//! A stream that cannot move between threads.

use std::rc::Rc;

use futures::Stream;

#[picom::service]
pub trait Service {
    async fn get(&self) -> impl Stream<Item = u8>;
}

struct Own;

impl Service for Own {
    async fn get(&self) -> impl Stream<Item = u8> {
        let shared = Rc::new(1);
        futures::stream::iter(0..1).map(move |n| n + *shared)
    }
}

use futures::StreamExt;

fn main() {}
