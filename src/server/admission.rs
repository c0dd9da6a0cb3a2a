//! Who may run, who waits a moment, and who is told to go elsewhere.
//!
//! Owns the count of running calls, the short queue in front of it and the limit that both obey. It must never start a handler
//! or read a body. Look next at [`super::limit`] for the arithmetic and at [`super::dispatch`], which asks.
//!
//! The queue is served oldest first, and is only as long as can be served in time. Newest first, the other school, lets the
//! oldest wait until they are dropped, so that their callers lose the time in which another host would have answered.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Shared;
use super::limit::{Gradient, INTERVAL, LATE, Lateness, Measured, START};
use crate::options::Concurrency;
use crate::proto::Gauge;

/// How long a call waits for its turn, or for its task to begin, at most. For its turn never longer than half of its time: what is left
/// must do for the work.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// How long a call would wait at most while calls are being refused: then the queue is no buffer for a burst any more, only a
/// delay for everybody. Both numbers are those of CoDel as Facebook uses it for requests ("Fail at Scale", 2015).
const STANDING_WAIT: Duration = Duration::from_millis(5);
/// For how long after a refusal the queue stays that short.
const STANDING: Duration = Duration::from_secs(1);
/// Most calls that wait, however quickly they are served.
const MAX_WAITING: usize = 1024;
/// When a refused call may come back here, as far as there is no other host; half of it more or less at random.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Fewest measurements that decide anything: one alone may be a moment's pause of the whole process.
const MEASUREMENTS: usize = 2;
/// How many calls must need a task before it is measured how late tasks run: fewer cannot make them as late as counts…
const PROBED_FROM: usize = 8;
/// … and how often that is then measured; half of it more or less at random, so that it does not keep step with the work.
const PROBE: Duration = Duration::from_millis(10);
/// With more calls than this the measuring task waits for another turn among those that are ready. A task that a timer wakes goes before
/// them, so it is only as late as the timer is looked at, every 61 tasks, which is prompt where each of a thousand takes 0.2 ms.
const MANY: usize = 2 * 61;

/// Decides who runs.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) gauge: Arc<Gauge>,
    ceiling: usize,
    mode: Concurrency,
    /// Calls that ended while the server was full: how quickly it serves then.
    served: AtomicU32,
    /// Whether there was no place for a call since that was last asked.
    crowded: AtomicBool,
    probing: AtomicBool,
    queue: Mutex<Queue>,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<oneshot::Sender<Running>>,
    /// Since when `served` counts, and how many a second there were in the interval before.
    counted_from: Instant,
    rate: Option<f64>,
    /// Until when the queue is kept short.
    standing_until: Option<Instant>,
}

/// How long calls took, where the limit follows that.
#[derive(Debug)]
struct Times {
    gradient: Gradient,
    since: Instant,
    sum: f64,
    count: u32,
    /// Most calls that ran at once.
    most: usize,
}

/// One of the calls that a server runs at this moment.
#[derive(Debug)]
pub(super) struct Running {
    shared: Arc<Shared>,
    /// When it began, where that is measured.
    began: Option<Instant>,
}

/// What becomes of a call.
pub(super) enum Entry {
    Now(Running),
    /// When a place is free, or never, at this moment.
    Later(oneshot::Receiver<Running>, Instant),
    /// It shall go elsewhere.
    Full(Refused),
}

/// Since when a call waits that might have been one too many.
#[derive(Clone, Copy)]
pub(super) struct Doubt(Instant);

/// Why a call is refused, and when it may come back.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) text: String,
    pub(super) retry_after: Duration,
}

impl Refused {
    pub(super) fn new(text: String) -> Self {
        Self { text, retry_after: RETRY_AFTER.mul_f64(0.5 + fastrand::f64()) }
    }
}

impl Admission {
    pub(super) fn new(mode: Concurrency, ceiling: usize) -> Self {
        let limit = match mode {
            Concurrency::Adaptive | Concurrency::Unlimited => ceiling,
            Concurrency::Gradient => START.min(ceiling),
            Concurrency::Fixed(limit) => limit.min(ceiling),
        };
        let now = Instant::now();
        Self {
            gauge: Arc::new(Gauge::new(limit)),
            ceiling,
            mode,
            served: AtomicU32::new(0),
            crowded: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            queue: Mutex::new(Queue { waiting: VecDeque::new(), counted_from: now, rate: None, standing_until: None }),
            times: Mutex::new(Times { gradient: Gradient::new(now), since: now, sum: 0.0, count: 0, most: 0 }),
        }
    }

    /// Lets a call run now, if nobody waits and there is a place.
    pub(super) fn enter_now(shared: &Arc<Shared>) -> Option<Running> {
        let admission = &shared.admission;
        (admission.gauge.waiting.load(Ordering::Relaxed) == 0 && admission.take_place())
            .then(|| Running { shared: Arc::clone(shared), began: None })
    }

