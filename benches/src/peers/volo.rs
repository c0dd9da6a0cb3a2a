//! volo-thrift over its multiplexed transport, which is the one that keeps many calls in flight on a connection.
//!
//! Must never: replace a part of volo; `volo::thrift` holds what its generator would write for these two methods.
//! Next: `tarpc`, `tonic` and `moleculer` beside this.

mod thrift;

use crate::peer::{Client, Peer};
use bytes::Bytes;
use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;
use thrift::{Request, Response};
use volo::client::MkClient;
use volo::net::incoming::DefaultIncoming;
use volo::service::{BoxCloneService, Service};
use volo::{FastStr, METAINFO};
use volo_thrift::client::ClientBuilder;
use volo_thrift::context::{CLIENT_CONTEXT_CACHE, ClientContext, ServerContext, ThriftContext};
use volo_thrift::server::Server;
use volo_thrift::{ClientError, ServerError};

/// One second by default, which 1 MiB bodies may pass when the machine is busy.
const TIMEOUT: Duration = Duration::from_secs(10);

/// volo-thrift.
pub(crate) struct Volo;

impl Peer for Volo {
    const NAME: &'static str = "volo";
    const STREAMS: bool = false;
    type Client = VoloClient;

    async fn serve(listener: TcpListener, _: Option<usize>) {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        Server::new(Handler).multiplex(true).run(DefaultIncoming::from(listener)).await.unwrap();
    }

    async fn connect(address: SocketAddr) -> VoloClient {
        let client = ClientBuilder::new(thrift::SERVICE, Make)
            .address(address)
            .rpc_timeout(Some(TIMEOUT))
            .multiplex(true)
            .build();
        // It connects with its first call.
        client.add(0, 0).await;
        client
    }
}

#[derive(Clone)]
struct Handler;

impl Service<ServerContext, Request> for Handler {
    type Response = Response;
    type Error = ServerError;

    async fn call(&self, _: &mut ServerContext, request: Request) -> Result<Response, ServerError> {
        Ok(match request {
            Request::Add { a, b } => Response::Add(a.wrapping_add(b)),
            Request::Echo { body } => Response::Echo(body),
        })
    }
}

type Inner = volo_thrift::Client<BoxCloneService<ClientContext, Request, Option<Response>, ClientError>>;

struct Make;

impl MkClient<Inner> for Make {
    type Target = VoloClient;

    fn mk_client(&self, client: Inner) -> VoloClient {
        VoloClient(client)
    }
}

/// A client on one connection.
#[derive(Clone)]
pub(crate) struct VoloClient(Inner);

impl VoloClient {
    /// What the generated methods do, in the task-local scope that `volo::spawn` gives a task and the workloads do not.
    async fn call(&self, method: &str, request: Request) -> Response {
        let mut context = self.0.make_cx(method, false);
        context.set_idl_service_name(FastStr::from_static_str(thrift::SERVICE));
        let response = METAINFO.scope(RefCell::default(), self.0.call(&mut context, request)).await;
        CLIENT_CONTEXT_CACHE.with_borrow_mut(|cache| {
            if cache.len() < cache.capacity() {
                cache.push(context);
            }
        });
        response.unwrap().unwrap()
    }
}

impl Client for VoloClient {
    async fn add(&self, a: u64, b: u64) -> u64 {
        match self.call("add", Request::Add { a: a as i64, b: b as i64 }).await {
            Response::Add(sum) => sum as u64,
            Response::Echo(_) => panic!("an answer of another method"),
        }
    }

    async fn echo(&self, body: Bytes) -> Bytes {
        match self.call("echo", Request::Echo { body }).await {
            Response::Echo(body) => body,
            Response::Add(_) => panic!("an answer of another method"),
        }
    }
}
