//! What a real Consul cannot be made to do: lie about its index, forget, refuse, hang, answer with nonsense.
//!
//! Owns only tests; each has a scripted Consul of its own. Look next at `support/fake_consul.rs`, and at
//! `registry_consul_faults_register.rs` for the same trouble on the registering side.
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use picom::registry::{Consul, Endpoints, Freshness, Registry, Tier, Watch};
use serde_json::{Value, json};
use support::fake_consul::{FakeConsul, Reply, Request, entry, listing};
use support::fault::Row;
use support::proxy::Proxy;
use support::until;

fn consul(fake: &FakeConsul) -> Consul {
    // Whoever has a list waits up to that long after the second failure.
    Consul::new(&fake.url()).unwrap().ttl(Duration::from_secs(1))
}

fn ids(endpoints: &Endpoints) -> Vec<&str> {
    endpoints.endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect()
}

fn live(endpoints: &Endpoints, expected: &[&str]) -> bool {
    endpoints.freshness == Freshness::Live && ids(endpoints) == expected
}

fn health_queries(requests: &[Request]) -> Vec<Option<u64>> {
    requests.iter().filter(|request| request.is_health()).map(Request::index).collect()
}

async fn watching_one(fake: &FakeConsul) -> Watch {
    let mut watch = consul(fake).watch("service1");
    until(&mut watch, "the first list", |e| live(e, &["one"])).await;
    fake.asked("a blocking query", |requests| requests.iter().any(|r| r.index() == Some(100))).await;
    watch
}

#[tokio::test]
async fn an_index_that_goes_backwards_leads_to_a_fresh_reading() {
    let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
    let mut watch = watching_one(&fake).await;
    fake.becomes(listing(5, &[entry("two", 2)]));
    let turned = tokio::time::Instant::now();
    until(&mut watch, "the new list", |e| ids(e) == ["one", "two"]).await;
    Row::new(7, "Consul's index goes backwards")
        .at_most("change seen after", turned.elapsed(), Duration::from_secs(2))
        .finish();
    let requests = fake.asked("a query from the lower index", |r| r.iter().any(|r| r.index() == Some(5))).await;
    assert_eq!(health_queries(&requests), [None, Some(100), None, Some(5)]);
}

#[tokio::test]
async fn blocking_queries_read_from_any_server_and_wait_55_seconds() {
    let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
    let _watch = watching_one(&fake).await;
    let queries: Vec<_> = fake.requests().into_iter().map(|request| request.query).collect();
    assert_eq!(queries, ["stale", "stale&index=100&wait=55s"]);
}

#[tokio::test]
async fn an_index_of_zero_does_not_become_a_busy_loop() {
    let fake = FakeConsul::start(|_| Reply::list(0, &[entry("one", 1)])).await;
    let _watch = consul(&fake).watch("service1");
    let requests = fake.asked("seven readings", |requests| requests.len() >= 7).await;
    let gap = requests[6].at - requests[4].at;
    Row::new(7, "Consul's index is 0")
        .at_most("requests a second after the burst", 2.0 / gap.as_secs_f64(), 2.0)
        .finish();
    assert!(gap > Duration::from_millis(1800), "after the burst, two readings took only {gap:?}");
    assert!(health_queries(&requests)[1..].iter().all(|index| *index == Some(1)));
}

#[tokio::test]
async fn any_error_leads_to_a_fresh_reading_and_the_list_is_kept() {
    let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
    let mut watch = watching_one(&fake).await;
    fake.becomes(|_| Reply::Reset);
    let stale = until(&mut watch, "the loss", |e| matches!(e.freshness, Freshness::Stale(_))).await;
    assert_eq!(ids(&stale), ["one"]);
    assert!(stale.problem.as_deref().unwrap().contains(&fake.url()), "{stale:?}");
    let before = fake.requests().len();
    // A lower index, as after a restart: with the old one, nothing would be seen of it.
    fake.becomes(listing(7, &[entry("one", 1), entry("two", 2)]));
    until(&mut watch, "the new list", |e| live(e, &["one", "two"])).await;
    let requests = fake.requests();
    assert!(requests[before..].iter().all(|r| r.index().is_none_or(|index| index <= 7)), "{requests:#?}");
}

