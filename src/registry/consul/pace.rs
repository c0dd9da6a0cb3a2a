//! How fast picom asks Consul, and how often it complains.
//!
//! Owns back-off, the token bucket and the limit on log lines. It must never know what is being asked. Look next at
//! `watch.rs` and `register.rs`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Randomises by up to a tenth either way, so that many processes do not beat as one.
pub(super) fn about(time: Duration) -> Duration {
    time.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// Anything from nothing to `time`.
pub(super) fn up_to(time: Duration) -> Duration {
    time.mul_f64(fastrand::f64())
}

/// Doubling pauses with a cap.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    cap: Duration,
    tries: u32,
}

impl Backoff {
    pub(super) const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, tries: 0 }
    }

    /// The next pause, not randomised.
    pub(super) fn next(&mut self) -> Duration {
        // 2^20 times any sensible first pause is beyond any cap.
        let pause = self.first.saturating_mul(1 << self.tries.min(20)).min(self.cap);
        self.tries += 1;
        pause
    }

    /// How many pauses there were since the last success.
    pub(super) const fn tries(&self) -> u32 {
        self.tries
    }

    pub(super) const fn reset(&mut self) {
        self.tries = 0;
    }
}

/// Readings that may be made at once, for a quick failover.
const BURST: f64 = 5.0;
/// Readings per second after that.
const RATE: f64 = 1.0;
/// Readings per second when the list has been changing for [`PATIENCE`] without a pause.
const SLOW_RATE: f64 = 1.0 / 15.0;
/// How long the faster rate is granted.
const PATIENCE: Duration = Duration::from_secs(60);

/// Limits the readings of one service.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    filled: Instant,
    /// Since when every reading has had to wait.
    busy: Option<Instant>,
}

impl Bucket {
    pub(super) fn new() -> Self {
        Self { tokens: BURST, filled: Instant::now(), busy: None }
    }

    /// Waits until another reading is allowed. Cancel safe: a reading that was not waited for is not counted.
    pub(super) async fn wait(&mut self) {
        let pause = self.pause();
        if !pause.is_zero() {
            sleep(pause).await;
            self.fill();
        }
        self.tokens -= 1.0;
    }

    fn pause(&mut self) -> Duration {
        self.fill();
        if self.tokens >= 2.0 {
            self.busy = None;
        }
        if self.tokens >= 1.0 {
            return Duration::ZERO;
        }
        self.busy.get_or_insert_with(Instant::now);
        Duration::from_secs_f64((1.0 - self.tokens) / self.rate())
    }

    fn fill(&mut self) {
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.filled).as_secs_f64() * self.rate()).min(BURST);
        self.filled = now;
    }

    fn rate(&self) -> f64 {
        if self.busy.is_some_and(|since| since.elapsed() > PATIENCE) { SLOW_RATE } else { RATE }
    }
}

/// Lets one log line through per minute.
#[derive(Debug, Default)]
pub(super) struct LogGate(Option<Instant>);

impl LogGate {
    pub(super) fn open(&mut self) -> bool {
        let open = self.0.is_none_or(|last| last.elapsed() >= Duration::from_secs(60));
        if open {
            self.0 = Some(Instant::now());
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_readings_at_once_then_one_a_second_then_one_in_fifteen() {
        let mut bucket = Bucket::new();
        let start = Instant::now();
        let mut at = Vec::new();
        for _ in 0..80 {
            bucket.wait().await;
            at.push(start.elapsed().as_secs_f64());
        }
        assert!(at[4] < 0.1, "the burst took {} s", at[4]);
        assert!((at[14] - 10.0).abs() < 0.5, "ten more took {} s", at[14]);
        let last = at[79] - at[78];
        assert!((14.0..16.0).contains(&last), "after a minute of churn a reading came after {last} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_restores_the_burst() {
        let mut bucket = Bucket::new();
        for _ in 0..100 {
            bucket.wait().await;
        }
        sleep(Duration::from_secs(120)).await;
        let start = Instant::now();
        for _ in 0..5 {
            bucket.wait().await;
        }
        assert!(start.elapsed() < Duration::from_millis(10), "the burst took {:?}", start.elapsed());
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<_> = (0..6).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 100);
    }
}
