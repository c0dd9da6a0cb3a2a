//! A stream that cannot move between threads, in an inherent block.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::Stream;

struct Items(Rc<u8>);

impl Stream for Items {
    type Item = u8;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u8>> {
        Poll::Ready(Some(*self.0))
    }
}

pub struct Own;

#[picom::service]
impl Own {
    pub async fn get(&self) -> impl Stream<Item = u8> {
        Items(Rc::new(1))
    }
}

fn main() {}
