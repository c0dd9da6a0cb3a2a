//! The queue behind [`channel`](super::channel).
//!
//! Owns the queue between those who send items and the one who reads them. The reader takes the whole queue at once, so that
//! an item costs a lock that nobody else holds and no wake-up of its own. It must never know what becomes of the items. Look
//! next at [`super`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{ITEMS_COUNTED, Source};

/// Items that wait before `send` does; the reader may have as many more.
const CAPACITY: usize = 64;

/// Items that are sent before one is counted; see [`ITEMS_COUNTED`].
const UNCOUNTED: usize = ITEMS_COUNTED - 1;

struct Queue<T> {
    items: VecDeque<T>,
    reader: Option<Waker>,
    /// Who waits for room, with the number of its turn: those who came first have theirs first.
    senders: VecDeque<(u64, Waker)>,
    /// The number of the next turn.
    turns: u64,
    /// Who waits for the reader to go.
    watchers: Vec<Waker>,
    /// How many more items may be sent before the sender lets the runtime count it.
    uncounted: usize,
    sender_gone: bool,
    reader_gone: bool,
}

impl<T> Queue<T> {
    /// Whether there is room for the sender whose turn this is, or for one more, beside those who came first.
    fn has_room(&self, turn: Option<u64>) -> bool {
        let before = self.senders.iter().take_while(|(other, _)| Some(*other) != turn).count();
        self.items.len() + before < CAPACITY
    }

    /// Lets a sender wait, in its turn.
    fn wait(&mut self, turn: Option<u64>, cx: &Context<'_>) -> u64 {
        if let Some((turn, waker)) = self.senders.iter_mut().find(|(other, _)| Some(*other) == turn) {
            waker.clone_from(cx.waker());
            return *turn;
        }
        self.turns += 1;
        self.senders.push_back((self.turns, cx.waker().clone()));
        self.turns
    }
}

/// The turn of a sender that waits, until it has sent or gives up.
struct Turn<'a, T> {
    queue: &'a Mutex<Queue<T>>,
    number: Option<u64>,
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut queue = lock(self.queue);
        queue.senders.retain(|(other, _)| *other != number);
        // The room that was this one's is for the next.
        let free = CAPACITY.saturating_sub(queue.items.len());
        let next = free.checked_sub(1).and_then(|last| queue.senders.get(last)).map(|(_, waker)| waker.clone());
        drop(queue);
        if let Some(next) = next {
            next.wake();
        }
    }
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

