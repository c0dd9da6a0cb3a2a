//! Connections whose I/O is watched, and fails at the worst moment, which sockets do too rarely to wait for.
//!
//! Owns a pipe that counts and can be told to fail. Look next at [`crate::transport::link`] and [`crate::transport::driver`], which must
//! tell the truth about what was sent, and lose nothing that came.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;

use super::Server;
use crate::body::{BodyError, BodyReader};
use crate::methods::Methods;
use crate::options::Options;
use crate::proto::{Config, Error, Failure, Load, Open, Side};
use crate::service::Service;
use crate::status::Status;
use crate::transport::driver::{Handler, Happened, NoCalls, connection};
use crate::transport::link::{Link, Phase};
use crate::transport::{Io, ReadHalf, WriteHalf, memory};
use crate::wire::frame::put_frame;
use crate::wire::{Flags, Hello, Kind, PREFACE, StreamId};

/// What the test decides about the pipe.
#[derive(Default)]
struct Will {
    /// The peer's bytes are on their way, but not here yet.
    held: AtomicBool,
    reader: Mutex<Option<Waker>>,
    /// The kernel takes everything, and the peer takes nothing.
    frozen: AtomicBool,
    /// Writes fail.
    broken: AtomicBool,
    /// The connection is lost while a write is under way, right after its bytes were handed over.
    lost_in_write: AtomicBool,
    /// The next write finds no room, but says so only after this was told and the driver had time to go to sleep.
    late: Mutex<Option<mpsc::Sender<()>>>,
    link: OnceLock<Weak<Link>>,
    /// How often something was read, and written.
    reads: AtomicUsize,
    writes: AtomicUsize,
}

struct Reading(Box<dyn ReadHalf>, Arc<Will>);

impl ReadHalf for Reading {}

impl AsyncRead for Reading {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        *self.1.reader.lock().unwrap() = Some(cx.waker().clone());
        if self.1.held.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.0).poll_read(cx, buffer);
        self.1.reads.fetch_add(usize::from(read.is_ready()), Ordering::SeqCst);
        read
    }
}

struct Writing(Box<dyn WriteHalf>, Arc<Will>);

