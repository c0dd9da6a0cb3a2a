//! Registering at a Consul that forgets, refuses, hangs, or takes what nobody then sees.
//!
//! Owns only tests; each has a scripted Consul of its own. Look next at `support/fake_consul.rs`.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use picom::registry::{Consul, Registration, RegistrationState, Registry, RegistryError};
use support::fake_consul::{FakeConsul, Reply, Request, entry, listing};
use support::{instance, state};

fn consul(fake: &FakeConsul) -> Consul {
    Consul::new(&fake.url()).unwrap().ttl(Duration::from_secs(1))
}

async fn register(fake: &FakeConsul) -> Registration {
    consul(fake).register(instance("service1", "one", 4000)).await.unwrap()
}

/// A Consul in good health that lists the instance.
fn good() -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    listing(100, &[entry("one", 4000)])
}

fn verbs(requests: &[Request]) -> Vec<&'static str> {
    requests.iter().map(Request::verb).filter(|verb| !verb.is_empty()).collect()
}

fn count(requests: &[Request], verb: &str) -> usize {
    requests.iter().filter(|request| request.verb() == verb).count()
}

async fn registered(registration: &Registration) {
    state(registration, "Registered", |state| *state == RegistrationState::Registered).await;
}

fn why(registration: &Registration) -> String {
    match registration.state() {
        RegistrationState::Retrying(why) | RegistrationState::Denied(why) => why,
        other => panic!("expected trouble, got {other:?}"),
    }
}

#[tokio::test]
async fn the_record_says_all_that_consul_should_know() {
    let fake = FakeConsul::start(good()).await;
    let mut given = instance("service1", "one", 4000);
    given.zone = Some("north".to_owned());
    let _registration = consul(&fake).token("hush").register(given).await.unwrap();
    let requests = fake.requests();
    assert_eq!(verbs(&requests)[..2], ["register", "pass"], "a real pass follows at once");
    let body = &requests[0].body;
    assert_eq!(body["ID"], "one");
    assert_eq!(body["Name"], "service1");
    assert_eq!(body["Port"], 4000);
    assert_eq!(body["Address"], "");
    assert_eq!(body["Meta"]["picom-incarnation"], "00000000feed0fa0");
    assert_eq!(body["Meta"]["picom-zone"], "north");
    assert_eq!(body["Check"]["CheckID"], "service:one");
    assert_eq!(body["Check"]["TTL"], "1000ms");
    assert_eq!(body["Check"]["Status"], "passing");
    assert_eq!(body["Check"]["DeregisterCriticalServiceAfter"], "300000ms");
    assert_eq!(requests[1].path, "/v1/agent/check/pass/service:one");
    assert!(requests.iter().all(|request| request.token.as_deref() == Some("hush") && !request.query.contains("hush")));
}

#[tokio::test]
async fn a_beat_comes_every_third_of_the_ttl() {
    let fake = FakeConsul::start(good()).await;
    let _registration = register(&fake).await;
    let requests = fake.asked("five beats", |requests| count(requests, "pass") >= 5).await;
    let beats: Vec<_> = requests.iter().filter(|r| r.verb() == "pass").map(|r| r.at).collect();
    for pair in beats.windows(2) {
        let gap = pair[1] - pair[0];
        assert!(gap > Duration::from_millis(295) && gap < Duration::from_millis(900), "a gap of {gap:?}");
    }
    assert_eq!(count(&requests, "register"), 1, "nothing was wrong, so nothing is registered again yet");
}

#[tokio::test]
async fn an_agent_that_forgot_the_check_is_told_again() {
    for (status, text) in [(500, "CheckID \"service:one\" does not have associated TTL"), (404, "Unknown check ID")] {
        let fake = FakeConsul::start(good()).await;
        let registration = register(&fake).await;
        assert_eq!(registration.state(), RegistrationState::Registered);
        let healthy = good();
        let registers = AtomicUsize::new(0);
        fake.becomes(move |request| {
            if request.verb() == "register" {
                registers.fetch_add(1, Ordering::SeqCst);
            }
            let lost = request.verb() == "pass" && registers.load(Ordering::SeqCst) == 0;
            if lost { Reply::text(status, text) } else { healthy(request) }
        });
        let mut states = registration.states();
        let lost = states.wait_for(|state| matches!(state, RegistrationState::Retrying(_)));
        tokio::time::timeout(support::PATIENCE, lost).await.expect("the loss is shown").unwrap();
        registered(&registration).await;
        let requests = fake.requests();
        assert_eq!(count(&requests, "register"), 2, "answer {status}: {requests:#?}");
        // A restarted agent hears this from everybody: the next beat, a third of the TTL later, is the next word.
        let again = requests.iter().rposition(|request| request.verb() == "register").unwrap();
        let next = requests[again..].iter().find(|request| request.verb() == "pass").expect("a beat before it looks");
        let pause = next.at - requests[again].at;
        assert!(pause > Duration::from_millis(295), "answer {status}: a beat only {pause:?} after the registration");
    }
}

