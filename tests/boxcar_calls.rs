//! Calls that are balanced by what servers say of themselves, also where no calls go.
//!
//! Owns no state: each test has its own servers on loopback, and time that passes only while everybody waits. Look next at
//! `boxcar_balance.rs` for the same with connections of any application.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use picom::balance::{Boxcar, Circuit, EndpointState, PeakEwma};
use picom::registry::{Fixed, Memory};
use picom::{Concurrency, Context, Methods, Picom, Status};
use support::PATIENCE;
use support::nodes::{SERVICE, builder};
use support::peer::{HELLO, Hello, PING, PONG, Scripted, frame};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// How long a server works on a call, and how long a caller waits between two.
const WORK: Duration = Duration::from_millis(50);
const CLIENTS: usize = 20;
/// Of each client.
const CALLERS: usize = 2;

/// Dropping it kills it, and all of its connections.
struct Server {
    _node: Picom,
    addr: SocketAddr,
    calls: Arc<AtomicUsize>,
    /// One permit for each call of `wait` that may end.
    may_end: Arc<Semaphore>,
}

impl Server {
    /// On this port; 0 is any.
    async fn start(port: u16) -> Self {
        let (calls, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let methods = || {
            let (counted, waits) = (Arc::clone(&calls), Arc::clone(&may_end));
            Methods::new()
            .unary("work", move |_cx: Context, (): ()| {
                counted.fetch_add(1, Ordering::Relaxed);
                async move {
                    sleep(WORK).await;
                    Ok::<_, Status>(())
                }
            })
            .idempotent()
            .unary("wait", move |_cx: Context, (): ()| {
                let waits = Arc::clone(&waits);
                async move {
                    waits.acquire().await.map(|permit| permit.forget()).map_err(|_| Status::internal("gone"))
                }
            })
        };
        // The one before lets go of its port when its task ends.
        let exposed = async {
            loop {
                // So that a few calls are a load worth hearing of.
                let node = builder(SERVICE, &Memory::new()).port(port).concurrency(Concurrency::Fixed(40));
                let node = node.build().unwrap();
                match node.expose(methods()).await {
                    Ok(exposed) => return (exposed.local_addr(), node),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let (addr, _node) = timeout(PATIENCE, exposed).await.expect("the port becomes free");
        Self { _node, addr, calls, may_end }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

/// A list that says nothing of whether anybody is there, so that each client has to find out by itself.
fn fixed(servers: &[&Server]) -> Fixed {
    Fixed::new([(SERVICE, servers.iter().map(|server| server.addr.to_string()).collect::<Vec<_>>())])
}

fn client(servers: &[&Server]) -> Picom {
    Picom::builder("caller").registry(fixed(servers)).balance(Boxcar::new()).build().unwrap()
}

async fn work(client: Picom) {
    loop {
        // What fails while a server dies is not what is measured here.
        let _ = client.fetch::<()>(SERVICE, "work", ()).await;
        sleep(WORK.mul_f64(2.0 * fastrand::f64())).await;
    }
}

fn max_over_mean(load: [usize; 3]) -> f64 {
    let (max, sum) = (load.iter().max().unwrap(), load.iter().sum::<usize>());
    (max * load.len()) as f64 / sum.max(1) as f64
}

/// The calls that each server gets in this time.
async fn load(servers: [&Server; 3], time: Duration) -> [usize; 3] {
    let before = servers.map(Server::calls);
    sleep(time).await;
    let after = servers.map(Server::calls);
    [0, 1, 2].map(|n| after[n] - before[n])
}

#[tokio::test(start_paused = true)]
async fn three_servers_share_twenty_clients_and_one_that_comes_back_has_its_share_within_five_seconds() {
    let (a, b, mut c) = (Server::start(0).await, Server::start(0).await, Server::start(0).await);
    let mut workers = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = client(&[&a, &b, &c]);
        (0..CALLERS).for_each(|_| _ = workers.spawn(work(client.clone())));
    }
    sleep(Duration::from_secs(5)).await;
    let even = load([&a, &b, &c], Duration::from_secs(3)).await;
    println!("3 servers and {CLIENTS} clients: {even:?} calls in 3 s, max/mean {:.3}", max_over_mean(even));
    assert!(max_over_mean(even) <= 1.15, "{even:?}");

    for away in [Duration::ZERO, Duration::from_secs(40)] {
        let port = c.addr.port();
        drop(c);
        sleep(away).await;
        c = Server::start(port).await;
        let back = Instant::now();
        let (mut took, mut course) = (None, Vec::new());
        while back.elapsed() < Duration::from_secs(7) {
            let load = load([&a, &b, &c], Duration::from_secs(1)).await;
            course.push(format!("{:.0} %", 100.0 * load[2] as f64 / load.iter().sum::<usize>() as f64));
            if max_over_mean(load) > 1.15 {
                took = None;
            } else if took.is_none() {
                took = Some(back.elapsed());
            }
        }
        println!(
            "away for {away:?}: it has its share in the second that ends after {took:?}; second by second {course:?}"
        );
        assert!(
            took.is_some_and(|took| took <= Duration::from_secs(5)),
            "away for {away:?}, its share is, second by second: {course:?}"
        );
    }
}

fn state(client: &Picom, server: SocketAddr) -> EndpointState {
    let states = client.channel(SERVICE).endpoints();
    states.into_iter().find(|state| state.endpoint.addr == server).expect("it is listed")
}

#[tokio::test(start_paused = true)]
async fn a_rover_asks_where_no_calls_go_and_hears_of_what_others_do_there() {
    let (a, b) = (Server::start(0).await, Server::start(0).await);
    let boxcar = client(&[&a, &b]);
    let plain = Picom::builder("caller").registry(fixed(&[&a, &b])).balance(PeakEwma).build().unwrap();
    for client in [&boxcar, &plain] {
        client.fetch::<()>(SERVICE, "work", ()).await.unwrap();
    }
    let other = Picom::builder("other").registry(fixed(&[&a, &b])).build().unwrap();
    let mut held = JoinSet::new();
    (0..20).for_each(|_| _ = held.spawn(other.fetch::<()>(SERVICE, "wait", ()).on(b.addr).into_future()));

    let (mut heard, before) = (0.0, b.calls());
    for _ in 0..50 {
        for client in [&boxcar, &plain] {
            client.fetch::<()>(SERVICE, "work", ()).on(a.addr).await.unwrap();
        }
        sleep(Duration::from_millis(100)).await;
        heard = f64::max(heard, state(&boxcar, b.addr).reported.unwrap_or_default());
    }
    println!("of the one that it never called it heard a load of {heard:.2}");
    assert!((0.4..=0.5).contains(&heard), "20 of 40 places are taken there, and it heard {heard}");
    assert_eq!(state(&plain, b.addr).reported, None, "nobody asked for it");
    assert_eq!(b.calls(), before, "these calls went to the other one");
    b.may_end.add_permits(20);
    assert!(held.join_all().await.iter().all(Result::is_ok));
}

/// Counts what a rover asks a peer that answers everything at once, with this load.
async fn scripted(slot: u8) -> (Scripted, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let peer = Scripted::start(move |mut peer, _| {
        let asked = Arc::clone(&counted);
        async move {
            peer.greet(&Hello::server(SERVICE)).await;
            while let Some(ask) = peer.frame().await {
                match ask.kind {
                    PING => {
                        asked.fetch_add(1, Ordering::Relaxed);
                        let load = [&[0, slot, 0, 100][..], &ask.payload].concat();
                        peer.send(&frame(PONG, 0x40, 0, &load)).await;
                    }
                    HELLO => {}
                    _ => peer.answer(ask.stream, &[0xc0]).await,
                }
            }
        }
    })
    .await;
    (peer, asked)
}

#[tokio::test(start_paused = true)]
async fn a_rover_asks_no_more_than_a_hundred_times_a_second() {
    let peers = [scripted(10).await, scripted(90).await];
    let registry = Fixed::new([(SERVICE, peers.each_ref().map(|(peer, _)| peer.addr.to_string()))]);
    let policy = Boxcar::new().interval(Duration::ZERO);
    let client = Picom::builder("caller").registry(registry).balance(policy).build().unwrap();
    for _ in 0..10 {
        client.fetch::<()>(SERVICE, "work", ()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    let asked: usize = peers.iter().map(|(_, asked)| asked.load(Ordering::Relaxed)).sum();
    println!("asked {asked} times in ten seconds");
    // The pause is 10 % more or less, and timers count in milliseconds.
    assert!((800..=1_100).contains(&asked), "asked {asked} times in ten seconds");
    assert!(peers.iter().all(|(peer, _)| peer.accepted() == 1), "no connection was lost for it");
}

#[tokio::test(start_paused = true)]
async fn a_rover_asks_less_when_all_are_equal_and_not_at_all_when_nobody_calls() {
    for (loads, bounds) in [([10, 12, 11], 55..=170), ([10, 60, 10], 500..=700)] {
        let mut peers = Vec::new();
        for load in loads {
            peers.push(scripted(load).await);
        }
        let registry = Fixed::new([(SERVICE, peers.iter().map(|(peer, _)| peer.addr.to_string()).collect::<Vec<_>>())]);
        let client = Picom::builder("caller").registry(registry).balance(Boxcar::new()).build().unwrap();
        let asked = || peers.iter().map(|(_, asked)| asked.load(Ordering::Relaxed)).sum::<usize>();
        client.fetch::<()>(SERVICE, "work", ()).await.unwrap();
        let first = peers[0].0.addr;
        for _ in 0..600 {
            client.fetch::<()>(SERVICE, "work", ()).on(first).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        println!("loads of {loads:?} of 100: asked {} times in ten minutes", asked());
        assert!(bounds.contains(&asked()), "loads of {loads:?} of 100: asked {} times in ten minutes", asked());
        let known = client.channel(SERVICE).endpoints();
        assert!(known.iter().all(|state| state.circuit == Circuit::Closed && state.reported.is_some()), "{known:?}");

        // Half a minute later it rests. What is still sent is keepalive, every 15 s.
        sleep(Duration::from_secs(40)).await;
        let before = asked();
        sleep(Duration::from_secs(150)).await;
        let later = asked() - before;
        assert!(later <= 3 * 10, "{later} questions in 150 s in which nobody called");
    }
}
