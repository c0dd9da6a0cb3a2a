//! More calls than a server can serve: what it still serves, how it refuses the rest, and how soon all is well again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use std::collections::HashSet;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use picom::{Bytes, Code, Concurrency, Context, Execution, Methods, Picom, Status, Streaming, args};
use serde::Deserialize;
use support::eventually;
use support::fault::Row;
use support::load::percentile;
use support::nodes::{SERVICE, pair_with};
use support::pressure::{closed_loop, goodput, open_loop};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

#[derive(Deserialize)]
struct Id {
    id: u64,
}

/// How many calls the work of the test can serve at once, and for how long each takes.
const PLACES: usize = 8;
const EFFORT: Duration = Duration::from_millis(10);

/// Which calls began.
type Journal = Arc<Mutex<HashSet<u64>>>;

/// Work that has only so many places, such as connections to a database.
fn pooled(journal: &Journal) -> Methods {
    let (journal, places) = (Arc::clone(journal), Arc::new(Semaphore::new(PLACES)));
    Methods::new().unary("work", move |_cx: Context, Id { id }: Id| {
        let (journal, places) = (Arc::clone(&journal), Arc::clone(&places));
        async move {
            journal.lock().unwrap().insert(id);
            let _place = places.acquire().await.unwrap();
            sleep(EFFORT).await;
            Ok::<_, Status>(id)
        }
    })
}

/// How long a caller of an overloaded server waits.
const PATIENCE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_three_times_the_load_the_goodput_stays_and_refusals_are_quick_and_never_run() {
    let journal = Journal::default();
    let limited = |server: picom::Builder| server.concurrency(Concurrency::Gradient);
    let pair = pair_with(pooled(&journal), limited, |client| client).await;

    let patient = |id: u64| pair.client.fetch::<u64>(SERVICE, "work", args! { id: id });
    let hurried = |id: u64| patient(id).timeout(PATIENCE).retries(0);
    let peak = closed_loop(PLACES, Duration::from_millis(1500), patient).await;
    let time = Duration::from_millis(3500);
    let overload = open_loop(0, 3.0 * peak, time, hurried).await;
    let good = goodput(&overload, Duration::from_millis(500), time);
    let (mut refused, mut here, mut ran) = (Vec::new(), 0, 0);
    for call in overload.iter().filter(|call| call.error.is_some()) {
        let error = call.error.as_ref().unwrap();
        assert_eq!((error.code(), error.execution()), (Code::ResourceExhausted, Execution::Never), "{error}");
        ran += usize::from(journal.lock().unwrap().contains(&call.id));
        if error.attempts() == 0 {
            here += 1;
        } else {
            refused.push(call.took);
        }
    }
    refused.sort();
    let p99 = percentile(&refused, 99);

    let calm = open_loop(10_000_000, 0.7 * peak, Duration::from_millis(3500), hurried).await;
    let last = calm.iter().filter(|call| call.error.is_some()).map(|call| call.at).max().unwrap_or_default();
    let unwell = calm.iter().filter(|call| call.error.is_some()).count();
    println!(
        "peak {peak:.0}/s; at three times as much {good:.0}/s ({:.0} % of it), {} refused by the server (p99 {p99:.1?}) and {here} \
         held back by the client; afterwards {unwell} of {} failed, the last after {last:.1?}",
        100.0 * good / peak,
        refused.len(),
        calm.len(),
    );
    assert!(refused.len() > 500, "only {} calls were refused: this was no overload", refused.len());
    let tail = goodput(&calm, Duration::from_millis(2500), Duration::from_millis(3500));
    assert!(tail > 0.65 * peak, "{tail:.0} calls a second after the overload, of {:.0}", 0.7 * peak);
    let sent: u32 = overload.iter().map(|call| call.error.as_ref().map_or(1, Status::attempts)).sum();
    Row::new(26, "three times the calls for which the work has places")
        .at_least("goodput in % of the peak", 100.0 * good / peak, 90.0)
        .within("refusals: p99", p99, Duration::from_millis(5))
        .at_most("refused calls that ran", ran, 0)
        .at_most("attempts in times of the calls", f64::from(sent) / overload.len() as f64, 1.25)
        .at_most("last failure after the overload", last, Duration::from_secs(10))
        .finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_only_wait_are_never_held_back_by_default() {
    const CALLS: u64 = 4_000;
    let methods = Methods::new().unary("wait", |_cx: Context, Id { id }: Id| async move {
        sleep(Duration::from_secs(1)).await;
        Ok::<_, Status>(id)
    });
    let pair = pair_with(methods, |server| server.max_calls(10_000), |client| client).await;
    let begun = Instant::now();
    for round in 0..2 {
        let calls =
            (0..CALLS).map(|id| pair.client.fetch::<u64>(SERVICE, "wait", args! { id: id }).retries(0).into_future());
        let answers = join_all(calls).await;
        let failed: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "round {round}: {} of {CALLS} failed, the first so: {}", failed.len(), failed[0]);
    }
    println!("2 times {CALLS} calls of a second each took {:.1?}", begun.elapsed());
}

