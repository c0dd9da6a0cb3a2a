//! Answers: what generated code and [`Methods`](crate::Methods) call with the result of a handler.
//!
//! Owns how results become frames. It must never run a handler. Look next at [`crate::pack`] for the packing of items.

use std::pin::pin;

use futures::{Stream, StreamExt};
use serde::Serialize;

use super::Incoming;
use crate::context::Context;
use crate::message;
use crate::pack::{self, Packed};
use crate::proto::SendError;
use crate::service::Fault;
use crate::status::Status;
use crate::wire::WireStatus;

/// Ends the call with a status.
#[allow(clippy::needless_pass_by_value, reason = "generated code hands over what it is done with")]
pub fn fail(mut call: Incoming, status: Status) {
    call.answered();
    call.link.fail(call.id, &WireStatus::from(&status));
}

/// The status as which the error of a handler travels.
fn failure<E: Fault>(error: E, context: &Context) -> Status {
    let status = error.into_status().passed_on();
    if context.allows_retry() { status.retryable() } else { status }
}

/// Answers a call whose answer is one message.
pub fn answer<T: Serialize + Send + 'static, E: Fault>(mut call: Incoming, result: Result<T, E>) {
    let value = match result {
        Ok(value) => value,
        Err(error) => {
            let status = failure(error, call.context());
            return fail(call, status);
        }
    };
    let metadata = call.context().take_answer_metadata();
    match call.link.answer(call.id, metadata.as_ref(), |out| message::encode_apart(&value, out)) {
        Ok(()) | Err(SendError::Over) => call.answered(),
        Err(SendError::TooLarge { len, .. }) => too_long(call, len),
        Err(SendError::Encode(error)) => fail(call, Status::internal(format!("the answer cannot be encoded: {error}"))),
    }
}

fn too_long(call: Incoming, len: usize) {
    let max = call.max_answer();
    let text = format!("an answer of {len} bytes exceeds the caller's limit of {max}; raise `max_message` there");
    fail(call, Status::resource_exhausted(text));
}

/// Answers a call with a stream of items.
pub async fn answer_items<S, T, E>(call: Incoming, result: Result<S, E>)
where
    S: Stream<Item = T> + Send,
    T: Serialize + Send + 'static,
    E: Fault,
{
    match result {
        Ok(items) => stream(call, items.map(Ok)).await,
        Err(error) => {
            let status = failure(error, call.context());
            fail(call, status);
        }
    }
}

/// Answers a call with a stream of items that may fail.
pub async fn answer_try_items<S, T, E>(call: Incoming, result: Result<S, E>)
where
    S: Stream<Item = Result<T, E>> + Send,
    T: Serialize + Send + 'static,
    E: Fault,
{
    match result {
        Ok(items) => {
            let of_item = |error: E| WireStatus::from(&error.into_status().passed_on());
            stream(call, items.map(|item| item.map_err(of_item))).await;
        }
        Err(error) => {
            let status = failure(error, call.context());
            fail(call, status);
        }
    }
}

async fn stream<T: Serialize + Send + 'static>(
    mut call: Incoming,
    items: impl Stream<Item = Result<T, WireStatus>> + Send,
) {
    let metadata = call.context().take_answer_metadata();
    call.link.start_answer(call.id, metadata.as_ref());
    let packed = pin!(Packed::new(items, call.max_answer()));
    let sent = pack::send_all(&call.link, call.id, packed).await;
    call.answered();
    match sent {
        Ok(()) => call.link.finish(call.id),
        Err(status) => call.link.fail(call.id, &status),
    }
}
