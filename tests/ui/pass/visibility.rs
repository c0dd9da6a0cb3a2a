//! Private and restricted services, services inside of functions, several on one type and in one place.
#![deny(warnings, unreachable_pub, private_interfaces, private_bounds)]

use std::sync::Arc;

use picom::Status;

#[derive(serde::Serialize, serde::Deserialize)]
struct Private;

#[picom::service]
trait Hidden {
    async fn get(&self, private: Private) -> Result<Private, Status>;
}

mod inner {
    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct Seen;

    #[picom::service]
    pub(super) trait Restricted {
        async fn get(&self, seen: Seen) -> Seen;
    }

    #[picom::service]
    pub(in crate::inner) trait Path {
        async fn get(&self);
    }

    pub(crate) struct Own;

    #[picom::service]
    impl Own {
        pub(crate) async fn get(&self, seen: Seen) -> Seen {
            seen
        }

        async fn private(&self) {}
    }

    impl Path for Own {
        async fn get(&self) {}
    }

    pub(crate) fn own(client: OwnClient) {
        let _ = PathServer::new(Own);
        let _ = |path: PathClient| drop(path.get());
        drop(client.private());
    }
}

use inner::{OwnClient, Restricted, RestrictedClient, RestrictedServer};

/// Both traits have a method of the same name, and so has the type.
struct Many;

impl Many {
    fn get(&self) -> u8 {
        7
    }
}

#[picom::service]
impl Hidden for Many {
    async fn get(&self, private: Private) -> Result<Private, Status> {
        Ok(private)
    }
}

impl Restricted for Many {
    async fn get(&self, seen: inner::Seen) -> inner::Seen {
        seen
    }
}

/// A generic type offers a trait.
struct Generic<T>(T);

#[picom::service]
impl<T: Send + Sync + 'static> Hidden for Generic<T> {
    async fn get(&self, private: Private) -> Result<Private, Status> {
        let _ = &self.0;
        Ok(private)
    }
}

macro_rules! by_macro {
    ($name:ident, $argument:ty) => {
        #[picom::service]
        trait $name {
            async fn made(&self, value: $argument, body: picom::Streaming<$argument>) -> Result<$argument, Status>;
            async fn named(&self, method: u8, call: u8, context: u8) -> u8;
        }
    };
}

by_macro!(Made, Vec<u8>);

fn main() {
    let many = Arc::new(Many);
    let _ = (HiddenServer::from_arc(Arc::clone(&many)), RestrictedServer::from_arc(Arc::clone(&many)), many.get());
    let _ = HiddenServer::new(Generic(1));
    let _ = (inner::own, |_: (HiddenClient, RestrictedClient, OwnClient, MadeClient)| {});

    struct Local;

    #[derive(serde::Serialize, serde::Deserialize)]
    struct LocalValue;

    #[picom::service]
    trait Inside {
        async fn get(&self, value: LocalValue) -> LocalValue;
    }

    impl Inside for Local {
        async fn get(&self, value: LocalValue) -> LocalValue {
            value
        }
    }

    fn service(_: impl picom::private::Service) {}
    service(InsideServer::new(Local));
    let _ = |client: InsideClient| drop(client.get(LocalValue));
    let _ = |client: HiddenClient| drop(client.get(Private));
    let _ = |client: RestrictedClient, seen| drop(client.get(seen));
    let _ = |client: OwnClient, seen| drop(client.get(seen));
    let _ = |client: MadeClient| drop((client.made(vec![], futures::stream::empty()), client.named(1, 2, 3)));
    let _ = std::mem::size_of::<MadeServer<()>>();
}
