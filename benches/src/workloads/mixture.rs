//! W6: one caller's small calls while a bulk stream runs on the same connection, after the same calls in quiet.
//!
//! Must never give a peer another connection for the bulk. Peers without streams carry it as four callers' echoes of 1 MiB.
//! Next: `calls`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::meter::{self, Lap};
use super::{Figures, Plan, WARM_UP, calls};
use crate::peer::Client;

const MIB: usize = 1 << 20;
/// Chunks of one stream: its bytes count when it has ended, so it must be short beside the time measured.
const CHUNKS: u64 = 32;
/// Callers that echo, without streams.
const ECHOES: usize = 4;

pub(crate) async fn run<C: Client>(client: C, streams: bool, plan: &Plan) -> Figures {
    let caller = client.clone();
    let task = tokio::spawn(async move {
        let mut lap = Lap::start();
        while lap.done() {
            assert_eq!(caller.add(1, 2).await, 3, "the sum is right");
        }
    });
    tokio::time::sleep(WARM_UP).await;
    meter::begin();
    tokio::time::sleep(plan.measured / 2).await;
    let quiet = meter::pause();

    let bytes = Arc::new(AtomicU64::new(0));
    let mut bulks = JoinSet::new();
    for _ in 0..if streams { 1 } else { ECHOES } {
        bulks.spawn(bulk(client.clone(), streams, Arc::clone(&bytes)));
    }
    tokio::time::sleep(WARM_UP).await;
    let before = bytes.load(Ordering::Relaxed);
    let watch = plan.watch();
    meter::begin();
    tokio::time::sleep(plan.measured).await;
    let loaded = meter::end();
    let used = watch.stop();
    let moved = bytes.load(Ordering::Relaxed) - before;
    task.await.expect("the calls succeed");
    // Before the connection goes, which would look like a failure to them.
    bulks.shutdown().await;

    let mut figures = calls::figures(used, loaded.len(), &loaded);
    // The bulk has used most of it: per call it says nothing. For each MB it still has the small calls in it.
    figures.retain(|name, _| !name.ends_with("cpu_us"));
    let mb = moved as f64 / 1e6;
    if let Some(server) = used.server_cpu {
        figures.insert("cpu_us_mb".to_owned(), (used.client_cpu + server) * 1e6 / mb);
    }
    figures.insert("bulk_mb_s".to_owned(), mb / used.seconds);
    figures.insert("quiet_p50_us".to_owned(), quiet.value_at_quantile(0.5) as f64 / 1e3);
    figures.insert("quiet_p99_us".to_owned(), quiet.value_at_quantile(0.99) as f64 / 1e3);
    figures
}

/// Bulk without end.
async fn bulk<C: Client>(client: C, streams: bool, bytes: Arc<AtomicU64>) {
    let body = Bytes::from(vec![7; MIB]);
    loop {
        let moved = match streams {
            true => client.chunks_down(CHUNKS, MIB).await,
            false => client.echo(body.clone()).await.len() as u64,
        };
        bytes.fetch_add(moved, Ordering::Relaxed);
    }
}
