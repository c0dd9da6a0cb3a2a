//! A pool keeps the lowest slots, leases each to one at a time, and neither grows nor leaks.
//!
//! Owns no state: each test has its own sockets on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures::FutureExt;
use picom::boxcar::{Lease, LeaseError, MAX_SLOTS, MAX_WAITING, Pool, Server};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// How long a test waits for what must happen. Long, because a passing test never waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes connections, of which the test has both ends.
struct Wire {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Wire {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    /// A connection as its client and its server have it.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let (client, server) = tokio::join!(TcpStream::connect(self.addr), self.listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    /// Offers a connection with this slot to a pool. Returns the server's end of it if it is kept.
    async fn offer(&self, pool: &Pool, slot: u32, server: &str) -> Option<TcpStream> {
        let (client, end) = self.pair().await;
        pool.add(slot, &Server::new(server, "127.0.0.1:1"), client).then_some(end)
    }
}

/// Waits until this holds; what it is about happens in the kernel.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("it never happened: {what}"));
}

async fn is_closed(end: &mut TcpStream) -> bool {
    timeout(PATIENCE, end.read(&mut [0; 16])).await.is_ok_and(|read| matches!(read, Ok(0) | Err(_)))
}

#[tokio::test]
async fn the_lowest_slots_are_kept_and_used_first() {
    let (wire, pool) = (Wire::new().await, Pool::new(3));
    let mut ends = BTreeMap::new();
    for slot in [5, 1, 3] {
        ends.insert(slot, wire.offer(&pool, slot, "a").await.expect("there is room"));
    }
    assert!(wire.offer(&pool, 5, "b").await.is_none(), "an equal slot is no better");
    ends.insert(0, wire.offer(&pool, 0, "b").await.expect("a lower one is"));
    assert!(is_closed(ends.get_mut(&5).unwrap()).await, "the highest has gone for it");
    assert_eq!((pool.len(), pool.idle(), pool.max_slots()), (3, 3, 3));
    assert_eq!(pool.holds(), BTreeMap::from([("a".into(), 2), ("b".into(), 1)]));

    let leases: Vec<Lease> = std::iter::from_fn(|| pool.try_lease()).collect();
    let of = |lease: &Lease| (lease.slot(), lease.server().to_owned());
    assert_eq!(leases.iter().map(of).collect::<Vec<_>>(), [(0, "b".into()), (1, "a".into()), (3, "a".into())]);
    assert_eq!((pool.len(), pool.idle()), (3, 0));

    let mut lease = leases.into_iter().next().unwrap();
    lease.write_all(b"hello").await.unwrap();
    let mut hello = [0; 5];
    ends.get_mut(&0).unwrap().read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    assert_eq!(pool.idle(), 2, "the others went back when they were dropped");
}

#[tokio::test]
async fn what_is_evicted_while_it_is_leased_is_closed_when_it_comes_back() {
    let (wire, pool) = (Wire::new().await, Pool::new(2));
    let mut end = wire.offer(&pool, 9, "a").await.unwrap();
    let _end = wire.offer(&pool, 2, "a").await.unwrap();
    let _low = pool.try_lease().unwrap();
    let mut high = pool.try_lease().unwrap();
    assert_eq!(high.slot(), 9);
    let _newcomer = wire.offer(&pool, 1, "b").await.expect("lower than 9");
    assert_eq!((pool.len(), pool.idle()), (2, 1));
    high.write_all(b"x").await.unwrap();
    assert_eq!(end.read_u8().await.unwrap(), b'x', "it can be used to the end");
    drop(high);
    assert!(is_closed(&mut end).await);
    assert_eq!((pool.len(), pool.idle()), (2, 1));
}

#[tokio::test]
async fn a_leased_connection_that_was_evicted_and_dies_is_not_counted_twice() {
    let (wire, pool) = (Wire::new().await, Pool::new(2));
    let mut ends = Vec::new();
    for round in 0..20 {
        // Both leased, both evicted by lower ones, then both broken.
        let leases: Vec<Lease> = std::iter::from_fn(|| pool.try_lease()).collect();
        for _ in 0..2 {
            ends.extend(wire.offer(&pool, 100 - round, "a").await);
        }
        leases.into_iter().for_each(Lease::discard);
        assert_eq!((pool.len(), pool.idle()), (2, 2), "round {round}");
        assert!(wire.offer(&pool, 101, "a").await.is_none(), "it is full, in round {round}");
    }
}