/// Of how many pieces the work of a call consists.
const STEPS: u32 = 4;

/// Works without ever waiting, and tells how many did at once.
fn busy(work: Duration) -> (Methods, Arc<AtomicUsize>) {
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&most));
    let methods = Methods::new().unary("work", move |_cx: Context, Id { id }: Id| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // In steps, each of which lets others go first.
            for _ in 0..STEPS {
                let until = std::time::Instant::now() + work / STEPS;
                while std::time::Instant::now() < until {
                    std::hint::spin_loop();
                }
                tokio::task::yield_now().await;
            }
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Status>(id)
        }
    });
    (methods, most)
}

#[test]
fn a_server_without_processor_time_runs_fewer_calls_at_once() {
    // The server has one thread of its own, so that its callers are not what it lacks time for.
    let runtime =
        |threads| tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    let (servers, clients) = (runtime(1), runtime(1));
    let run = |concurrency| {
        let (methods, most) = busy(Duration::from_millis(2));
        let server = move |server: picom::Builder| server.concurrency(concurrency).max_calls(10_000);
        let pair = servers.block_on(async { tokio::spawn(pair_with(methods, server, |client| client)).await.unwrap() });
        let patient = |id: u64| pair.client.fetch::<u64>(SERVICE, "work", args! { id: id });
        let hurried = |id: u64| patient(id).timeout(PATIENCE).retries(0);
        let peak = clients.block_on(closed_loop(4, Duration::from_secs(1), patient));
        let outcomes = clients.block_on(open_loop(0, 3.0 * peak, Duration::from_millis(2_500), hurried));
        let good = goodput(&outcomes, Duration::from_secs(1), Duration::from_millis(2_500));
        let refused = outcomes.iter().filter_map(|call| call.error.as_ref());
        let ran =
            refused.filter(|error| error.code() == Code::ResourceExhausted && error.execution() != Execution::Never);
        assert_eq!(ran.count(), 0, "a refused call ran");
        (peak, good, most.load(Ordering::SeqCst))
    };
    let (_, without, crowd) = run(Concurrency::Unlimited);
    let (peak, with, some) = run(Concurrency::Adaptive);
    println!(
        "three times the {peak:.0}/s that one processor can do, half a second for each call: {with:.0}/s in time and at most {some} at \
         once, without a limit {without:.0}/s and {crowd} at once"
    );
    assert!(with > 0.5 * peak, "{with:.0} calls a second were in time, of {peak:.0} that can be");
    assert!(some < crowd, "{some} calls ran at once, and {crowd} without a limit");
}

