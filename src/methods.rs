//! Methods by name: closures instead of a trait.
//!
//! Owns [`Methods`]. It must never do what the generated servers cannot: both go through [`crate::service`]. Look next at
//! `server/answer.rs` for how results travel.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::descriptor::{Kind, MethodDescriptor, ServiceDescriptor};
use crate::server::{Incoming, answer, answer_try_items, fail};
use crate::service::{Fault, HandlerFuture, Service};
use crate::status::Status;
use crate::streaming::Streaming;

type Handler = Arc<dyn Fn(Incoming) -> HandlerFuture + Send + Sync>;

/// A service made of closures: what a client sends as arguments is read into the type that the closure takes.
///
/// ```
/// use picom::{Context, Methods, Status, Streaming};
///
/// #[derive(serde::Deserialize)]
/// struct Add { a: i64, b: i64 }
///
/// let methods = Methods::new()
///     .unary("add", |_cx: Context, Add { a, b }: Add| async move { Ok::<_, Status>(a + b) })
///     .idempotent()
///     .client_streaming("sum", |_cx: Context, (): (), mut numbers: Streaming<i64>| async move {
///         let mut sum = 0;
///         while let Some(number) = numbers.message().await? {
///             sum += number;
///         }
///         Ok(sum)
///     });
/// # drop(methods);
/// ```
#[must_use = "methods do nothing until they are exposed"]
pub struct Methods {
    handlers: Vec<Handler>,
    descriptor: ServiceDescriptor,
}

impl Methods {
    /// No methods yet.
    pub fn new() -> Self {
        let descriptor = ServiceDescriptor {
            name: Cow::Borrowed("Methods"),
            docs: Cow::Borrowed(""),
            methods: Cow::Owned(Vec::new()),
        };
        Self { handlers: Vec::new(), descriptor }
    }

    /// Adds a method: reads its arguments, and lets `answer` call the handler and answer.
    fn add<H, A, R>(mut self, name: &str, kind: Kind, handler: H, answer: fn(Arc<H>, Incoming, A) -> R) -> Self
    where
        H: Send + Sync + 'static,
        A: DeserializeOwned + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.descriptor.methods.to_mut().push(MethodDescriptor::new(Cow::Owned(name.to_owned()), kind));
        self.handlers.push(Arc::new(move |mut call| {
            let handler = Arc::clone(&handler);
            Box::pin(async move {
                match call.args() {
                    Ok(args) => answer(handler, call, args).await,
                    Err(status) => fail(call, status),
                }
            })
        }));
        self
    }

    /// Says that running the method added last twice does no harm: picom may then repeat it after a lost connection.
    pub fn idempotent(mut self) -> Self {
        if let Some(method) = self.descriptor.methods.to_mut().last_mut() {
            method.idempotent = true;
        }
        self
    }

    /// Most calls of the method added last that one server has at once, at least one. The next one is refused as busy, and its
    /// caller tries another host.
    pub fn max_concurrent(mut self, calls: usize) -> Self {
        if let Some(method) = self.descriptor.methods.to_mut().last_mut() {
            method.max_concurrent = Some(calls.max(1));
        }
        self
    }

    /// Adds a method with one message each way.
    pub fn unary<A, F, R, T, E>(self, name: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        F: Fn(Context, A) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + Send + 'static,
        E: Fault,
    {
        self.add(name, Kind::Unary, handler, |handler, call, args| async move {
            let result = handler(call.context().clone(), args).await;
            answer(call, result);
        })
    }

    /// Adds a method whose answer is a stream, of items or of `Result`s with [`Status`].
    pub fn server_streaming<A, F, R, S, M>(self, name: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        F: Fn(Context, A) -> R + Send + Sync + 'static,
        R: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item: Item<M>> + Send + 'static,
    {
        self.add(name, Kind::ServerStreaming, handler, |handler, call, args| async move {
            let result = handler(call.context().clone(), args).await;
            answer_try_items(call, result.map(|items| items.map(Item::into_result))).await;
        })
    }

    /// Adds a method that takes a stream after its arguments and answers with one message.
    pub fn client_streaming<A, I, F, R, T>(self, name: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        I: DeserializeOwned + Send + 'static,
        F: Fn(Context, A, Streaming<I>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, Status>> + Send + 'static,
        T: Serialize + Send + 'static,
    {
        self.add(name, Kind::ClientStreaming, handler, |handler, mut call, args| async move {
            let body = call.body();
            let result = handler(call.context().clone(), args, body).await;
            answer(call, result);
        })
    }

    /// Adds a method that streams both ways.
    pub fn bidi<A, I, F, R, S, M>(self, name: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        I: DeserializeOwned + Send + 'static,
        F: Fn(Context, A, Streaming<I>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item: Item<M>> + Send + 'static,
    {
        self.add(name, Kind::Bidi, handler, |handler, mut call, args| async move {
            let body = call.body();
            let result = handler(call.context().clone(), args, body).await;
            answer_try_items(call, result.map(|items| items.map(Item::into_result))).await;
        })
    }
}

impl Default for Methods {
    fn default() -> Self {
        Self::new()
    }
}

impl Service for Methods {
    fn descriptor(&self) -> &ServiceDescriptor {
        &self.descriptor
    }

    fn call(self: Arc<Self>, method: usize, call: Incoming) -> HandlerFuture {
        match self.handlers.get(method) {
            Some(handler) => handler(call),
            // Dropping the call answers it; dispatch only asks for positions of the descriptor.
            None => Box::pin(async move { drop(call) }),
        }
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.descriptor.methods.iter().map(|method| &method.name)).finish()
    }
}

/// What the stream of a streaming method yields: a value, or a `Result` with [`Status`]. Which of the two is inferred.
pub trait Item<M>: Send {
    /// The type of the value.
    type Value: Serialize + Send + 'static;

    /// The value, or why the stream fails here.
    #[doc(hidden)]
    fn into_result(self) -> Result<Self::Value, Status>;
}

/// The items of a stream are values.
#[derive(Debug)]
pub enum Plain {}

/// The items of a stream are `Result`s.
#[derive(Debug)]
pub enum Fallible {}

impl<T: Serialize + Send + 'static> Item<Plain> for T {
    type Value = T;

    fn into_result(self) -> Result<T, Status> {
        Ok(self)
    }
}

impl<T: Serialize + Send + 'static> Item<Fallible> for Result<T, Status> {
    type Value = T;

    fn into_result(self) -> Self {
        self
    }
}
