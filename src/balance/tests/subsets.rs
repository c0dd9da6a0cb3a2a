//! The part of a large service that one client uses.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::super::{ConsistentHash, Fleet, Group, Random, SUBSET};
use super::{addr, seat, some};
use crate::registry::Endpoint;

/// The addresses that a client with this seed uses of these.
fn used(numbers: impl Iterator<Item = usize>, seed: u64) -> BTreeSet<SocketAddr> {
    let now = Instant::now();
    let fleet = Arc::new(Fleet::new("service1".into(), now));
    let seats = numbers.map(|number| seat(Endpoint::new(addr(number)), &fleet)).collect();
    let states = Group::new(seats, fleet, seed, now).states(now);
    states.iter().filter(|state| state.used).map(|state| state.endpoint.addr).collect()
}

#[test]
fn up_to_32_all_are_used_and_of_more_32() {
    for (count, expected) in [(SUBSET - 1, SUBSET - 1), (SUBSET, SUBSET), (SUBSET + 1, SUBSET), (1000, SUBSET)] {
        assert_eq!(used(0..count, 1).len(), expected, "of {count}");
        let many = some(count);
        let chosen = many.shares(&Random, 50 * count).iter().filter(|calls| **calls > 0).count();
        assert_eq!(chosen, expected, "of {count}");
    }
    let many = some(100);
    let keyed = many.shares_of(&ConsistentHash, 3_000, |call| super::Request {
        key: Some(super::super::key(&call.to_be_bytes())),
        ..many.request()
    });
    assert!(keyed.iter().all(|calls| *calls > 0), "keys must mean the same endpoint to every client: {keyed:?}");
}

#[test]
fn many_clients_use_all_endpoints_about_equally() {
    fastrand::seed(3);
    let (clients, endpoints) = (200, 100);
    let mut users = vec![0; endpoints];
    for _ in 0..clients {
        let chosen = used(0..endpoints, fastrand::u64(..));
        for (number, users) in users.iter_mut().enumerate() {
            *users += usize::from(chosen.contains(&addr(number)));
        }
    }
    // 64 on average, with a deviation of 6.6.
    let (least, most) = (users.iter().min().copied(), users.iter().max().copied());
    println!("{clients} clients of {endpoints} endpoints: {least:?} to {most:?} of them use each");
    assert!(least >= Some(40) && most <= Some(90), "{users:?}");
}

#[test]
fn one_endpoint_more_or_less_moves_one_place_at_most() {
    for seed in 0..200 {
        let before = used(0..100, seed);
        let with = used(0..101, seed);
        let without = used((0..100).filter(|number| *number != 50), seed);
        for after in [with, without] {
            assert!(before.difference(&after).count() <= 1, "seed {seed}: {before:?}, then {after:?}");
            assert_eq!(after.len(), SUBSET);
        }
    }
}
