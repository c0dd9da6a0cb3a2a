//! Services that find each other and call each other.
//!
//! A process creates a *node* ([`Picom`]), exposes methods under a *service* name, and calls the methods of other services by
//! name. Nodes find each other through a *registry*, Consul first, and talk directly over TCP, with no broker and no sidecar
//! in between. Calls are one message each way or streams in either direction.
//!
//! The folder `examples` shows one idea each; `docs/architecture.md` explains how
//! picom is built and `docs/protocol.md` what it says on the wire.
//!
//! # A service
//!
//! A service is a trait. [`#[picom::service]`](macro@service) leaves the trait as you wrote it and adds a server and a client
//! for it. Whoever implements it writes plain `async fn`.
//!
//! ```
//! use picom::registry::Memory;
//! use picom::{Picom, Status};
//!
//! #[picom::service]
//! pub trait Calculator {
//!     /// Adds two numbers.
//!     #[rpc(idempotent, deadline = "500ms")]
//!     async fn add(&self, a: i64, b: i64) -> Result<i64, Status>;
//! }
//!
//! struct Calc;
//!
//! impl Calculator for Calc {
//!     async fn add(&self, a: i64, b: i64) -> Result<i64, Status> {
//!         a.checked_add(b).ok_or_else(|| Status::out_of_range("the sum does not fit 64 bits"))
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Status> {
//! let registry = Memory::new();
//! let service1 = Picom::builder("service1").registry(registry.clone()).build()?;
//! service1.expose(CalculatorServer::new(Calc)).await?;
//!
//! let service2 = Picom::builder("service2").registry(registry).build()?;
//! let calc: CalculatorClient = service2.client("service1");
//! assert_eq!(calc.add(2, 5).await?, 7);
//!
//! service1.end().await?;
//! # Ok(())
//! # }
//! ```
//!
//! When [`Picom::expose`] returns, the node listens, is registered and can be found. [`Picom::end`] takes all of that back
//! without failing a call: it deregisters, tells those who are connected, finishes what runs, and closes.
//!
//! A handler runs on the task of its caller's connection until it first waits, which makes short ones fast. One that computes for
//! more than some 100 microseconds, or blocks, holds up all other calls of that connection, and after seconds loses it: give such work
//! to [`tokio::task::spawn_blocking`], or wait once, with [`tokio::task::yield_now`], before it.
//!
//! # Calling
//!
//! Every method of a client returns a [`Call`], which is made when it is awaited. Until then it takes options:
//!
//! ```
//! # use std::time::Duration;
//! # use picom::{Picom, Status};
//! # #[picom::service]
//! # trait Calculator { async fn add(&self, a: i64, b: i64) -> Result<i64, Status>; }
//! # async fn f(calc: CalculatorClient) -> Result<(), Status> {
//! let (sum, info) = calc
//!     .add(2, 5)
//!     .timeout(Duration::from_millis(200)) // over all attempts; the default is 30 s
//!     .retries(1)                          // at most two attempts; the default is 3, so four
//!     .metadata("tenant", "acme")
//!     .with_info()
//!     .await?;
//! println!("{sum} from {} with {} attempts in {:?}", info.endpoint(), info.attempts(), info.elapsed());
//! # Ok(())
//! # }
//! ```
//!
//! A call becomes a future with [`into_future`](std::future::IntoFuture::into_future), which `.await` does by itself, and what takes
//! any future has to be given:
//!
//! ```
//! # use std::future::IntoFuture;
//! # use picom::{Picom, Status};
//! # #[picom::service]
//! # trait Calculator { async fn add(&self, a: i64, b: i64) -> Result<i64, Status>; }
//! # async fn f(calc: CalculatorClient) -> Result<(), Status> {
//! let sums: Vec<i64> = futures::future::try_join_all((0..100).map(|n| calc.add(n, 1).into_future())).await?;
//! let one = tokio::spawn(calc.add(1, 2).into_future());
//! # let _ = (sums, one);
//! # Ok(())
//! # }
//! ```
//!
//! Clients are cheap to make and to clone. All clients of one service in one node share a connection to each endpoint,
//! which is made with the first call and again whenever it was lost. Dropping a call, or the stream that it returned,
//! cancels it at the server.
//!
//! A call is tried again on another host only where that is safe: when its handler provably never ran, or when the method is
//! `idempotent` and no answer had begun, or when its handler says so ([`Status::retryable`], and [`Context::allow_retry`] beside an
//! error type of one's own). A retry never outlives the deadline of the call.
//!
//! A call of an idempotent method may also be helped while it runs: [`Call::hedge`] asks a second host when the first one is
//! late, and [`Call::attempt_timeout`] leaves a host that takes too long:
//!
//! ```
//! # use std::time::Duration;
//! # use picom::{Picom, Status};
//! # #[picom::service]
//! # trait Calculator { #[rpc(idempotent)] async fn add(&self, a: i64, b: i64) -> Result<i64, Status>; }
//! # async fn f(calc: CalculatorClient) -> Result<(), Status> {
//! let sum = calc.add(2, 5).hedge().await?;
//! let sum = calc.add(2, 5).attempt_timeout(Duration::from_millis(50)).await?;
//! let sum = calc.add(2, 5).timeout(Duration::from_millis(200)).retries(1).await?;
//! # let _ = sum;
//! # Ok(())
//! # }
//! # fn handler() -> Result<i64, Status> {
//! return Err(Status::aborted("lost against another transaction").retryable()); // in a handler: it may be tried again
//! # }
//! # enum BookingError { Conflict }
//! # fn other(cx: &picom::Context) -> Result<i64, BookingError> {
//! cx.allow_retry(); return Err(BookingError::Conflict); // the same with an error type of its own
//! # }
//! ```
//!
//! # By name
//!
//! Both sides can do without a trait. [`Methods`] is a service made of closures; [`Picom::fetch`] and [`Picom::stream`] call by
//! name, with arguments made by [`args!`]. On the wire it is the same: typed clients call methods by name, and the reverse.
//!
//! ```
//! use picom::{Context, Methods, Picom, Status, args};
//!
//! #[derive(serde::Deserialize)]
//! struct Add {
//!     a: i64,
//!     b: i64,
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Status> {
//! # let registry = picom::registry::Memory::new();
//! # let service1 = Picom::builder("service1").registry(registry.clone()).build()?;
//! # let service2 = Picom::builder("service2").registry(registry).build()?;
//! let methods = Methods::new()
//!     .unary("add", |_cx: Context, Add { a, b }: Add| async move { Ok::<_, Status>(a.wrapping_add(b)) })
//!     .idempotent();
//! service1.expose(methods).await?;
//!
//! let sum: i64 = service2.fetch("service1", "add", args! { a: 2, b: 5 }).await?;
//! assert_eq!(sum, 7);
//! # service1.end().await
//! # }
//! ```
//!
//! # Streaming
//!
//! The types of a method say how it streams: a last argument [`Streaming<T>`](Streaming) is a body that the caller sends, an
//! answer `impl Stream<Item = T>` is one that the server sends, and both together run at the same time. The items of an
//! answer may be `Result`s. A stream in a client is a [`Streaming`], whose items are `Result`s always, because a connection
//! can fail between two of them. A stream that was cut short never looks like one that ended.
//!
//! ```
//! use futures::{Stream, stream};
//! use picom::{Picom, Status, Streaming};
//!
//! #[picom::service]
//! trait Numbers {
//!     async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status>;
//!     async fn sum(&self, numbers: Streaming<i64>) -> Result<i64, Status>;
//!     async fn double(&self, numbers: Streaming<i64>) -> Result<impl Stream<Item = Result<i64, Status>>, Status>;
//! }
//!
//! struct Local;
//!
//! impl Numbers for Local {
//!     async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status> {
//!         Ok(stream::iter(0..to))
//!     }
//!
//!     async fn sum(&self, mut numbers: Streaming<i64>) -> Result<i64, Status> {
//!         let mut sum = 0_i64;
//!         while let Some(number) = numbers.message().await? {
//!             sum = sum.wrapping_add(number);
//!         }
//!         Ok(sum)
//!     }
//!
//!     async fn double(&self, numbers: Streaming<i64>) -> Result<impl Stream<Item = Result<i64, Status>>, Status> {
//!         use futures::TryStreamExt;
//!         Ok(numbers.map_ok(|number| number.wrapping_mul(2)))
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let registry = picom::registry::Memory::new();
//! # let service1 = Picom::builder("service1").registry(registry.clone()).build()?;
//! # let service2 = Picom::builder("service2").registry(registry).build()?;
//! # service1.expose(NumbersServer::new(Local)).await?;
//! let numbers: NumbersClient = service2.client("service1");
//!
//! let mut items = numbers.count(3).await?;
//! while let Some(item) = items.message().await? {
//!     println!("item {item}");
//! }
//!
//! assert_eq!(numbers.sum(stream::iter(1..=10)).await?, 55);
//!
//! // Both ways, by hand: `send` waits while the other side has no room.
//! let (sender, body) = picom::channel::<i64>();
//! let mut doubled = numbers.double(body).await?;
//! sender.send(21).await?;
//! assert_eq!(doubled.message().await?, Some(42));
//! drop(sender); // ends the body properly; `sender.abort(status)` ends it with an error
//! assert_eq!(doubled.message().await?, None);
//! # service1.end().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A stream that nobody reads suspends its sender: at most [`STREAM_WINDOW`](options::STREAM_WINDOW) bytes wait for it, or what the
//! window has grown to on a long path, and behind them up to 128 items of a [`channel`]. Use
//! [`Bytes`] for items that are bytes; they are handed on without being copied again.
//!
//! # Errors
//!
//! A method that returns `Result<T, Status>` gives its caller that [`Status`]. A method with an error type of its own gives
//! [`CallError::App`] with that error, apart from everything else that can happen, which is [`CallError::Rpc`]. A method
//! without `Result` cannot fail in the application; its client returns `Result<T, Status>` all the same.
//!
//! ```
//! use picom::{CallError, Code, Execution, Picom, Status, args};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! enum MathError {
//!     DivisionByZero,
//! }
//!
//! #[picom::service]
//! trait Calculator {
//!     async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError>;
//! }
//!
//! # struct Calc;
//! # impl Calculator for Calc {
//! #     async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError> {
//! #         a.checked_div(b).ok_or(MathError::DivisionByZero)
//! #     }
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let registry = picom::registry::Memory::new();
//! # let service1 = Picom::builder("service1").registry(registry.clone()).build()?;
//! # let service2 = Picom::builder("service2").registry(registry).build()?;
//! # service1.expose(CalculatorServer::new(Calc)).await?;
//! let calc: CalculatorClient = service2.client("service1");
//! match calc.divide(1, 0).await {
//!     Err(CallError::App(error)) => assert_eq!(error, MathError::DivisionByZero),
//!     Err(CallError::Rpc(status)) => return Err(status.into()), // unavailable, too late, …
//!     Ok(_) => unreachable!("nothing is divided by zero"),
//! }
//!
//! let status = service2.fetch::<i64>("service1", "divid", args! { a: 1, b: 0 }).await.unwrap_err();
//! assert_eq!((status.code(), status.execution()), (Code::Unimplemented, Execution::Never));
//! println!("{status}");
//! // unimplemented: service1.divid at 127.0.0.1:34567: service1 has no method `divid`; the nearest is `divide`
//! // (attempt 1 of 4; the handler never ran)
//! # service1.end().await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Status::execution`] is what matters for trying again by hand: [`Execution::Never`] is always safe, [`Execution::Maybe`]
//! only if running twice does no harm.
//!
//! # Context
//!
//! A handler may take a `&Context`, anywhere among its arguments: [`Context`] knows who called, how long the caller still
//! waits, and what metadata came with the call. Calls that a handler makes inherit what remains of the deadline, and the
//! metadata that was marked for it with [`Call::metadata_inherited`], whether or not the handler takes a context. When the
//! caller gives up, the handler is dropped, and with it the calls that it has made.
//!
//! ```
//! # use picom::{Context, Status};
//! # #[picom::service]
//! # trait Prices { async fn price(&self, cx: &Context, item: String) -> Result<u64, Status>; }
//! # struct List;
//! impl Prices for List {
//!     async fn price(&self, cx: &Context, item: String) -> Result<u64, Status> {
//!         let tenant = cx.metadata().get("tenant").ok_or_else(|| Status::unauthenticated("no tenant"))?;
//!         println!("{} asks for the price of {item} for {tenant}; {:?} left", cx.peer().node, cx.remaining());
//!         Ok(5)
//!     }
//! }
//! ```
//!
//! A task that a handler spawns inherits through [`Context::scope`]; [`Context::detached`] makes calls that outlive their caller.
//!
//! # Registries
//!
//! [`registry`] holds the ways to find each other. A node without a registry in code takes the one that the environment
//! variable `PICOM_REGISTRY` names, and without that Consul at `CONSUL_HTTP_ADDR`, else at `127.0.0.1:8500`.
//!
//! | in code | as a URL | for |
//! | --- | --- | --- |
//! | [`registry::Consul`] | `consul://127.0.0.1:8500` | everything that runs on more than one machine |
//! | [`registry::Manifest`] | `manifest://local`, `manifest://10.0.0.1:3100,10.0.0.2:3100?listen=0.0.0.0:3100&secret-file=…` | nodes that find each other without a server |
//! | [`registry::Broadcast`] | `broadcast://10.1.255.255:5000`, on one machine `broadcast://` | one machine or one network, without a server |
//! | [`registry::Fixed`] | `fixed://service1=10.0.0.7:4000` | addresses that somebody else keeps right |
//! | [`registry::Memory`] | `memory://name` | tests and demonstrations, within one process |
//!
//! The last good list is kept when a registry is lost, and an empty answer is believed only when the registry says so for
//! sure. [`registry::Registry`] is the trait for everything else. [`registry::Cached`] and [`registry::Combine`] wrap registries:
//! the one remembers the last good list of any, the other makes one of several.
//!
//! # States
//!
//! A node says what it is ready for, and others see it in every registry that publishes: it is [up](NodeState::Up) when it can
//! be found, [running](NodeState::Running) when it is to be called, and may be [busy](Picom::doing) or [stopped](Picom::stop)
//! for a while. Calls go to running instances, to busy ones only where none is running, and to stopped ones never.
//!
//! [`Picom::pick`] waits for an endpoint without calling it, [`Picom::watch`] is the stream of all that is known of a service, and
//! [`Picom::nodes`] is everything known. With [`Picom::stand_for`] a node lends its name to a dependency that is no node, such
//! as a database, and starts and stops as a [`Sentinel`] finds it well or not.
//!
//! ```
//! use std::time::Duration;
//! use picom::registry::Memory;
//! use picom::{Methods, NodeState, Picom, Status};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Status> {
//! let registry = Memory::new();
//! let service1 = Picom::builder("service1").registry(registry.clone()).build()?;
//! let service2 = Picom::builder("service2").registry(registry).build()?;
//! service1.expose(Methods::new()).await?;
//!
//! service1.doing("a backup")?;
//! let picked = service2.pick("service1").timeout(Duration::from_secs(5)).await?;
//! assert_eq!(picked.status.state, NodeState::Doing); // nobody else is running
//!
//! service1.stop("disk full")?;
//! assert!(service2.pick("service1").timeout(Duration::ZERO).await.is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # Balancing
//!
//! Each attempt goes to the better of two random endpoints: that with the lower product of latency and calls under way. Those that
//! fail are left alone for a while. [`balance`] has other policies, for a node, a client or a call, and shows how to write one.
//!
//! ```
//! use picom::Picom;
//! use picom::balance::{ConsistentHash, RoundRobin};
//!
//! # async fn f(service2: Picom) -> Result<(), picom::Status> {
//! let cached: u64 = service2.fetch("service1", "visits", ()).balance(ConsistentHash).key("anna").await?;
//! let in_turn: u64 = service2.fetch("service1", "visits", ()).balance(RoundRobin).await?;
//! for state in service2.channel("service1").endpoints() {
//!     println!("{}: {} calls under way, {:?}", state.endpoint.addr, state.outstanding, state.circuit);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Without calls
//!
//! [`boxcar`] balances the connections of any other TCP application between servers, with nothing but numbers. It needs no node and
//! no registry.
//!
//! # Options
//!
//! [`Picom::builder`] takes them; [`options`] lists every default with its unit and its reason.
//!
//! ```
//! use std::time::Duration;
//! use picom::Picom;
//! use picom::registry::Consul;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Picom::builder("service1")
//!     .registry(Consul::new("http://127.0.0.1:8500")?.ttl(Duration::from_secs(30)))
//!     .port(4000)
//!     .retries(3)
//!     .max_message(16 << 20)
//!     .drain_timeout(Duration::from_secs(60))
//!     .build()?;
//! # drop(node);
//! # Ok(())
//! # }
//! ```
//!
//! # Testing
//!
//! [`registry::Memory`] needs no network service, and a node that is [`in_memory`](Builder::in_memory) needs no socket: both
//! together run on tokio's paused time, where a test of a timeout takes no time.
//!
//! ```
//! use std::time::Duration;
//! use picom::registry::Memory;
//! use picom::{Code, Picom, Status};
//!
//! # #[picom::service]
//! # trait Slow { async fn wait(&self) -> Result<(), Status>; }
//! # struct Sleeper;
//! # impl Slow for Sleeper {
//! #     async fn wait(&self) -> Result<(), Status> { std::future::pending().await }
//! # }
//! # fn main() -> Result<(), Status> {
//! #     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
//! #     runtime.expect("a runtime").block_on(a_call_without_an_answer_ends())
//! # }
//! // #[tokio::test(start_paused = true)]
//! async fn a_call_without_an_answer_ends() -> Result<(), Status> {
//!     let registry = Memory::new();
//!     let server = Picom::builder("slow").registry(registry.clone()).in_memory().build()?;
//!     server.expose(SlowServer::new(Sleeper)).await?;
//!     let client: SlowClient = Picom::builder("test").registry(registry).build()?.client("slow");
//!
//!     let status = client.wait().timeout(Duration::from_secs(10)).await.unwrap_err();
//!     assert_eq!(status.code(), Code::DeadlineExceeded);
//!     Ok(())
//! }
//! ```
//!
//! # Features of the crate
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `macros` | yes | [`#[picom::service]`](macro@service) |
//! | `consul` | yes | [`registry::Consul`], with the feature `http` |
//! | `manifest` | yes | [`registry::Manifest`], with proofs for its secret |
//! | `broadcast` | yes | [`registry::Broadcast`], with a cipher for its key |
//! | `http` | yes | [`Sentinel::http`], with an HTTP client and TLS |
//!
//! No feature changes how calls behave. picom needs Rust 1.85 and a tokio runtime.

// Files that tests outside share with those inside name the crate alike.
#[cfg(test)]
extern crate self as picom;

pub mod balance;
mod body;
pub mod boxcar;
mod builder;
mod client;
mod context;
pub mod descriptor;
#[cfg(test)]
#[path = "../tests/support/logged.rs"]
mod logged;
mod message;
mod metadata;
mod methods;
mod node;
pub mod options;
mod pack;
#[doc(hidden)]
pub mod private;
mod proto;
pub mod registry;
mod sentinel;
mod server;
mod service;
mod signal;
#[cfg(test)]
mod simulation;
mod state;
mod status;
mod streaming;
mod transport;
mod wire;

/// serde's `with` for a field of type [`Bytes`] or `Vec<u8>` in types of your own: it travels as bytes, and long `Bytes` are sent and
/// received without being copied. Arguments and answers that are `Bytes` themselves, and those of `#[picom::service]` and
/// [`args!`], have it already.
///
/// ```
/// # use picom::Bytes;
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Upload {
///     name: String,
///     #[serde(with = "picom::by_reference")]
///     data: Bytes,
/// }
/// ```
pub mod by_reference {
    pub use crate::message::bytes_field::{deserialize, serialize};
}

pub use builder::Builder;
pub use bytes::Bytes;
pub use client::{
    All, Args, Arguments, Call, CallFuture, CallInfo, Channel, First, IntoBody, Items, Pick, Response, TypedClient,
    Unary, WithInfo,
};
pub use context::{Context, Peer};
pub use metadata::{Metadata, MetadataError};
pub use methods::{Item, Methods};
pub use node::{Exposed, Picom};
pub use options::Concurrency;
#[cfg(feature = "macros")]
pub use picom_macros::service;
pub use sentinel::Sentinel;
pub use service::{Failure, Fault, HandlerFuture, Service};
pub use signal::{Signal, shutdown_signal};
pub use state::{MAX_REASON, NodeState, NodeStatus, TransitionError};
pub use status::{CallError, Code, Execution, Status};
pub use streaming::{SendError, Sender, Streaming, channel};
pub use tokio_util::sync::CancellationToken;
