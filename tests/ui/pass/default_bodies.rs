//! Default bodies: with `?`, with streams, with the context, with `return`, using other methods.
#![deny(warnings, clippy::all)]

use futures::{Stream, stream};
use picom::{Context, Status, Streaming};

#[picom::service]
pub trait Defaults: std::fmt::Debug {
    async fn required(&self, a: u8) -> Result<u8, Status>;

    async fn plain(&self, a: u8) -> u8 {
        a + 1
    }

    async fn nothing(&self) {}

    async fn fails(&self, _cx: &Context, a: u8) -> Result<u8, Status> {
        if a == 0 {
            return Err(Status::invalid_argument("zero"));
        }
        let a = self.required(a).await?;
        Ok(a)
    }

    async fn sums(&self, mut numbers: Streaming<u8>) -> Result<u8, Status> {
        let mut sum = 0;
        while let Some(number) = numbers.next().await {
            sum += number?;
        }
        Ok(sum)
    }

    async fn counts(&self, to: u8) -> Result<impl Stream<Item = u8>, Status> {
        self.required(to).await?;
        Ok(stream::iter(0..to))
    }
}

#[derive(Debug)]
struct Implementation;

impl Defaults for Implementation {
    async fn required(&self, a: u8) -> Result<u8, Status> {
        Ok(a)
    }

    async fn counts(&self, to: u8) -> Result<impl Stream<Item = u8>, Status> {
        Ok(stream::iter([to]))
    }
}

fn main() {
    let _ = DefaultsServer::new(Implementation);
}
