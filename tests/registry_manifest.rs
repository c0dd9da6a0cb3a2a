//! The registry that the nodes keep themselves: members that meet over TCP on one machine.
//!
//! Owns only tests. Look next at `registry_manifest_local.rs` for processes that die, and at `registry_manifest_scale.rs` for
//! many members.
#![cfg(feature = "manifest")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use picom::registry::{
    Details, Event, Freshness, MAX_DATA, Manifest, Record, RecordId, RegistrationState, Registry, RegistryError, Tier,
    from_url,
};
use picom::{NodeState, NodeStatus};
use support::members::{details, hear, hello, joined, listening, say};
use support::{PATIENCE, eventually, instance, state, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

const SECRET: &str = "a secret of more than sixteen bytes";

fn quick(manifest: Manifest) -> Manifest {
    manifest.heartbeat(Duration::from_millis(100)).lifetime(Duration::from_millis(500))
}

async fn sees(manifest: &Manifest, role: &str, count: usize) {
    eventually(&format!("{count} records of {role} are seen"), async || manifest.get(role).unwrap().len() == count)
        .await;
}

fn problem(error: &RegistryError) -> String {
    error.to_string()
}

#[tokio::test]
async fn a_service_is_found_by_other_members_with_its_state_until_it_leaves() {
    let (hub, address) = listening(Manifest::new()).await;
    let (server, client) = (Manifest::new().join(&address), Manifest::new().join(&address));
    let mut watch = client.watch("service1");
    let registration = Registry::register(&server, instance("service1", "one", 4000)).await.unwrap();
    state(&registration, "it is registered", |state| *state == RegistrationState::Registered).await;
    let seen = until(&mut watch, "the instance", |snapshot| snapshot.endpoints.len() == 1).await;
    let endpoint = &seen.endpoints[0];
    assert_eq!((seen.freshness, endpoint.tier, endpoint.id.as_str()), (Freshness::Live, Tier::Healthy, "one"));
    assert_eq!(endpoint.addr, SocketAddr::from(([127, 0, 0, 1], 4000)), "whom it dialled told it its address");
    assert_eq!(endpoint.incarnation, Some(0xfeed_0000 + 4000));
    registration.set_status(NodeStatus::now(NodeState::Doing, Some("backup")));
    until(&mut watch, "its state", |snapshot| snapshot.endpoints[0].status.to_string() == "doing: backup").await;
    assert_eq!(client.known().keys().collect::<Vec<_>>(), ["service1"]);
    assert_eq!(hub.known()["service1"].endpoints.len(), 1, "also where nobody watches");
    registration.leave().await.unwrap();
    until(&mut watch, "its leaving", |snapshot| snapshot.endpoints.is_empty()).await;
}

#[tokio::test]
async fn roles_are_found_by_name_version_range_and_any_field() {
    let (one, address) = listening(Manifest::new()).await;
    let two = Manifest::new().join(&address);
    let data = Details { data: vec![7; MAX_DATA], tags: vec!["blue".to_owned()], ..details(4000) };
    let first = one.register("calc@1.2.3", data.clone()).unwrap();
    let second = two.register("calc@2.0.0", details(4001)).unwrap();
    two.register("mail", Details { meta: [("version".to_owned(), "0.1.0".to_owned())].into(), ..details(4002) })
        .unwrap();
    for member in [&one, &two] {
        sees(member, "calc", 2).await;
        sees(member, "mail@^0.1", 1).await;
        assert_eq!(member.get("calc@1.2.3").unwrap().len(), 1);
        assert_eq!(member.get("calc@^2").unwrap()[0].id, second.id);
        assert_eq!(member.get("calc@^3").unwrap(), []);
        let blue = member.find(|record| record.details.tags == ["blue"]).unwrap();
        assert_eq!((blue.len(), blue[0].details.data.len()), (1, MAX_DATA));
        assert_eq!(member.services().unwrap().len(), 3);
        let range = member.watch("calc@^1").current();
        assert_eq!(range.endpoints.len(), 1, "{range:?}");
    }
    assert_eq!((first.role.as_str(), first.version.as_deref()), ("calc", Some("1.2.3")));
    assert_eq!(first.id.to_string().parse::<RecordId>().unwrap(), first.id);
    assert_eq!(first.id.owner, one.owner().unwrap());
    assert!(problem(&two.free(first.id).unwrap_err()).contains("another member"));
    assert!(problem(&one.get("calc@>>1").unwrap_err()).contains("range"));
    one.free(first.id).unwrap();
    sees(&two, "calc@1.2.3", 0).await;
    assert!(problem(&one.free(first.id).unwrap_err()).contains("no record"));
}

#[tokio::test]
async fn events_are_a_stream_that_tells_what_a_slow_reader_missed() {
    let (one, address) = listening(quick(Manifest::new())).await;
    let mut events = one.events().unwrap();
    let slow = one.events().unwrap();
    let two = quick(Manifest::new()).join(&address);
    let theirs = two.register("two", details(4000)).unwrap();
    let owner = two.owner().unwrap();
    let (mut told, mut beats) = (Vec::new(), 0);
    let mut next = async |wanted: &dyn Fn(&Event) -> bool| loop {
        let event = timeout(PATIENCE, events.next()).await.expect("an event in time").expect("the manifest lives");
        beats += usize::from(event == Event::Heartbeat);
        let found = wanted(&event);
        told.push(event);
        if found {
            return;
        }
    };
    next(&|event| matches!(event, Event::Registered(record) if record.id == theirs.id)).await;
    two.free(theirs.id).unwrap();
    next(&|event| matches!(event, Event::Freed(record) if record.id == theirs.id)).await;
    two.close().await;
    next(&|event| *event == Event::Disconnected { owner }).await;
    next(&|event| *event == Event::Heartbeat).await;
    one.close().await;
    next(&|event| *event == Event::Closed).await;
    assert!(told.contains(&Event::Connected { owner }) && told.contains(&Event::Synced { owner }), "{told:?}");
    assert!(beats > 0);
    assert_eq!(events.next().await, None);
    drop(slow);

    let three = Manifest::new();
    let mut slow = three.events().unwrap();
    for _ in 0..1000 {
        let record = three.register("x", details(1)).unwrap();
        three.free(record.id).unwrap();
    }
    let first = slow.next().await;
    assert!(matches!(first, Some(Event::Missed(n)) if n > 900), "{first:?}");
    assert!(matches!(slow.next().await, Some(Event::Registered(_) | Event::Freed(_))));
}

#[tokio::test]
async fn closing_takes_everything_back_and_nothing_can_be_added_afterwards() {
    let (one, address) = listening(Manifest::new()).await;
    let two = Manifest::new().join(&address);
    two.register("gone", details(4000)).unwrap();
    let kept = two.register("kept", Details { persistent: true, ..details(4001) }).unwrap();
    sees(&one, "gone", 1).await;
    two.close().await;
    sees(&one, "gone", 0).await;
    assert_eq!(one.get("kept").unwrap()[0].id, kept.id);
    assert!(problem(&two.register("late", details(4002)).unwrap_err()).contains("closed"));
    one.free(kept.id).unwrap();
    assert_eq!(one.services().unwrap(), []);
}

#[tokio::test]
async fn why_a_service_leaves_is_told_to_all_members() {
    let (hub, address) = listening(Manifest::new()).await;
    let (server, client) = (Manifest::new().join(&address), Manifest::new().join(&address));
    let mut events = client.events().unwrap();
    let registration = Registry::register(&server, instance("service1", "one", 4000)).await.unwrap();
    sees(&client, "service1", 1).await;
    registration.set_status(NodeStatus::now(NodeState::Down, Some("SIGTERM (15)")));
    registration.leave().await.unwrap();
    let freed = loop {
        let event = timeout(PATIENCE, events.next()).await.expect("an event in time");
        if let Event::Freed(record) = event.expect("the manifest lives") {
            break record;
        }
    };
    assert_eq!(freed.details.status.to_string(), "down: SIGTERM (15)");
    sees(&hub, "service1", 0).await;
}

#[tokio::test]
async fn the_last_handle_ends_the_member_and_gives_its_port_back() {
    let (one, address) = listening(Manifest::new()).await;
    let registration = Registry::register(&one, instance("service1", "one", 4000)).await.unwrap();
    let watch = one.clone().watch("service1");
    drop(one);
    assert!(TcpStream::connect(&address).await.is_ok(), "a registration and a watch are left");
    drop(registration);
    let mut watch = { watch };
    until(&mut watch, "the end of the registration", |snapshot| snapshot.endpoints.is_empty()).await;
    drop(watch);
    eventually("nobody listens any more", async || TcpStream::connect(&address).await.is_err()).await;
}

#[tokio::test]
async fn cycles_and_oneself_among_those_to_join_do_no_harm() {
    let (free, _keep) = {
        let a = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let b = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        ([a.local_addr().unwrap().to_string(), b.local_addr().unwrap().to_string()], ())
    };
    let with = |n: usize| quick(Manifest::new()).listen(&free[n]).join(&free[0]).join(&free[1]);
    let (one, two) = (with(0), with(1));
    one.register("one", details(1)).unwrap();
    two.register("two", details(2)).unwrap();
    for member in [&one, &two] {
        sees(member, "one", 1).await;
        sees(member, "two", 1).await;
    }
    let own = one.owner().unwrap();
    eventually("both directions are connected", async || one.connected().len() == 2).await;
    assert!(!one.connected().contains(&own));

    let alone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let alone = Manifest::new().listen(&alone).join(&alone);
    let mut watch = alone.watch("service1");
    until(&mut watch, "that it is alone", |snapshot| snapshot.freshness == Freshness::Live).await;
}

#[tokio::test]
async fn who_loses_all_others_keeps_the_last_list_as_stale_and_comes_back_by_itself() {
    let (hub, address) = listening(quick(Manifest::new())).await;
    let (far, near) = (quick(Manifest::new()).join(&address), quick(Manifest::new()).join(&address));
    let registration = Registry::register(&near, instance("near", "near", 4001)).await.unwrap();
    far.register("far", details(4000)).unwrap();
    let mut watch = near.watch("far");
    until(&mut watch, "the far one", |snapshot| snapshot.endpoints.len() == 1).await;
    let kept = hub.register("at-hub", details(4002)).unwrap();
    sees(&near, "at-hub", 1).await;
    assert_eq!(kept.role, "at-hub");
    hub.close().await;
    let stale = until(&mut watch, "that nobody stands by the list", |snapshot| {
        matches!(snapshot.freshness, Freshness::Stale(_))
            && snapshot.endpoints.iter().any(|e| e.tier == Tier::Unhealthy)
    });
    let stale = stale.await;
    assert!(stale.problem.as_deref().is_some_and(|problem| problem.contains(&address)), "{stale:?}");
    assert_eq!(stale.usable().len(), 1, "calls may still find out");
    state(&registration, "it is in doubt", |state| matches!(state, RegistrationState::Retrying(_))).await;
    let again = quick(Manifest::new()).listen(&address);
    again.register("at-hub", details(4003)).unwrap();
    until(&mut watch, "the far one again", |snapshot| {
        snapshot.freshness == Freshness::Live && snapshot.endpoints.iter().any(|e| e.tier == Tier::Healthy)
    })
    .await;
    state(&registration, "it is registered again", |state| *state == RegistrationState::Registered).await;
    sees(&near, "at-hub", 1).await;
}

#[tokio::test]
async fn a_secret_is_needed_in_both_directions_and_is_never_shown() {
    let (hub, address) = listening(Manifest::new().secret(SECRET)).await;
    let right = Manifest::new().join(&address).secret(SECRET);
    right.register("right", details(4000)).unwrap();
    sees(&hub, "right", 1).await;
    for (stranger, why) in [
        (Manifest::new().join(&address).secret("another secret of many bytes"), "not the same"),
        (Manifest::new().join(&address), "other side has a secret"),
    ] {
        stranger.register("forged", details(4000)).unwrap();
        let mut watch = stranger.watch("right");
        let told = until(&mut watch, "the refusal", |snapshot| snapshot.problem.is_some()).await;
        let text = told.problem.clone().unwrap();
        assert!(text.contains(why) && !text.contains(SECRET), "{text}");
        assert!(!format!("{stranger:?} {}", stranger.describe()).contains("secret of"));
        assert_eq!(stranger.get("right").unwrap(), [], "nothing was told before the proof");
    }
    assert_eq!(hub.get("forged").unwrap(), []);
    assert!(hub.refusals().joins >= 2, "{:?}", hub.refusals());

    // The other way round: one with a secret who dials one without.
    let (open, address) = listening(Manifest::new()).await;
    let locked = Manifest::new().join(&address).secret(SECRET);
    locked.register("private", details(4000)).unwrap();
    let mut watch = locked.watch("x");
    let told = until(&mut watch, "the refusal", |snapshot| snapshot.problem.is_some()).await;
    assert!(told.problem.as_deref().unwrap().contains("no secret"), "{told:?}");
    assert_eq!(open.get("private").unwrap(), []);
}

#[tokio::test]
async fn forged_joins_are_told_nothing_and_counted() {
    let (hub, address) = listening(Manifest::new().secret(SECRET)).await;
    hub.register("private", details(4000)).unwrap();
    for proof in [&[7; 32][..], &[], &[7; 31], &[1]] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        say(&mut stream, &hello(7, true, None)).await.unwrap();
        let answer = hear(&mut stream).await.unwrap();
        assert_eq!(answer.len(), 58 + 4, "a hello and nothing else, before the proof");
        say(&mut stream, proof).await.unwrap();
        assert_eq!(hear(&mut stream).await, Some(vec![1]), "the proof {proof:?} was wrong");
        assert_eq!(hear(&mut stream).await, None);
    }
    assert_eq!(hub.refusals().joins, 4);

    // A false listener that sends the proof of the one who dialled back to it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let caller = Manifest::new().join(listener.local_addr().unwrap().to_string()).secret(SECRET);
    let secretive = caller.register("private", details(4000)).unwrap();
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let theirs = hear(&mut stream).await.unwrap();
    say(&mut stream, &theirs).await.unwrap();
    let proof = hear(&mut stream).await.unwrap();
    assert_eq!(proof.len(), 32);
    say(&mut stream, &proof).await.unwrap();
    assert_eq!(hear(&mut stream).await, None, "it says nothing to one who cannot prove itself");
    assert_eq!(caller.get("private").unwrap()[0].id, secretive.id);
    assert!(caller.connected().is_empty());
}

