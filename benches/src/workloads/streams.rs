//! W4: one stream at a time, of 64-bit items or of 64 KiB chunks, down or up.
//!
//! Owns how long a stream is: as long as it takes to fill the time, found out while warming up. Must never run two at once.
//! Next: `mixture`, where calls go beside one.

use std::time::Instant;

use hdrhistogram::Histogram;

use super::{Figures, Plan, Used, WARM_UP, calls, meter};
use crate::peer::{Client, Feed};

/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;

/// One kind of stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    ItemsDown(Feed),
    ItemsUp(Feed),
    ChunksDown,
    ChunksUp,
}

impl Stream {
    pub(crate) fn named(workload: &str) -> Option<Self> {
        Some(match workload {
            "w4-items-down" => Self::ItemsDown(Feed::Ready),
            "w4-items-up" => Self::ItemsUp(Feed::Ready),
            "w4-sent-down" => Self::ItemsDown(Feed::Sent),
            "w4-sent-up" => Self::ItemsUp(Feed::Sent),
            "w4-chunks-down" => Self::ChunksDown,
            "w4-chunks-up" => Self::ChunksUp,
            _ => return None,
        })
    }

    fn is_of_chunks(self) -> bool {
        matches!(self, Self::ChunksDown | Self::ChunksUp)
    }

    /// One stream of that many, checked.
    async fn once<C: Client>(self, client: &C, count: u64) {
        let (got, expected) = match self {
            Self::ItemsDown(feed) => (client.items_down(count, feed).await, sum(count)),
            Self::ItemsUp(feed) => (client.items_up(count, feed).await, sum(count)),
            Self::ChunksDown => (client.chunks_down(count, CHUNK).await, count * CHUNK as u64),
            Self::ChunksUp => (client.chunks_up(count, CHUNK).await, count * CHUNK as u64),
        };
        assert_eq!(got, expected, "nothing was lost");
    }
}

fn sum(count: u64) -> u64 {
    (0..count).fold(0, u64::wrapping_add)
}

pub(crate) async fn run<C: Client>(client: C, stream: Stream, plan: &Plan) -> Figures {
    if let Some(count) = plan.calls {
        stream.once(&client, count).await;
        return Figures::new();
    }
    let mut count = if stream.is_of_chunks() { 64 } else { 20_000 };
    let took = loop {
        let begun = Instant::now();
        stream.once(&client, count).await;
        let took = begun.elapsed();
        if took >= WARM_UP / 2 {
            break took;
        }
        count *= 4;
    };
    let count = (count as f64 * plan.measured.as_secs_f64() / took.as_secs_f64()) as u64;
    let watch = plan.watch();
    meter::begin_pace();
    stream.once(&client, count.max(1)).await;
    let paces = meter::end();
    figures(watch.stop(), count.max(1), &paces, stream)
}

/// The percentiles are those of the time between one chunk and the next, or from one item to the 1,024th after it.
fn figures(used: Used, count: u64, paces: &Histogram<u32>, stream: Stream) -> Figures {
    let mut figures = calls::figures(used, count, paces);
    let bytes = if stream.is_of_chunks() { CHUNK } else { 8 };
    figures.insert("mb_s".to_owned(), (count * bytes as u64) as f64 / 1e6 / used.seconds);
    figures
}
