//! The queue behind [`channel`](super::channel).
//!
//! Owns the queue between those who send items and the one who reads them. The reader takes the whole queue at once, so that
//! an item costs a lock that nobody else holds and no wake-up of its own. It must never know what becomes of the items. Look
//! next at [`super`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::Stream;

/// Items that wait before `send` does; as many more may be with the reader.
const CAPACITY: usize = 64;

struct Queue<T> {
    items: VecDeque<T>,
    reader: Option<Waker>,
    /// Who waits for room.
    senders: Vec<Waker>,
    /// Who waits for the reader to go.
    watchers: Vec<Waker>,
    sender_gone: bool,
    reader_gone: bool,
}

type Shared<T> = Arc<Mutex<Queue<T>>>;

fn lock<T>(queue: &Mutex<Queue<T>>) -> MutexGuard<'_, Queue<T>> {
    // No code of others runs under the lock.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers a waker, once for each task.
fn note(wakers: &mut Vec<Waker>, cx: &Context<'_>) {
    if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
        wakers.push(cx.waker().clone());
    }
}

/// A queue with its two ends.
pub(super) fn new<T>() -> (Sending<T>, Reading<T>) {
    let queue = Queue {
        items: VecDeque::new(),
        reader: None,
        senders: Vec::new(),
        watchers: Vec::new(),
        sender_gone: false,
        reader_gone: false,
    };
    let shared = Arc::new(Mutex::new(queue));
    (Sending(Arc::clone(&shared)), Reading { shared, taken: VecDeque::new() })
}

/// The end that sends.
pub(super) struct Sending<T>(Shared<T>);

impl<T> Sending<T> {
    /// Appends an item, as soon as there is room; gives it back if nobody reads any more.
    pub(super) async fn send(&self, item: T) -> Result<(), T> {
        let mut item = Some(item);
        std::future::poll_fn(|cx| {
            let mut queue = lock(&self.0);
            if !queue.reader_gone && queue.items.len() >= CAPACITY {
                note(&mut queue.senders, cx);
                return Poll::Pending;
            }
            // It is there: this is polled until it is ready, once.
            let Some(item) = item.take() else { return Poll::Ready(Ok(())) };
            if queue.reader_gone {
                return Poll::Ready(Err(item));
            }
            queue.items.push_back(item);
            let reader = queue.reader.take();
            drop(queue);
            if let Some(reader) = reader {
                reader.wake();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.0).reader_gone
    }

    /// Waits until nobody reads any more.
    pub(super) async fn closed(&self) {
        std::future::poll_fn(|cx| {
            let mut queue = lock(&self.0);
            if queue.reader_gone {
                return Poll::Ready(());
            }
            note(&mut queue.watchers, cx);
            Poll::Pending
        })
        .await;
    }
}

impl<T> Drop for Sending<T> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.sender_gone = true;
        let reader = queue.reader.take();
        drop(queue);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// The end that reads.
pub(super) struct Reading<T> {
    shared: Shared<T>,
    /// Items that were taken off the queue.
    taken: VecDeque<T>,
}

// Items are moved, never pinned.
impl<T> Unpin for Reading<T> {}

impl<T> Stream for Reading<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = &mut *self;
        if let Some(item) = this.taken.pop_front() {
            return Poll::Ready(Some(item));
        }
        let mut queue = lock(&this.shared);
        if queue.items.is_empty() {
            if queue.sender_gone {
                return Poll::Ready(None);
            }
            if !queue.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                queue.reader = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut queue.items, &mut this.taken);
        let senders = std::mem::take(&mut queue.senders);
        drop(queue);
        senders.into_iter().for_each(Waker::wake);
        Poll::Ready(this.taken.pop_front())
    }
}

impl<T> Drop for Reading<T> {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared);
        queue.reader_gone = true;
        let items = std::mem::take(&mut queue.items);
        let mut wakers = std::mem::take(&mut queue.senders);
        wakers.append(&mut queue.watchers);
        drop(queue);
        drop(items);
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use futures::StreamExt;
    use std::time::Duration;

    #[tokio::test]
    async fn items_come_in_order_and_the_end_after_them() {
        let (sending, mut reading) = new();
        let sender = tokio::spawn(async move {
            for n in 0..1000 {
                sending.send(n).await.unwrap();
            }
        });
        for n in 0..1000 {
            assert_eq!(reading.next().await, Some(n));
        }
        assert_eq!(reading.next().await, None);
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn a_sender_waits_for_room_and_a_cancelled_one_has_sent_nothing() {
        let (sending, mut reading) = new();
        for n in 0..CAPACITY {
            sending.send(n).await.unwrap();
        }
        for _ in 0..3 {
            let late = tokio::time::timeout(Duration::from_millis(1), sending.send(usize::MAX)).await;
            assert!(late.is_err(), "there is no room");
        }
        assert_eq!(lock(&sending.0).senders.len(), 1, "one task has one place");
        assert_eq!(reading.next().await, Some(0));
        sending.send(CAPACITY).await.unwrap();
        drop(sending);
        assert_eq!(reading.collect::<Vec<_>>().await, (1..=CAPACITY).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn all_who_wait_learn_that_the_reader_has_gone() {
        let (sending, reading) = new();
        for n in 0..CAPACITY {
            sending.send(n).await.unwrap();
        }
        let gone = async {
            tokio::task::yield_now().await;
            drop(reading);
        };
        let (a, b, (), ()) = tokio::join!(sending.send(7), sending.send(8), sending.closed(), gone);
        assert_eq!((a, b), (Err(7), Err(8)));
        assert!(sending.is_closed());
        assert_eq!(sending.send(9).await, Err(9));
    }
}
