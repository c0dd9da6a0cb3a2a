//! Connections that move to the threads that only read and write, and back, and what those do while no other thread can.
//!
//! Owns servers on sockets whose runtime a handler keeps busy. Look next at [`super::io_threads`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use tokio::runtime::{Builder, Runtime};
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

/// Longer than anything takes that goes well.
const LONG: Duration = Duration::from_secs(20);

fn is_io_thread() -> bool {
    std::thread::current().name() == Some("picom-io")
}

/// A server in a runtime of its own, and somebody who calls it.
struct Scene {
    home: Option<Runtime>,
    server: Option<Server>,
    client: Picom,
    begun: Arc<AtomicUsize>,
}

impl Scene {
    async fn new(threads: usize, methods: Methods) -> Self {
        let home = Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
        let options = Options { bind: Some("127.0.0.1".parse().unwrap()), ..Options::default() };
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
        let scene = Self { home: Some(home), server: Some(server), client, begun };
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
    for (what, least, most) in [
        ("the first one waits for its turn", Duration::from_millis(90), Duration::from_millis(1_500)),
        ("after a refusal nobody waits", Duration::ZERO, Duration::from_millis(1_000)),
    ] {
        let asked = Instant::now();
        let status = scene.hold(0).await.expect_err("there is no room");
        let took = asked.elapsed();
        assert_eq!((status.code(), status.execution()), (Code::ResourceExhausted, Execution::Never), "{status}");
        assert!(took >= least && took < most, "{what}: {took:?}");
    }
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
    let scene = Scene::new(1, Methods::new()).await;
    scene.want(true).await;
    let calls = async {
        let late = (0..5).map(|_| scene.hold(0));
        let (late, ()) = tokio::join!(futures::future::join_all(late), async {
            // They are with the server by then.
            while scene.server().shared.admission.gauge.running.load(Ordering::SeqCst) < 6 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            scene.allow(2);
        });
        late
    };
    let (first, late) = tokio::join!(scene.hold(400), async {
        scene.until_begun(3).await;
        calls.await
    });
    assert!(!first.unwrap(), "the handler ran where it must not");
    for answer in late {
        let status = answer.expect_err("it waited for longer than a call may");
        assert_eq!((status.code(), status.execution()), (Code::ResourceExhausted, Execution::Never), "{status}");
    }
    assert_eq!(scene.begun.load(Ordering::SeqCst), 3, "a refused call ran");
    scene.hold(0).await.expect("there is room again");
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
    assert!(scene.server().shared.io_threads.threads.get().is_none(), "nobody needs them yet");
    scene.want(true).await;
    let threads = scene.server().shared.io_threads.threads.get().expect("a connection is there");
    assert_eq!(threads.len(), 1, "one for four workers or fewer");
    let runtime = threads[0].runtime.clone();
    assert!(runtime.spawn(async {}).await.is_ok());
    scene.server = None;
    let limit = Instant::now() + LONG;
    while runtime.spawn(async {}).await.is_ok() {
        assert!(Instant::now() < limit, "the thread outlives its server");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
