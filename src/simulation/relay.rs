//! How bytes get from one end of a line to the other: in pieces, after a while, or not at all.
//!
//! Owns the tasks of a line. It must never decide what fails. Look next at [`super::net`], which does.

use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::net::{Host, Line, Net};
use crate::transport::WriteHalf;

/// Pieces that are on their way in one direction.
const FLYING: usize = 64;

impl Net {
    /// Carries what comes from one end of a line to the other.
    pub(super) fn relay(
        self: &Arc<Self>,
        (from, to): (Host, Host),
        read: Box<dyn AsyncRead + Send + Unpin>,
        write: Box<dyn WriteHalf>,
        line: &Line,
        piece: usize,
    ) {
        let (queue, flying) = mpsc::channel(FLYING);
        spawn_until(line.cut.clone(), Arc::clone(self).take_off(read, queue, piece));
        spawn_until(line.cut.clone(), Arc::clone(self).land((from, to), flying, write, Arc::clone(&line.silent)));
    }

    async fn take_off(
        self: Arc<Self>,
        mut read: Box<dyn AsyncRead + Send + Unpin>,
        queue: mpsc::Sender<(Instant, Bytes)>,
        piece: usize,
    ) {
        let mut last = Instant::now();
        let mut buffer = vec![0; piece];
        // At the end the other side gets what is on its way, and then the end.
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            last = last.max(Instant::now() + self.latency());
            if queue.send((last, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
    }

    async fn land(
        self: Arc<Self>,
        (from, to): (Host, Host),
        mut flying: mpsc::Receiver<(Instant, Bytes)>,
        write: Box<dyn WriteHalf>,
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
            let Some((_, mut bytes)) = next else { return write.shutdown() };
            while !bytes.is_empty() {
                let written = write.try_write(&[io::IoSlice::new(&bytes)]);
                match written {
                    Ok(n) => bytes.advance(n),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if poll_fn(|cx| write.poll_ready(cx)).await.is_err() {
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