impl WriteHalf for Writing {
    fn try_write(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        if self.1.broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.1.frozen.load(Ordering::SeqCst) {
            return Ok(slices.iter().map(|slice| slice.len()).sum());
        }
        if let Some(begun) = self.1.late.lock().unwrap().take() {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = self.0.try_write(slices)?;
        self.1.writes.fetch_add(1, Ordering::SeqCst);
        if self.1.lost_in_write.load(Ordering::SeqCst) {
            self.1.link.get().and_then(Weak::upgrade).unwrap().lost(&Arc::new(Error::Closed));
        }
        Ok(written)
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn shutdown(&self) {
        if !self.1.frozen.load(Ordering::SeqCst) {
            self.0.shutdown();
        }
    }
}

/// A server that answers, and a connection to it.
async fn connected() -> (Server, Arc<Link>, Arc<Will>, JoinHandle<Arc<Error>>) {
    let server = Server::start("service1", 1, Options { in_memory: true, ..Options::default() }).await.unwrap();
    let methods = Methods::new().unary("id", async |_cx, number: u64| Ok::<_, Status>(number));
    let methods: Arc<dyn Service> = Arc::new(methods);
    server.add(&methods).unwrap();
    let will = Arc::new(Will::default());
    let addr: SocketAddr = server.local_addr();
    let Io { read, write } = memory::connect(addr).unwrap();
    let io =
        Io { read: Box::new(Reading(read, Arc::clone(&will))), write: Box::new(Writing(write, Arc::clone(&will))) };
    let config = Config { service: "service1".to_owned(), incarnation: 2, ..Config::new(Side::Client) };
    let (link, driver) = connection(io, Some(addr), Arc::new(config), NoCalls);
    will.link.set(Arc::downgrade(&link)).unwrap();
    let task = tokio::spawn(driver.run());
    link.phase().wait_for(|phase| matches!(phase, Phase::Ready)).await.unwrap();
    (server, link, will, task)
}

fn open(link: &Link) -> StreamId {
    let head = Open { method: "id", deadline: None, idle: None, attempt: 0, metadata: None, end: true };
    let encode = |out: &mut BytesMut| {
        out.extend_from_slice(&[7]);
        Ok::<_, ()>(Vec::new())
    };
    link.open(head, Instant::now(), None, encode).unwrap()
}

async fn answer(link: &Arc<Link>, id: StreamId) -> Result<Vec<u8>, Failure> {
    match BodyReader::new(Arc::clone(link), id, 100).message().await.unwrap() {
        Ok(message) => Ok(message.to_vec()),
        Err(BodyError::Failed(failure)) => Err(failure),
        Err(other) => panic!("{other:?}"),
    }
}

/// Lets every task, all on this thread, do what it can.
async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_call_that_is_being_written_when_the_connection_is_lost_may_have_run() {
    let (_server, link, will, _) = connected().await;
    // Alone on the connection, so the caller writes; first once in peace, so that the driver sleeps.
    assert_eq!(answer(&link, open(&link)).await, Ok(vec![7]));
    settled().await;
    will.lost_in_write.store(true, Ordering::SeqCst);
    let id = open(&link);
    let failure = answer(&link, id).await.unwrap_err();
    assert!(matches!(failure, Failure::Lost { sent: true, .. }), "the server has it, and may run it: {failure:?}");
}

#[tokio::test]
async fn a_write_that_fails_loses_no_answer_that_came_before() {
    let (server, link, will, _) = connected().await;
    will.held.store(true, Ordering::SeqCst);
    let answered = open(&link);
    // The answer, the end of taking calls and the end of the connection are all on their way when the next write fails.
    settled().await;
    server.drain();
    settled().await;
    will.broken.store(true, Ordering::SeqCst);
    let unsent = open(&link);
    settled().await;
    will.held.store(false, Ordering::SeqCst);
    let reader = will.reader.lock().unwrap().take();
    reader.unwrap().wake();
    assert_eq!(answer(&link, answered).await, Ok(vec![7]), "the answer was there to be read");
    let failure = answer(&link, unsent).await.unwrap_err();
    let never_ran = matches!(failure, Failure::NotAccepted | Failure::Lost { sent: false, .. });
    assert!(never_ran, "it never left: {failure:?}");
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_a_peer_that_is_frozen() {
    let (_server, link, will, task) = connected().await;
    assert_eq!(answer(&link, open(&link)).await, Ok(vec![7]));
    settled().await;
    will.frozen.store(true, Ordering::SeqCst);
    let begun = tokio::time::Instant::now();
    link.close_when_idle();
    let error = task.await.unwrap();
    assert_eq!(*error, Error::Closed);
    assert!(begun.elapsed() <= Duration::from_secs(1), "the connection stayed for {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_call_alone_is_one_write_and_one_read() {
    let (_server, link, will, _) = connected().await;
    assert_eq!(answer(&link, open(&link)).await, Ok(vec![7]));
    settled().await;
    let before = [will.writes.load(Ordering::SeqCst), will.reads.load(Ordering::SeqCst)];
    for n in 1..=10 {
        assert_eq!(answer(&link, open(&link)).await, Ok(vec![7]));
        settled().await;
        let after = [will.writes.load(Ordering::SeqCst), will.reads.load(Ordering::SeqCst)];
        assert_eq!(after, [before[0] + n, before[1] + n], "writes and reads of {n} calls");
    }
}

#[tokio::test]
async fn calls_made_together_leave_and_are_answered_together() {
    let (_server, link, will, _) = connected().await;
    assert_eq!(answer(&link, open(&link)).await, Ok(vec![7]));
    settled().await;
    let before = [will.writes.load(Ordering::SeqCst), will.reads.load(Ordering::SeqCst)];
    let calls = (0..100).map(|_| {
        let link = Arc::clone(&link);
        tokio::spawn(async move { answer(&link, open(&link)).await })
    });
    for call in futures::future::join_all(calls).await {
        assert_eq!(call.unwrap(), Ok(vec![7]));
    }
    let writes = will.writes.load(Ordering::SeqCst) - before[0];
    let reads = will.reads.load(Ordering::SeqCst) - before[1];
    // The first is alone and leaves at once; the others go in a few batches, so that the server need not wait for the last.
    assert!(writes <= 4 && reads <= 4, "100 calls took {writes} writes and {reads} reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_caller_that_finds_no_room_leaves_the_rest_to_the_driver() {
    let (_server, link, will, _) = connected().await;
    assert_eq!(answer(&link, open(&link)).await, Ok(vec![7]));
    tokio::time::sleep(Duration::from_millis(50)).await;
    // While the only worker is busy, so much is queued that the caller writes it itself.
    let (begun, wait) = mpsc::channel();
    let worker = tokio::spawn(async move { wait.recv() });
    tokio::task::yield_now().await;
    let first = open(&link);
    *will.late.lock().unwrap() = Some(begun);
    let calls: Vec<_> = std::iter::once(first).chain((0..200).map(|_| open(&link))).collect();
    assert!(will.late.lock().unwrap().is_none(), "nothing was written by a caller");
    worker.await.unwrap().unwrap();
    // Sooner than the silence of the peer would wake the driver.
    let answers = futures::future::join_all(calls.into_iter().map(|id| answer(&link, id)));
    let answers = tokio::time::timeout(Duration::from_secs(2), answers).await.expect("nobody writes any more");
    assert!(answers.iter().all(|answer| *answer == Ok(vec![7])));
}

/// A peer that asks for more than it ever reads, in numbers that no window stops, and what its server thinks of it.
async fn greedy() -> (Server, Io, tokio::sync::watch::Receiver<Phase>) {
    let server = Server::start("service1", 1, Options { in_memory: true, ..Options::default() }).await.unwrap();
    let methods = Methods::new().server_streaming("flood", async |_cx, (): ()| {
        Ok(futures::stream::repeat_with(|| Bytes::from_static(&[0; 30_000])))
    });
    let methods: Arc<dyn Service> = Arc::new(methods);
    server.add(&methods).unwrap();
    let io = memory::connect(server.local_addr()).unwrap();
    let hello = Hello {
        node: "greedy".into(),
        service: "service1".into(),
        incarnation: 2,
        expect: None,
        max_calls: 0,
        stream_window: 1 << 30,
        connection_window: 1 << 30,
        max_message: 1 << 20,
        idempotent: Vec::new(),
        load: false,
    };
    let mut bytes = BytesMut::from(&PREFACE[..]);
    put_frame(&mut bytes, Kind::Hello, Flags::NONE, StreamId::CONNECTION, &hello.encode());
    let call = b"\0\0\x05flood\0\0\0\0\0\x01\xc0";
    put_frame(&mut bytes, Kind::Call, Flags::NAME.with(Flags::END, true), StreamId::new(0, 1), call);
    assert_eq!(io.write.try_write(&[io::IoSlice::new(&bytes)]).unwrap(), bytes.len());
    settled().await;
    let mut phase = None;
    server.shared.connections.for_each(|link| phase = Some(link.phase()));
    (server, io, phase.unwrap())
}

/// Says that the peer is alive.
fn ping(io: &Io) {
    let mut bytes = BytesMut::new();
    put_frame(&mut bytes, Kind::Ping, Flags::NONE, StreamId::CONNECTION, &[0; 8]);
    // The other side may be gone.
    let _ = io.write.try_write(&[io::IoSlice::new(&bytes)]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_talks_but_takes_nothing_for_ten_seconds_loses_the_connection() {
    let (_server, io, mut phase) = greedy().await;
    let begun = tokio::time::Instant::now();
    while !matches!(*phase.borrow_and_update(), Phase::Closed(_)) {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the connection lives although nothing can be written to it"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
        ping(&io);
    }
    let took = begun.elapsed();
    let limit = Duration::from_secs(10)..Duration::from_secs(11);
    assert!(limit.contains(&took), "it was closed after {took:?}");
    let Phase::Closed(error) = phase.borrow().clone() else { panic!("just seen") };
    assert!(matches!(*error, Error::WriteStall(_)), "{error}");
    assert_eq!(error.to_string(), "the peer took nothing of what was written for 10s");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_a_little_within_ten_seconds_keeps_the_connection() {
    let (_server, mut io, phase) = greedy().await;
    let begun = tokio::time::Instant::now();
    let mut buffer = [0; 1000];
    for half_seconds in 0..100 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        ping(&io);
        if half_seconds % 19 == 18 {
            assert!(tokio::io::AsyncReadExt::read(&mut io.read, &mut buffer).await.unwrap() > 0);
        }
        let phase = phase.borrow().clone();
        assert!(matches!(phase, Phase::Ready), "after {:?}: {phase:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_server_says_how_busy_it_is_only_to_those_who_ask() {
    let server = Server::start("service1", 1, Options { in_memory: true, ..Options::default() }).await.unwrap();
    let methods = Methods::new().unary("id", async |_cx, number: u64| Ok::<_, Status>(number));
    let methods: Arc<dyn Service> = Arc::new(methods);
    server.add(&methods).unwrap();
    for asks in [true, false] {
        let io = memory::connect(server.local_addr()).unwrap();
        let config =
            Config { service: "service1".into(), incarnation: 2, wants_load: asks, ..Config::new(Side::Client) };
        let told = Arc::new(Mutex::new(Vec::new()));
        let (link, driver) = connection(io, None, Arc::new(config), Listener(Arc::clone(&told)));
        tokio::spawn(driver.run());
        link.phase().wait_for(|phase| matches!(phase, Phase::Ready)).await.unwrap();
        assert_eq!(answer(&link, open(&link)).await, Ok(vec![7]));
        // Five others run.
        server.shared.admission.gauge.running.fetch_add(5, Ordering::SeqCst);
        assert_eq!(answer(&link, open(&link)).await, Ok(vec![7]));
        server.shared.admission.gauge.running.fetch_sub(5, Ordering::SeqCst);
        let expected: &[(u16, u16)] = if asks { &[(0, 65_535), (5, 65_535)] } else { &[] };
        assert_eq!(*told.lock().unwrap(), expected, "a client that {} asks", if asks { "" } else { "never" });
    }
}

/// Notes what a server says of its load.
struct Listener(Arc<Mutex<Vec<(u16, u16)>>>);

impl Handler for Listener {
    fn ready(&mut self, _link: &Arc<Link>) {}
    fn event(&mut self, _link: &Arc<Link>, _happened: Happened) {}
    fn rest(&mut self) {}

    fn load(&mut self, load: Load) {
        self.0.lock().unwrap().push((load.slot, load.capacity));
    }
}