#[tokio::test]
async fn whoever_sits_between_two_members_with_a_secret_can_change_nothing() {
    let (hub, address) = listening(quick(Manifest::new().secret(SECRET))).await;
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = quick(Manifest::new().secret(SECRET)).join(between.local_addr().unwrap().to_string());
    far.register("far", details(4000)).unwrap();
    // Lets both join, and then adds a frame of its own: nobody is alive.
    let (mut left, _) = timeout(PATIENCE, between.accept()).await.unwrap().unwrap();
    let mut right = TcpStream::connect(&address).await.unwrap();
    for _ in 0..2 {
        say(&mut right, &hear(&mut left).await.unwrap()).await.unwrap();
        say(&mut left, &hear(&mut right).await.unwrap()).await.unwrap();
    }
    eventually("both have joined", async || hub.connected().len() == 1 && far.connected().len() == 1).await;
    say(&mut right, &[2, 0x90]).await.unwrap();
    eventually("the forged frame is refused", async || hub.refusals().malformed_frames == 1).await;
    assert_eq!(hub.get("far").unwrap(), []);
}

#[tokio::test]
async fn any_bytes_at_any_moment_harm_only_the_connection_they_came_on() {
    let (hub, address) = listening(Manifest::new()).await;
    let friend = Manifest::new().join(&address);
    friend.register("good", details(4000)).unwrap();
    sees(&hub, "good", 1).await;
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = |len: usize| std::iter::repeat_with(|| random.u8(..)).take(len).collect::<Vec<u8>>();
    let mut attacks = Vec::new();
    for n in 0..60usize {
        attacks.push((false, bytes(n * 7)));
        let mut frames = Vec::new();
        for kind in 0..7 {
            let body = bytes(n * 3);
            frames.extend(u32::try_from(body.len() + 1).unwrap().to_be_bytes());
            frames.push(kind);
            frames.extend(body);
        }
        attacks.push((true, frames));
    }
    attacks.push((false, b"GET / HTTP/1.1\r\n\r\n".to_vec()));
    attacks.push((true, vec![0xff; 64]));
    attacks.push((true, vec![0; 64]));
    attacks.push((true, [&100_000u32.to_be_bytes()[..], &[3], &[0x91; 99_999]].concat()));
    for (n, (joins, bytes)) in attacks.into_iter().enumerate() {
        let mut stream = match joins {
            true => joined(&address, 1000 + n as u64).await,
            false => TcpStream::connect(&address).await.unwrap(),
        };
        // It may be cut off before it has said everything.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("the connection ends");
    }
    let refusals = hub.refusals();
    assert!(refusals.malformed_frames > 50 && refusals.joins > 50, "{refusals:?}");
    let record = friend.register("after", details(4001)).unwrap();
    sees(&hub, "after", 1).await;
    friend.free(record.id).unwrap();
    sees(&hub, "after", 0).await;
    assert_eq!(hub.services().unwrap().len(), 1, "{:?}", hub.services());
}

