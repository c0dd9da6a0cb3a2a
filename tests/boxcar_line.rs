//! What is said on a connection that begins with a slot, also with those who only know callosum, and with hostile ones.
//!
//! Owns no state: each test has its own sockets on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use picom::boxcar::{Accepted, Event, GREETING_TIMEOUT, Listener, MAX_EVENTS, MAX_LINE, Rover, RoverError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for what must happen. Long, because a passing test never waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listener whose connections arrive here.
async fn listening(listener: Listener) -> (SocketAddr, mpsc::UnboundedReceiver<Accepted>) {
    let (sender, accepted) = mpsc::unbounded_channel();
    let (mut listener, addr) = (listener, SocketAddr::from(([127, 0, 0, 1], 0)));
    let addr = listener.local_addr().unwrap_or(addr);
    tokio::spawn(async move {
        while let Some(connection) = listener.accept().await {
            let _ = sender.send(connection);
        }
    });
    (addr, accepted)
}

async fn bound() -> Listener {
    Listener::bind("127.0.0.1:0").await.unwrap()
}

/// What callosum's own client does: the first bytes that come must be the line and nothing else.
async fn callosum(addr: SocketAddr) -> (u32, TcpStream) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let mut chunk = [0; 4096];
    let len = timeout(PATIENCE, stream.read(&mut chunk)).await.expect("a line comes").unwrap();
    let line = std::str::from_utf8(&chunk[..len]).unwrap();
    let digits = line.strip_suffix("\r\n").unwrap_or_else(|| panic!("{line:?} has no end"));
    assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{line:?} is no number");
    (digits.parse().unwrap(), stream)
}

async fn all_of(mut stream: TcpStream) -> String {
    let mut all = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut all)).await.expect("the server closes").unwrap();
    all
}

#[tokio::test]
async fn a_client_of_callosum_gets_the_lowest_free_number_and_then_the_connection() {
    let (addr, mut accepted) = listening(bound().await).await;
    let (slot, mut client) = callosum(addr).await;
    let (second, _client) = callosum(addr).await;
    assert_eq!((slot, second), (0, 1));
    let (mut server, _other) = (accepted.recv().await.unwrap(), accepted.recv().await.unwrap());
    assert_eq!((server.slot(), server.peer()), (0, client.local_addr().unwrap()));

    client.write_all(b"ask").await.unwrap();
    let mut buffer = [0; 3];
    server.read_exact(&mut buffer).await.unwrap();
    server.write_all(b"say").await.unwrap();
    client.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"say");

    drop(server);
    assert_eq!(callosum(addr).await.0, 0, "the first has gone, so its number is free");
    let third = accepted.recv().await.unwrap();
    let (stream, guard) = third.into_parts();
    drop(stream);
    assert_eq!(callosum(addr).await.0, 2, "its guard still holds the number");
    drop(guard);
    assert_eq!(callosum(addr).await.0, 0);
}

#[tokio::test]
async fn a_full_server_refuses_in_words() {
    let (addr, mut accepted) = listening(bound().await.max_slots(2)).await;
    let (_first, _second) = (callosum(addr).await, callosum(addr).await);
    let mut third = TcpStream::connect(addr).await.unwrap();
    // Bytes that nobody reads must not cost the words.
    third.write_all(b"hello").await.unwrap();
    assert_eq!(all_of(third).await, "refused: full, with 2 connections\r\n");

    drop(accepted.recv().await.unwrap());
    assert_eq!(callosum(addr).await.0, 0, "there is room again");
}

#[tokio::test]
async fn refused_ones_that_stay_do_not_keep_others_out() {
    let (addr, mut accepted) = listening(bound().await.max_slots(1)).await;
    let _first = callosum(addr).await;
    // More than may linger, and none of them closes.
    let mut staying = Vec::new();
    for _ in 0..80 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.read_exact(&mut [0; 9]).await.unwrap();
        staying.push(stream);
    }
    drop(accepted.recv().await.unwrap());
    assert_eq!(callosum(addr).await.0, 0);
}