/// Handlers that wait for the test.
fn held() -> (Methods, Arc<Semaphore>, Arc<Mutex<Vec<u64>>>) {
    let (permits, began) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (wait, log) = (Arc::clone(&permits), Arc::clone(&began));
    let (also_wait, also_log) = (Arc::clone(&permits), Arc::clone(&began));
    let methods = Methods::new()
        .unary("work", move |_cx: Context, Id { id }: Id| {
            let (wait, log) = (Arc::clone(&wait), Arc::clone(&log));
            async move {
                log.lock().unwrap().push(id);
                wait.acquire().await.unwrap().forget();
                Ok::<_, Status>(id)
            }
        })
        .client_streaming("take", move |_cx: Context, Id { id }: Id, mut body: Streaming<Bytes>| {
            let (wait, log) = (Arc::clone(&also_wait), Arc::clone(&also_log));
            async move {
                log.lock().unwrap().push(id);
                wait.acquire().await.unwrap().forget();
                let mut length = 0;
                while let Some(bytes) = body.message().await? {
                    length += bytes.len();
                }
                Ok(length)
            }
        })
        .max_concurrent(2);
    (methods, permits, began)
}

fn call(client: &Picom, id: u64) -> tokio::task::JoinHandle<Result<u64, Status>> {
    tokio::spawn(client.fetch::<u64>(SERVICE, "work", args! { id: id }).retries(0).into_future())
}

#[tokio::test]
async fn a_fixed_limit_lets_the_next_wait_for_a_moment_and_the_oldest_goes_first() {
    const LIMIT: usize = 4;
    let (methods, permits, began) = held();
    let pair = pair_with(methods, |server| server.concurrency(Concurrency::Fixed(LIMIT)), |client| client).await;
    let mut calls: Vec<_> = (0..LIMIT as u64).map(|id| call(&pair.client, id)).collect();
    eventually("the server is full", async || began.lock().unwrap().len() == LIMIT).await;
    // Nothing is known of its pace, so each place may have one behind it; one more may not.
    let asked = Instant::now();
    for id in 4..8 {
        calls.push(call(&pair.client, id));
        tokio::task::yield_now().await;
    }
    let error = call(&pair.client, 8).await.unwrap().unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::ResourceExhausted, Execution::Never), "{error}");
    assert!(error.message().contains("limit of 4 running calls"), "{error}");
    assert!(error.retry_after().is_some(), "{error}");
    let at_once = asked.elapsed();
    assert!(at_once < Duration::from_millis(90), "one past the queue was told so after {at_once:?}");
    permits.add_permits(LIMIT);
    eventually("those who waited run", async || began.lock().unwrap().len() == 2 * LIMIT).await;
    assert_eq!(began.lock().unwrap()[LIMIT..], [4, 5, 6, 7], "the oldest goes first");
    // Whoever waits too long is refused, and does not run.
    let error = call(&pair.client, 9).await.unwrap().unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::ResourceExhausted, Execution::Never), "{error}");
    permits.add_permits(100);
    for (id, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap(), id as u64);
    }
    assert_eq!(call(&pair.client, 10).await.unwrap().unwrap(), 10, "there is room again");
    assert!(!began.lock().unwrap().contains(&9), "a refused call ran");
}

#[tokio::test]
async fn a_call_does_not_wait_for_its_turn_longer_than_half_of_its_time() {
    let (methods, permits, began) = held();
    let pair = pair_with(methods, |server| server.concurrency(Concurrency::Fixed(1)), |client| client).await;
    let first = call(&pair.client, 0);
    eventually("the server is full", async || began.lock().unwrap().len() == 1).await;
    let asked = Instant::now();
    let hurried =
        pair.client.fetch::<u64>(SERVICE, "work", args! { id: 1 }).timeout(Duration::from_millis(60)).retries(0);
    let error = hurried.await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "it is told while another host could still take it: {error}");
    assert!(asked.elapsed() < Duration::from_millis(60), "{:?}", asked.elapsed());
    permits.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), 0);
    assert_eq!(*began.lock().unwrap(), [0]);
}