#[tokio::test]
async fn equal_slots_are_used_in_turn() {
    let (wire, pool) = (Wire::new().await, Pool::new(10));
    let mut ends = Vec::new();
    for (slot, server) in [(4, "a"), (4, "b"), (4, "c"), (7, "d")] {
        ends.push(wire.offer(&pool, slot, server).await.unwrap());
    }
    let order: Vec<String> = (0..6).map(|_| pool.try_lease().unwrap().server().to_owned()).collect();
    assert_eq!(order, ["a", "b", "c", "a", "b", "c"]);
}

#[tokio::test]
async fn a_thousand_leases_leave_one_connection() {
    let (wire, pool) = (Wire::new().await, Pool::new(5));
    let _end = wire.offer(&pool, 0, "a").await.unwrap();
    for _ in 0..1_000 {
        let lease = pool.lease(PATIENCE).await.unwrap();
        assert_eq!((pool.len(), pool.idle()), (1, 0));
        drop(lease);
    }
    assert_eq!((pool.len(), pool.idle()), (1, 1));
    let _lease = pool.try_lease().unwrap();
    assert!(pool.try_lease().is_none(), "there is one, not a thousand");
}

#[tokio::test]
async fn who_came_first_is_served_first_and_who_gave_up_is_passed_over() {
    let (wire, pool) = (Wire::new().await, Pool::default());
    assert_eq!(pool.max_slots(), MAX_SLOTS);
    let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(pool.lease(PATIENCE))).collect();
    for one in &mut waiting {
        assert!(one.now_or_never().is_none(), "there is nothing to be had");
    }
    assert_eq!(pool.waiting(), 4);
    drop(waiting.remove(1));
    assert_eq!(pool.waiting(), 3);

    let _end = wire.offer(&pool, 0, "a").await.unwrap();
    for expected in 0..3 {
        assert!(pool.try_lease().is_none(), "nobody gets in between");
        let mut served = Vec::new();
        for (at, one) in waiting.iter_mut().enumerate() {
            served.extend(one.now_or_never().map(|lease| (at, lease.unwrap())));
        }
        let (at, lease) = served.pop().expect("somebody is served");
        assert!(served.is_empty() && at == 0, "number {expected} in the line is {at}");
        drop(waiting.remove(0));
        drop(lease);
    }
    assert_eq!((pool.waiting(), pool.idle()), (0, 1));
}

#[tokio::test]
async fn a_lease_that_nobody_takes_any_more_goes_to_the_next() {
    let (wire, pool) = (Wire::new().await, Pool::new(1));
    let (mut gone, mut next) = (Box::pin(pool.lease(PATIENCE)), Box::pin(pool.lease(PATIENCE)));
    assert!((&mut gone).now_or_never().is_none() && (&mut next).now_or_never().is_none());
    let _end = wire.offer(&pool, 0, "a").await.unwrap();
    // It was handed to the first, who has not looked.
    drop(gone);
    timeout(PATIENCE, next).await.expect("the second gets it").unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_in_time_and_no_more_than_so_many_wait() {
    let pool = Pool::new(1);
    let wait = Duration::from_secs(3);
    let before = tokio::time::Instant::now();
    assert_eq!(pool.lease(wait).await.unwrap_err(), LeaseError::Late { waited: wait });
    assert!(before.elapsed() >= wait);

    let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(pool.lease(PATIENCE))).collect();
    assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
    assert_eq!(pool.lease(wait).await.unwrap_err(), LeaseError::TooMany { limit: MAX_WAITING });
    drop(waiting.pop());
    assert_eq!(pool.lease(wait).await.unwrap_err(), LeaseError::Late { waited: wait }, "there is a place again");
}

#[tokio::test]
async fn an_idle_connection_that_ends_is_counted_out_once() {
    let (wire, pool) = (Wire::new().await, Pool::new(4));
    let mut ends = Vec::new();
    for slot in 0..4 {
        ends.push(wire.offer(&pool, slot, if slot < 2 { "a" } else { "b" }).await.unwrap());
    }
    ends.drain(..2);
    until("those of `a` are gone", || pool.len() == 2).await;
    assert_eq!(pool.holds(), BTreeMap::from([("b".into(), 2)]));
    assert_eq!(pool.try_lease().unwrap().slot(), 2);

    // Now one that has come back, with bytes that its server sent unasked, and then has gone.
    let mut end = ends.remove(0);
    end.write_all(b"bye").await.unwrap();
    until("the bytes came", || pool.try_lease().unwrap().try_io(tokio::io::Interest::READABLE, || Ok(())).is_ok())
        .await;
    assert_eq!(pool.len(), 2, "bytes are no end");
    drop(end);
    until("it is gone", || pool.holds().get("b") == Some(&1)).await;
    assert_eq!(pool.try_lease().unwrap().slot(), 3);
    drop(ends);
    until("all are gone", || pool.is_empty()).await;
    assert!(pool.try_lease().is_none());
}

