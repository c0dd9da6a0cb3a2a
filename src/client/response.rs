//! The kinds of answers: one message, a stream, the first item, all items.
//!
//! Owns how an answer is read and when a failure leads to another attempt. It must never decide whether that is safe (that is
//! [`super::attempts`]). Look next at [`super::call`].

use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use super::args::Arguments;
use super::attempts::{Attempts, Failed};
use super::call::CallInfo;
use super::stream::{Asked, Attempt, Message};
use super::target::Target;
use crate::body::BodyError;
use crate::message;
use crate::metadata::Metadata;
use crate::service::Failure;
use crate::status::{Execution, Status};
use crate::streaming::{Source, Streaming};

/// What a call returns. Implemented by the kinds of answers in this module only.
pub trait Response: Send + 'static {
    /// What awaiting the call yields.
    type Output: Send + 'static;
    /// Why it fails.
    type Error: Failure;
    /// Whether the answer is a stream, which may take longer than any default deadline.
    const STREAMS: bool;

    /// Whether the answer is usually one message, for which there is a short way.
    #[doc(hidden)]
    const ONE_MESSAGE: bool = false;

    /// What an answer yields that consists of this one message.
    #[doc(hidden)]
    fn whole<A: Arguments>(
        attempts: &Attempts<A>,
        asked: &Asked,
        _message: &Message,
    ) -> Result<Self::Output, Self::Error> {
        // Not reached: only kinds that have a short way are asked.
        let status = Status::internal("an answer of this kind is no single message").with_execution(Execution::Done);
        Err(attempts.failed(Some(asked.target()), status).into_error())
    }

    /// Makes the attempts, or goes on with the one that was begun, and reads the answer.
    #[doc(hidden)]
    fn receive<A: Arguments>(
        attempts: Attempts<A>,
        begun: Option<Attempt>,
        limit: usize,
    ) -> impl Future<Output = Result<(Self::Output, CallInfo), Self::Error>> + Send;
}

/// One message.
#[derive(Debug)]
pub struct Unary<T, E>(PhantomData<fn() -> (T, E)>);

impl<T: DeserializeOwned + Send + 'static, E: Failure> Response for Unary<T, E> {
    type Output = T;
    type Error = E;
    const STREAMS: bool = false;
    const ONE_MESSAGE: bool = true;

    fn whole<A: Arguments>(attempts: &Attempts<A>, asked: &Asked, message: &Message) -> Result<T, E> {
        decode_whole(attempts, asked.target(), message)
    }

    async fn receive<A: Arguments>(
        mut attempts: Attempts<A>,
        begun: Option<Attempt>,
        _limit: usize,
    ) -> Result<(T, CallInfo), E> {
        let (message, attempt) = first(&mut attempts, begun).await.map_err(Failed::into_error::<E>)?;
        let value = match message {
            Some(message) => decode::<T, A, E>(&attempts, attempt.target(), &message)?,
            None => {
                let status = Status::internal("the answer has no message").with_execution(Execution::Done);
                return Err(attempts.failed(Some(attempt.target()), status).into_error());
            }
        };
        Ok((value, info(&attempts, attempt.target(), attempt.metadata())))
    }
}

/// The first and only item, whatever the kind of the method.
#[derive(Debug)]
pub struct First<T>(PhantomData<fn() -> T>);

impl<T: DeserializeOwned + Send + 'static> Response for First<T> {
    type Output = T;
    type Error = Status;
    const STREAMS: bool = false;
    const ONE_MESSAGE: bool = true;

    fn whole<A: Arguments>(attempts: &Attempts<A>, asked: &Asked, message: &Message) -> Result<T, Status> {
        decode_whole(attempts, asked.target(), message)
    }

    async fn receive<A: Arguments>(
        mut attempts: Attempts<A>,
        begun: Option<Attempt>,
        _limit: usize,
    ) -> Result<(T, CallInfo), Status> {
        let (message, mut attempt) = first(&mut attempts, begun).await.map_err(Failed::into_error::<Status>)?;
        let Some(message) = message else {
            // An answer without an item is nil to those who can read nil, such as `()` and `Option`.
            let nil = Bytes::from_static(&[message::NIL]);
            return message::decode(&nil)
                .map(|value| (value, info(&attempts, attempt.target(), attempt.metadata())))
                .map_err(|_| {
                    let status = Status::not_found("the answer has no item").with_execution(Execution::Done);
                    attempts.failed(Some(attempt.target()), status).into_error()
                });
        };
        if !attempt.is_over() {
            if let Some(more) = attempt.message().await {
                let status = match more {
                    Ok(_) => Status::failed_precondition(
                        "the answer has more than one item; use `.multiple()` for all of them or `stream` for each",
                    )
                    .with_execution(Execution::Done),
                    Err(error) => return Err(give_up(&mut attempts, attempt, error).await.into_error()),
                };
                return Err(attempts.failed(Some(attempt.target()), status).into_error());
            }
        }
        let value = decode::<T, A, Status>(&attempts, attempt.target(), &message)?;
        Ok((value, info(&attempts, attempt.target(), attempt.metadata())))
    }
}