#[tokio::test]
async fn a_call_that_is_given_up_while_it_waits_never_runs() {
    let (methods, permits, began) = held();
    let pair = pair_with(methods, |server| server.concurrency(Concurrency::Fixed(1)), |client| client).await;
    let first = call(&pair.client, 0);
    eventually("the server is full", async || began.lock().unwrap().len() == 1).await;
    let given_up = call(&pair.client, 1);
    let next = call(&pair.client, 2);
    sleep(Duration::from_millis(10)).await;
    given_up.abort();
    // The cancellation is on the wire before this.
    let _ = given_up.await;
    sleep(Duration::from_millis(20)).await;
    permits.add_permits(2);
    assert_eq!(first.await.unwrap().unwrap(), 0);
    let next = next.await.unwrap();
    assert!(next.is_ok() || next.unwrap_err().execution() == Execution::Never);
    assert!(!began.lock().unwrap().contains(&1), "a call ran that nobody wanted any more");
}

#[tokio::test]
async fn a_method_with_a_limit_of_its_own_leaves_the_others_room_and_is_named_when_it_is_full() {
    let (methods, permits, began) = held();
    let pair = pair_with(methods, |server| server, |client| client).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let take = |id: u64| {
        let sent = Arc::clone(&sent);
        let body = futures::stream::iter(0..1_000).map(move |_| {
            sent.fetch_add(1, Ordering::SeqCst);
            Bytes::from_static(&[0; 10_000])
        });
        tokio::spawn(pair.client.fetch::<usize>(SERVICE, "take", args! { id: id }).body(body).retries(0).into_future())
    };

    let two = [take(0), take(1)];
    eventually("the method is full", async || began.lock().unwrap().len() == 2).await;
    let error = take(2).await.unwrap().unwrap_err();
    assert_eq!((error.code(), error.execution()), (Code::ResourceExhausted, Execution::Never), "{error}");
    assert!(error.message().contains("`take` has its limit of 2 calls at once"), "{error}");
    assert!(error.retry_after().is_some(), "{error}");
    let other = call(&pair.client, 3);
    eventually("another method runs", async || began.lock().unwrap().contains(&3)).await;
    permits.add_permits(100);
    assert_eq!(other.await.unwrap().unwrap(), 3);
    for call in two {
        assert_eq!(call.await.unwrap().unwrap(), 10_000_000);
    }
    assert_eq!(take(4).await.unwrap().unwrap(), 10_000_000, "there is room again");
    assert!(!began.lock().unwrap().contains(&2), "a refused call ran");
}

#[tokio::test]
async fn a_full_server_refuses_before_the_body_is_read_and_another_one_takes_the_call() {
    let (methods, permits, began) = held();
    let pair = pair_with(methods, |server| server.concurrency(Concurrency::Fixed(1)), |client| client).await;
    let full = pair.exposed.local_addr();
    let first = tokio::spawn(pair.client.fetch::<u64>(SERVICE, "work", args! { id: 0 }).on(full).into_future());
    eventually("the server is full", async || began.lock().unwrap().len() == 1).await;
    let methods =
        Methods::new().client_streaming("take", |_cx: Context, Id { .. }: Id, body: Streaming<Bytes>| async move {
            Ok(body.collect_vec(10_000).await?.iter().map(Bytes::len).sum::<usize>())
        });
    let free = support::nodes::builder(SERVICE, &pair.registry).build().unwrap();
    free.expose(methods).await.unwrap();
    // Each takes its turn, so every second one meets the full server first. Not one of them may fail.
    let (mut failed, mut elsewhere, mut longest) = (0, 0, Duration::ZERO);
    for id in 1..=6 {
        let body = futures::stream::iter((0..200).map(|_| Bytes::from_static(&[0; 10_000])));
        let begun = Instant::now();
        let call = pair.client.fetch::<usize>(SERVICE, "take", args! { id: id }).body(body).with_info();
        let Ok((length, info)) = call.await else {
            failed += 1;
            continue;
        };
        assert_eq!(length, 2_000_000, "call {id}");
        elsewhere += usize::from(info.attempts() > 1);
        longest = longest.max(begun.elapsed());
    }
    assert!(elsewhere > 0, "no call met the full server, so nothing was tested");
    permits.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), 0);
    assert_eq!(*began.lock().unwrap(), [0], "a refused call ran");
    Row::new(27, "one of two servers full, calls with 2 MB each")
        .at_most("failed calls", failed, 0)
        .also("refused by the full one and taken by the other", elsewhere)
        .also("longest call", longest)
        .finish();
}