    /// Decides about a call for which there was no place at once, and whose deadline is this one.
    pub(super) fn enter(shared: &Arc<Shared>, deadline: Option<Instant>) -> Entry {
        let admission = &shared.admission;
        let now = Instant::now();
        // Declared first, so that what is given back is given back after the lock.
        let mut given_back = Vec::new();
        let mut queue = admission.lock();
        admission.hand_on(shared, &mut queue, &mut given_back);
        if queue.waiting.is_empty() && admission.take_place() {
            return Entry::Now(Running { shared: Arc::clone(shared), began: None });
        }
        admission.crowded.store(true, Ordering::Relaxed);
        let limit = match admission.mode {
            // It may be new, and little beside what ran until now.
            Concurrency::Adaptive => admission.gauge.limit.load(Ordering::Relaxed).max(PROBED_FROM),
            _ => admission.gauge.limit.load(Ordering::Relaxed),
        };
        let standing = queue.standing_until.is_some_and(|until| now < until);
        // The tasks that run are a queue for the processors already.
        let full = (standing && admission.spares_processors())
            || queue.waiting.len()
                >= queue.room(now, if standing { STANDING_WAIT } else { MAX_WAIT }, limit, &admission.served);
        if full {
            queue.standing_until = Some(now + STANDING);
            return Entry::Full(Refused::new(admission.full()));
        }
        let (sender, receiver) = oneshot::channel();
        queue.waiting.push_back(sender);
        admission.gauge.waiting.store(queue.waiting.len(), Ordering::SeqCst);
        // Whoever ended since there was no place may not have seen that somebody waits.
        admission.hand_on(shared, &mut queue, &mut given_back);
        // What is served many at a time, such as by a database, comes late for some of those who were let in for a short wait, which is
        // better than not at all.
        let wait = deadline.map_or(MAX_WAIT, |deadline| (deadline.saturating_duration_since(now) / 2).min(MAX_WAIT));
        Entry::Later(receiver, now + wait)
    }

    /// Whether another call would have to wait or go elsewhere.
    pub(super) fn is_full(&self) -> bool {
        self.gauge.running.load(Ordering::Relaxed) >= self.gauge.limit.load(Ordering::Relaxed)
    }

    /// Whether it is for the sake of the processors that calls wait.
    pub(super) fn spares_processors(&self) -> bool {
        self.mode == Concurrency::Adaptive
    }

    /// Whether there is a limit because tasks were late.
    fn is_known(&self) -> bool {
        self.spares_processors() && self.gauge.limit.load(Ordering::Relaxed) < self.ceiling
    }