#[tokio::test]
async fn bad_answers_are_named_and_keep_the_list() {
    let long = format!("[{}1]", "1,".repeat(5 * 1024 * 1024));
    let many = format!("[{}null]", "null,".repeat(10_000));
    let answers = [
        (Reply::text(500, "No cluster leader"), vec!["500", "No cluster leader"]),
        (Reply::text(503, ""), vec!["503"]),
        (Reply::text(429, "Your IP is issuing too many concurrent connections"), vec!["429", "too many"]),
        (Reply::text(403, "ACL not found"), vec!["403", "ACL not found"]),
        (Reply::text(404, "no such page"), vec!["404"]),
        (Reply::text(302, "").header("Location", "http://127.0.0.1:1/"), vec!["302", "redirects are not followed"]),
        (Reply::text(200, "<!DOCTYPE html><html>Sign in</html>"), vec!["HTML", "is this Consul?"]),
        (Reply::text(200, "hello"), vec!["not Consul's JSON", "hello"]),
        (Reply::text(200, "{}"), vec!["not Consul's JSON"]),
        (Reply::text(200, ""), vec!["not Consul's JSON"]),
        (Reply::text(200, long), vec!["more than 8 MiB"]),
        (Reply::text(200, many), vec!["more than 10000 instances"]),
        (Reply::Reset, vec!["GET /v1/health/service/service1"]),
    ];
    for (answer, words) in answers {
        let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
        let mut watch = watching_one(&fake).await;
        fake.becomes(move |_| answer.clone());
        let stale = until(&mut watch, words[0], |e| matches!(e.freshness, Freshness::Stale(_))).await;
        let problem = stale.problem.clone().unwrap();
        assert_eq!(ids(&stale), ["one"], "the list was lost with {problem}");
        assert!(problem.contains(&fake.url()), "{problem}");
        for word in words {
            assert!(problem.contains(word), "expected {word:?} in {problem:?}");
        }
        fake.becomes(listing(100, &[entry("one", 1), entry("two", 2)]));
        let again = until(&mut watch, "the recovery", |e| live(e, &["one", "two"])).await;
        assert_eq!(again.problem, None);
    }
}

#[tokio::test]
async fn after_a_refusal_another_connection_is_made_unless_there_are_too_many() {
    for (answer, closes) in [
        (Reply::text(502, "Bad Gateway"), true),
        (Reply::text(200, "<html>Parked</html>"), true),
        (Reply::text(200, "hello"), true),
        (Reply::text(404, "not found"), true),
        (Reply::text(403, "ACL not found"), true),
        (Reply::text(429, "too many"), false),
    ] {
        let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
        let proxy = Proxy::start(fake.addr()).await;
        let registry = Consul::new(&format!("http://{}", proxy.addr)).unwrap().ttl(Duration::from_secs(1));
        let mut watch = registry.watch("service1");
        until(&mut watch, "the first list", |e| live(e, &["one"])).await;
        fake.asked("a blocking query", |requests| requests.iter().any(|r| r.index() == Some(100))).await;
        assert_eq!(proxy.connections(), 1);
        fake.becomes(move |_| answer.clone());
        fake.asked("another try", |requests| requests.len() >= 4).await;
        assert_eq!(proxy.connections() > 1, closes, "{:#?}", watch.current());
    }
}

#[tokio::test]
async fn control_characters_of_a_stranger_do_not_reach_the_log() {
    let fake = FakeConsul::start(|_| Reply::text(500, format!("a\u{1b}[2J\nb{}", "x".repeat(5000)))).await;
    let mut watch = consul(&fake).watch("service1");
    let problem = until(&mut watch, "the problem", |e| e.problem.is_some()).await.problem.clone().unwrap();
    assert!(!problem.chars().any(char::is_control) && problem.len() < 400, "{problem:?}");
}

