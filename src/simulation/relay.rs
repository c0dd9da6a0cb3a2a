//! How bytes get from one end of a line to the other: in pieces, after a while, or not at all.
//!
//! Owns the tasks of a line and what they share with whoever cuts it. It must never decide what fails. Look next at
//! [`super::net`], which does.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::net::{Net, Pid};
use crate::transport::WriteHalf;

/// Pieces that are on their way in one direction.
const FLYING: usize = 64;

/// What a process has written and the network has not taken yet.
pub(super) struct Source(Mutex<Tap>);

struct Tap {
    /// `None` once the process is dead: then there is only what it had written.
    reader: Option<Box<dyn AsyncRead + Send + Unpin>>,
    rest: Vec<u8>,
    waker: Option<Waker>,
}

impl Source {
    pub(super) fn new(reader: Box<dyn AsyncRead + Send + Unpin>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Tap { reader: Some(reader), rest: Vec::new(), waker: None })))
    }

    /// The process dies: what it writes from now on goes nowhere. What it had written still leaves if `flush` says so.
    pub(super) fn shut(&self, flush: bool) {
        let mut tap = self.0.lock().unwrap();
        let Some(mut reader) = tap.reader.take() else { return };
        let mut piece = vec![0; 16 << 10];
        let mut is_more = flush;
        while is_more {
            let mut buffer = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut reader).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
            tap.rest.extend_from_slice(buffer.filled());
            is_more = read.is_ready() && !buffer.filled().is_empty();
        }
        if let Some(waker) = tap.waker.take() {
            waker.wake();
        }
    }

    /// How many bytes were read; none is the end.
    fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<usize> {
        let tap = &mut *self.0.lock().unwrap();
        match &mut tap.reader {
            Some(reader) => {
                tap.waker = Some(cx.waker().clone());
                let mut buffer = ReadBuf::new(into);
                Pin::new(reader).poll_read(cx, &mut buffer).map(|_| buffer.filled().len())
            }
            None => {
                let n = tap.rest.len().min(into.len());
                into[..n].copy_from_slice(&tap.rest[..n]);
                tap.rest.drain(..n);
                Poll::Ready(n)
            }
        }
    }
}

/// One direction of a line.
pub(super) struct Way {
    pub(super) from: Pid,
    pub(super) to: Pid,
    pub(super) source: Arc<Source>,
    pub(super) sink: Arc<dyn WriteHalf>,
    /// Cancelled to reset the line.
    pub(super) cut: CancellationToken,
    /// Nothing arrives any more, and nobody hears of it.
    pub(super) silent: Arc<AtomicBool>,
    /// The largest piece.
    pub(super) piece: usize,
}

impl Net {
    /// Carries what comes from one end of a line to the other.
    pub(super) fn relay(self: &Arc<Self>, way: Way) {
        let Way { from, to, source, sink, cut, silent, piece } = way;
        let (queue, flying) = mpsc::channel(FLYING);
        spawn_until(cut.clone(), Arc::clone(self).take_off((from, to), source, queue, piece));
        spawn_until(cut, Arc::clone(self).land((from, to), flying, sink, silent));
    }

    async fn take_off(
        self: Arc<Self>,
        (from, to): (Pid, Pid),
        source: Arc<Source>,
        queue: mpsc::Sender<(Instant, Bytes)>,
        piece: usize,
    ) {
        let mut last = Instant::now();
        let mut buffer = vec![0; piece];
        // At the end the other side gets what is on its way, and then the end.
        while let n @ 1.. = poll_fn(|cx| source.poll_read(cx, &mut buffer)).await {
            last = last.max(Instant::now() + self.latency(from, to));
            let _held_up = (queue.capacity() == 0).then(|| self.holds_up(from, to));
            if queue.send((last, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
    }

    async fn land(
        self: Arc<Self>,
        (from, to): (Pid, Pid),
        mut flying: mpsc::Receiver<(Instant, Bytes)>,
        sink: Arc<dyn WriteHalf>,
        silent: Arc<AtomicBool>,
    ) {
        loop {
            let next = flying.recv().await;
            if let Some((arrival, _)) = &next {
                sleep_until(*arrival).await;
            }
            self.unblocked(from, to).await;
            if silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let Some((_, mut bytes)) = next else { return sink.shutdown() };
            while !bytes.is_empty() {
                let written = sink.try_write(&[io::IoSlice::new(&bytes)]);
                match written {
                    Ok(n) => bytes.advance(n),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let _held_up = self.holds_up(from, to);
                        if poll_fn(|cx| sink.poll_ready(cx)).await.is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        }
    }
}

/// Runs until the line is cut.
fn spawn_until(cut: CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = work => {}
        }
    });
}

#[tokio::test(start_paused = true)]
async fn of_a_process_that_dies_only_what_it_had_written_leaves() {
    for (flush, expected) in [(true, "before"), (false, "")] {
        let (ours, theirs) = crate::transport::memory::pair();
        let source = Source::new(theirs.read);
        ours.write.try_write(&[io::IoSlice::new(b"before")]).unwrap();
        source.shut(flush);
        let after = ours.write.try_write(&[io::IoSlice::new(b"after")]);
        assert_eq!(after.map_err(|error| error.kind()), Err(io::ErrorKind::BrokenPipe));
        let (mut left, mut buffer) = (Vec::new(), [0; 4]);
        while let n @ 1.. = poll_fn(|cx| source.poll_read(cx, &mut buffer)).await {
            left.extend_from_slice(&buffer[..n]);
        }
        assert_eq!(left, expected.as_bytes(), "flush: {flush}");
    }
}