#[tokio::test]
async fn an_application_gives_its_own_numbers_and_gets_each_back_once() {
    let freed: Arc<Mutex<BTreeMap<u32, u32>>> = Arc::default();
    let (next, counts) = (Mutex::new(12), Arc::clone(&freed));
    let request = move |peer: SocketAddr| {
        assert!(peer.ip().is_loopback());
        let mut next = next.lock().unwrap();
        *next += 1;
        let answer = if *next < 16 { Ok(*next) } else { Err("out of\r\n17 numbers".to_owned()) };
        async move {
            tokio::task::yield_now().await;
            answer
        }
    };
    let listener =
        bound().await.numbered_by(request, move |slot| *counts.lock().unwrap().entry(slot).or_default() += 1);
    let (addr, mut accepted) = listening(listener).await;

    let (slot, client) = callosum(addr).await;
    assert_eq!(slot, 13);
    drop(client); // the application has it still
    let server = accepted.recv().await.unwrap();
    assert!(freed.lock().unwrap().is_empty());
    drop(server);
    // Gone before its line, perhaps.
    drop(TcpStream::connect(addr).await.unwrap());
    let (slot, _client) = callosum(addr).await;
    assert_eq!(slot, 15);
    let refused = all_of(TcpStream::connect(addr).await.unwrap()).await;
    assert_eq!(refused, "refused: out of\\r\\n17 numbers\r\n", "one line, whatever the words");
    // The one that had gone may not get as far as the application.
    let returned = async {
        while freed.lock().unwrap().len() < 3 {
            drop(accepted.try_recv());
            sleep(Duration::from_millis(1)).await;
        }
    };
    let _ = timeout(PATIENCE, returned).await;
    let freed = freed.lock().unwrap().clone();
    assert_eq!(freed, BTreeMap::from([(13, 1), (14, 1), (15, 1)]), "each number once");
}

#[tokio::test(start_paused = true)]
async fn an_application_that_gives_no_number_costs_the_client_its_limit_and_nobody_else_anything() {
    let patient = Mutex::new(true);
    let request = move |_| {
        let is_first = std::mem::take(&mut *patient.lock().unwrap());
        async move { if is_first { std::future::pending().await } else { Ok(7) } }
    };
    let (addr, _accepted) = listening(bound().await.numbered_by(request, |_| ())).await;
    let (waiting, before) = (TcpStream::connect(addr).await.unwrap(), Instant::now());
    assert_eq!(callosum(addr).await.0, 7);
    assert_eq!(all_of(waiting).await, "");
    assert!(before.elapsed() >= GREETING_TIMEOUT, "after {:?}", before.elapsed());
}

#[tokio::test]
async fn a_closed_listener_accepts_nobody_and_keeps_whom_it_has() {
    let mut listener = bound().await;
    let (addr, closing) = (listener.local_addr().unwrap(), listener.closing());
    let (first, accepted) = tokio::join!(callosum(addr), listener.accept());
    let ((slot, mut client), mut server) = (first, accepted.unwrap());
    assert_eq!(slot, 0);

    let waiting = tokio::spawn(async move { (listener.accept().await.is_none(), listener) });
    closing.cancel();
    let (none, mut listener) = timeout(PATIENCE, waiting).await.expect("it says so").unwrap();
    assert!(none && listener.local_addr().is_err());
    assert!(TcpStream::connect(addr).await.is_err(), "nobody listens");
    server.write_all(b"still here").await.unwrap();
    client.read_exact(&mut [0; 10]).await.unwrap();
    listener.close();
    assert!(listener.accept().await.is_none(), "closing twice does no harm");

    let mut other = bound().await;
    let (addr, closing) = (other.local_addr().unwrap(), other.closing());
    other.close();
    assert!(closing.is_cancelled() && TcpStream::connect(addr).await.is_err(), "closed at once");
}

#[cfg(unix)]
#[test]
fn too_many_open_files_end_no_listener() {
    let tests = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" --exact --ignored --nocapture within_64_files"])
        .arg(tests)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{error}");
}

/// Within a process of its own, for the limit counts for all of a process.
#[cfg(unix)]
#[tokio::test]
#[ignore = "run by the test above"]
async fn within_64_files() {
    let (addr, mut accepted) = listening(bound().await).await;
    // What the name of an address needs, and what reports a failure, is open already.
    let mut files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).take(100).collect();
    assert!(files.len() < 64, "there is no limit: {}", files.len());
    files.pop();
    let mut client = TcpStream::connect(addr).await.expect("the last one is for the client");
    let line = timeout(Duration::from_millis(200), client.read_u8()).await;
    assert!(line.is_err(), "there is no file for the server: {line:?}");
    assert!(accepted.try_recv().is_err());
    files.pop();
    let mut line = [0; 3];
    timeout(PATIENCE, client.read_exact(&mut line)).await.expect("the server goes on").unwrap();
    assert_eq!(&line, b"0\r\n");
}

/// The first thing that a rover says of a server that does this with each connection.
async fn first_event<F>(server: impl Fn(TcpStream) -> F + Send + 'static) -> Event
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rover = Rover::new().line_timeout(Duration::from_millis(300));
    rover.add_server("it", &listener.local_addr().unwrap().to_string());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(server(stream));
        }
    });
    let mut events = rover.start();
    timeout(PATIENCE, events.next()).await.expect("the rover says something").unwrap()
}