#[tokio::test]
async fn a_hanging_consul_is_named_within_its_deadline() {
    let fake = FakeConsul::start(|_| Reply::Hang).await;
    let began = std::time::Instant::now();
    let mut watch = consul(&fake).watch("service1");
    let never = until(&mut watch, "the problem", |e| e.problem.is_some()).await;
    assert_eq!(never.freshness, Freshness::Never);
    assert!(never.problem.as_deref().unwrap().contains("no answer within 5s"), "{never:?}");
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn an_empty_answer_does_not_wipe_a_good_list() {
    let fake = FakeConsul::listing(100, &[entry("one", 1), entry("two", 2)]).await;
    let mut watch = consul(&fake).watch("service1");
    until(&mut watch, "both", |e| live(e, &["one", "two"])).await;
    fake.becomes(listing(101, &[]));
    let kept = until(&mut watch, "the remembered ones", |e| e.problem.is_some()).await;
    assert_eq!(ids(&kept), ["one", "two"]);
    assert!(kept.endpoints.iter().all(|endpoint| endpoint.tier == Tier::Unhealthy), "{kept:?}");
    assert!(matches!(kept.freshness, Freshness::Stale(_)), "{kept:?}");
    assert_eq!(kept.usable().len(), 2, "calls find out for themselves who is there");
    fake.becomes(listing(102, &[entry("one", 1)]));
    let back = until(&mut watch, "the one that came back", |e| live(e, &["one"])).await;
    assert_eq!(back.endpoints[0].tier, Tier::Healthy);
    assert_eq!(back.problem, None);
}

#[tokio::test]
async fn a_list_that_comes_back_piece_by_piece_loses_nobody() {
    let (one, two, three) = (entry("one", 1), entry("two", 2), entry("three", 3));
    let says = |e: &Endpoints, what| e.problem.as_deref().is_some_and(|problem| problem.contains(what));
    // Consul forgets while it is away, and may count beyond where it was until it is heard; or it goes back between two answers.
    for (is_away, index) in [(true, 107), (false, 7)] {
        let fake = FakeConsul::listing(100, &[one.clone(), two.clone(), three.clone()]).await;
        let mut watch = consul(&fake).stale_grace(Duration::from_secs(60)).watch("service1");
        until(&mut watch, "all", |e| live(e, &["one", "two", "three"])).await;
        fake.asked("a blocking query", |requests| requests.iter().any(|r| r.index() == Some(100))).await;
        if is_away {
            fake.becomes(|_| Reply::Reset);
            until(&mut watch, "the loss", |e| matches!(e.freshness, Freshness::Stale(_))).await;
        }
        fake.becomes(listing(index, std::slice::from_ref(&one)));
        let first = until(&mut watch, "the first", |e| says(e, "only 1")).await;
        assert!(matches!(first.freshness, Freshness::Stale(_)), "{first:?}");
        assert_eq!(ids(&first), ["one", "two", "three"]);
        assert_eq!(first.usable().len(), 3, "calls must not all go to the first: {first:#?}");
        fake.becomes(listing(index + 1, &[one.clone(), two.clone()]));
        until(&mut watch, "the second", |e| says(e, "only 2")).await;
        // Who leaves after it has come back is gone.
        fake.becomes(listing(index + 2, std::slice::from_ref(&two)));
        let left = until(&mut watch, "one that left", |e| !ids(e).contains(&"one")).await;
        assert_eq!(ids(&left), ["two", "three"]);
    }
}

#[tokio::test]
async fn an_agent_that_forgets_again_and_again_loses_nobody() {
    let (one, two, three) = (entry("one", 1), entry("two", 2), entry("three", 3));
    let says = |e: &Endpoints, what| e.problem.as_deref().is_some_and(|problem| problem.contains(what));
    let grace = Duration::from_secs(4);
    let fake = FakeConsul::listing(100, &[one.clone(), two.clone(), three.clone()]).await;
    let mut watch = consul(&fake).stale_grace(grace).watch("service1");
    until(&mut watch, "all", |e| live(e, &["one", "two", "three"])).await;
    fake.becomes(listing(9, &[one.clone(), two.clone()]));
    until(&mut watch, "two", |e| says(e, "only 2")).await;
    // Those who had come back are forgotten once more.
    fake.becomes(listing(8, std::slice::from_ref(&two)));
    let again = until(&mut watch, "one of them", |e| says(e, "only 1")).await;
    assert_eq!((ids(&again), again.usable().len()), (vec!["one", "two", "three"], 3));
    fake.becomes(listing(7, &[]));
    until(&mut watch, "none of them", |e| says(e, "no instance")).await;
    // Away for longer than anybody is remembered.
    fake.becomes(|_| Reply::Reset);
    until(&mut watch, "the loss", |e| !says(e, "no instance")).await;
    tokio::time::sleep(grace).await;
    assert_eq!(watch.current().usable().len(), 3, "{:#?}", watch.current());
    fake.becomes(listing(6, std::slice::from_ref(&three)));
    let back = until(&mut watch, "the last one", |e| says(e, "only 1")).await;
    assert_eq!((ids(&back), back.usable().len()), (vec!["one", "two", "three"], 3));
    until(&mut watch, "the others given up", |e| live(e, &["three"])).await;
}

#[tokio::test]
async fn who_waits_for_others_to_come_back_reads_on_in_time() {
    let (one, two) = (entry("one", 1), entry("two", 2));
    // With this TTL the next answer is wanted after half a minute.
    let patient = |fake: &FakeConsul| Consul::new(&fake.url()).unwrap().ttl(Duration::from_secs(30));
    let fake = FakeConsul::listing(100, &[one.clone(), two.clone()]).await;
    let mut watch = patient(&fake).watch("service1");
    until(&mut watch, "both", |e| live(e, &["one", "two"])).await;
    fake.becomes(listing(7, std::slice::from_ref(&one)));
    until(&mut watch, "the first", |e| e.problem.is_some()).await;
    fake.becomes(listing(8, &[one.clone(), two.clone()]));
    watch.refresh();
    until(&mut watch, "both, because somebody wants to know", |e| live(e, &["one", "two"])).await;

    let fake = FakeConsul::listing(100, &[one.clone(), two.clone()]).await;
    let mut watch = patient(&fake).stale_grace(Duration::from_secs(6)).watch("service1");
    until(&mut watch, "both", |e| live(e, &["one", "two"])).await;
    fake.becomes(listing(7, &[]));
    until(&mut watch, "nobody", |e| e.problem.is_some()).await;
    fake.becomes(listing(8, std::slice::from_ref(&one)));
    let first = until(&mut watch, "the first, before they are given up", |e| {
        !e.endpoints.iter().all(|endpoint| endpoint.tier == Tier::Unhealthy)
    })
    .await;
    assert_eq!(ids(&first), ["one", "two"]);
    until(&mut watch, "the rest is given up", |e| live(e, &["one"])).await;
}

#[tokio::test]
async fn a_list_that_comes_back_whole_is_believed_at_once() {
    let both = [entry("one", 1), entry("two", 2)];
    let fake = FakeConsul::listing(100, &both).await;
    let mut watch = consul(&fake).watch("service1");
    until(&mut watch, "both", |e| live(e, &["one", "two"])).await;
    fake.becomes(listing(7, &both[..1]));
    until(&mut watch, "the first", |e| matches!(e.freshness, Freshness::Stale(_))).await;
    fake.becomes(listing(8, &both));
    let again = until(&mut watch, "both again", |e| live(e, &["one", "two"])).await;
    assert_eq!(again.problem, None);
    // From now on news are news.
    fake.asked("a blocking query", |requests| requests.iter().any(|r| r.index() == Some(8))).await;
    fake.becomes(listing(9, &both[1..]));
    let changed = tokio::time::Instant::now();
    until(&mut watch, "the one that is left", |e| live(e, &["two"])).await;
    assert!(changed.elapsed() < Duration::from_millis(500), "seen after {:?}", changed.elapsed());
}

#[tokio::test]
async fn no_grace_means_that_empty_is_empty() {
    let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
    let mut watch = consul(&fake).stale_grace(Duration::ZERO).watch("service1");
    until(&mut watch, "the first list", |e| live(e, &["one"])).await;
    fake.becomes(listing(101, &[]));
    until(&mut watch, "the empty list", |e| live(e, &[])).await;
}

#[tokio::test]
async fn a_list_of_nothing_but_nonsense_says_so() {
    let bad = json!({"Service": {"ID": "high", "Address": "10.0.0.1", "Port": 70_000}});
    let fake = FakeConsul::listing(100, &[bad]).await;
    let registry = consul(&fake);
    let mut watch = registry.watch("service1");
    let found = until(&mut watch, "an answer", |e| e.freshness == Freshness::Live).await;
    assert!(found.endpoints.is_empty());
    assert!(found.problem.as_deref().unwrap().contains("70000"), "{found:?}");
    assert_eq!(registry.rejected_entries(), 1);
}

#[tokio::test]
async fn all_watches_of_a_service_share_one_query() {
    let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
    let (first, second) = (consul(&fake), consul(&fake));
    let mut watches: Vec<_> = (0..20).map(|n| if n % 2 == 0 { &first } else { &second }.watch("service1")).collect();
    for watch in &mut watches {
        until(watch, "the list", |e| live(e, &["one"])).await;
    }
    fake.asked("a blocking query", |requests| requests.iter().any(|r| r.index().is_some())).await;
    // Dropped and made anew in quick succession, as a client per request would do.
    drop(watches);
    for _ in 0..20 {
        let mut watch = consul(&fake).watch("service1");
        until(&mut watch, "the list", |e| live(e, &["one"])).await;
    }
    assert_eq!(health_queries(&fake.requests()), [None, Some(100)]);
}

#[tokio::test]
async fn another_service_or_other_settings_are_another_query() {
    let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
    let mut one = consul(&fake).watch("service1");
    let mut two = consul(&fake).watch("service2");
    let mut three = consul(&fake).datacenter("dc2").token("hush").watch("service1");
    for watch in [&mut one, &mut two, &mut three] {
        until(watch, "the list", |e| live(e, &["one"])).await;
    }
    let requests = fake.requests();
    let elsewhere = requests.iter().find(|request| request.query.contains("dc=dc2")).expect("asked in dc2");
    assert_eq!(elsewhere.token.as_deref(), Some("hush"));
    assert!(requests.iter().any(|request| request.path.ends_with("/service2") && request.token.is_none()));
}

#[tokio::test]
async fn a_wish_to_look_again_is_heard_while_a_query_waits() {
    let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
    let mut watch = watching_one(&fake).await;
    // Nothing wakes the waiting query here.
    let updated = listing(101, &[entry("two", 2)]);
    fake.becomes(move |request| if request.index() == Some(100) { Reply::Hold } else { updated(request) });
    watch.refresh();
    until(&mut watch, "the new list", |e| live(e, &["two"])).await;
}

#[tokio::test]
async fn equal_answers_wake_nobody() {
    let fake = FakeConsul::listing(100, &[entry("one", 1), entry("two", 2)]).await;
    let mut watch = consul(&fake).watch("service1");
    let before = until(&mut watch, "both", |e| live(e, &["one", "two"])).await;
    fake.becomes(listing(101, &[entry("two", 2), entry("one", 1)]));
    fake.asked("the next query", |requests| requests.iter().any(|r| r.index() == Some(101))).await;
    assert_eq!(watch.current().generation, before.generation);
    assert!(std::sync::Arc::ptr_eq(&watch.current(), &before), "a new snapshot without any change");
}

fn lagging(leader: Reply) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| {
        if request.query.contains("stale") && request.index().is_none() {
            Reply::list(100, &[entry("old", 1)]).header("X-Consul-LastContact", "60000")
        } else if request.index().is_some() {
            Reply::Hold
        } else {
            leader.clone()
        }
    }
}