#[tokio::test]
async fn two_failed_beats_lead_to_another_registration_and_one_does_not() {
    let fake = FakeConsul::start(good()).await;
    let registration = register(&fake).await;
    for (failures, registers) in [(1, 1), (2, 2)] {
        let healthy = good();
        let failed = AtomicUsize::new(0);
        let seen = Arc::new(AtomicUsize::new(0));
        let beats = Arc::clone(&seen);
        fake.becomes(move |request| {
            if request.verb() == "pass" {
                if failed.fetch_add(1, Ordering::SeqCst) < failures {
                    return Reply::text(500, "trouble");
                }
                beats.fetch_add(1, Ordering::SeqCst);
            }
            healthy(request)
        });
        fake.asked("beats that work again", |_| seen.load(Ordering::SeqCst) >= 2).await;
        registered(&registration).await;
        assert_eq!(count(&fake.requests(), "register"), registers, "after {failures} failed beats");
    }
}

#[tokio::test]
async fn beats_go_on_while_a_registration_gets_no_answer() {
    // As with an agent whose cluster has no leader: it takes the instance, but its answer comes too late.
    let fake = FakeConsul::start(good()).await;
    let registration = register(&fake).await;
    let healthy = good();
    let beats = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&beats);
    fake.becomes(move |request| match request.verb() {
        "register" => Reply::Hang,
        "pass" if beats.fetch_add(1, Ordering::SeqCst) < 2 => Reply::text(500, "trouble"),
        _ => healthy(request),
    });
    fake.asked("beats that work again", |_| seen.load(Ordering::SeqCst) >= 5).await;
    registered(&registration).await;
}

#[tokio::test]
async fn a_refusal_for_lack_of_rights_is_shown_and_not_hammered() {
    let fake = FakeConsul::start(|_| Reply::text(403, "Permission denied: Missing service:write on service1")).await;
    let registration = register(&fake).await;
    assert!(matches!(registration.state(), RegistrationState::Denied(_)), "{:?}", registration.state());
    let text = why(&registration);
    assert!(text.contains("Missing service:write on service1") && text.contains(&fake.url()), "{text}");
    let requests = fake.asked("two more tries", |requests| count(requests, "register") >= 3).await;
    let tries: Vec<_> = requests.iter().filter(|r| r.verb() == "register").map(|r| r.at).collect();
    assert!(tries[1] - tries[0] > Duration::from_millis(850), "{:?}", tries[1] - tries[0]);
    assert!(tries[2] - tries[1] > Duration::from_millis(1700), "{:?}", tries[2] - tries[1]);
}