#[tokio::test]
async fn handlers_that_never_wait_do_not_hold_up_what_comes_behind_them() {
    let done = Arc::new(AtomicUsize::new(0));
    let (count, look) = (Arc::clone(&done), Arc::clone(&done));
    let methods = Methods::new()
        .unary("spin", move |_cx: Context, (): ()| {
            let count = Arc::clone(&count);
            async move {
                let until = std::time::Instant::now() + Duration::from_millis(1);
                while std::time::Instant::now() < until {
                    std::hint::spin_loop();
                }
                count.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Status>(0u64)
            }
        })
        .unary("look", move |_cx: Context, (): ()| {
            let done = look.load(Ordering::SeqCst);
            async move { Ok::<_, Status>(done) }
        });
    // Without a limit, which would make the quick one wait for its turn.
    let pair = pair_with(methods, |server| server.concurrency(Concurrency::Unlimited), |client| client).await;
    let spins =
        |count: usize| join_all((0..count).map(|_| pair.client.fetch::<u64>(SERVICE, "spin", ()).into_future()));
    // One of 64 is measured.
    assert!(spins(64).await.iter().all(Result::is_ok));
    for round in 0..5 {
        done.store(0, Ordering::SeqCst);
        let (spun, before) = futures::join!(spins(20), pair.client.fetch::<usize>(SERVICE, "look", ()).into_future());
        assert!(spun.iter().all(Result::is_ok));
        let before = before.unwrap();
        assert!(
            before <= 5,
            "round {round}: {before} of 20 handlers that came before it ended before a quick one began"
        );
    }
}

/// In time that passes only while everybody waits: whoever is refused at once has not waited at all.
#[tokio::test(start_paused = true)]
async fn a_thousand_and_twenty_four_calls_wait_for_their_turn_and_one_more_is_refused_at_once() {
    const RUNNING: usize = 1_100;
    const WAITING: usize = 1_024;
    for (calls, expected) in [(RUNNING + WAITING, 0), (RUNNING + WAITING + 1, 1)] {
        let methods = Methods::new().unary("hold", |_cx: Context, (): ()| async move {
            sleep(Duration::from_secs(1)).await;
            Ok::<_, Status>(())
        });
        let limited = |server: picom::Builder| server.concurrency(Concurrency::Fixed(RUNNING)).max_calls(10_000);
        let pair = pair_with(methods, limited, |client| client).await;
        let call = |_| async {
            let begun = Instant::now();
            let error = pair.client.fetch::<()>(SERVICE, "hold", ()).retries(0).await.err();
            (begun.elapsed(), error)
        };
        let outcomes = join_all((0..calls).map(call)).await;
        let refused: Vec<_> = outcomes.iter().filter_map(|(took, error)| Some((took, error.as_ref()?))).collect();
        for (_, error) in &refused {
            assert_eq!((error.code(), error.execution()), (Code::ResourceExhausted, Execution::Never), "{error}");
        }
        let at_once = refused.iter().filter(|(took, _)| took.is_zero()).count();
        assert_eq!(at_once, expected, "of {calls} calls where {RUNNING} may run and {WAITING} wait");
        assert_eq!(refused.len() - at_once, WAITING, "those who waited did so in vain: nobody ended meanwhile");
    }
}
