//! Methods and arguments named like everything that is generated or inherited, and raw identifiers.
#![deny(warnings)]

use picom::{Context, Status, Streaming};

#[picom::service]
#[allow(clippy::too_many_arguments)]
pub trait Awkward {
    async fn new(&self) -> u8;
    async fn from_arc(&self) -> u8;
    async fn call(&self, call: u8) -> u8;
    async fn clone(&self) -> u8;
    async fn fmt(&self, f: u8) -> u8;
    async fn from_channel(&self, channel: u8) -> u8;
    async fn descriptor(&self) -> u8;
    async fn into_future(&self) -> u8;
    async fn drop(&self) -> u8;
    async fn r#type(&self, r#fn: u8, r#match: Option<u8>) -> u8;
    async fn names(
        &self,
        self_: u8,
        call: u8,
        service: u8,
        channel: u8,
        cx: &Context,
        args: u8,
        arguments: u8,
        method: u8,
        answer: u8,
        context: u8,
        status: u8,
        private: u8,
        body: Streaming<u8>,
    ) -> Result<u8, Status>;
    async fn more(&self, deserializer: u8, serializer: u8, map: u8, value: u8, __value: u8, f: u8, e: u8) -> u8;
}

pub struct Own;

#[picom::service]
impl Own {
    pub async fn new(&self) -> u8 {
        0
    }

    pub async fn call(&self, method: usize, mut call: u8) -> u8 {
        call += 1;
        call + method as u8
    }

    pub async fn descriptor(&self) -> u8 {
        0
    }

    pub async fn r#type(&self, r#in: u8) -> u8 {
        r#in
    }
}

fn client(client: AwkwardClient, own: OwnClient) {
    let copy = Clone::clone(&client);
    drop((client.new(), client.call(1), client.clone(), client.fmt(1), client.from_channel(2), client.descriptor()));
    drop((copy.r#type(1, None), copy.names(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, futures::stream::empty())));
    drop((own.new(), own.call(0, 1), own.descriptor(), own.r#type(1)));
}

fn main() {
    let _ = client;
    let awkward = <AwkwardClient as picom::private::TypedClient>::descriptor();
    let method = awkward.methods.iter().find(|method| method.name == "type").unwrap();
    let names: Vec<&str> = method.args.iter().map(|arg| &*arg.name).collect();
    assert_eq!(names, ["fn", "match"]);
}
