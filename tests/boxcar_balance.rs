//! Clients share servers out among themselves, by the numbers of their connections alone.
//!
//! Owns no state: each test has its own servers on loopback. Intervals are 20 ms instead of 1 s, and at most 160 ms instead of 8 s,
//! so that a test takes seconds; what counts is how many of them pass.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use picom::boxcar::{Boxcar, Event, Listener, Pool, Rover};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// How long a test waits for what must happen. Long, because a passing test never waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(20);
const MAX_INTERVAL: Duration = Duration::from_millis(160);
/// Connections of each client.
const SLOTS: usize = 6;
/// How long a server takes for one answer.
const WORK: Duration = Duration::from_millis(10);

/// A server that answers each byte with itself. Dropping it kills it, and all of its connections.
struct Server {
    id: &'static str,
    addr: SocketAddr,
    counts: Arc<Counts>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Counts {
    visits: AtomicUsize,
    answers: AtomicUsize,
}

impl Server {
    async fn start(id: &'static str) -> Self {
        Self::with(id, Listener::bind("127.0.0.1:0").await.unwrap())
    }

    fn with(id: &'static str, mut listener: Listener) -> Self {
        let (addr, counts) = (listener.local_addr().unwrap(), Arc::new(Counts::default()));
        let shared = Arc::clone(&counts);
        let task = async move {
            let mut connections = JoinSet::new();
            while let Some(mut connection) = listener.accept().await {
                shared.visits.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    while let Ok(byte) = connection.read_u8().await {
                        sleep(WORK).await;
                        shared.answers.fetch_add(1, Ordering::Relaxed);
                        if connection.write_u8(byte).await.is_err() {
                            break;
                        }
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        };
        Self { id, addr, counts, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// On the same port.
    async fn restart(self) -> Self {
        let (id, addr) = (self.id, self.addr);
        drop(self);
        // The one before lets go of its port when its task ends.
        let listener = async {
            loop {
                match Listener::bind(addr).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        Self::with(id, timeout(PATIENCE, listener).await.expect("the port becomes free"))
    }

    fn visits(&self) -> usize {
        self.counts.visits.load(Ordering::Relaxed)
    }

    fn answers(&self) -> usize {
        self.counts.answers.load(Ordering::Relaxed)
    }
}

fn client(servers: &[&Server]) -> Arc<Boxcar> {
    client_with(Rover::new().interval(INTERVAL).max_interval(MAX_INTERVAL), servers)
}

fn client_with(rover: Rover, servers: &[&Server]) -> Arc<Boxcar> {
    let boxcar = Boxcar::new(rover, Pool::new(SLOTS));
    for server in servers {
        assert!(boxcar.add_server(server.id, &server.addr.to_string()));
    }
    boxcar.start();
    Arc::new(boxcar)
}

/// Works with a connection at a time until it is dropped.
async fn work(boxcar: Arc<Boxcar>) {
    loop {
        let Ok(mut connection) = boxcar.lease(PATIENCE).await else { continue };
        if connection.write_u8(1).await.is_err() || connection.read_u8().await.is_err() {
            connection.discard();
        }
    }
}

/// How many connections each server has, by all clients.
fn held(clients: &[Arc<Boxcar>]) -> BTreeMap<Arc<str>, usize> {
    let mut held = BTreeMap::new();
    for (id, count) in clients.iter().flat_map(|client| client.pool().holds()) {
        *held.entry(id).or_default() += count;
    }
    held
}

fn max_over_mean(load: &[usize]) -> f64 {
    let (max, sum) = (*load.iter().max().unwrap(), load.iter().sum::<usize>());
    (max * load.len()) as f64 / sum.max(1) as f64
}

/// Waits until the connections are spread like this; returns how long it took.
async fn until_held(
    clients: &[Arc<Boxcar>],
    what: &str,
    fits: impl Fn(&BTreeMap<Arc<str>, usize>) -> bool,
) -> Duration {
    let start = Instant::now();
    while !fits(&held(clients)) {
        assert!(start.elapsed() < PATIENCE, "{what} never came: {:?}", held(clients));
        sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// All connections that clients may have are there, and spread over so many servers at most this unevenly.
fn even(clients: usize, servers: usize, limit: f64) -> impl Fn(&BTreeMap<Arc<str>, usize>) -> bool {
    move |held| {
        let load: Vec<usize> = held.values().copied().collect();
        load.len() == servers && load.iter().sum::<usize>() == clients * SLOTS && max_over_mean(&load) <= limit
    }
}

#[tokio::test]
async fn three_servers_share_twenty_clients_and_a_restarted_one_gets_its_share() {
    let (a, b, c) = (Server::start("a").await, Server::start("b").await, Server::start("c").await);
    let clients: Vec<_> = (0..20).map(|_| client(&[&a, &b, &c])).collect();
    let mut workers = JoinSet::new();
    for client in &clients {
        (0..SLOTS).for_each(|_| _ = workers.spawn(work(Arc::clone(client))));
    }
    let took = until_held(&clients, "balance", even(20, 3, 1.05)).await;
    println!("120 connections are balanced after {took:?}: {:?}", held(&clients));

    let load = |servers: [&Server; 3]| servers.map(Server::answers);
    let before = load([&a, &b, &c]);
    sleep(Duration::from_secs(1)).await;
    let after = load([&a, &b, &c]);
    let answers: Vec<usize> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    println!("answers in a second: {answers:?}, max/mean {:.3}", max_over_mean(&answers));
    assert!(max_over_mean(&answers) <= 1.15, "{answers:?}");

    // Away for long enough that the others have taken all, and nobody asks often.
    let addr = c.addr;
    drop(c);
    until_held(&clients, "doing without it", even(20, 2, 1.05)).await;
    sleep(MAX_INTERVAL * 8).await;
    let c = Server::with("c", Listener::bind(addr).await.unwrap());
    let took = until_held(&clients, "its share", even(20, 3, 1.15)).await;
    println!("the restarted server has its share after {took:?}: {:?}", held(&clients));
    assert!(took <= Duration::from_secs(5), "{took:?}");

    // At once, too.
    let c = c.restart().await;
    // What its clients had of the one before may still be counted at first, but they have not been here.
    let (is_even, is_here) = (even(20, 3, 1.15), || c.visits() >= SLOTS * 20 / 4);
    let took = until_held(&clients, "its share", |held| is_here() && is_even(held)).await;
    println!("restarted at once, after {took:?}: {:?}", held(&clients));
    assert!(took <= Duration::from_secs(5), "{took:?}");
    assert!(c.answers() > 0);
}

#[tokio::test]
async fn a_server_that_counts_double_gets_half_the_load() {
    let even_numbers = Arc::new(std::sync::Mutex::new(picom::boxcar::Slots::new(1_000)));
    let back = Arc::clone(&even_numbers);
    let heavy = Listener::bind("127.0.0.1:0").await.unwrap().numbered_by(
        move |_| std::future::ready(even_numbers.lock().unwrap().get().map(|slot| slot * 2).ok_or_else(String::new)),
        move |slot| back.lock().unwrap().put(slot / 2).unwrap(),
    );
    let (a, b) = (Server::start("a").await, Server::with("b", heavy));
    let clients: Vec<_> = (0..15).map(|_| client(&[&a, &b])).collect();
    let spread = |held: &BTreeMap<Arc<str>, usize>| {
        let of = |id: &str| held.get(id).copied().unwrap_or_default();
        of("a") + of("b") == 15 * SLOTS && (58..=62).contains(&of("a"))
    };
    until_held(&clients, "two to one", spread).await;
}

/// With the intervals that are the default, in time that passes only while everybody waits.
#[tokio::test(start_paused = true)]
async fn at_default_intervals_a_server_that_comes_back_has_its_share_within_five_seconds() {
    const LIMIT: Duration = Duration::from_secs(5);
    let (a, b, mut c) = (Server::start("a").await, Server::start("b").await, Server::start("c").await);
    let clients: Vec<_> = (0..20).map(|_| client_with(Rover::new(), &[&a, &b, &c])).collect();
    let took = until_held(&clients, "balance", even(20, 3, 1.05)).await;
    println!("120 connections are balanced after {took:?}: {:?}", held(&clients));

    for away in [Duration::ZERO, Duration::from_secs(20), Duration::from_secs(300)] {
        let addr = c.addr;
        if away.is_zero() {
            c = c.restart().await;
        } else {
            drop(c);
            until_held(&clients, "doing without it", even(20, 2, 1.05)).await;
            let visits = a.visits() + b.visits();
            sleep(away).await;
            println!("visits to the others while it was away for {away:?}: {}", a.visits() + b.visits() - visits);
            c = Server::with("c", Listener::bind(addr).await.unwrap());
        }
        // What its clients had of the one before may still be counted at first, but they have not been here.
        let (is_even, is_here) = (even(20, 3, 1.15), || c.visits() >= SLOTS * 20 / 4);
        let took = until_held(&clients, "its share", |held| is_here() && is_even(held)).await;
        println!("away for {away:?}, it has its share after {took:?}: {:?}", held(&clients));
        assert!(took <= LIMIT, "away for {away:?}, it has its share only after {took:?}");
        let took = until_held(&clients, "balance", even(20, 3, 1.05)).await;
        println!("and all are balanced {took:?} later, after {} visits to it", c.visits());
    }
}

/// The same.
#[tokio::test(start_paused = true)]
async fn a_converged_client_asks_less_and_a_change_makes_it_ask_again() {
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let hour = Duration::from_secs(3_600);
    let boxcar = Boxcar::new(Rover::new(), Pool::new(2));
    boxcar.add_server("a", &a.addr.to_string());
    let _events = boxcar.start();
    until("the pool is full", || boxcar.pool().len() == 2).await;
    sleep(hour).await;
    let visits = a.visits();
    println!("{visits} visits in an hour");
    // One every 8 s, once all is as it should be; callosum's own would be 3,600.
    assert!((400..=520).contains(&visits), "{visits} visits");
    drop(boxcar);

    let boxcar = Boxcar::new(Rover::new().max_interval(10 * hour), Pool::new(2));
    boxcar.add_server("a", &a.addr.to_string());
    boxcar.start();
    let soon = |what: &'static str, since: Instant| {
        assert!(since.elapsed() < Duration::from_secs(10), "{what} took {:?}", since.elapsed());
    };
    // Now the next visit is hours away.
    sleep(30 * hour).await;
    let now = Instant::now();
    boxcar.add_server("b", &b.addr.to_string());
    until("a new server is found, and better", || boxcar.pool().holds().len() == 2).await;
    soon("finding a new server", now);
    sleep(30 * hour).await;
    let now = Instant::now();
    drop(a);
    until("what is lost is replaced", || boxcar.pool().holds().get("b") == Some(&2)).await;
    soon("replacing a lost connection", now);
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("it never happened: {what}"));
}

#[tokio::test]
async fn a_server_that_is_dropped_is_left_and_one_that_moved_is_followed() {
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let clients = [client(&[&a, &b])];
    until_held(&clients, "balance", even(1, 2, 1.0)).await;
    let leased: Vec<_> = std::iter::from_fn(|| clients[0].try_lease()).collect();
    assert!(clients[0].drop_server("a") && !clients[0].drop_server("a"));
    assert_eq!(held(&clients).get("a"), None);
    drop(leased);
    until_held(&clients, "all at b", |held| *held == BTreeMap::from([("b".into(), SLOTS)])).await;

    let other = Server::start("b").await;
    assert!(clients[0].add_server("b", &other.addr.to_string()), "it has moved");
    assert!(!clients[0].add_server("b", &other.addr.to_string()), "it has not");
    let (visits, answers) = (b.visits(), other.answers());
    until_held(&clients, "all at the new one", |held| *held == BTreeMap::from([("b".into(), SLOTS)])).await;
    let mut connection = clients[0].lease(PATIENCE).await.unwrap();
    connection.write_u8(7).await.unwrap();
    assert_eq!(connection.read_u8().await.unwrap(), 7);
    assert_eq!((b.visits() - visits, other.answers() - answers), (0, 1), "nobody goes to the old place");
}

#[tokio::test]
async fn what_goes_wrong_is_told_and_costs_nobody_his_connection() {
    let good = Server::start("good").await;
    let full = Server::with("full", Listener::bind("127.0.0.1:0").await.unwrap().max_slots(0));
    let dead = Server::start("dead").await.addr;
    let boxcar = Boxcar::new(Rover::new().interval(INTERVAL), Pool::new(SLOTS));
    let mut events = boxcar.start();
    let event = timeout(PATIENCE, events.next()).await.unwrap();
    assert!(matches!(event, Some(Event::Error(_))), "no servers: {event:?}");
    boxcar.add_server("good", &good.addr.to_string());
    boxcar.add_server("full", &full.addr.to_string());
    boxcar.add_server("dead", &dead.to_string());
    let (mut refused, mut unreachable) = (false, false);
    while !refused || !unreachable {
        match timeout(PATIENCE, events.next()).await.unwrap() {
            Some(Event::Refused { server, words }) => {
                assert_eq!((server.id(), &*words), ("full", "full, with 0 connections"));
                refused = true;
            }
            Some(Event::Unreachable { server, .. }) => {
                assert_eq!(server.id(), "dead");
                unreachable = true;
            }
            event => panic!("{event:?}"),
        }
    }
    until("the pool is full", || boxcar.pool().len() == SLOTS).await;
    boxcar.stop();
    while timeout(PATIENCE, events.next()).await.expect("the events end").is_some() {}
    assert_eq!(boxcar.pool().len(), SLOTS, "what it has stays");
}
