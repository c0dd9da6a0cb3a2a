//! Where a dependency is looked for, and when what was seen is believed.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::*;

#[test]
fn only_enough_looks_in_a_row_change_a_belief() {
    let beliefs = |failures, successes, seen: &str| -> String {
        let mut judge = Judge { failures, successes, well: None, last: None, run: 0 };
        seen.chars().map(|c| if judge.believes(c == '+') { c } else { '.' }).collect()
    };
    assert_eq!(beliefs(2, 1, "+--+-+--"), "+.-+...-");
    assert_eq!(beliefs(2, 1, "-+---"), ".+.-.");
    assert_eq!(beliefs(2, 1, "----"), ".-..");
    assert_eq!(beliefs(1, 3, "-++-+++"), "-.....+");
}

/// A name that leads where the test says.
type Names = Arc<Mutex<io::Result<Vec<SocketAddr>>>>;

fn at(host: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, host], 27017))
}

async fn look(names: &Names, asked: &Arc<Mutex<Vec<String>>>) -> Look {
    let (names, asked) = (Arc::clone(names), Arc::clone(asked));
    let sentinel = Sentinel::new("mongo.test:27017", async || Ok(())).resolved_by(move |name| {
        asked.lock().unwrap().push(name);
        let found = match &*names.lock().unwrap() {
            Ok(found) => Ok(found.clone()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        Box::pin(async { found })
    });
    sentinel.prepare().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_name_is_looked_up_for_every_look_and_followed_only_when_it_leads_elsewhere() {
    let (names, asked): (Names, _) = (Arc::new(Mutex::new(Ok(vec![at(1), at(2)]))), Arc::default());
    let mut look = look(&names, &asked).await;
    let lead = |to: io::Result<Vec<SocketAddr>>| *names.lock().unwrap() = to;
    assert_eq!((look.addr(), look.changed().await), (at(1), Change::Health(Ok(()))));
    // The same addresses in another order change nothing.
    lead(Ok(vec![at(2), at(1)]));
    let begun = Instant::now();
    assert!(timeout(INTERVAL * 10, look.changed()).await.is_err());
    assert_eq!(asked.lock().unwrap().len(), 12, "once to begin with, and for each of eleven looks");
    lead(Ok(vec!["0.0.0.0:27017".parse().unwrap(), at(3)]));
    assert_eq!(look.changed().await, Change::Address(at(3)));
    assert!(begun.elapsed() <= INTERVAL * 11, "with the next look");
    lead(Err(io::ErrorKind::NotFound.into()));
    let begun = Instant::now();
    let lost = Err("its name cannot be looked up: entity not found".to_owned());
    assert_eq!(look.changed().await, Change::Health(lost));
    assert_eq!((begun.elapsed(), look.addr()), (INTERVAL * 2, at(3)), "two looks in a row");
    lead(Ok(vec![at(4)]));
    assert_eq!(look.changed().await, Change::Address(at(4)));
    assert_eq!(look.changed().await, Change::Health(Ok(())), "the look that found the address has seen it too");
    lead(Ok(Vec::new()));
    assert_eq!(look.changed().await, Change::Health(Err("its name has no address".to_owned())));
    assert!(asked.lock().unwrap().iter().all(|name| name == "mongo.test:27017"));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_answers_for_is_a_look_that_failed_in_time() {
    let hangs = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&hangs);
    let sentinel = Sentinel::new("mongo.test:27017", async || Ok(())).failures(1).resolved_by(move |_| {
        let hangs = asked.load(Ordering::SeqCst);
        Box::pin(async move { if hangs { std::future::pending().await } else { Ok(vec![at(1)]) } })
    });
    let mut look = sentinel.prepare().await.unwrap();
    assert_eq!(look.changed().await, Change::Health(Ok(())));
    hangs.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let late = Err("its name was not found within 1s".to_owned());
    assert_eq!((look.changed().await, begun.elapsed()), (Change::Health(late), INTERVAL + TIMEOUT));
}

#[tokio::test]
async fn the_system_is_asked_for_names() {
    let mut look = Sentinel::new("localhost:27017", async || Ok(())).prepare().await.unwrap();
    assert!(look.addr().ip().is_loopback(), "{}", look.addr());
    assert_eq!(look.changed().await, Change::Health(Ok(())));
}

#[cfg(feature = "http")]
#[tokio::test]
async fn an_http_look_goes_where_the_name_leads_by_then() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let one = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = one.local_addr().unwrap().port();
    let two = tokio::net::TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let mut servers = tokio::task::JoinSet::new();
    for (listener, head) in [(one, "200 OK"), (two, "503 Service Unavailable")] {
        servers.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
                assert!(request.contains("host: mongo.test"), "{request}");
                let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
            }
        });
    }
    let host = Arc::new(AtomicU8::new(1));
    let asked = Arc::clone(&host);
    let at = move |host| SocketAddr::from(([127, 0, 0, host], port));
    let sentinel = Sentinel::http(format!("http://mongo.test:{port}/")).interval(MIN_INTERVAL).resolved_by(move |_| {
        let addr = at(asked.load(Ordering::SeqCst));
        Box::pin(async move { Ok(vec![addr]) })
    });
    let mut look = sentinel.prepare().await.unwrap();
    assert_eq!(look.changed().await, Change::Health(Ok(())));
    host.store(2, Ordering::SeqCst);
    assert_eq!(look.changed().await, Change::Address(at(2)));
    let refused = Err("answered 503 Service Unavailable".to_owned());
    assert_eq!(look.changed().await, Change::Health(refused));
    host.store(1, Ordering::SeqCst);
    assert_eq!(look.changed().await, Change::Address(at(1)));
    assert_eq!(look.changed().await, Change::Health(Ok(())));
}