    /// For a call whose task is spawned now: it may be that too many are, and that nobody knows yet.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        (self.spares_processors() && !self.is_known()).then(|| Doubt(Instant::now()))
    }

    /// Whether a call that has not begun yet is better off elsewhere. The tasks that are ready are a queue too, which is long by the time
    /// that overload is noticed; as in CoDel, whoever comes to its end too late is dropped.
    pub(super) fn was_right(&self, Doubt(since): Doubt) -> bool {
        self.is_known() && since.elapsed() > MAX_WAIT
    }

    /// Refuses a call that has waited in vain.
    pub(super) fn in_vain(&self) -> Refused {
        if self.spares_processors() {
            self.lock().standing_until = Some(Instant::now() + STANDING);
        }
        Refused::new(self.full())
    }

    /// Why nobody is let in.
    fn full(&self) -> String {
        format!(
            "the server has its limit of {} running calls (`concurrency`)",
            self.gauge.limit.load(Ordering::Relaxed)
        )
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_place(&self) -> bool {
        let gauge = &self.gauge;
        let before = gauge.running.fetch_add(1, Ordering::SeqCst);
        if before < gauge.limit.load(Ordering::Relaxed) {
            return true;
        }
        gauge.running.fetch_sub(1, Ordering::SeqCst);
        false
    }

    /// Gives free places to those who wait, if there are any of both.
    fn look_who_waits(&self, shared: &Arc<Shared>) {
        if self.gauge.waiting.load(Ordering::SeqCst) > 0 {
            let mut given_back = Vec::new();
            self.hand_on(shared, &mut self.lock(), &mut given_back);
        }
    }

    /// Gives free places to those who wait, the oldest first. Whoever has given up waiting is forgotten; a place that came too
    /// late is put into `given_back`, to be dropped without the lock.
    fn hand_on(&self, shared: &Arc<Shared>, queue: &mut Queue, given_back: &mut Vec<Running>) {
        while let Some(first) = queue.waiting.front() {
            if first.is_closed() {
                queue.waiting.pop_front();
                continue;
            }
            if !self.take_place() {
                break;
            }
            if let Some(first) = queue.waiting.pop_front() {
                let running = Running { shared: Arc::clone(shared), began: None };
                given_back.extend(first.send(running).err());
            }
        }
        self.gauge.waiting.store(queue.waiting.len(), Ordering::SeqCst);
    }

    /// Counts a call's end.
    fn left(&self, shared: &Arc<Shared>) {
        let gauge = &self.gauge;
        let before = gauge.running.fetch_sub(1, Ordering::SeqCst);
        if before >= gauge.limit.load(Ordering::Relaxed) {
            self.served.fetch_add(1, Ordering::Relaxed);
        }
        self.look_who_waits(shared);
    }

    /// Notes how long a call took.
    fn took(&self, shared: &Arc<Shared>, began: Instant) {
        let now = Instant::now();
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.sum += now.saturating_duration_since(began).as_secs_f64();
        times.count += 1;
        times.most = times.most.max(self.gauge.running.load(Ordering::Relaxed));
        if now.saturating_duration_since(times.since) < INTERVAL {
            return;
        }
        let mean = times.sum / f64::from(times.count);
        times.since = now;
        times.sum = 0.0;
        times.count = 0;
        let most = std::mem::take(&mut times.most);
        let limit = times.gradient.next(mean, most, now, self.ceiling);
        drop(times);
        self.allow(shared, limit);
    }

    /// Sets the limit; what waits may run if there is room now.
    fn allow(&self, shared: &Arc<Shared>, limit: usize) {
        let before = self.gauge.limit.swap(limit, Ordering::Relaxed);
        if before != limit {
            tracing::debug!(service = %shared.service, before, limit, "another number of calls may run at once");
        }
        self.look_who_waits(shared);
    }

    /// Watches how late tasks run, as long as calls do.
    async fn probe(shared: Arc<Shared>) {
        let admission = &shared.admission;
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let mut limit = Lateness::new(workers, admission.ceiling);
        loop {
            let (mut lateness, mut full, mut most, mut began) = (Vec::new(), 0, 0, Instant::now());
            // A moment's pause of the whole process, or a jump of the clock, is one measurement; overload is all of them.
            while began.elapsed() < INTERVAL || lateness.len() < MEASUREMENTS {
                let due = Instant::now() + PROBE.mul_f64(0.5 + fastrand::f64());
                tokio::time::sleep_until(due).await;
                if admission.gauge.running.load(Ordering::Relaxed) > MANY {
                    tokio::task::yield_now().await;
                }
                let late = due.elapsed();
                if late > LATE && limit.is_whole() && lateness.iter().any(|before| *before <= LATE) {
                    // Overload begins with this one, not with the interval.
                    (lateness, full, most, began) = (Vec::new(), 0, 0, due);
                }
                lateness.push(late);
                full += usize::from(admission.crowded.swap(false, Ordering::Relaxed));
                most = most.max(admission.gauge.running.load(Ordering::Relaxed));
            }
            lateness.sort_unstable();
            let (least, typical) = (lateness[0], lateness[lateness.len() / 2]);
            let full = 2 * full > lateness.len();
            let next = limit.next(Measured { least, typical, full, most }, Instant::now());
            tracing::trace!(?least, ?typical, full, most, next, "how late tasks run");
            admission.allow(&shared, next);
            shared.io_threads.want(next < admission.ceiling);
            if most < PROBED_FROM && next == admission.ceiling {
                admission.probing.store(false, Ordering::Relaxed);
                return;
            }
        }
    }
}

impl Queue {
    /// How many calls may wait: those whose turn comes in time.
    fn room(&mut self, now: Instant, wait: Duration, limit: usize, served: &AtomicU32) -> usize {
        let counted = now.saturating_duration_since(self.counted_from);
        if counted >= INTERVAL {
            let served = f64::from(served.swap(0, Ordering::Relaxed));
            // What is long past says nothing, nor does a time in which nobody had to wait.
            self.rate = (counted < INTERVAL * 2 && served > 0.0).then(|| served / counted.as_secs_f64());
            self.counted_from = now;
        }
        // As long as nothing is known of the pace, everybody who runs may have one behind him.
        let room = self.rate.map_or(limit, |rate| (rate * wait.as_secs_f64()).ceil() as usize);
        room.min(MAX_WAITING)
    }
}

impl Running {
    /// Notes that the call needs a task: from here on it counts for what is measured.
    pub(super) fn goes_on(&mut self) {
        let admission = &self.shared.admission;
        match admission.mode {
            Concurrency::Gradient => self.began = Some(Instant::now()),
            Concurrency::Adaptive if admission.gauge.running.load(Ordering::Relaxed) >= PROBED_FROM => {
                if !admission.probing.load(Ordering::Relaxed) && !admission.probing.swap(true, Ordering::Relaxed) {
                    self.shared.io_threads.home().spawn(Admission::probe(Arc::clone(&self.shared)));
                }
            }
            Concurrency::Adaptive | Concurrency::Fixed(_) | Concurrency::Unlimited => {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let admission = &self.shared.admission;
        if let Some(began) = self.began {
            admission.took(&self.shared, began);
        }
        admission.left(&self.shared);
    }
}