#[tokio::test]
async fn a_server_far_behind_is_not_believed() {
    let fake = FakeConsul::start(lagging(Reply::list(200, &[entry("new", 2)]))).await;
    let mut watch = consul(&fake).watch("service1");
    let first = until(&mut watch, "a list", |e| !e.endpoints.is_empty()).await;
    assert_eq!(ids(&first), ["new"]);
    assert_eq!(first.freshness, Freshness::Live);
}

#[tokio::test]
async fn a_list_from_far_behind_is_better_than_none_and_marked_as_old() {
    let fake = FakeConsul::start(lagging(Reply::text(500, "No cluster leader"))).await;
    let mut watch = consul(&fake).watch("service1");
    let first = until(&mut watch, "a list", |e| !e.endpoints.is_empty()).await;
    assert_eq!(ids(&first), ["old"]);
    assert!(matches!(first.freshness, Freshness::Stale(_)), "{first:?}");
    assert!(first.problem.as_deref().unwrap().contains("No cluster leader"), "{first:?}");
}

#[tokio::test]
async fn the_next_token_in_the_file_is_used_when_the_last_one_is_refused() {
    let fake = FakeConsul::start(|request| match request.token.as_deref() {
        Some("second") if request.index().is_none() => Reply::list(100, &[entry("one", 1)]),
        Some("second") => Reply::Hold,
        _ => Reply::text(403, "ACL not found"),
    })
    .await;
    let folder = tempfile();
    std::fs::write(&folder, "first\n").unwrap();
    let mut watch = consul(&fake).token_file(&folder).watch("service1");
    until(&mut watch, "the refusal", |e| e.problem.as_deref().is_some_and(|text| text.contains("403"))).await;
    std::fs::write(&folder, "second\n").unwrap();
    until(&mut watch, "the list", |e| live(e, &["one"])).await;
    std::fs::remove_file(&folder).unwrap();
}