#[tokio::test]
async fn a_connection_whose_end_is_behind_unread_bytes_is_not_leased() {
    let (wire, pool) = (Wire::new().await, Pool::new(4));
    let mut end = wire.offer(&pool, 0, "a").await.unwrap();
    end.write_all(b"bye").await.unwrap();
    let lease = pool.try_lease().unwrap();
    lease.readable().await.unwrap();
    drop(lease);
    drop(end);
    // What comes after the end, on another connection, is heard after it.
    let (mut client, mut server) = wire.pair().await;
    server.write_all(b"x").await.unwrap();
    client.read_u8().await.unwrap();
    assert_eq!(pool.idle(), 1, "behind bytes it is not seen until somebody looks");
    assert!(pool.try_lease().is_none());
    assert_eq!((pool.len(), pool.idle()), (0, 0));
}

#[tokio::test]
async fn a_leased_connection_that_ends_is_counted_out_when_it_comes_back() {
    let (wire, pool) = (Wire::new().await, Pool::new(4));
    let end = wire.offer(&pool, 0, "a").await.unwrap();
    let mut lease = pool.try_lease().unwrap();
    drop(end);
    assert_eq!(timeout(PATIENCE, lease.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert_eq!(pool.len(), 1, "it is still somebody's");
    drop(lease);
    assert_eq!((pool.len(), pool.idle()), (0, 0));

    let _end = wire.offer(&pool, 0, "a").await.unwrap();
    pool.try_lease().unwrap().discard();
    assert_eq!((pool.len(), pool.idle()), (0, 0));
}

#[tokio::test]
async fn nobody_waits_for_a_connection_that_is_dead() {
    let (wire, pool) = (Wire::new().await, Pool::new(4));
    let (client, end) = wire.pair().await;
    drop(end);
    client.readable().await.unwrap();
    let mut waiting = Box::pin(pool.lease(PATIENCE));
    assert!((&mut waiting).now_or_never().is_none());
    pool.add(0, &Server::new("a", "127.0.0.1:1"), client);
    assert!((&mut waiting).now_or_never().is_none(), "a dead one is not handed over");
    let _end = wire.offer(&pool, 8, "a").await.unwrap();
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap().slot(), 8);
}

#[tokio::test]
async fn a_server_that_is_dropped_loses_what_is_idle_now_and_what_is_leased_later() {
    let (wire, pool) = (Wire::new().await, Pool::new(4));
    let mut ends = Vec::new();
    for (slot, server) in [(0, "a"), (1, "a"), (2, "b")] {
        ends.push(wire.offer(&pool, slot, server).await.unwrap());
    }
    let leased = pool.try_lease().unwrap();
    assert_eq!((pool.drop_server("a"), pool.drop_server("a")), (2, 0));
    assert!(is_closed(&mut ends[1]).await);
    assert_eq!(pool.holds(), BTreeMap::from([("b".into(), 1)]));
    assert_eq!(pool.try_lease().unwrap().server(), "b");
    drop(leased);
    assert!(is_closed(&mut ends[0]).await);
    assert_eq!(pool.len(), 1);
}

#[tokio::test]
async fn idle_connections_end_with_their_pool_and_leased_ones_with_their_lease() {
    let (wire, pool) = (Wire::new().await, Pool::new(4));
    let mut first = wire.offer(&pool, 0, "a").await.unwrap();
    let mut second = wire.offer(&pool, 1, "a").await.unwrap();
    let mut lease = pool.try_lease().unwrap();
    drop(pool.clone());
    drop(pool);
    lease.write_all(b"x").await.unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'x');
    drop(lease);
    assert!(is_closed(&mut first).await && is_closed(&mut second).await);
}

/// What may happen to a pool, whoever it is that does it.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A connection comes with about this slot.
    Add(u32, u8),
    Lease,
    Return(usize),
    Discard(usize),
    /// The server's end of a connection is closed.
    Die(usize),
    DropServer(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u32..6, 0_u8..3).prop_map(|(slot, server)| Step::Add(slot, server)),
        4 => Just(Step::Lease),
        3 => any::<usize>().prop_map(Step::Return),
        1 => any::<usize>().prop_map(Step::Discard),
        1 => any::<usize>().prop_map(Step::Die),
        1 => (0_u8..3).prop_map(Step::DropServer),
    ];
    proptest::collection::vec(step, 0..60)
}

