//! Every peer answers right, over a real socket: a peer that is fast and wrong has no figures.

use super::{moleculer, picom, picom_name, raw, tarpc, tonic, volo};
use crate::peer::{Client, Feed, Peer};
use crate::workloads::Plan;
use bytes::Bytes;
use futures::future::join_all;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

/// More than fills any window or queue once, and little enough for an unoptimised build.
const ITEMS: u64 = 20_000;
const CHUNKS: u64 = 64;
const CHUNK: usize = 64 << 10;

/// As many calls as any workload has in flight on one connection.
const IN_FLIGHT: u64 = 1024;

#[tokio::test]
async fn raw_answers_right() {
    check::<raw::Raw>().await;
}

#[tokio::test]
async fn picom_answers_right() {
    check::<picom::Typed>().await;
    check::<picom_name::ByName>().await;
}

#[tokio::test]
async fn tarpc_answers_right() {
    check::<tarpc::Tarpc>().await;
    check::<tarpc::TarpcMp>().await;
}

#[tokio::test]
async fn tonic_answers_right() {
    check::<tonic::Tonic>().await;
    check::<tonic::TonicTuned>().await;
}

#[tokio::test]
async fn volo_answers_right() {
    check::<volo::Volo>().await;
}

/// Where it can be installed.
#[test]
fn moleculer_answers_right() {
    if let Err(reason) = moleculer::install() {
        println!("skipped: {reason}");
        return;
    }
    let mut server = moleculer::server().stdout(Stdio::piped()).spawn().unwrap();
    let mut address = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let plan =
        Plan { address: address.trim().parse().unwrap(), server: None, measured: Duration::from_secs(1), calls: None };
    let status = moleculer::client("check", "mt", &plan).status();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(status.unwrap().success());
}

async fn check<P: Peer>() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(P::serve(listener, None));
    let calls = async {
        let client = P::connect(address).await;
        check_calls(&client).await;
        if P::STREAMS {
            check_streams(&client).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), calls).await.expect(P::NAME);
    assert!(!server.is_finished(), "{} stopped serving", P::NAME);
    server.abort();
}

async fn check_calls<C: Client>(client: &C) {
    assert_eq!(client.add(2, 40).await, 42);
    assert_eq!(client.add(u64::MAX, 2).await, 1);
    for size in [0, 1, 1 << 10, 64 << 10, 1 << 20] {
        let body: Bytes = (0..size).map(|i| (i * 31 + i / 256) as u8).collect();
        assert_eq!(client.echo(body.clone()).await, body);
    }
    let sums = join_all((0..IN_FLIGHT).map(|i| client.add(i, i))).await;
    assert!(sums.into_iter().eq((0..IN_FLIGHT).map(|i| i + i)));
}

async fn check_streams<C: Client>(client: &C) {
    let sum = ITEMS * (ITEMS - 1) / 2;
    for feed in [Feed::Ready, Feed::Sent] {
        assert_eq!(client.items_down(ITEMS, feed).await, sum);
        assert_eq!(client.items_up(ITEMS, feed).await, sum);
        assert_eq!(client.items_down(0, feed).await, 0);
    }
    let bytes = CHUNKS * CHUNK as u64;
    assert_eq!(client.chunks_down(CHUNKS, CHUNK).await, bytes);
    assert_eq!(client.chunks_up(CHUNKS, CHUNK).await, bytes);
}
