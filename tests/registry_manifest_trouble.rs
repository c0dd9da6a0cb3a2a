//! What users are told when members do not meet: in the problems of snapshots, the states of registrations, and the log.
//!
//! Owns only tests. Look next at `registry_manifest.rs` for members that do meet.
#![cfg(feature = "manifest")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::fmt::{self, Write as _};
use std::future::IntoFuture;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use picom::Picom;
use picom::registry::{Freshness, Manifest, RegistrationState, Registry};
use support::{PATIENCE, eventually, instance, state, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

const SECRET: &str = "a secret of more than sixteen bytes";

/// The warnings of this thread, on which everything runs.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn of(&self, what: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|line| line.contains(what)).cloned().collect()
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        *of.level() <= Level::WARN && of.target().starts_with("picom")
    }
    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// An address where nobody listens, as far as anybody can know.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A member that listens, and where.
async fn listening(manifest: Manifest) -> (Manifest, String) {
    let manifest = manifest.listen("127.0.0.1:0");
    let addresses = timeout(PATIENCE, manifest.listening()).await.expect("it listens").unwrap();
    (manifest, addresses[0].to_string())
}

#[tokio::test]
async fn a_wrong_secret_is_told_on_both_sides_also_when_another_member_is_down() {
    let warnings = Warnings::default();
    let _logged = tracing::subscriber::set_default(warnings.clone());
    let (hub, address) = listening(Manifest::new().secret(SECRET)).await;
    let down = free_address();
    let caller = Manifest::new().join(&down).join(&address).secret("another secret of many bytes");
    let registration = Registry::register(&caller, instance("service1", "one", 4000)).await.unwrap();
    let both = |text: &str| {
        let (secret, refused) = (text.find("the secrets are not the same"), text.find(&format!("{down}: ")));
        secret.zip(refused).is_some_and(|(secret, refused)| secret < refused)
    };
    state(
        &registration,
        "both reasons, first the one that somebody must mend",
        |state| matches!(state, RegistrationState::Retrying(why) if both(why)),
    )
    .await;
    let told = until(&mut caller.watch("service1"), "a problem", |snapshot| snapshot.problem.is_some()).await;
    assert!(both(told.problem.as_deref().unwrap()), "{told:?}");

    eventually("it was refused several times", async || hub.refusals().joins >= 4).await;
    let refused = warnings.of("others are refused");
    assert!(
        refused.len() == 1 && refused[0].contains("peer=127.0.0.1:"),
        "once a minute, with who it was: {refused:?}"
    );
    eventually("the caller's own log", async || warnings.of("no other member").iter().any(|line| both(line))).await;
    assert!(!warnings.of("").concat().contains("secret of"), "a secret was shown");
}

#[tokio::test]
async fn other_programs_on_the_port_are_told_before_a_first_call_gives_up() {
    for (says, why) in
        [(&b""[..], "did not join within"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks something else")]
    {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = other.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = other.accept().await {
                // All that is said is read, or closing would be a reset.
                let _ = stream.read_u32().await;
                stream.write_all(says).await.unwrap();
                kept.push(stream);
            }
        });
        let joined = Manifest::new().join(format!("127.0.0.1:{port}"));
        join_all([Manifest::local_on(port), joined].map(async |manifest| {
            let client = Picom::builder("client").registry(manifest.clone()).build().unwrap();
            let (began, call) = (Instant::now(), client.fetch::<u8>("service1", "ping", ()));
            let registered = async {
                let registration = Registry::register(&manifest, instance("service2", "two", 4000)).await.unwrap();
                (began.elapsed(), registration.state())
            };
            let (answer, (took, state)) = tokio::join!(call.into_future(), registered);
            let (error, waited) = (answer.unwrap_err(), began.elapsed());
            assert!(waited < Duration::from_secs(5), "the call waited {waited:?}: {error}");
            assert!(error.message().contains(why), "{error}");
            assert!(took < waited, "registering took {took:?}");
            assert!(matches!(&state, RegistrationState::Retrying(problem) if problem.contains(why)), "{state:?}");
        }))
        .await;
    }
}

#[tokio::test]
async fn when_the_holder_of_the_port_ends_nobody_is_warned() {
    let warnings = Warnings::default();
    let _logged = tracing::subscriber::set_default(warnings.clone());
    let port = free_address().rsplit_once(':').unwrap().1.parse().unwrap();
    let mut members = Vec::new();
    for number in 0..4 {
        members.push(Manifest::local_on(port));
        let links = || members.iter().map(|member: &Manifest| member.connected().len()).collect::<Vec<_>>();
        eventually("the members are connected", async || links().iter().sum::<usize>() == 2 * number).await;
    }
    while members.len() > 2 {
        // The one that came first holds it, or any of the others does.
        let mut losses = members[1].watch("service1");
        until(&mut losses, "the others", |snapshot| snapshot.freshness == Freshness::Live).await;
        let most = (0..members.len()).max_by_key(|of| members[*of].connected().len()).unwrap();
        members.remove(most).close().await;
        eventually("the rest is connected again", async || {
            let connected: usize = members.iter().map(|member| member.connected().len()).sum();
            connected == 2 * (members.len() - 1)
        })
        .await;
    }
    assert_eq!(warnings.of(""), [""; 0], "nobody has to do anything about it");
}

#[tokio::test]
async fn an_outage_that_lasts_is_a_warning_and_so_is_its_end() {
    let warnings = Warnings::default();
    let _logged = tracing::subscriber::set_default(warnings.clone());
    let (hub, address) = listening(Manifest::new()).await;
    let member = Manifest::new().join(&address);
    eventually("they are connected", async || member.connected().len() == 1).await;
    hub.close().await;
    eventually("the link is gone", async || member.connected().is_empty()).await;
    let gone = Instant::now();
    assert_eq!(warnings.of(""), [""; 0]);
    eventually("a warning", async || !warnings.of("no other member is reached").is_empty()).await;
    assert!(gone.elapsed() > Duration::from_millis(900), "warned after {:?}", gone.elapsed());
    let again = Manifest::new().listen(&address);
    timeout(PATIENCE, again.listening()).await.unwrap().unwrap();
    eventually("its end", async || !warnings.of("other members are reached again").is_empty()).await;
    assert_eq!(warnings.of("").len(), 2, "{:?}", warnings.of(""));
}

#[tokio::test]
async fn who_is_alone_at_last_does_not_say_that_others_are_reached() {
    let warnings = Warnings::default();
    let _logged = tracing::subscriber::set_default(warnings.clone());
    // Somebody else has its address for a while, and says nothing.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let member = Manifest::new().listen(&address).join(&address);
    let mut watch = member.watch("service1");
    eventually("a warning", async || !warnings.of("no other member is reached").is_empty()).await;
    drop(taken);
    until(&mut watch, "that it is alone", |snapshot| snapshot.freshness == Freshness::Live).await;
    eventually("its end", async || !warnings.of("no longer cut off").is_empty()).await;
    assert_eq!(warnings.of("reached again"), [""; 0]);
}

/// With one worker what is started last runs first, so that the own address would be dialled before it listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_joins_its_own_address_listens_before_it_dials() {
    for round in 0..10 {
        let address = free_address();
        let member = Manifest::new().listen(&address).join(&address);
        let mut watch = member.watch("service1");
        let told = until(&mut watch, "a first word", |snapshot| {
            snapshot.freshness != Freshness::Never || snapshot.problem.is_some()
        })
        .await;
        assert_eq!((told.freshness, &told.problem), (Freshness::Live, &None), "round {round}");
    }
}