#[tokio::test]
async fn one_who_joins_and_says_nothing_is_cut_off_and_many_who_do_not_join_keep_nobody_out() {
    let (hub, address) = listening(quick(Manifest::new())).await;
    let mut silent = joined(&address, 7).await;
    let begun = Instant::now();
    let _ = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await.expect("it is cut off");
    assert!(begun.elapsed() < Duration::from_secs(3), "after {:?}", begun.elapsed());

    let crowd = join_all((0..40).map(|_| TcpStream::connect(&address))).await;
    eventually("what is too much is refused", async || hub.refusals().joins >= 8).await;
    drop(crowd);
    let friend = quick(Manifest::new()).join(&address);
    friend.register("good", details(4000)).unwrap();
    sees(&hub, "good", 1).await;
}

#[tokio::test]
async fn one_who_joins_and_does_not_read_holds_up_nobody_and_is_cut_off() {
    let (hub, address) = listening(quick(Manifest::new())).await;
    let friend = quick(Manifest::new()).join(&address);
    sees(&friend, "x", 0).await;
    let mut deaf = joined(&address, 7).await;
    // It names nobody, so that it is told of everybody, and goes on beating.
    say(&mut deaf, &[2, 0x90]).await.unwrap();
    let beating = tokio::spawn(async move {
        while say(&mut deaf, &[1, 0x90]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    eventually("both are connected", async || hub.connected().len() == 2).await;
    let mut round = 0u64;
    eventually("who does not read is cut off", async || {
        round += 1;
        let big = |n: u64| Details { data: [round, n].map(u64::to_be_bytes).concat().repeat(256), ..details(4000) };
        let records: Vec<_> = (0..50).map(|n| hub.register("x", big(n)).unwrap()).collect();
        eventually("the other one is told", async || friend.get("x").unwrap().iter().any(|x| x.id == records[49].id))
            .await;
        records.iter().for_each(|record| drop(hub.free(record.id).unwrap()));
        hub.connected().len() == 1
    })
    .await;
    sees(&friend, "x", 0).await;
    assert_eq!(hub.connected(), [friend.owner().unwrap()]);
    beating.abort();
}

#[tokio::test]
async fn what_no_member_would_take_is_refused_where_it_is_registered() {
    let manifest = Manifest::new();
    let refused = |result: Result<Record, RegistryError>, why: &str| {
        let text = problem(&result.expect_err(why));
        assert!(text.contains(why) && text.len() < 400, "{text}");
    };
    refused(manifest.register(&"x".repeat(1 << 20), details(1)), "service name");
    refused(manifest.register("", details(1)), "service name");
    refused(manifest.register("calc@1", details(1)), "calc@1.0.0");
    let link_local = Some("169.254.169.254".parse().unwrap());
    refused(manifest.register("x", Details { address: link_local, ..details(1) }), "link-local");
    refused(manifest.register("x", Details { data: vec![0; MAX_DATA + 1], ..details(1) }), "4 KiB");
    refused(manifest.register("x", Details { zone: Some("z".repeat(1 << 20)), ..details(1) }), "more than 8192");
    refused(manifest.register("x", Details { weight: 0, ..details(1) }), "weight");
    let kept: Vec<_> = (0..1024).map(|_| manifest.register("x", details(1)).unwrap()).collect();
    refused(manifest.register("x", details(1)), "1024 records");
    manifest.free(kept[0].id).unwrap();
    manifest.register("x", details(1)).unwrap();
    let mut long = instance("service1", "one", 4000);
    long.id = "x".repeat(1 << 20);
    assert!(Registry::register(&manifest, long).await.is_err());
    assert!("x".repeat(1 << 20).parse::<RecordId>().is_err() && "1-2".parse::<RecordId>().is_err());
    assert_eq!(manifest.services().unwrap().len(), 1024);
}

#[test]
fn settings_that_cannot_work_are_refused_without_repeating_secrets() {
    let text = |manifest: Manifest| problem(&manifest.validate().expect_err("these settings cannot work"));
    assert!(text(Manifest::new().join("10.0.0.1:3100")).contains("allow_remote"));
    assert!(text(Manifest::new().listen("0.0.0.0:3100")).contains("allow_remote"));
    Manifest::new().join("10.0.0.1").allow_remote().validate().unwrap();
    Manifest::new().join("10.0.0.1").listen("0.0.0.0").secret(SECRET).validate().unwrap();
    Manifest::new().join("localhost").join("[::1]").join("::1").validate().unwrap();
    let beat = Duration::from_secs(3);
    assert!(text(Manifest::new().heartbeat(beat).lifetime(beat * 2 - Duration::from_millis(1))).contains("twice"));
    Manifest::new().heartbeat(beat).lifetime(beat * 2).validate().unwrap();
    assert!(text(Manifest::new().heartbeat(Duration::ZERO)).contains("heartbeat"));
    let short = text(Manifest::new().secret("hush-hush-hush-"));
    assert!(short.contains("16 bytes") && !short.contains("hush"), "{short}");
    assert!(text(Manifest::new().secret_file("/nowhere/secret")).contains("/nowhere/secret"));
    assert!(text(Manifest::new().join("user:hush@host/")).find("hush").is_none());

    for url in [
        "manifest://local",
        "manifest://local:3200",
        "manifest://127.0.0.1:3100,127.0.0.1:3101?listen=127.0.0.1:3102&heartbeat=1s&lifetime=3s",
        "manifest://?listen=127.0.0.1:3102",
        "manifest://10.0.0.1?allow-remote",
    ] {
        from_url(url).expect(url);
    }
    assert_eq!(from_url("manifest://local").unwrap().describe(), "manifest of this machine on 127.0.0.1:3100");
    assert_eq!(from_url("manifest://127.0.0.1").unwrap().describe(), "manifest joined at 127.0.0.1:3100");
    for (url, why) in [
        ("manifest://", "needs `local`"),
        ("manifest://local:hush", "port"),
        ("manifest://127.0.0.1?secret=hush", "secret-file"),
        ("manifest://127.0.0.1?hush=1", "unknown option"),
        ("manifest://127.0.0.1?lifetime=1", "a time is written"),
        ("manifest://10.0.0.1", "allow_remote"),
        ("manifest://u:hush@127.0.0.1", "written like"),
    ] {
        let told = problem(&from_url(url).expect_err(url));
        assert!(told.contains(why) && (url.contains("hush=1") || !told.contains("hush")), "{url}: {told}");
    }
}

#[test]
fn outside_of_a_runtime_it_says_so() {
    assert!(problem(&Manifest::new().services().unwrap_err()).contains("tokio runtime"));
    let watched = Manifest::new().watch("service1").current();
    assert!(watched.problem.as_deref().is_some_and(|text| text.contains("runtime")), "{watched:?}");
}

/// A link between two members that can be cut.
fn linked(a: &Manifest, b: &Manifest) -> tokio::task::AbortHandle {
    let ((to_a, mut from_a), (to_b, mut from_b)) = (tokio::io::duplex(4096), tokio::io::duplex(4096));
    a.attach(to_a, true).unwrap();
    b.attach(to_b, false).unwrap();
    let carry = async move { drop(tokio::io::copy_bidirectional(&mut from_a, &mut from_b).await) };
    tokio::spawn(carry).abort_handle()
}

#[tokio::test(start_paused = true)]
async fn two_halves_that_were_parted_for_an_hour_become_one_again() {
    let members: Vec<_> = (0..6).map(|_| Manifest::new()).collect();
    for (n, member) in members.iter().enumerate() {
        member.register(&format!("service-{n}"), details(4000)).unwrap();
    }
    let within: Vec<_> = [(0, 1), (1, 2), (3, 4), (4, 5)].map(|(a, b)| linked(&members[a], &members[b])).into();
    let bridge = linked(&members[2], &members[3]);
    let count = |n: usize| members[n].services().unwrap().len();
    eventually("all know all", async || (0..6).all(|n| count(n) == 6)).await;
    bridge.abort();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!((0..6).all(|n| count(n) == 6), "nothing is removed for a lost connection");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!((0..6).all(|n| count(n) == 3), "each half knows its own");
    let _bridge = linked(&members[0], &members[5]);
    let healed = Instant::now();
    eventually("all know all again", async || (0..6).all(|n| count(n) == 6)).await;
    assert!(healed.elapsed() < Duration::from_secs(3), "after {:?}", healed.elapsed());
    assert!(members.iter().all(|member| member.refusals().takeovers == 0));
    drop(within);
}
