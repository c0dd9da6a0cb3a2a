//! Many members in one process: how quickly a change is everywhere, and what it costs to do nothing.
//!
//! Owns only tests. 40 members run always, 200 with `--ignored` and `--release`, which also holds the processor's time to its
//! budget. Look next at `registry_manifest.rs`.
#![cfg(all(feature = "manifest", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use picom::registry::{Details, Manifest};
use support::PATIENCE;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

/// Counts what is written.
struct Counted<I>(I, Arc<AtomicU64>);

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(cx, buf);
        if let Poll::Ready(Ok(len)) = &written {
            self.1.fetch_add(*len as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What is connected to what.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// All to the first.
    Star,
    /// Stars of ten, each to the next.
    Chain,
}

#[derive(Clone, Copy, Debug)]
enum Links {
    Memory,
    Loopback,
}

async fn link(a: &Manifest, b: &Manifest, links: Links, sent: &Arc<AtomicU64>) {
    match links {
        Links::Memory => {
            let (x, y) = tokio::io::duplex(16 << 10);
            a.attach(Counted(x, Arc::clone(sent)), true).unwrap();
            b.attach(Counted(y, Arc::clone(sent)), false).unwrap();
        }
        Links::Loopback => {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (x, y) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            a.attach(Counted(x.unwrap(), Arc::clone(sent)), true).unwrap();
            b.attach(Counted(y.unwrap().0, Arc::clone(sent)), false).unwrap();
        }
    }
}

/// Processor time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // Linux counts in hundredths of a second here, whatever the machine.
    Duration::from_millis(ticks * 10)
}

/// Memory of this process that is in use, in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until this is true of every member. Asks one at a time, because asking is work too.
async fn everywhere(members: &[Manifest], what: &str, fits: impl Fn(&Manifest) -> bool) -> Duration {
    let begun = Instant::now();
    for (n, member) in members.iter().enumerate() {
        while !fits(member) {
            assert!(begun.elapsed() < PATIENCE * 6, "waited for {what}, but member {n} lacks it");
            sleep(Duration::from_millis(5)).await;
        }
    }
    begun.elapsed()
}

async fn measure(count: usize, shape: Shape, links: Links, seconds: u64, strict: bool) {
    let before = memory();
    let sent = Arc::new(AtomicU64::new(0));
    let members: Vec<_> = (0..count).map(|_| Manifest::new()).collect();
    for (n, member) in members.iter().enumerate() {
        for role in ["calc@1.2.3", "mail@0.4.0"] {
            let meta = [("host".to_owned(), format!("machine-{n}"))].into();
            member.register(role, Details { port: 4000, meta, ..Details::default() }).unwrap();
        }
    }
    for n in 1..count {
        let to = match shape {
            Shape::Star => 0,
            Shape::Chain if n % 10 == 0 => n - 10,
            Shape::Chain => n - n % 10,
        };
        link(&members[n], &members[to], links, &sent).await;
    }
    let joined = everywhere(&members, "everything", |member| member.services().unwrap().len() == count * 2).await;
    let mut changes = Vec::new();
    for n in [1, count / 2, count - 1] {
        let record = members[n].register("news@1.0.0", Details::default()).unwrap();
        changes.push(everywhere(&members, "a new record", |member| member.get("news").unwrap().len() == 1).await);
        members[n].free(record.id).unwrap();
        changes.push(everywhere(&members, "its end", |member| member.get("news").unwrap().is_empty()).await);
    }
    sleep(Duration::from_secs(3)).await;
    let (bytes, busy) = (sent.load(Ordering::Relaxed), cpu());
    sleep(Duration::from_secs(seconds)).await;
    let rate = (sent.load(Ordering::Relaxed) - bytes) / seconds / count as u64;
    let share = (cpu() - busy).as_secs_f64() / seconds as f64 * 100.0;
    let each = memory().saturating_sub(before) / count as u64;
    let slowest = *changes.iter().max().unwrap();
    println!(
        "{count} members, {shape:?}, {links:?}: all joined after {joined:.0?}, a change everywhere within {slowest:.0?}; \
         idle: {rate} B/s sent per member, {share:.1} % of a core in all, {each} KiB of memory per member"
    );
    assert!(slowest < Duration::from_secs(1), "a change took {slowest:?}");
    assert!(rate <= 4 << 10, "{rate} bytes per second and member");
    assert!(each <= 2 << 10, "{each} KiB of memory per member");
    assert!(!strict || share <= 2.0, "{share} % of a core");
    for member in &members {
        assert_eq!(member.services().unwrap().len(), count * 2, "somebody was lost");
        let refusals = member.refusals();
        assert_eq!((refusals.takeovers, refusals.records, refusals.malformed_frames), (0, 0, 0), "{refusals:?}");
    }
}

#[tokio::test]
async fn forty_members_in_a_star_and_in_a_chain_of_stars_cost_little() {
    measure(40, Shape::Star, Links::Memory, 4, false).await;
    measure(40, Shape::Chain, Links::Loopback, 4, false).await;
}

#[tokio::test]
#[ignore = "takes two minutes; its figures mean something only in a release build on a machine with nothing else to do"]
async fn two_hundred_members_keep_to_their_budget() {
    let strict = !cfg!(debug_assertions);
    for (shape, links) in [
        (Shape::Star, Links::Memory),
        (Shape::Star, Links::Loopback),
        (Shape::Chain, Links::Memory),
        (Shape::Chain, Links::Loopback),
    ] {
        measure(200, shape, links, 20, strict).await;
    }
}