/// The same, for one that says this and waits.
async fn says(line: &'static [u8]) -> Event {
    first_event(move |mut stream| async move {
        let _ = stream.write_all(line).await;
        let _ = stream.read_u8().await;
    })
    .await
}

#[tokio::test]
async fn a_line_in_pieces_is_a_line() {
    let event = first_event(|mut stream| async move {
        for byte in b"4093\r\nand more" {
            stream.write_all(&[*byte]).await.unwrap();
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let Event::Connection { slot, server, stream } = event else { panic!("{event:?}") };
    assert_eq!((slot, server.id()), (4093, "it"));
    assert_eq!(all_of(stream).await, "and more");
}

#[tokio::test]
async fn bytes_right_behind_the_line_are_the_applications() {
    let event =
        first_event(|mut stream| async move { stream.write_all(b"7\r\n220 ready\r\n8\r\n").await.unwrap() }).await;
    let Event::Connection { slot: 7, stream, .. } = event else { panic!("{event:?}") };
    assert_eq!(all_of(stream).await, "220 ready\r\n8\r\n");
}

#[tokio::test]
async fn a_server_of_callosum_is_understood() {
    let event = says(b"0\r\n").await;
    assert!(matches!(event, Event::Connection { slot: 0, .. }), "{event:?}");
    let event = says(b"4294967295\r\n").await;
    assert!(matches!(event, Event::Connection { slot: u32::MAX, .. }), "{event:?}");
}

#[tokio::test]
async fn what_is_no_slot_is_named() {
    let lines: [(&[u8], &str); 8] = [
        (b"undefined\r\n", "undefined\\r\\n"),
        (b"4294967296\r\n", "4294967296\\r\\n"),
        (b"99999999999999999999999\r\n", "99999999999999999999999\\r\\n"),
        (b"-1\r\n", "-1\\r\\n"),
        (b"13\n", "13\\n"),
        (b"SSH-2.0-x\r\n", "SSH-2.0-x\\r\\n"),
        (b"\x16\x03\x01\x00\xff\n", "\\x16\\x03\\x01\\x00\\xff\\n"),
        (b"\r\n", "\\r\\n"),
    ];
    for (line, expected) in lines {
        match says(line).await {
            Event::Error(error @ RoverError::BadProtocol { .. }) => {
                let said = error.to_string();
                assert!(said.contains("it at 127.0.0.1:") && said.contains(&format!("\"{expected}\"")), "{said}");
            }
            event => panic!("{line:?} gives {event:?}"),
        }
    }
}

#[tokio::test]
async fn a_line_may_have_so_many_bytes_and_no_more() {
    let digits = |len: usize| "0".repeat(len - 2).into_bytes();
    let fits: &'static [u8] = Vec::leak([digits(MAX_LINE), b"\r\n".to_vec()].concat());
    let event = says(fits).await;
    assert!(matches!(event, Event::Connection { slot: 0, .. }), "{event:?}");
    let too_long: &'static [u8] = Vec::leak([digits(MAX_LINE + 1), b"\r\n".to_vec()].concat());
    let event = says(too_long).await;
    let Event::Error(RoverError::BadProtocol { came, .. }) = event else { panic!("{event:?}") };
    assert_eq!(came.len(), MAX_LINE - 1 + "\\r".len());

    let event = first_event(|mut stream| async move { while stream.write_all(&[b'1'; 4096]).await.is_ok() {} }).await;
    let Event::Error(RoverError::BadProtocol { came, .. }) = event else { panic!("{event:?}") };
    assert_eq!(came, "1".repeat(MAX_LINE), "endless digits");
}

#[tokio::test]
async fn a_server_that_says_too_little_is_unreachable_and_costs_no_socket() {
    let (seen, mut ends) = mpsc::unbounded_channel();
    let event = first_event(move |mut stream| {
        let seen = seen.clone();
        async move { seen.send(stream.read(&mut [0]).await.unwrap_or_default()).unwrap() }
    })
    .await;
    let Event::Unreachable { server, why } = event else { panic!("{event:?}") };
    assert_eq!((server.id(), &*why), ("it", "it gave no slot within 300ms"));
    let end = timeout(PATIENCE, ends.recv()).await.expect("the rover hangs up");
    assert_eq!(end, Some(0));

    let event = first_event(|stream| async move { drop(stream) }).await;
    let Event::Unreachable { why, .. } = event else { panic!("{event:?}") };
    assert_eq!(why, "it closed without a word");

    let trickle = first_event(|mut stream| async move {
        while stream.write_all(b"0").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let event = trickle.await;
    assert!(matches!(event, Event::Unreachable { .. }), "the limit is for all of the line: {event:?}");

    let event = first_event(|mut stream| async move { stream.write_all(b"1").await.unwrap() }).await;
    let Event::Error(RoverError::BadProtocol { came, .. }) = event else { panic!("{event:?}") };
    assert_eq!(came, "1", "half a number is no number");
}

#[tokio::test]
async fn a_refusal_is_told_with_its_words() {
    let mut listener = bound().await.max_slots(0);
    let rover = Rover::new();
    rover.add_server("full", &listener.local_addr().unwrap().to_string());
    tokio::spawn(async move { listener.accept().await });
    let mut events = rover.start();
    let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    let Event::Refused { server, words } = event else { panic!("{event:?}") };
    assert_eq!((server.id(), &*words), ("full", "full, with 0 connections"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    for address in [&*nobody, "127.0.0.1", "", "127.0.0.1:70000"] {
        let rover = Rover::new();
        rover.add_server("gone", address);
        let event = timeout(PATIENCE, rover.start().next()).await.unwrap().unwrap();
        let Event::Unreachable { server, why } = event else { panic!("{event:?}") };
        assert_eq!((server.id(), server.address()), ("gone", address));
        assert!(!why.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rover_without_servers_says_so_every_second_until_it_is_stopped() {
    let rover = Rover::new();
    let (mut events, mut times) = (rover.start(), Vec::new());
    let start = Instant::now();
    for _ in 0..20 {
        let event = events.next().await.unwrap();
        assert!(matches!(event, Event::Error(RoverError::NoServers)), "{event:?}");
        times.push(start.elapsed());
    }
    assert!(times[0] < Duration::from_millis(2), "at once: {:?}", times[0]);
    for pair in times.windows(2) {
        let pause = (pair[1] - pair[0]).as_millis();
        assert!((900..=1_102).contains(&pause), "{pause} ms");
    }
    rover.stop();
    assert!(events.next().await.is_none());

    let mut again = rover.start();
    assert!(again.next().await.is_some(), "it can be started again");
    let mut anew = rover.start();
    assert!(again.next().await.is_none() && anew.next().await.is_some(), "anew, and once");
    drop(rover);
    assert!(anew.next().await.is_none());
}

#[tokio::test]
async fn a_server_that_was_dropped_is_not_heard_of_again() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rover = Rover::new().interval(Duration::from_millis(10)).line_timeout(PATIENCE);
    rover.add_server("silent", &silent.local_addr().unwrap().to_string());
    let mut events = rover.start();
    let (mut visit, _) = timeout(PATIENCE, silent.accept()).await.expect("a visit").unwrap();
    assert!(rover.drop_server("silent") && !rover.drop_server("silent"));
    visit.write_all(b"0\r\n").await.unwrap();
    for _ in 0..10 {
        let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        assert!(matches!(event, Event::Error(RoverError::NoServers)), "{event:?}");
    }
    assert_eq!(rover.servers(), []);
}

#[tokio::test]
async fn a_rover_whose_events_nobody_reads_makes_no_more_visits() {
    let (addr, mut accepted) = listening(bound().await).await;
    let rover = Rover::new().interval(Duration::from_millis(1));
    rover.add_server("it", &addr.to_string());
    let mut events = rover.start();
    let mut held = Vec::new();
    // As many as wait, and the one that the rover has in its hands.
    for _ in 0..=MAX_EVENTS {
        held.push(timeout(PATIENCE, accepted.recv()).await.expect("a visit").unwrap());
    }
    assert!(timeout(Duration::from_millis(300), accepted.recv()).await.is_err(), "one visit too many");
    for _ in 0..3 {
        assert!(matches!(events.next().await, Some(Event::Connection { .. })));
    }
    held.push(timeout(PATIENCE, accepted.recv()).await.expect("it goes on when they are read").unwrap());
}

#[tokio::test]
async fn both_sides_ask_a_silent_peer_whether_it_is_there() {
    let (addr, mut accepted) = listening(bound().await).await;
    let rover = Rover::new();
    rover.add_server("it", &addr.to_string());
    let event = timeout(PATIENCE, rover.start().next()).await.unwrap();
    let Some(Event::Connection { stream, .. }) = event else { panic!("{event:?}") };
    let server = accepted.recv().await.unwrap();
    for stream in [&stream, &*server] {
        assert!(socket2::SockRef::from(stream).keepalive().unwrap(), "half-open connections would stay for ever");
    }
}