/// Appends an item and wakes its reader.
#[inline]
fn put<T>(mut queue: MutexGuard<'_, Queue<T>>, item: T) {
    queue.items.push_back(item);
    let reader = queue.reader.take();
    drop(queue);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// A queue with its two ends.
pub(super) fn new<T>() -> (Sending<T>, Reading<T>) {
    let queue = Queue {
        items: VecDeque::new(),
        reader: None,
        senders: VecDeque::new(),
        turns: 0,
        watchers: Vec::new(),
        uncounted: 0,
        sender_gone: false,
        reader_gone: false,
    };
    let shared = Arc::new(Mutex::new(queue));
    (Sending(Arc::clone(&shared)), Reading(shared))
}

/// The end that sends.
pub(super) struct Sending<T>(Shared<T>);

impl<T> Sending<T> {
    /// Appends an item, as soon as there is room; gives it back if nobody reads any more.
    pub(super) async fn send(&self, item: T) -> Result<(), T> {
        // Who always finds room would never let others run.
        tokio::task::coop::consume_budget().await;
        let mut item = Some(item);
        let mut turn = Turn { queue: &self.0, number: None };
        std::future::poll_fn(|cx| {
            let mut queue = lock(&self.0);
            if !queue.reader_gone && !queue.has_room(turn.number) {
                turn.number = Some(queue.wait(turn.number, cx));
                return Poll::Pending;
            }
            if let Some(number) = turn.number.take() {
                queue.senders.retain(|(other, _)| *other != number);
            }
            // It is there: this is polled until it is ready, once.
            let Some(item) = item.take() else { return Poll::Ready(Ok(())) };
            if queue.reader_gone {
                return Poll::Ready(Err(item));
            }
            queue.uncounted = UNCOUNTED;
            put(queue, item);
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Appends an item if there is room and nothing else to see to; gives it back to [`send`](Self::send) otherwise.
    pub(super) fn send_now(&self, item: T) -> Result<(), T> {
        let mut queue = lock(&self.0);
        if queue.reader_gone || queue.uncounted == 0 || !queue.has_room(None) {
            return Err(item);
        }
        queue.uncounted -= 1;
        put(queue, item);
        Ok(())
    }

    /// Appends a last item although there may be no room; nothing happens if nobody reads any more.
    pub(super) fn send_last(&self, item: T) {
        let queue = lock(&self.0);
        if !queue.reader_gone {
            put(queue, item);
        }
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
pub(super) struct Reading<T>(Shared<T>);

impl<T: Send, E: Send> Source<T, E> for Reading<Result<T, E>> {
    fn poll_items(&mut self, ready: &mut VecDeque<Result<T, E>>, cx: &mut Context<'_>) -> Poll<Option<Result<T, E>>> {
        let mut queue = lock(&self.0);
        if queue.items.is_empty() {
            if queue.sender_gone {
                return Poll::Ready(None);
            }
            if !queue.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                queue.reader = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut queue.items, ready);
        // They keep their turns until they have had them.
        let senders: Vec<_> = queue.senders.iter().take(CAPACITY).map(|(_, waker)| waker.clone()).collect();
        drop(queue);
        senders.into_iter().for_each(Waker::wake);
        Poll::Ready(ready.pop_front())
    }
}

impl<T> Drop for Reading<T> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.reader_gone = true;
        let items = std::mem::take(&mut queue.items);
        let mut wakers = std::mem::take(&mut queue.watchers);
        wakers.extend(queue.senders.drain(..).map(|(_, waker)| waker));
        drop(queue);
        drop(items);
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::streaming::Streaming;
    use futures::StreamExt;
    use std::future::Future;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    fn pair<T: Send + 'static>() -> (Sending<Result<T, ()>>, Streaming<T, ()>) {
        let (sending, reading) = new();
        (sending, Streaming::from_source(reading))
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn items_come_in_order_and_the_end_after_them() {
        let (sending, mut reading) = pair();
        let sender = tokio::spawn(async move {
            for n in 0..1000 {
                sending.send(Ok(n)).await.unwrap();
            }
        });
        for n in 0..1000 {
            assert_eq!(reading.next().await, Some(Ok(n)));
        }
        assert_eq!(reading.next().await, None);
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn a_sender_waits_for_room_and_a_cancelled_one_has_sent_nothing() {
        let (sending, mut reading) = pair();
        for n in 0..CAPACITY {
            sending.send(Ok(n)).await.unwrap();
        }
        for _ in 0..3 {
            let late = tokio::time::timeout(Duration::from_millis(1), sending.send(Ok(usize::MAX))).await;
            assert!(late.is_err(), "there is no room");
        }
        assert!(lock(&sending.0).senders.is_empty(), "who gave up waits for nothing");
        assert_eq!(reading.next().await, Some(Ok(0)));
        sending.send(Ok(CAPACITY)).await.unwrap();
        drop(sending);
        assert_eq!(reading.collect::<Vec<_>>().await, (1..=CAPACITY).map(Ok).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn all_who_wait_learn_that_the_reader_has_gone() {
        let (sending, reading) = pair();
        for n in 0..CAPACITY {
            sending.send(Ok(n)).await.unwrap();
        }
        let gone = async {
            tokio::task::yield_now().await;
            drop(reading);
        };
        let (a, b, (), ()) = tokio::join!(sending.send(Ok(7)), sending.send(Ok(8)), sending.closed(), gone);
        assert_eq!((a, b), (Err(Ok(7)), Err(Ok(8))));
        assert!(sending.is_closed());
        assert_eq!(sending.send(Ok(9)).await, Err(Ok(9)));
    }

    #[tokio::test]
    async fn nobody_waits_for_room_for_ever_beside_one_who_always_sends() {
        let (sending, mut reading) = pair();
        let sending = Arc::new(sending);
        let (greedy, modest) = (Arc::clone(&sending), sending);
        let greedy = tokio::spawn(async move { while greedy.send(Ok(0)).await.is_ok() {} });
        while lock(&modest.0).items.len() < CAPACITY {
            tokio::task::yield_now().await;
        }
        let modest = tokio::spawn(async move { modest.send(Ok(1)).await });
        tokio::task::yield_now().await;
        let came = reading.by_ref().take(3 * CAPACITY).any(|item| async move { item == Ok(1) }).await;
        assert!(came, "the other one takes all of the room every time");
        modest.await.unwrap().unwrap();
        drop(reading);
        greedy.await.unwrap();
    }

    #[tokio::test]
    async fn the_room_of_one_who_gives_up_is_for_the_next() {
        let (sending, mut reading) = pair();
        for n in 0..CAPACITY {
            sending.send(Ok(n)).await.unwrap();
        }
        // Those who wait are polled in a turn of their own, which has its own budget.
        tokio::task::yield_now().await;
        let mut waiting: Vec<_> = (0..=CAPACITY).map(|n| Box::pin(sending.send(Ok(1000 + n)))).collect();
        for send in &mut waiting {
            assert!(futures::poll!(send.as_mut()).is_pending());
        }
        let mut last = waiting.pop().unwrap();
        assert_eq!(reading.next().await, Some(Ok(0)));
        tokio::task::yield_now().await;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut poll = || last.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(poll().is_pending(), "all of the room is promised to those who came first");
        drop(waiting.pop());
        assert!(woken.0.load(Ordering::SeqCst), "nobody was told");
        assert_eq!(poll(), Poll::Ready(Ok(())));
        for send in waiting {
            send.await.unwrap();
        }
    }

    #[tokio::test]
    async fn who_sends_and_always_finds_room_lets_others_run_too() {
        let (sending, mut reading) = pair();
        let all_ready = async {
            for _ in 0..10_000 {
                sending.send(Ok(0)).await.unwrap();
                reading.next().await;
            }
        };
        assert!(futures::poll!(std::pin::pin!(all_ready)).is_pending(), "a timeout around it would never fire");
    }
}
