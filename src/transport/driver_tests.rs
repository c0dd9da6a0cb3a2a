//! What the driver must not sleep over.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::future::poll_fn;

use super::*;
use crate::proto::Side;
use crate::transport::memory;

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