/// Every item.
#[derive(Debug)]
pub struct All<T>(PhantomData<fn() -> T>);

impl<T: DeserializeOwned + Send + 'static> Response for All<T> {
    type Output = Vec<T>;
    type Error = Status;
    const STREAMS: bool = true;

    async fn receive<A: Arguments>(
        mut attempts: Attempts<A>,
        begun: Option<Attempt>,
        limit: usize,
    ) -> Result<(Vec<T>, CallInfo), Status> {
        let (mut message, mut attempt) = first(&mut attempts, begun).await.map_err(Failed::into_error::<Status>)?;
        let mut items = Vec::new();
        while let Some(bytes) = message {
            if items.len() == limit {
                let text = format!("more than {limit} items; read them with `stream`, or raise `collect_limit`");
                let status = Status::resource_exhausted(text).with_execution(Execution::Done);
                return Err(attempts.failed(Some(attempt.target()), status).into_error());
            }
            items.push(decode::<T, A, Status>(&attempts, attempt.target(), &bytes)?);
            message = match attempt.message().await {
                Some(Ok(bytes)) => Some(bytes),
                None => None,
                Some(Err(error)) => return Err(give_up(&mut attempts, attempt, error).await.into_error()),
            };
        }
        Ok((items, info(&attempts, attempt.target(), attempt.metadata())))
    }
}

/// A stream of items. The call is made when it is awaited, without waiting for the server; what fails before the first item and
/// is safe to repeat is repeated behind the stream. Only where somebody has to look after the attempts until one is answered, the first
/// item is waited for.
#[derive(Debug)]
pub struct Items<T, E>(PhantomData<fn() -> (T, E)>);

impl<T: DeserializeOwned + Send + 'static, E: Failure> Response for Items<T, E> {
    type Output = Streaming<T, E>;
    type Error = E;
    const STREAMS: bool = true;

    async fn receive<A: Arguments>(
        mut attempts: Attempts<A>,
        begun: Option<Attempt>,
        _limit: usize,
    ) -> Result<(Self::Output, CallInfo), E> {
        debug_assert!(begun.is_none(), "a stream has no short way");
        let metadata = Arc::<OnceLock<Metadata>>::default();
        let (begun, state, info) = if attempts.is_watched() {
            let (item, attempt) = first(&mut attempts, None).await.map_err(Failed::into_error::<E>)?;
            let info = info(&attempts, attempt.target(), attempt.metadata());
            // Set once: nobody else has it yet.
            let _ = metadata.set(attempt.metadata());
            (true, item.map_or(ItemState::Over, |item| ItemState::Begun(item, attempt)), info)
        } else {
            let attempt = attempts.start().await.map_err(Failed::into_error::<E>)?;
            let info = info(&attempts, attempt.target(), attempt.metadata());
            (false, ItemState::Open(attempt), info)
        };
        let items = ItemStream {
            state,
            attempts: Some(attempts),
            begun,
            metadata: Arc::clone(&metadata),
            item: PhantomData::<fn() -> (T, E)>,
        };
        Ok((Streaming::from_source(items).with_metadata(metadata), info))
    }
}

/// Any other kind, with what is known about the call beside its answer.
#[derive(Debug)]
pub struct WithInfo<R>(PhantomData<fn() -> R>);

impl<R: Response> Response for WithInfo<R> {
    type Output = (R::Output, CallInfo);
    type Error = R::Error;
    const STREAMS: bool = R::STREAMS;
    const ONE_MESSAGE: bool = R::ONE_MESSAGE;

    fn whole<A: Arguments>(
        attempts: &Attempts<A>,
        asked: &Asked,
        message: &Message,
    ) -> Result<Self::Output, Self::Error> {
        let output = R::whole(attempts, asked, message)?;
        Ok((output, info(attempts, asked.target(), asked.metadata())))
    }

    async fn receive<A: Arguments>(
        attempts: Attempts<A>,
        begun: Option<Attempt>,
        limit: usize,
    ) -> Result<(Self::Output, CallInfo), R::Error> {
        let (output, info) = R::receive(attempts, begun, limit).await?;
        Ok(((output, info.clone()), info))
    }
}

/// Makes attempts until one has a first message, or an end without one.
async fn first<A: Arguments>(
    attempts: &mut Attempts<A>,
    mut begun: Option<Attempt>,
) -> Result<(Option<Bytes>, Attempt), Failed> {
    if begun.is_none() && attempts.is_watched() {
        // Boxed, because it is large and few calls have it.
        return Box::pin(attempts.watched()).await;
    }
    loop {
        let mut attempt = match begun.take() {
            Some(attempt) => attempt,
            None => attempts.start().await?,
        };
        match attempt.message().await {
            Some(Ok(message)) => return Ok((Some(message), attempt)),
            None => return Ok((None, attempt)),
            Some(Err(error)) => attempts.after(attempt, error).await?,
        }
    }
}

/// The error of a call that fails after its first message, where no other attempt is possible.
async fn give_up<A: Arguments>(attempts: &mut Attempts<A>, attempt: Attempt, error: BodyError) -> Failed {
    let target = Arc::clone(attempt.target());
    match attempts.after(attempt, error).await {
        Err(failed) => failed,
        // An answer that has begun is never tried again, so this is a contradiction in the rules.
        Ok(()) => attempts.failed(Some(&target), Status::internal("an answer that had begun was to be tried again")),
    }
}