/// A connection of the model, which knows it by its slot: here no two have the same.
#[derive(Debug)]
struct Known {
    server: String,
    /// None once it is closed.
    end: Option<TcpStream>,
    lease: Option<Lease>,
    is_leaving: bool,
}

async fn a_pool_does_what_a_plain_list_does(limit: usize, steps: Vec<Step>) {
    let (wire, pool) = (Wire::new().await, Pool::new(limit));
    let mut known: BTreeMap<u32, Known> = BTreeMap::new();
    for (now, step) in steps.into_iter().enumerate() {
        match step {
            Step::Add(about, server) => {
                let (slot, server) = (about * 1_000 + u32::try_from(now).unwrap(), server.to_string());
                let kept: Vec<u32> = known.iter().filter(|(_, one)| !one.is_leaving).map(|(slot, _)| *slot).collect();
                let out = kept.last().copied().filter(|_| kept.len() == limit);
                let stays = out.is_none_or(|out| known[&out].lease.is_some());
                let refused = out.is_some_and(|out| slot > out) || (stays && known.len() == 2 * limit);
                let end = wire.offer(&pool, slot, &server).await;
                assert_eq!(end.is_none(), refused, "slot {slot} where there are {kept:?}");
                if let Some(out) = out.filter(|_| !refused) {
                    let mut evicted = known.remove(&out).unwrap();
                    evicted.is_leaving = true;
                    match (&evicted.lease, &mut evicted.end) {
                        (Some(_), _) => _ = known.insert(out, evicted),
                        (None, Some(end)) => assert!(is_closed(end).await, "{out} is evicted and stays open"),
                        (None, None) => {}
                    }
                }
                if end.is_some() {
                    known.insert(slot, Known { server, end, lease: None, is_leaving: false });
                }
            }
            Step::Lease => {
                let lowest = known.iter_mut().find(|(_, one)| one.lease.is_none());
                let lease = pool.try_lease();
                let slot = lowest.as_ref().map(|(slot, _)| **slot);
                assert_eq!(lease.as_ref().map(Lease::slot), slot, "the lowest one that nobody has");
                if let Some((_, one)) = lowest {
                    one.lease = lease;
                }
            }
            Step::Return(at) | Step::Discard(at) => {
                let leased = known.iter().filter(|(_, one)| one.lease.is_some()).map(|(slot, _)| *slot);
                let leased: Vec<u32> = leased.collect();
                let Some(slot) = leased.get(at % leased.len().max(1)) else { continue };
                let mut one = known.remove(slot).unwrap();
                let lease = one.lease.take().unwrap();
                let is_discarded = matches!(step, Step::Discard(_));
                if is_discarded {
                    lease.discard()
                } else {
                    drop(lease)
                }
                match &mut one.end {
                    None => {}
                    Some(end) if one.is_leaving || is_discarded => assert!(is_closed(end).await, "{slot} stays open"),
                    Some(_) => _ = known.insert(*slot, one),
                }
            }
            Step::Die(at) => {
                let Some(slot) = known.keys().nth(at % known.len().max(1)).copied() else { continue };
                let one = known.get_mut(&slot).unwrap();
                one.end = None;
                match &one.lease {
                    // Whoever has it sees the end first; the pool sees it when it comes back.
                    Some(lease) => lease.readable().await.unwrap(),
                    None => {
                        known.remove(&slot);
                        let left = known.values().filter(|one| !one.is_leaving).count();
                        until("the end is noticed", || pool.len() == left).await;
                    }
                }
            }
            Step::DropServer(server) => {
                let server = server.to_string();
                pool.drop_server(&server);
                known.values_mut().filter(|one| one.server == server).for_each(|one| one.is_leaving = true);
                known.retain(|_, one| one.lease.is_some() || !one.is_leaving);
            }
        }
        let kept = || known.values().filter(|one| !one.is_leaving);
        assert_eq!(pool.len(), kept().count(), "after {step:?}, of {known:?}");
        assert!(pool.len() <= limit && known.len() <= 2 * limit, "after {step:?}");
        assert_eq!(pool.idle(), kept().filter(|one| one.lease.is_none()).count(), "after {step:?}, of {known:?}");
        let servers: BTreeSet<&str> = kept().map(|one| &*one.server).collect();
        assert!(pool.holds().keys().map(|server| &**server).eq(servers), "after {step:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_order_of_events_is_right(limit in 1_usize..5, steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(a_pool_does_what_a_plain_list_does(limit, steps));
    }
}
