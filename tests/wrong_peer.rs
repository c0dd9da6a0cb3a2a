//! Addresses at which somebody else listens by now: another instance, another service, another program, or nobody.
//!
//! Owns only tests. The registry is told what is not so any more, as it is for a while after every restart. Look next at
//! `draining.rs` for peers that leave properly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use picom::registry::{Fixed, Memory, Registration, Registry};
use picom::{Code, Execution, Methods, Picom, Status};
use support::instance;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// A node that counts how often it is called.
async fn service(name: &str, registry: impl Registry) -> (Picom, SocketAddr, Arc<AtomicUsize>) {
    let node = Picom::builder(name).registry(registry).bind("127.0.0.1").build().unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let methods = Methods::new().unary("id", move |_cx, number: u64| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, Status>(number) }
    });
    let addr = node.expose(methods).await.unwrap().local_addr();
    (node, addr, runs)
}

/// An old entry of `payments` that points where somebody else listens.
async fn outdated(registry: &Memory, addr: SocketAddr) -> Registration {
    let mut old = instance("payments", &format!("old-{}", addr.port()), addr.port());
    old.address = Some(addr.ip());
    registry.register(old).await.unwrap()
}

fn caller(registry: impl Registry) -> Picom {
    Picom::builder("caller").registry(registry).build().unwrap()
}

#[tokio::test]
async fn a_call_never_reaches_another_service_or_another_incarnation() {
    let (elsewhere, registry) = (Memory::new(), Memory::new());
    let (_other, other_addr, other_runs) = service("mail", elsewhere.clone()).await;
    let (_newer, newer_addr, newer_runs) = service("payments", elsewhere).await;
    // A restarted process will be listed in a moment; a service does not change its name.
    for (what, addr, told, attempts) in [
        ("another service", other_addr, "the peer offers the service \"mail\", not \"payments\"", 1),
        ("another incarnation", newer_addr, "the peer is incarnation", 4),
    ] {
        let old = outdated(&registry, addr).await;
        let error = caller(registry.clone()).fetch::<u64>("payments", "id", 7_u64).await.unwrap_err();
        assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{what}: {error}");
        assert!(error.to_string().contains(told), "{what}: {error}");
        assert_eq!(error.attempts(), attempts, "{what}: {error}");
        old.leave().await.unwrap();
    }
    // Next to the right one, neither costs a call.
    let _old = [outdated(&registry, other_addr).await, outdated(&registry, newer_addr).await];
    let (_right, _, right_runs) = service("payments", registry.clone()).await;
    let caller = caller(registry);
    for number in 0..100 {
        assert_eq!(caller.fetch::<u64>("payments", "id", number).await.unwrap(), number);
    }
    assert_eq!(right_runs.load(Ordering::Relaxed), 100);
    assert_eq!(other_runs.load(Ordering::Relaxed), 0, "calls of payments were dispatched to mail");
    assert_eq!(newer_runs.load(Ordering::Relaxed), 0, "calls were dispatched to an incarnation that was not meant");
}

#[tokio::test]
async fn where_other_services_are_at_all_addresses_each_is_tried_once() {
    let registry = Memory::new();
    let mut kept = Vec::new();
    for _ in 0..3 {
        let (other, addr, _) = service("mail", Memory::new()).await;
        kept.push((other, outdated(&registry, addr).await));
    }
    let caller = caller(registry.clone());
    let call = || caller.fetch::<u64>("payments", "id", 7_u64).retries(4);
    let error = call().await.unwrap_err();
    assert_eq!(
        (error.code(), error.execution(), error.attempts()),
        (Code::Unavailable, Execution::Never, 3),
        "{error}"
    );
    let (_other, addr, _) = service("mail", Memory::new()).await;
    let error = call().on(addr).await.unwrap_err();
    assert_eq!(error.attempts(), 1, "an address that the call names is the only one: {error}");
    let (_right, _, runs) = service("payments", registry).await;
    assert_eq!(call().await.unwrap(), 7, "whoever is the right one is found after all of them");
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

/// Somebody who is not picom: greets as told, or does not even speak.
async fn stranger(greeting: Option<&'static [u8]>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let listening = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if let Some(greeting) = greeting {
                // What the caller does about it is what is tested.
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(greeting).await;
            }
            kept.push(stream);
        }
    });
    (addr, AbortOnDropHandle::new(listening))
}

#[tokio::test]
async fn a_stranger_at_the_address_costs_no_call() {
    let http = stranger(Some(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")).await;
    let ssh = stranger(Some(b"SSH-2.0-OpenSSH_9.6\r\n")).await;
    let silent = stranger(None).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_right, right_addr, right_runs) = service("payments", Memory::new()).await;
    for (what, addr, told) in [
        ("http", http.0, "HTTP"),
        ("ssh", ssh.0, "something"),
        ("silent", silent.0, "within 1s"),
        ("nobody", nobody, "refused"),
    ] {
        let alone = caller(Fixed::new([("payments", [addr.to_string()])]));
        let begun = Instant::now();
        let error = alone.fetch::<u64>("payments", "id", 7_u64).retries(0).await.unwrap_err();
        println!("{what}: {error} after {:.1?}", begun.elapsed());
        assert_eq!((error.code(), error.execution()), (Code::Unavailable, Execution::Never), "{what}: {error}");
        assert!(error.to_string().contains(told), "{what}: {error}");
        assert!(begun.elapsed() < Duration::from_millis(1500), "{what}: {:?}", begun.elapsed());

        let before = right_runs.load(Ordering::Relaxed);
        let both = caller(Fixed::new([("payments", [addr.to_string(), right_addr.to_string()])]));
        for number in 0..20 {
            assert_eq!(both.fetch::<u64>("payments", "id", number).await.unwrap(), number, "beside {what}");
        }
        assert_eq!(right_runs.load(Ordering::Relaxed) - before, 20, "beside {what}");
    }
}
