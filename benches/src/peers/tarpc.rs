//! tarpc over its own TCP transport, with bincode and with MessagePack.
//!
//! Must never: replace a part of tarpc; its limits may be raised to what the workloads put in flight.
//! Next: `tonic`, `volo` and `moleculer` beside this.

use crate::peer::{Client, Peer};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::net::{SocketAddr, TcpListener};
use tarpc::serde_transport::{Transport, tcp};
use tarpc::server::{BaseChannel, Channel};
use tarpc::{ClientMessage, Response, client, context};
use tokio::net::TcpStream;
use tokio_serde::formats::{Bincode, MessagePack};
use tokio_serde::{Deserializer, Serializer};

/// The default is 8 MiB; said here because the workloads rely on it.
const MAX_FRAME: usize = 8 << 20;

/// A client keeps calls beyond this back; the default of 1000 is less than the workloads have in flight.
const MAX_IN_FLIGHT: usize = 4096;

/// tarpc with bincode.
pub(crate) struct Tarpc;

/// tarpc with MessagePack.
pub(crate) struct TarpcMp;

impl Peer for Tarpc {
    const NAME: &'static str = "tarpc";
    const STREAMS: bool = false;
    type Client = RpcClient;

    async fn serve(listener: TcpListener, _: Option<usize>) {
        serve(listener, Bincode::default).await;
    }

    async fn connect(address: SocketAddr) -> RpcClient {
        connect(address, Bincode::default).await
    }
}

impl Peer for TarpcMp {
    const NAME: &'static str = "tarpc-mp";
    const STREAMS: bool = false;
    type Client = RpcClient;

    async fn serve(listener: TcpListener, _: Option<usize>) {
        serve(listener, MessagePack::default).await;
    }

    async fn connect(address: SocketAddr) -> RpcClient {
        connect(address, MessagePack::default).await
    }
}

#[tarpc::service]
pub(crate) trait Rpc {
    async fn add(a: u64, b: u64) -> u64;
    async fn echo(body: Bytes) -> Bytes;
}

#[derive(Clone)]
struct Server;

impl Rpc for Server {
    async fn add(self, _: context::Context, a: u64, b: u64) -> u64 {
        a.wrapping_add(b)
    }

    async fn echo(self, _: context::Context, body: Bytes) -> Bytes {
        body
    }
}

/// What both formats of `tokio_serde` offer.
trait Codec<In, Out>: Deserializer<In, Error = io::Error> + Serializer<Out, Error = io::Error> + Unpin + Send {}

impl<In, Out, C> Codec<In, Out> for C where
    C: Deserializer<In, Error = io::Error> + Serializer<Out, Error = io::Error> + Unpin + Send
{
}

async fn serve<C>(listener: TcpListener, codec: fn() -> C)
where
    C: Codec<ClientMessage<RpcRequest>, Response<RpcResponse>> + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut incoming = tcp::listen_on(listener, codec).await.unwrap();
    incoming.config_mut().max_frame_length(MAX_FRAME);
    while let Some(transport) = incoming.next().await {
        let transport = without_delay(transport.unwrap());
        tokio::spawn(BaseChannel::with_defaults(transport).execute(Server.serve()).for_each(async |handler| {
            tokio::spawn(handler);
        }));
    }
}

async fn connect<C>(address: SocketAddr, codec: fn() -> C) -> RpcClient
where
    C: Codec<Response<RpcResponse>, ClientMessage<RpcRequest>> + 'static,
{
    let mut connecting = tcp::connect(address, codec);
    connecting.config_mut().max_frame_length(MAX_FRAME);
    let transport = without_delay(connecting.await.unwrap());
    let mut config = client::Config::default();
    config.max_in_flight_requests = MAX_IN_FLIGHT;
    RpcClient::new(config, transport).spawn()
}

fn without_delay<In, Out, C>(transport: Transport<TcpStream, In, Out, C>) -> Transport<TcpStream, In, Out, C>
where
    In: DeserializeOwned,
    Out: Serialize,
{
    transport.get_ref().set_nodelay(true).unwrap();
    transport
}

impl Client for RpcClient {
    async fn add(&self, a: u64, b: u64) -> u64 {
        Self::add(self, context::current(), a, b).await.unwrap()
    }

    async fn echo(&self, body: Bytes) -> Bytes {
        Self::echo(self, context::current(), body).await.unwrap()
    }
}
