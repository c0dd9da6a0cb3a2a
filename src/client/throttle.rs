//! Holding calls back while the whole service is overloaded.
//!
//! Owns the count of refusals and what follows from it: when a refused call is not worth another host, and when a call is not
//! worth sending. It must never choose an endpoint. Look next at [`super::attempts`], which asks.
//!
//! The rule is the client-side throttling of Google's SRE book ("Handling Overload"): a call is rejected here with the
//! probability `max(0, (requests - 2 * accepts) / (requests + 1))`. The book counts over two minutes; here it is ten seconds, and a
//! second in which nothing was refused ends it, so that a service that has recovered is used fully again within two.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::status::{Execution, Status};

/// Seconds that are looked back over.
const WINDOW: usize = 10;
/// Attempts in the window below which a share of them means nothing: some refusals are every day's business, and go elsewhere.
const ENOUGH: u64 = 50;
/// How many requests may be made for each that is accepted before some are held back.
const PER_ACCEPTED: u64 = 2;

/// What became of the attempts at one service.
#[derive(Debug)]
pub(super) struct Throttle {
    start: Instant,
    /// Something was refused within the window. Until then nothing is counted, so that a call costs one look.
    armed: AtomicBool,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    second: u64,
    seconds: [Second; WINDOW],
}

/// One second of the window.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    /// Attempts, sent or held back.
    requests: u64,
    /// Attempts that the servers refused as busy.
    refused: u64,
    /// Attempts that were held back here.
    held_back: u64,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), armed: AtomicBool::new(false), window: Mutex::default() }
    }

    /// Whether anything was refused of late, so that [`admit`](Self::admit) must be asked.
    pub(super) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    /// Counts an attempt; the error is why it is not worth sending. Each second the first one is always sent, so that the end
    /// of the overload is seen.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Status> {
        if !self.is_armed() {
            return Ok(());
        }
        let mut window = self.turn(now);
        let all = window.sum();
        if all.refused == 0 {
            self.armed.store(false, Ordering::Relaxed);
            return Ok(());
        }
        let second = window.now();
        second.requests += 1;
        let sent = second.requests - second.held_back;
        if sent == 1 || fastrand::f64() >= all.rejection() {
            return Ok(());
        }
        second.held_back += 1;
        drop(window);
        let text = format!("overloaded: {}; not sent, to let the service recover", all.told());
        Err(Status::resource_exhausted(text).with_execution(Execution::Never))
    }

    /// Counts an attempt that a server refused as busy, and with the first one what went well before it: `calls` says how many were made
    /// within the window. If the whole service is overloaded, says so: then another host is no way out.
    pub(super) fn refused(&self, now: Instant, calls: impl FnOnce() -> u64) -> Option<String> {
        let mut window = self.turn(now);
        let first = !self.armed.swap(true, Ordering::Relaxed);
        let second = window.now();
        if first {
            second.requests += calls();
        }
        second.refused += 1;
        let all = window.sum();
        (all.sent() >= ENOUGH && all.refused * 2 >= all.sent()).then(|| format!("overloaded: {}", all.told()))
    }

    /// The window, moved to `now`; what left it is forgotten.
    fn turn(&self, now: Instant) -> MutexGuard<'_, Window> {
        let second = now.saturating_duration_since(self.start).as_secs();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.second < second {
            // Some were sent, and none was refused: it is over. To wait until the window has forgotten it would hold calls back that
            // the service can serve.
            let last = *window.now();
            if last.requests > last.held_back && last.refused == 0 {
                *window = Window::default();
                self.armed.store(false, Ordering::Relaxed);
            }
            for passed in (window.second + 1..=second).rev().take(WINDOW) {
                window.seconds[place(passed)] = Second::default();
            }
            window.second = second;
        }
        window
    }
}

fn place(second: u64) -> usize {
    // The remainder is below WINDOW.
    (second % WINDOW as u64) as usize
}

impl Window {
    fn now(&mut self) -> &mut Second {
        &mut self.seconds[place(self.second)]
    }

    fn sum(&self) -> Second {
        self.seconds.iter().fold(Second::default(), |sum, second| Second {
            requests: sum.requests + second.requests,
            refused: sum.refused + second.refused,
            held_back: sum.held_back + second.held_back,
        })
    }
}

