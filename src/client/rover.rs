//! Asking endpoints how busy they are, for a policy that wants to know.
//!
//! Owns [`Rover`] and its task, which goes on while calls are made. It must never choose an endpoint for a call. Look next at
//! `balance/p2c.rs` for what the answers are good for, and at `boxcar/pace.rs` for how often it asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::pool::Pool;
use super::target::Target;
use crate::balance::EndpointState;
use crate::boxcar::Pace;

/// A service that was not called for this long is not asked until it is called again: connections of a client that has nothing
/// to do may close.
const UNUSED: Duration = Duration::from_secs(30);
/// It does not ask more often, whatever the policy says: a server takes two hundred control frames a second on a connection.
const SHORTEST: Duration = Duration::from_millis(10);
/// How many intervals pass between two questions at most, when the answers are all the same.
const LONGEST: u32 = 8;
/// Loads that differ by no more than this, as a share of the capacity, are the same.
const ALIKE: f64 = 0.1;

/// Begins with the first call, rests with the last one, and ends with its pool.
#[derive(Debug, Default)]
pub(super) struct Rover {
    runs: AtomicBool,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Rover {
    /// Sees to it that it runs.
    pub(super) fn start(&self, pool: &Arc<Pool>) {
        if self.runs.load(Ordering::Relaxed) {
            return;
        }
        // A call whose connection is there needs no runtime, so there may be none.
        let Ok(runtime) = Handle::try_current() else { return };
        if self.runs.swap(true, Ordering::Relaxed) {
            return;
        }
        let task = AbortOnDropHandle::new(runtime.spawn(rove(Running(Arc::downgrade(pool)))));
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }
}

/// Says when the task is gone, also with its runtime, so that the next call starts another one.
struct Running(Weak<Pool>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.rover.runs.store(false, Ordering::Relaxed);
        }
    }
}

/// Every interval: connects to an endpoint that has no connection, else asks one that has said nothing for as long.
async fn rove(running: Running) {
    let (mut pace, mut interval) = (Pace::new(Duration::ZERO, Duration::ZERO), Duration::ZERO);
    let (mut known, mut ask_at) = (Vec::new(), Instant::now());
    loop {
        let Some(pool) = running.0.upgrade() else { return };
        let wanted = pool.identity.roving().unwrap_or_default().max(SHORTEST);
        if interval != wanted {
            (pace, interval) = (Pace::new(wanted, wanted.saturating_mul(LONGEST)), wanted);
        }
        drop(pool);
        let pause = pace.steady();
        sleep(pause).await;
        let Some(pool) = running.0.upgrade().filter(|pool| pool.unused() <= UNUSED) else { return };
        let mut used = pool.seats();
        used.retain(|(state, _)| state.used);
        if used.len() < 2 {
            // There is nothing to be chosen.
            continue;
        }
        let list: Vec<_> = used.iter().map(|(_, target)| Arc::as_ptr(target).addr()).collect();
        let lost: Vec<_> = used.iter().filter(|(_, target)| target.connected().is_none()).collect();
        let now = Instant::now();
        if list != known || !lost.is_empty() {
            pace.quicken();
            (known, ask_at) = (list, now);
        }
        if let Some((_, target)) = fastrand::choice(lost) {
            target.begin_connecting(&pool.identity);
        } else if ask_at <= now + pause / 2 {
            ask(&used, interval);
            if are_alike(&used) {
                pace.nothing_better(used.len())
            } else {
                pace.quicken()
            }
            ask_at = now + pace.pause();
        }
    }
}

/// Asks one at random of those that have said nothing for this long.
fn ask(used: &[(EndpointState, Arc<Target>)], interval: Duration) {
    let now = Instant::now().into_std();
    let is_silent = |target: &&Arc<Target>| target.member().last_report(now).is_none_or(|(_, age)| age >= interval);
    let silent: Vec<_> = used.iter().map(|(_, target)| target).filter(is_silent).collect();
    if let Some(link) = fastrand::choice(silent).and_then(|target| target.connected()) {
        link.ask_load();
    }
}

/// Whether all that they said last is about the same.
fn are_alike(used: &[(EndpointState, Arc<Target>)]) -> bool {
    let now = Instant::now().into_std();
    let loads = || used.iter().filter_map(|(_, target)| Some(target.member().last_report(now)?.0));
    loads().fold(0.0, f64::max) - loads().fold(f64::INFINITY, f64::min) <= ALIKE
}
