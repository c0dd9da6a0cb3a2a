//! Every shape of an answer: aliases of `Result`, bare streams, boxed streams, a body handed back.
#![deny(warnings)]

use std::pin::Pin;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use picom::descriptor::Kind;
use picom::private::TypedClient;
use picom::{CallError, Status, Streaming};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub struct Fault(u8);

mod short {
    pub type Result<T> = std::result::Result<T, super::Fault>;
}

mod whole {
    pub type Result = std::result::Result<u8, super::Fault>;
}

#[picom::service]
pub trait Answers {
    async fn nothing(&self);
    async fn unit(&self) -> ();
    async fn alias(&self) -> short::Result<u8>;
    async fn whole(&self) -> whole::Result;
    async fn tuple(&self) -> (u8, Option<String>);
    async fn bare(&self) -> impl Stream<Item = u8>;
    async fn bare_fallible(&self) -> impl Stream<Item = Result<u8, Fault>>;
    async fn bare_alias(&self) -> impl Stream<Item = short::Result<u8>>;
    async fn stream_in_alias(&self) -> short::Result<impl Stream<Item = u8>>;
    async fn aliases(&self) -> short::Result<impl Stream<Item = short::Result<u8>>>;
    async fn send_already(&self) -> impl Stream<Item = u8> + Send + Unpin;
    async fn boxed(&self) -> Result<BoxStream<'_, u8>, Fault>;
    async fn boxed_fallible(&self) -> BoxStream<'static, Result<u8, Fault>>;
    async fn handed_back(&self, body: Streaming<u8>) -> Result<Streaming<u8>, Status>;
    async fn bare_body(&self, body: Streaming<u8>) -> Streaming<u8>;
}

struct Implementation(Vec<u8>);

#[picom::service]
impl Answers for Implementation {
    async fn nothing(&self) {}
    async fn unit(&self) -> () {}
    async fn alias(&self) -> short::Result<u8> {
        Err(Fault(1))
    }
    async fn whole(&self) -> whole::Result {
        Ok(1)
    }
    async fn tuple(&self) -> (u8, Option<String>) {
        (1, None)
    }
    async fn bare(&self) -> impl Stream<Item = u8> {
        stream::iter(self.0.iter().copied())
    }
    async fn bare_fallible(&self) -> impl Stream<Item = Result<u8, Fault>> {
        stream::iter([Ok(1), Err(Fault(2))])
    }
    async fn bare_alias(&self) -> impl Stream<Item = short::Result<u8>> {
        stream::iter([Ok(1), Err(Fault(2))])
    }
    async fn stream_in_alias(&self) -> short::Result<impl Stream<Item = u8>> {
        Ok(stream::iter(self.0.iter().copied()))
    }
    async fn aliases(&self) -> short::Result<impl Stream<Item = short::Result<u8>>> {
        Ok(stream::iter([Ok(1), Err(Fault(2))]))
    }
    async fn send_already(&self) -> impl Stream<Item = u8> + Send + Unpin {
        stream::iter([1])
    }
    async fn boxed(&self) -> Result<BoxStream<'_, u8>, Fault> {
        Ok(stream::iter(self.0.iter().copied()).boxed())
    }
    async fn boxed_fallible(&self) -> BoxStream<'static, Result<u8, Fault>> {
        stream::iter([Ok(1)]).boxed()
    }
    async fn handed_back(&self, body: Streaming<u8>) -> Result<Streaming<u8>, Status> {
        Ok(body)
    }
    async fn bare_body(&self, body: Streaming<u8>) -> Streaming<u8> {
        body
    }
}

async fn calls(client: AnswersClient) -> Result<(), Status> {
    let _: Result<(), Status> = client.nothing().await;
    let _: Result<(), Status> = client.unit().await;
    let _: Result<u8, CallError<Fault>> = client.alias().await;
    let _: Result<u8, CallError<Fault>> = client.whole().await;
    let _: Result<(u8, Option<String>), Status> = client.tuple().await;
    let _: Result<Streaming<u8>, Status> = client.bare().await;
    let _: Result<Streaming<u8, CallError<Fault>>, _> = client.bare_fallible().await;
    let _: Result<Streaming<u8, CallError<Fault>>, _> = client.bare_alias().await;
    let _: Result<Streaming<u8, CallError<Fault>>, CallError<Fault>> = client.stream_in_alias().await;
    let _: Result<Streaming<u8, CallError<Fault>>, CallError<Fault>> = client.aliases().await;
    let _: Result<Streaming<u8, CallError<Fault>>, _> = client.boxed().await;
    let _: Result<Streaming<u8, CallError<Fault>>, _> = client.boxed_fallible().await;
    let _: Pin<Box<dyn Stream<Item = Result<u8, Status>>>> = Box::pin(client.handed_back(stream::empty()).await?);
    let _: Streaming<u8> = client.bare_body(stream::empty()).await?;
    Ok(())
}

fn main() {
    let _ = calls;
    let _ = AnswersServer::new(Implementation(vec![1]));
    let methods = &AnswersClient::descriptor().methods;
    let texts = |name: &str| {
        let method = methods.iter().find(|method| method.name == name).unwrap();
        (method.kind, method.ok.to_string(), method.err.to_string())
    };
    let expect = |kind, ok: &str, err: &str| (kind, ok.to_owned(), err.to_owned());
    assert_eq!(texts("nothing"), expect(Kind::Unary, "()", ""));
    assert_eq!(texts("alias"), expect(Kind::Unary, "u8", "short::Result<u8>::Err"));
    assert_eq!(texts("bare"), expect(Kind::ServerStreaming, "u8", ""));
    assert_eq!(texts("bare_fallible"), expect(Kind::ServerStreaming, "u8", "Fault"));
    assert_eq!(texts("boxed"), expect(Kind::ServerStreaming, "u8", "Fault"));
    assert_eq!(texts("handed_back"), expect(Kind::Bidi, "u8", ""));
}
