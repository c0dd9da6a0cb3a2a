//! The snapshots of one service as a stream.
//!
//! Owns [`Snapshots`]. It must never ask a registry: what it gives is what a [`Watch`] sees. Look next at `feed.rs` for who
//! publishes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{FutureExt, Stream};

use super::{Endpoints, Watch};

/// The snapshots of one service, the newest first and then each change of it.
///
/// A slow reader misses what was replaced before it looked, and always gets the newest. The stream does not end.
pub struct Snapshots {
    watch: Watch,
    next: BoxFuture<'static, (Watch, Arc<Endpoints>)>,
}

impl Snapshots {
    /// The newest snapshot, whether the stream has given it or not.
    pub fn current(&self) -> Arc<Endpoints> {
        self.watch.current()
    }
}

impl From<Watch> for Snapshots {
    fn from(watch: Watch) -> Self {
        let next = next(watch.clone()).boxed();
        Self { watch, next }
    }
}

async fn next(mut watch: Watch) -> (Watch, Arc<Endpoints>) {
    let snapshot = watch.changed().await;
    (watch, snapshot)
}

impl Stream for Snapshots {
    type Item = Arc<Endpoints>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.next.poll_unpin(cx).map(|(watch, snapshot)| {
            self.next = next(watch).boxed();
            Some(snapshot)
        })
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshots").field("current", &self.current()).finish_non_exhaustive()
    }
}
