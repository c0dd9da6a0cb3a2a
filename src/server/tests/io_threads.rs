//! Connections that move to the threads that only read and write, and back, and what those do while no other thread can.
//!
//! Owns servers on sockets whose runtime a handler keeps busy. Look next at [`super::io_threads`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout};

use super::super::Server;
use crate::context::Context;
use crate::methods::Methods;
use crate::node::Picom;
use crate::options::Options;
use crate::registry::Fixed;
use crate::service::Service;
use crate::status::{Code, Execution, Status};
use crate::streaming::Streaming;
use crate::transport::tcp;

/// Longer than anything takes that goes well.
const LONG: Duration = Duration::from_secs(20);

fn is_io_thread() -> bool {
    std::thread::current().name() == Some("picom-io")
}

/// One scene at a time, for sockets that are open twice are counted for the whole process.
static SCENES: Mutex<()> = Mutex::const_new(());
/// The system has no more threads.
static NO_THREADS: AtomicBool = AtomicBool::new(false);

pub(super) fn no_threads() -> bool {
    NO_THREADS.load(Ordering::SeqCst)
}

/// A server in a runtime of its own, and somebody who calls it.
struct Scene {
    _alone: MutexGuard<'static, ()>,
    home: Option<Runtime>,
    server: Option<Server>,
    client: Picom,
    begun: Arc<AtomicUsize>,
}

impl Scene {
    async fn new(threads: usize, methods: Methods) -> Self {
        Self::with(threads, methods, Options::default()).await
    }