fn decode_whole<T: DeserializeOwned + 'static, A: Arguments, E: Failure>(
    attempts: &Attempts<A>,
    target: &Arc<Target>,
    message: &Message,
) -> Result<T, E> {
    match message {
        Message::Shared(message) => decode(attempts, target, message),
        Message::Copied { bytes, prefix } => {
            let message = bytes.get(*prefix..).unwrap_or_default();
            // What keeps a part of the message, or is wrong, is decoded again.
            message::decode_in_place(message)
                .map_or_else(|| decode(attempts, target, &Bytes::copy_from_slice(message)), Ok)
        }
    }
}

fn decode<T: DeserializeOwned + 'static, A: Arguments, E: Failure>(
    attempts: &Attempts<A>,
    target: &Arc<Target>,
    message: &Bytes,
) -> Result<T, E> {
    message::decode(message).map_err(|error| {
        let text = format!("the answer is not of the type expected: {error}");
        let status = Status::internal(text).with_execution(Execution::Done);
        attempts.failed(Some(target), status).into_error()
    })
}

fn info<A: Arguments>(attempts: &Attempts<A>, target: &Target, metadata: Metadata) -> CallInfo {
    CallInfo::new(target.endpoint().addr, attempts.count(), attempts.elapsed(), metadata)
}

struct ItemStream<A, T, E> {
    state: ItemState<A>,
    /// `None` only while they are away in [`ItemState::Starting`].
    attempts: Option<Attempts<A>>,
    begun: bool,
    metadata: Arc<OnceLock<Metadata>>,
    item: PhantomData<fn() -> (T, E)>,
}

enum ItemState<A> {
    /// The first item has come.
    Begun(Bytes, Attempt),
    Open(Attempt),
    Starting(BoxFuture<'static, (Attempts<A>, Result<Attempt, Failed>)>),
    Over,
}

impl<A: Arguments, T: DeserializeOwned + 'static, E: Failure> Source<T, E> for ItemStream<A, T, E> {
    fn poll_items(&mut self, ready: &mut VecDeque<Result<T, E>>, cx: &mut Context<'_>) -> Poll<Option<Result<T, E>>> {
        if let (ItemState::Open(attempt), true) = (&mut self.state, self.begun) {
            if attempt.read_in_place(ready, |item| message::decode_in_place(item).map(Ok)) {
                return Poll::Ready(ready.pop_front());
            }
        }
        loop {
            match &mut self.state {
                ItemState::Over => return Poll::Ready(None),
                ItemState::Begun(..) => {
                    let begun = std::mem::replace(&mut self.state, ItemState::Over);
                    let (ItemState::Begun(item, attempt), Some(attempts)) = (begun, &self.attempts) else { continue };
                    let item = decode(attempts, attempt.target(), &item);
                    self.state = ItemState::Open(attempt);
                    return Poll::Ready(Some(item));
                }
                ItemState::Starting(starting) => {
                    let (attempts, result) = ready!(starting.as_mut().poll(cx));
                    self.attempts = Some(attempts);
                    match result {
                        Ok(attempt) => self.state = ItemState::Open(attempt),
                        Err(failed) => {
                            self.state = ItemState::Over;
                            return Poll::Ready(Some(Err(failed.into_error())));
                        }
                    }
                }
                ItemState::Open(attempt) => {
                    let Some(attempts) = &self.attempts else { return Poll::Ready(None) };
                    let message = attempt.poll_message(cx);
                    if message.is_pending() {
                        // Room for what comes together is not kept while nothing comes.
                        *ready = VecDeque::new();
                    }
                    let message = ready!(message);
                    if !self.begun && !matches!(message, Some(Err(_))) {
                        self.begun = true;
                        // Set once: only the first message or the end comes here.
                        let _ = self.metadata.set(attempt.metadata());
                    }
                    match message {
                        Some(Ok(message)) => {
                            let item = decode(attempts, attempt.target(), &message);
                            return Poll::Ready(Some(item));
                        }
                        None => {
                            self.state = ItemState::Over;
                            return Poll::Ready(None);
                        }
                        Some(Err(error)) => self.fail(error),
                    }
                }
            }
        }
    }
}

impl<A: Arguments, T, E> ItemStream<A, T, E> {
    /// Another attempt, if no item has come yet and it is safe; the attempts know.
    fn fail(&mut self, error: BodyError) {
        let state = std::mem::replace(&mut self.state, ItemState::Over);
        let (ItemState::Open(attempt), Some(mut attempts)) = (state, self.attempts.take()) else { return };
        let begun = self.begun;
        self.state = ItemState::Starting(Box::pin(async move {
            let result = if begun {
                Err(give_up(&mut attempts, attempt, error).await)
            } else {
                match attempts.after(attempt, error).await {
                    Ok(()) => attempts.start().await,
                    Err(failed) => Err(failed),
                }
            };
            (attempts, result)
        }));
    }
}
