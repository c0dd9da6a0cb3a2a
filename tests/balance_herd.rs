//! A server that comes back, or that is faster than all others, meets many clients who know nothing of each other.
//!
//! Owns only tests, with whole nodes in virtual time. `cargo test --test balance_herd -- --nocapture` prints the figures. Look next at
//! `balance.rs` for one client, and at `src/balance/tests/` for what policies promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use picom::balance::{Balancer, PeakEwma, RoundRobin};
use picom::registry::Memory;
use picom::{Context, Methods, Picom, Status};
use support::nodes::SERVICE;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const CLIENTS: usize = 50;
const INSTANCES: usize = 10;
/// Calls of one client in a second, at random times.
const RATE: f64 = 20.0;
/// How long a call takes.
const TAKES: Duration = Duration::from_millis(10);
/// Seconds that are looked at, one by one: those of the slow start and some more.
const SECONDS: usize = 12;

/// Which instance was called, and when.
type Log = Arc<Mutex<Vec<(usize, Instant)>>>;

/// A service of ten instances and many clients.
struct Crowd {
    registry: Memory,
    log: Log,
    instances: Vec<Picom>,
    clients: Vec<Picom>,
}

impl Crowd {
    async fn start(policy: &Arc<dyn Balancer>, instances: usize) -> Self {
        fastrand::seed(7);
        let registry = Memory::new();
        let client =
            || Picom::builder("caller").registry(registry.clone()).balance(Arc::clone(policy)).build().unwrap();
        let clients = (0..CLIENTS).map(|_| client()).collect();
        let mut crowd = Self { registry, log: Log::default(), instances: Vec::new(), clients };
        for number in 0..instances {
            let node = crowd.instance(number, TAKES).await;
            crowd.instances.push(node);
        }
        // Those that a client finds with its first call are not new to it.
        crowd.calls(3 * SECOND).await;
        crowd
    }

    /// One that takes so long for a call.
    async fn instance(&self, number: usize, takes: Duration) -> Picom {
        let log = Arc::clone(&self.log);
        let methods = Methods::new().unary("work", move |_cx: Context, (): ()| {
            log.lock().unwrap().push((number, Instant::now()));
            async move {
                sleep(takes).await;
                Ok::<_, Status>(7u64)
            }
        });
        let node = Picom::builder(SERVICE).registry(self.registry.clone()).in_memory().build().unwrap();
        node.expose(methods).await.unwrap();
        node
    }

    /// Every client calls for so long, whatever becomes of its calls.
    async fn calls(&self, time: Duration) {
        let until = Instant::now() + time;
        let callers = self.clients.iter().map(|client| async move {
            let mut made = JoinSet::new();
            loop {
                sleep(Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / RATE)).await;
                if Instant::now() >= until {
                    break;
                }
                made.spawn(client.fetch::<u64>(SERVICE, "work", ()).into_future());
            }
            made.join_all().await.into_iter().for_each(|answer| assert_eq!(answer.unwrap(), 7));
        });
        join_all(callers).await;
    }

    /// The calls that an instance got in each second from then on, in times of its fair share.
    fn loads(&self, number: usize, since: Instant) -> Vec<f64> {
        let (mut all, mut own) = ([0; SECONDS], [0; SECONDS]);
        for (instance, at) in self.log.lock().unwrap().iter().filter(|(_, at)| *at >= since) {
            let second = (*at - since).as_secs() as usize;
            if second < SECONDS {
                all[second] += 1;
                own[second] += usize::from(*instance == number);
            }
        }
        all.iter().zip(own).map(|(all, own)| (own * INSTANCES) as f64 / f64::from(*all)).collect()
    }
}

fn policies() -> [Arc<dyn Balancer>; 2] {
    [Arc::new(PeakEwma), Arc::new(RoundRobin)]
}

fn most(loads: &[f64]) -> f64 {
    loads.iter().copied().fold(0.0, f64::max)
}

#[tokio::test(start_paused = true)]
async fn one_of_ten_that_was_restarted_is_not_overrun_by_fifty_clients() {
    for policy in policies() {
        let mut crowd = Crowd::start(&policy, INSTANCES).await;
        let old = crowd.instances.remove(0);
        let returns = async {
            sleep(SECOND).await;
            old.end().await.unwrap();
            sleep(SECOND).await;
            let node = crowd.instance(0, TAKES).await;
            (Instant::now(), node)
        };
        let ((since, _node), ()) = tokio::join!(returns, crowd.calls((SECONDS as u32 + 4) * SECOND));
        let loads = crowd.loads(0, since);
        println!("{policy:?}: a restarted one in its first {SECONDS} s, in times of its fair share: {loads:.2?}");
        assert!(loads[0] < 0.5, "{policy:?} forgets the slow start: {loads:.2?}");
        assert!(most(&loads) <= 2.0, "{policy:?} overruns it: {loads:.2?}");
        assert!(loads[SECONDS - 1] > 0.5, "{policy:?} does not use it: {loads:.2?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_ten_that_is_ten_times_faster_draws_nobody_but_those_who_draw_it() {
    for policy in policies() {
        let crowd = Crowd::start(&policy, INSTANCES - 1).await;
        let joins = async {
            sleep(SECOND).await;
            let node = crowd.instance(INSTANCES - 1, TAKES / 10).await;
            (Instant::now(), node)
        };
        let ((since, _node), ()) = tokio::join!(joins, crowd.calls((SECONDS as u32 + 2) * SECOND));
        let loads = crowd.loads(INSTANCES - 1, since);
        println!("{policy:?}: a fast one in its first {SECONDS} s, in times of its fair share: {loads:.2?}");
        // Of two that are drawn it is always the better one: that is twice its share, and more only by chance.
        let chance = 0.3;
        assert!(most(&loads[..5]) <= 2.0, "{policy:?} overruns it at once: {loads:.2?}");
        assert!(most(&loads) <= 2.0 + chance, "{policy:?} overruns it: {loads:.2?}");
    }
}