impl Second {
    fn sent(&self) -> u64 {
        // Calls that were under way when the count began may be refused without having been counted.
        self.requests.saturating_sub(self.held_back).max(self.refused)
    }

    /// With which probability an attempt is not worth sending.
    fn rejection(&self) -> f64 {
        if self.sent() < ENOUGH {
            return 0.0;
        }
        let accepted = self.sent() - self.refused;
        let requests = self.sent() + self.held_back;
        requests.saturating_sub(PER_ACCEPTED * accepted) as f64 / (requests + 1) as f64
    }

    fn told(&self) -> String {
        format!("the service refused {} of the last {} attempts as busy", self.refused, self.sent())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use std::time::Duration;

    use super::*;

    /// Calls for so many milliseconds a service that takes `accepted` of every `of` attempts; how many were sent, and how many were not.
    async fn calls(throttle: &Throttle, milliseconds: u32, (accepted, of): (u32, u32)) -> (u32, u32) {
        let (mut sent, mut held_back) = (0, 0);
        for _ in 0..milliseconds {
            tokio::time::advance(Duration::from_millis(1)).await;
            if throttle.admit(Instant::now()).is_err() {
                held_back += 1;
                continue;
            }
            sent += 1;
            if sent % of >= accepted {
                throttle.refused(Instant::now(), || 1);
            }
        }
        (sent, held_back)
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_takes_most_of_its_calls_gets_them_all_and_one_that_takes_a_third_gets_fewer() {
        let throttle = Throttle::new();
        let (_, held_back) = calls(&throttle, 20_000, (1, 1)).await;
        assert_eq!(held_back, 0);
        assert!(!throttle.is_armed(), "nothing is counted until something is refused");
        let most = Throttle::new();
        let (sent, held_back) = calls(&most, 20_000, (3, 5)).await;
        assert!(held_back < sent / 50, "{held_back} of {sent} were held back within the limit");
        let third = Throttle::new();
        let (sent, held_back) = calls(&third, 20_000, (1, 3)).await;
        assert!(held_back > sent / 10, "{held_back} of {sent} were held back past the limit");
    }

    // Of the rule itself, because what a service gets that takes exactly half is a matter of chance: each call that is held back makes
    // the next one, on average, be held back too.
    #[test]
    fn at_half_nothing_is_held_back_and_at_one_more_something_is() {
        let half = Second { requests: 100, refused: 50, held_back: 0 };
        assert_eq!(half.rejection(), 0.0);
        assert!(Second { refused: 51, ..half }.rejection() > 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_service_that_refuses_everything_one_call_a_second_finds_out_when_that_ends() {
        let throttle = Throttle::new();
        calls(&throttle, 30_000, (0, 1)).await;
        let (sent, _) = calls(&throttle, 10_000, (0, 1)).await;
        assert!((10..200).contains(&sent), "{sent} calls in ten seconds");
        let error = loop {
            if let Err(error) = throttle.admit(Instant::now()) {
                break error;
            }
        };
        assert_eq!(error.execution(), Execution::Never);
        assert!(error.message().starts_with("overloaded: the service refused"), "{error}");
        // It takes everything again.
        let mut seconds = 0;
        while calls(&throttle, 1_000, (1, 1)).await.1 > 10 {
            seconds += 1;
            assert!(seconds < WINDOW, "it is still held back after {seconds} s");
        }
        calls(&throttle, 10_000, (1, 1)).await;
        assert!(!throttle.is_armed());
    }

    #[tokio::test(start_paused = true)]
    async fn few_refusals_go_elsewhere_and_half_of_many_do_not() {
        let throttle = Throttle::new();
        let now = Instant::now();
        for n in 1..ENOUGH {
            throttle.admit(now).unwrap();
            assert_eq!(throttle.refused(now, || 1), None, "after {n}");
        }
        throttle.admit(now).unwrap();
        let text = throttle.refused(now, || 1).expect("one more is enough");
        assert!(text.contains("refused 50 of the last 50"), "{text}");
        tokio::time::advance(Duration::from_secs(WINDOW as u64)).await;
        throttle.admit(Instant::now()).unwrap();
        assert_eq!(throttle.refused(Instant::now(), || 1), None, "what was ten seconds ago is forgotten");
    }
}