    async fn with(threads: usize, methods: Methods, options: Options) -> Self {
        let alone = SCENES.lock().await;
        let limit = Instant::now() + LONG;
        while tcp::away() > 0 {
            assert!(Instant::now() < limit, "a server that was dropped leaves sockets behind");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let home = Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
        let options = Options { bind: Some("127.0.0.1".parse().unwrap()), ..options };
        let server = home.spawn(Server::start("service1", 1, options)).await.unwrap().unwrap();
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let methods = methods.unary("hold", move |_cx: Context, millis: u64| {
            count.fetch_add(1, Ordering::SeqCst);
            // Not as anybody should wait in a handler.
            std::thread::sleep(Duration::from_millis(millis));
            async { Ok::<_, Status>(is_io_thread()) }
        });
        let methods: Arc<dyn Service> = Arc::new(methods);
        server.add(&methods).unwrap();
        let registry = Fixed::new([("service1", [server.local_addr().to_string()])]);
        let client = Picom::builder("caller").registry(registry).build().unwrap();
        let scene = Self { _alone: alone, home: Some(home), server: Some(server), client, begun };
        scene.hold(0).await.expect("nothing is wrong yet");
        scene
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Keeps a thread of the server for so many milliseconds. Tells whether it was one that a handler must not keep.
    async fn hold(&self, millis: u64) -> Result<bool, Status> {
        let call = self.client.fetch::<bool>("service1", "hold", millis).retries(0).timeout(LONG);
        timeout(LONG, call.into_future()).await.expect("it ends")
    }

    /// Lets connections be where they belong; the one that is there has moved when this returns.
    async fn want(&self, wanted: bool) {
        self.server().shared.io_threads.want(wanted);
        // It moves before it reads.
        self.hold(0).await.expect("a call that moves with its connection");
    }

    /// The runtime of the only I/O thread.
    fn apart(&self) -> Handle {
        let threads = self.server().shared.io_threads.threads.lock().unwrap();
        assert_eq!(threads.all.len(), 1, "one for four workers or fewer");
        threads.all[0].runtime.clone()
    }

    /// Waits until so many connections are apart: a task that has said how it ended ends a little later.
    async fn until_apart(&self, connections: usize) {
        let (apart, limit) = (self.apart(), Instant::now() + LONG);
        while apart.metrics().num_alive_tasks() != connections {
            let alive = apart.metrics().num_alive_tasks();
            assert!(Instant::now() < limit, "{alive} connections are apart instead of {connections}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn allow(&self, calls: usize) {
        self.server().shared.admission.gauge.limit.store(calls, Ordering::SeqCst);
    }

    async fn until_begun(&self, calls: usize) {
        let limit = Instant::now() + LONG;
        while self.begun.load(Ordering::SeqCst) < calls {
            assert!(Instant::now() < limit, "{} of {calls} calls have begun", self.begun.load(Ordering::SeqCst));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.server = None;
        if let Some(home) = self.home.take() {
            home.shutdown_background();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_refused_while_handlers_keep_every_other_thread() {
    let scene = Scene::new(1, Methods::new()).await;
    scene.want(true).await;
    scene.allow(1);
    let (scene, begun) = (Arc::new(scene), 3);
    let keeps = tokio::spawn({
        let scene = Arc::clone(&scene);
        async move { scene.hold(3_000).await }
    });
    scene.until_begun(begun).await;
    let mut times = Vec::new();
    for _ in 0..6 {
        let asked = Instant::now();
        let status = scene.hold(0).await.expect_err("there is no room");
        times.push(asked.elapsed());
        assert_eq!((status.code(), status.execution()), (Code::ResourceExhausted, Execution::Never), "{status}");
    }
    assert!(times[0] >= Duration::from_millis(90), "the first one waits for its turn: {times:?}");
    // On a busy machine not all of them are quick.
    let quickest = times[1..].iter().min().copied();
    assert!(quickest < Some(Duration::from_millis(50)), "after a refusal nobody waits: {times:?}");
    assert!(!keeps.is_finished(), "the thread was not kept for as long as was asked");
    assert!(!keeps.await.unwrap().unwrap(), "the handler ran where it must not");
    assert_eq!(scene.begun.load(Ordering::SeqCst), begun, "a refused call ran");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waited_apart_runs_where_handlers_run_when_its_turn_comes() {
    let scene = Scene::new(1, Methods::new()).await;
    scene.want(true).await;
    scene.allow(1);
    let (first, second) = tokio::join!(scene.hold(30), async {
        scene.until_begun(3).await;
        scene.hold(0).await
    });
    assert_eq!((first.unwrap(), second.unwrap()), (false, false), "a handler ran where it must not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_have_not_begun_when_overload_becomes_known_are_refused_after_a_tenth_of_a_second() {
    // For how long the only thread is kept, and whether overload becomes known meanwhile.
    for (kept, known, run) in [(400, true, false), (400, false, true), (5, true, true)] {
        let scene = Scene::new(1, Methods::new()).await;
        scene.want(true).await;
        let calls = async {
            let late = (0..5).map(|_| scene.hold(0));
            let (late, ()) = tokio::join!(futures::future::join_all(late), async {
                // They are with the server by then, or run already.
                while scene.server().shared.admission.gauge.running.load(Ordering::SeqCst) < 6
                    && scene.begun.load(Ordering::SeqCst) < 8
                {
                    tokio::task::yield_now().await;
                }
                // All of the last one: this runs after whatever the thread is in the middle of.
                scene.apart().spawn(async {}).await.unwrap();
                if known {
                    scene.allow(2);
                }
            });
            late
        };
        let asked = Instant::now();
        let (first, late) = tokio::join!(scene.hold(kept), async {
            scene.until_begun(3).await;
            calls.await
        });
        if run && known && asked.elapsed() > Duration::from_millis(100) {
            // This machine kept them for as long itself.
            continue;
        }
        assert!(!first.unwrap(), "the handler ran where it must not");
        for answer in late {
            if run {
                answer.expect("it did not wait for longer than a call may, or nobody knew that they were too many");
                continue;
            }
            let status = answer.expect_err("it waited for longer than a call may");
            assert_eq!((status.code(), status.execution()), (Code::ResourceExhausted, Execution::Never), "{status}");
        }
        let begun = if run { 8 } else { 3 };
        assert_eq!(scene.begun.load(Ordering::SeqCst), begun, "calls that ran: kept for {kept} ms, known: {known}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waited_apart_and_is_given_up_ends_its_handler_and_keeps_its_place_until_then() {
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    struct Guard(Arc<AtomicUsize>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (here, top) = (Arc::clone(&inside), Arc::clone(&most));
    let methods = Methods::new()
        .unary("wait", move |_cx: Context, millis: u64| {
            top.fetch_max(here.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let guard = Guard(Arc::clone(&here));
            async move {
                let _guard = guard;
                // In the middle of something that nothing ends.
                std::thread::sleep(Duration::from_millis(millis));
                std::future::pending::<Result<(), Status>>().await
            }
        })
        .max_concurrent(1);
    let scene = Scene::new(2, methods).await;
    scene.want(true).await;
    scene.allow(1);
    let wait = |millis: u64, limit: u64| {
        let call = scene.client.fetch::<()>("service1", "wait", millis).retries(0);
        call.timeout(Duration::from_millis(limit)).into_future()
    };
    // The first waits for its turn apart, behind one that holds the only place, and is given up while it runs.
    let (held, given_up) = tokio::join!(scene.hold(30), async {
        scene.until_begun(3).await;
        wait(300, 150).await
    });
    held.expect("it had a place");
    assert_eq!(given_up.expect_err("it never ends").code(), Code::DeadlineExceeded);
    scene.allow(10);
    let second = wait(0, 50).await.expect_err("it never ends, or has no place");
    let limit = Instant::now() + LONG;
    while inside.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < limit, "a handler runs on for which nobody waits");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(most.load(Ordering::SeqCst), 1, "calls at once of a method that takes one; the second said {second}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_nothing_is_given_up_in_time_while_handlers_keep_every_other_thread() {
    let options = Options { handshake_timeout: Duration::from_millis(600), ..Options::default() };
    let scene = Scene::with(1, Methods::new(), options).await;
    let mut silent = tokio::net::TcpStream::connect(scene.server().local_addr()).await.unwrap();
    scene.want(true).await;
    let asked = Instant::now();
    // Something that is not all of a hello moves that connection as well.
    tokio::io::AsyncWriteExt::write_all(&mut silent, &crate::wire::PREFACE[..1]).await.unwrap();
    let limit = Instant::now() + LONG;
    while tcp::away() < 2 {
        assert!(Instant::now() < limit, "{} sockets have moved", tcp::away());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (held, took) = tokio::join!(scene.hold(4_000), async {
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut rest).await;
        asked.elapsed()
    });
    held.expect("it is only long");
    assert!(took < Duration::from_secs(3), "a limit of 600 ms ended it after {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_moves_back_leaves_nothing_behind() {
    let scene = Scene::new(1, Methods::new()).await;
    for _ in 0..3 {
        scene.want(true).await;
        assert_eq!(tcp::away(), 1, "sockets that are open twice");
        scene.until_apart(1).await;
        scene.want(false).await;
        assert_eq!(tcp::away(), 0, "sockets that are open twice");
        scene.until_apart(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_stay_where_they_are_when_there_are_no_threads_for_them() {
    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            NO_THREADS.store(false, Ordering::SeqCst);
        }
    }
    let scene = Scene::new(1, Methods::new()).await;
    {
        let _again = Again;
        NO_THREADS.store(true, Ordering::SeqCst);
        scene.want(true).await;
        assert!(!scene.hold(0).await.unwrap(), "the handler ran where it must not");
        assert_eq!(tcp::away(), 0);
    }
    // The next connection tries again.
    let registry = Fixed::new([("service1", [scene.server().local_addr().to_string()])]);
    let other = Picom::builder("caller").registry(registry).build().unwrap();
    other.fetch::<bool>("service1", "hold", 0u64).await.expect("it moves and is answered");
    assert_eq!(tcp::away(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_stays_where_it_is_when_256_sockets_are_open_twice() {
    for (left, moved) in [(1, true), (0, false)] {
        let scene = Scene::new(1, Methods::new()).await;
        let mut places = tcp::take_places();
        assert_eq!(places.len(), 256);
        places.truncate(256 - left);
        scene.want(true).await;
        assert!(!scene.hold(0).await.unwrap(), "the handler ran where it must not");
        assert_eq!(tcp::away(), 256, "{left} places were left");
        scene.until_apart(usize::from(moved)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_move_when_handlers_take_more_than_the_threads_can() {
    let scene = Scene::new(1, Methods::new()).await;
    let limit = Instant::now() + LONG;
    let callers = (0..30).map(|_| async {
        while !scene.server().shared.io_threads.are_wanted() {
            assert!(Instant::now() < limit, "thirty calls at once of 10 ms each are no overload");
            let _ = scene.hold(10).await;
        }
    });
    futures::future::join_all(callers).await;
    scene.allow(1_000);
    scene.hold(0).await.expect("there is room");
    assert_eq!(tcp::away(), 1, "the connection has not moved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_given_up_apart_ends_its_handler() {
    struct Ends(mpsc::Sender<bool>);
    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.0.send(is_io_thread());
        }
    }
    let (ends, ended) = mpsc::channel();
    let methods = Methods::new().unary("wait", move |_cx: Context, (): ()| {
        let guard = Ends(ends.clone());
        async move {
            let _guard = guard;
            std::future::pending::<Result<(), Status>>().await
        }
    });
    let scene = Scene::new(1, methods).await;
    scene.want(true).await;
    let call = scene.client.fetch::<()>("service1", "wait", ()).timeout(Duration::from_millis(50));
    let status = call.await.expect_err("it never ends");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let on_io_thread = tokio::task::spawn_blocking(move || ended.recv_timeout(LONG)).await.unwrap();
    assert_eq!(on_io_thread, Ok(false), "a handler ends where it runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_streams_go_on_while_their_connection_moves_there_and_back() {
    const MOVES: u64 = 200;
    let methods = Methods::new()
        .unary("where", |_cx: Context, (): ()| async { Ok::<_, Status>(is_io_thread()) })
        .bidi("echo", |_cx: Context, (): (), body: Streaming<Bytes>| async { Ok::<_, Status>(body) });
    let scene = Scene::new(2, methods).await;
    let done = AtomicUsize::new(0);
    let moves = async {
        for n in 1..=MOVES {
            scene.want(n % 2 == 1).await;
        }
        done.store(1, Ordering::SeqCst);
    };
    let calls = async {
        let mut made = 0u64;
        while done.load(Ordering::SeqCst) == 0 {
            let on_io_thread = scene.client.fetch::<bool>("service1", "where", ()).await.expect("a call");
            assert!(!on_io_thread, "a handler ran where it must not");
            made += 1;
        }
        made
    };
    let streams = async {
        let mut bytes = 0;
        while done.load(Ordering::SeqCst) == 0 {
            let body = stream::iter((0..50u8).map(|n| Bytes::from(vec![n; 10_000])));
            let call = scene.client.stream::<Bytes>("service1", "echo", ()).body(body);
            let mut echo = call.await.expect("a stream");
            let mut next = 0;
            while let Some(piece) = echo.next().await {
                assert_eq!(piece.expect("a piece"), vec![next; 10_000], "in order");
                next += 1;
                bytes += 10_000;
            }
            assert_eq!(next, 50, "the whole stream");
        }
        bytes
    };
    let both = async { tokio::join!(moves, calls, streams) };
    let ((), calls, bytes) = timeout(LONG, both).await.expect("nothing is lost on the way");
    println!("{calls} calls and {bytes} bytes while a connection moved {MOVES} times");
    assert!(calls > 0 && bytes > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_threads_end_with_the_server() {
    let mut scene = Scene::new(2, Methods::new()).await;
    assert!(scene.server().shared.io_threads.threads.lock().unwrap().all.is_empty(), "nobody needs them yet");
    scene.want(true).await;
    let runtime = scene.apart();
    assert!(runtime.spawn(async {}).await.is_ok());
    scene.server = None;
    let limit = Instant::now() + LONG;
    while runtime.spawn(async {}).await.is_ok() {
        assert!(Instant::now() < limit, "the thread outlives its server");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