#[tokio::test]
async fn a_new_token_in_the_file_ends_the_refusal() {
    let healthy = good();
    let fake = FakeConsul::start(move |request| match request.token.as_deref() {
        Some("second") => healthy(request),
        _ => Reply::text(403, "ACL not found"),
    })
    .await;
    let path = std::env::temp_dir().join(format!("picom-register-token-{}", std::process::id()));
    std::fs::write(&path, "first").unwrap();
    let registry = consul(&fake).token_file(&path);
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    assert!(matches!(registration.state(), RegistrationState::Denied(_)), "{:?}", registration.state());
    std::fs::write(&path, "second").unwrap();
    registered(&registration).await;
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn what_nobody_can_see_is_not_registered() {
    // As without a leader: the agent takes the instance, but the catalog cannot be read.
    let healthy = good();
    let fake =
        FakeConsul::start(
            move |request| {
                if request.is_health() { Reply::text(500, "No cluster leader") } else { healthy(request) }
            },
        )
        .await;
    let registration = register(&fake).await;
    assert!(matches!(registration.state(), RegistrationState::Retrying(_)), "{:?}", registration.state());
    assert!(why(&registration).contains("No cluster leader"), "{}", why(&registration));
    fake.becomes(good());
    registered(&registration).await;
    assert_eq!(count(&fake.requests(), "register"), 1, "the agent knew all the time");
}

#[tokio::test]
async fn what_is_taken_but_not_listed_is_not_registered_unless_rights_hide_it() {
    let script = |rights: bool| {
        let empty = listing(100, &[]);
        move |request: &Request| match request.path.as_str() {
            "/v1/acl/token/self" if rights => Reply::text(403, "ACL not found"),
            _ => empty(request),
        }
    };
    let fake = FakeConsul::start(script(false)).await;
    let registration = register(&fake).await;
    assert!(matches!(registration.state(), RegistrationState::Retrying(_)), "{:?}", registration.state());
    assert!(why(&registration).contains("does not list it"), "{}", why(&registration));
    fake.becomes(script(true));
    registered(&registration).await;
}

#[tokio::test]
async fn a_page_of_html_is_not_taken_for_success() {
    let fake = FakeConsul::start(|_| Reply::text(200, "<html>Sign in</html>")).await;
    let registration = register(&fake).await;
    assert!(why(&registration).contains("is this Consul?"), "{}", why(&registration));
}

#[tokio::test]
async fn an_instance_that_consul_cannot_make_sense_of_is_an_error() {
    let fake = FakeConsul::start(|_| Reply::text(400, "Request decode failed")).await;
    let refused = consul(&fake).register(instance("service1", "one", 4000)).await;
    match refused {
        Err(RegistryError::Invalid(text)) => assert!(text.contains("Request decode failed"), "{text}"),
        other => panic!("expected Invalid, got {other:?}"),
    }
}

#[tokio::test]
async fn no_beat_follows_after_the_instance_is_taken_back() {
    let fake = FakeConsul::start(good()).await;
    let registration = register(&fake).await;
    let states = registration.states();
    fake.asked("a few beats", |requests| count(requests, "pass") >= 3).await;
    let healthy = listing(101, &[]);
    fake.becomes(move |request| {
        if request.verb() == "deregister" { Reply::text(404, "Unknown service ID") } else { healthy(request) }
    });
    registration.leave().await.expect("an unknown instance is as good as taken back");
    assert_eq!(*states.borrow(), RegistrationState::Left);
    // The task has ended with `leave`, or its sending end would still be there.
    assert!(states.has_changed().is_err(), "something could still beat");
    assert_eq!(verbs(&fake.requests()).last(), Some(&"deregister"));
}

#[tokio::test]
async fn leaving_waits_until_the_list_has_changed() {
    let fake = FakeConsul::start(good()).await;
    let registration = register(&fake).await;
    let looks = AtomicUsize::new(0);
    let (listed, gone) = (good(), listing(101, &[]));
    fake.becomes(move |request| {
        if request.is_health() && looks.fetch_add(1, Ordering::SeqCst) < 3 { listed(request) } else { gone(request) }
    });
    let before = fake.requests().len();
    registration.leave().await.unwrap();
    let looks = fake.requests()[before..].iter().filter(|request| request.is_health()).count();
    assert!(looks >= 4, "left after {looks} looks");
}

#[tokio::test]
async fn leaving_gives_up_after_three_tries_and_says_why() {
    let fake = FakeConsul::start(good()).await;
    let registration = register(&fake).await;
    fake.becomes(|_| Reply::text(503, "busy"));
    let error = registration.leave().await.unwrap_err().to_string();
    assert!(error.contains("503") && error.contains(&fake.url()), "{error}");
    assert_eq!(count(&fake.requests(), "deregister"), 3);
}

#[tokio::test]
async fn giving_up_on_register_takes_back_what_it_began() {
    let fake = FakeConsul::start(|request| match request.verb() {
        "deregister" => Reply::text(200, ""),
        _ => Reply::Hang,
    })
    .await;
    let registry = consul(&fake);
    let given_up =
        tokio::time::timeout(Duration::from_millis(50), registry.register(instance("service1", "one", 4000)));
    assert!(given_up.await.is_err());
    fake.asked("the instance taken back", |requests| count(requests, "deregister") == 1).await;
}

#[tokio::test]
async fn a_ttl_that_cannot_work_is_refused() {
    for ttl in [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(100_000)] {
        let registry = Consul::new("http://127.0.0.1:1").unwrap().ttl(ttl);
        for refused in [registry.validate(), registry.register(instance("service1", "one", 1)).await.map(drop)] {
            match refused {
                Err(RegistryError::Settings(text)) => assert!(text.contains("TTL"), "{text}"),
                other => panic!("a TTL of {ttl:?} gave {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn another_datacenter_to_find_services_in_is_not_where_one_registers() {
    let fake = FakeConsul::start(good()).await;
    let registry = consul(&fake).datacenter("dc2");
    let registration = registry.register(instance("service1", "one", 4000)).await.unwrap();
    assert_eq!(registration.state(), RegistrationState::Registered);
    let requests = fake.requests();
    assert!(requests.iter().all(|request| !request.query.contains("dc2")), "{requests:#?}");
}

#[tokio::test]
#[ignore = "takes more than a minute"]
async fn an_instance_is_registered_again_every_minute_or_so() {
    let fake = FakeConsul::start(good()).await;
    let _registration = register(&fake).await;
    let mut again = Vec::new();
    for _ in 0..80 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        again = fake.requests().into_iter().filter(|request| request.verb() == "register").collect();
        if again.len() > 1 {
            break;
        }
    }
    let gap = again[1].at - again[0].at;
    assert!(gap > Duration::from_secs(47) && gap < Duration::from_secs(75), "a gap of {gap:?}");
}

#[tokio::test]
async fn an_entry_that_a_crashed_predecessor_left_is_not_taken_for_ones_own() {
    let fake = FakeConsul::start(|request| match request.verb() {
        "register" => Reply::text(500, "boom"),
        "pass" => Reply::text(200, ""),
        _ => {
            let mut left = entry("one", 1);
            left["Service"]["Meta"] = serde_json::json!({"picom-incarnation": "0000000000000001"});
            Reply::list(7, &[left])
        }
    })
    .await;
    let registration = consul(&fake).register(instance("service1", "one", 1)).await.unwrap();
    let RegistrationState::Retrying(why) = registration.state() else {
        panic!("the registration failed, and what is listed is another process: {:?}", registration.state())
    };
    assert!(why.contains("does not list it"), "{why}");
}
