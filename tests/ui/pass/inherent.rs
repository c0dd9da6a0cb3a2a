//! A type that is a service by itself, with streams that borrow from it.
#![deny(warnings, missing_docs, missing_debug_implementations)]

use futures::Stream;
use picom::{Context, Status, Streaming};

/// A store.
#[derive(Debug)]
pub struct Store {
    items: Vec<String>,
}

impl Store {
    fn helper(&self) -> usize {
        self.items.len()
    }
}

/// Keeps strings.
#[picom::service(name = "store")]
impl Store {
    /// How many there are.
    #[rpc(idempotent)]
    pub async fn len(&self) -> usize {
        self.helper()
    }

    /// Those that start with a prefix.
    pub async fn find(&self, cx: &Context, prefix: String) -> Result<impl Stream<Item = String>, Status> {
        let _ = cx;
        let found = self.items.iter().filter(move |item| item.starts_with(&prefix)).cloned();
        Ok(futures::stream::iter(found))
    }

    /// Takes the body apart in the signature's own `mut`.
    pub async fn fill(&self, mut items: Streaming<String>) -> Result<usize, Status> {
        let mut count = 0;
        while let Some(item) = items.next().await {
            count += item?.len();
        }
        Ok(count)
    }
}

fn main() {
    fn service(_: impl picom::private::Service) {}
    service(Store { items: Vec::new() });
    let descriptor = <StoreClient as picom::private::TypedClient>::descriptor();
    assert_eq!((&*descriptor.name, &*descriptor.docs), ("store", "Keeps strings."));
    let _ = |client: StoreClient| {
        drop((client.len(), client.find("a".into()), client.fill(futures::stream::empty())));
    };
}
