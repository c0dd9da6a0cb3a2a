//! A stream that cannot move between threads.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::Stream;

#[picom::service]
pub trait Service {
    async fn get(&self) -> impl Stream<Item = u8>;
}

struct Items(Rc<u8>);

impl Stream for Items {
    type Item = u8;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u8>> {
        Poll::Ready(Some(*self.0))
    }
}

struct Own;

impl Service for Own {
    async fn get(&self) -> impl Stream<Item = u8> {
        Items(Rc::new(1))
    }
}

fn main() {}
