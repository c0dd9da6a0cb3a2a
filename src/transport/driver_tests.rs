//! What the driver must not sleep over.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::future::poll_fn;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Wake;

use super::*;
use crate::proto::{Open, Side};
use crate::transport::{WriteHalf, memory};

#[tokio::test(start_paused = true)]
async fn a_connection_that_somebody_else_could_not_write_to_ends_although_the_peer_is_silent() {
    let (ours, _silent) = memory::pair();
    let (link, mut driver) = connection(ours, None, Arc::new(Config::new(Side::Client)), NoCalls);
    poll_fn(|cx| {
        while driver.poll_turn(cx).unwrap() {}
        // A call is made meanwhile, and its write fails. Nobody wakes the driver: it is awake.
        link.lock().write_error = Some(Error::Io { kind: io::ErrorKind::BrokenPipe, text: "broken".to_owned() });
        assert!(!driver.try_sleep(cx), "it would sleep until its peer speaks");
        assert!(!driver.poll_turn(cx).unwrap(), "what the peer has said before is read first");
        assert!(driver.try_sleep(cx), "it has seen it, and waits for the rest no longer than it must");
        Poll::Ready(())
    })
    .await;
    let begun = Instant::now();
    let error = driver.run().await;
    assert!(matches!(&*error, Error::Io { kind: io::ErrorKind::BrokenPipe, .. }), "{error}");
    assert_eq!(begun.elapsed().as_millis() / 100, LINGER.as_millis() / 100, "{:?}", begun.elapsed());
}

/// A writing half that holds whoever writes until it may go on, once it is told to.
struct Gate {
    write: Box<dyn WriteHalf>,
    closed: Arc<AtomicBool>,
    entered: Sender<()>,
    open: Mutex<Receiver<()>>,
}

impl WriteHalf for Gate {
    fn try_write(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        if self.closed.swap(false, Ordering::SeqCst) {
            self.entered.send(()).unwrap();
            self.open.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
        }
        self.write.try_write(slices)
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.poll_ready(cx)
    }

    fn shutdown(&self) {
        self.write.shutdown();
    }
}

/// How often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn while_somebody_else_writes_the_driver_sleeps_and_is_woken_for_what_is_left() {
    let (ours, theirs) = memory::pair();
    let (closed, (entered, is_entered), (open, may_go_on)) = (Arc::<AtomicBool>::default(), channel(), channel());
    let gate = Gate { write: ours.write, closed: Arc::clone(&closed), entered, open: Mutex::new(may_go_on) };
    let ours = Io { read: ours.read, write: Box::new(gate) };
    let (link, mut driver) = connection(ours, None, Arc::new(Config::new(Side::Client)), NoCalls);
    let (peer, mut peers) = connection(theirs, None, Arc::new(Config::new(Side::Server)), NoCalls);
    let woken = Arc::new(Woken::default());
    let (waker, noop) = (Waker::from(Arc::clone(&woken)), Waker::noop());
    // Polls until it is not woken any more; says how often that was.
    let rest = |driver: &mut Driver<NoCalls>| {
        (1..=100).find(|_| {
            let before = woken.0.load(Ordering::SeqCst);
            assert!(driver.poll(&mut Context::from_waker(&waker)).is_pending(), "the connection goes on");
            before == woken.0.load(Ordering::SeqCst)
        })
    };
    while !link.is_usable() {
        assert!(rest(&mut driver).is_some());
        assert!(peers.poll(&mut Context::from_waker(noop)).is_pending());
    }
    assert!(rest(&mut driver).is_some());

    let call = |link: &Link| {
        let head = Open { method: "add", deadline: None, idle: None, attempt: 0, metadata: None, end: true };
        link.open(head, std::time::Instant::now(), None, |_| Ok::<_, ()>(Vec::new())).unwrap()
    };
    // Its timer is set from then on, so that whoever calls alone need not wake it for that.
    let first = call(&link);
    assert!(rest(&mut driver).is_some());
    link.cancel(first);
    assert!(rest(&mut driver).is_some());
    assert!(peers.poll(&mut Context::from_waker(noop)).is_pending());
    closed.store(true, Ordering::SeqCst);
    let caller = Arc::clone(&link);
    let writer = std::thread::spawn(move || call(&caller));
    is_entered.recv_timeout(Duration::from_secs(20)).unwrap();
    call(&link);
    let polls = rest(&mut driver);
    assert!(polls.is_some_and(|polls| polls <= 3), "it is awake without end, {polls:?}, and has nothing to do");
    let before = woken.0.load(Ordering::SeqCst);
    open.send(()).unwrap();
    writer.join().unwrap();
    assert!(woken.0.load(Ordering::SeqCst) > before, "nobody wakes it for the second call");
    assert!(rest(&mut driver).is_some());
    assert!(peers.poll(&mut Context::from_waker(noop)).is_pending());
    assert_eq!(peer.open_calls(), 2);
}