fn tempfile() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("picom-token-{}", std::process::id()))
}

#[tokio::test]
async fn a_token_is_never_shown() {
    let fake = FakeConsul::start(|_| Reply::text(403, "ACL not found")).await;
    let registry = consul(&fake).token("hush-hush");
    let mut watch = registry.watch("service1");
    let refused = until(&mut watch, "the refusal", |e| e.problem.is_some()).await;
    for shown in [format!("{registry:?}"), format!("{registry:#?}"), registry.describe(), format!("{refused:?}")] {
        assert!(!shown.contains("hush-hush"), "{shown}");
    }
    let illegal = consul(&fake).token("hush\nhush").validate().unwrap_err();
    assert!(!illegal.to_string().contains("hush"), "{illegal}");
    assert_eq!(fake.requests()[0].token.as_deref(), Some("hush-hush"));
}

#[tokio::test]
async fn the_difference_between_nobody_and_no_rights_is_told() {
    let fake = FakeConsul::start(|request| match request.index() {
        Some(_) => Reply::Hold,
        None if request.is_health() => Reply::list(100, &[]),
        None => Reply::text(200, json!({"AccessorID": "anonymous"}).to_string()),
    })
    .await;
    let mut watch = consul(&fake).watch("service1");
    let found = until(&mut watch, "a hint", |e| e.problem.is_some()).await;
    assert_eq!(found.freshness, Freshness::Live);
    assert!(found.problem.as_deref().unwrap().contains("service:read"), "{found:?}");
}

#[tokio::test]
async fn null_is_an_empty_list() {
    let fake = FakeConsul::start(|request| match request.index() {
        Some(_) => Reply::Hold,
        None if request.is_health() => Reply::text(200, Value::Null.to_string()),
        None => Reply::text(401, "ACL support disabled"),
    })
    .await;
    let mut watch = consul(&fake).watch("service1");
    until(&mut watch, "the empty list", |e| live(e, &[])).await;
}

#[tokio::test]
#[ignore = "takes more than a minute"]
async fn a_query_that_sleeps_through_a_change_is_noticed_within_about_a_minute() {
    let fake = FakeConsul::listing(100, &[entry("one", 1)]).await;
    let mut watch = watching_one(&fake).await;
    let updated = listing(101, &[entry("two", 2)]);
    fake.becomes(move |request| if request.index() == Some(100) { Reply::Hold } else { updated(request) });
    let began = std::time::Instant::now();
    while !live(&*watch.changed().await, &["two"]) {}
    assert!(began.elapsed() < Duration::from_secs(70), "it took {:?}", began.elapsed());
}
