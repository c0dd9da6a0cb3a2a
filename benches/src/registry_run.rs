//! One run of a registry: its process, and what is measured in it.
//!
//! Owns what is registered and changed, and the line of JSON. Must never judge. Next: `registry`, which does, `registry_nodes`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use picom::registry::{Endpoints, Freshness, Instance, Registration, Registry, Watch};
use picom::{NodeState, NodeStatus};
use tokio::time::{Instant, sleep, timeout};

use crate::cli::Arguments;
use crate::place::{Side, cpu_seconds, memory_kib, with_parent};
use crate::registry::MODE;
use crate::registry_nodes::{NODES, Nodes, Totals};
use crate::sample::Sample;

/// What every node has, and what it looks for.
const SERVICES: [&str; crate::registry_nodes::SERVICES] = ["calculator", "messages"];

/// What comes and goes.
const NEWS: &str = "news";

/// The nodes whose changes are timed: the first, to which the others of a star are connected, the last, which is at the end of
/// a chain, and some between.
const CHANGERS: [usize; 5] = [0, 1, NODES / 2 - 1, NODES / 2, NODES - 1];

/// Between two changes, and before the steady state is looked at: longer than a heartbeat and the times between copies.
const PAUSE: Duration = Duration::from_millis(2500);

/// How long anything may take until the run has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn main(mut arguments: Arguments) {
    with_parent(&arguments);
    let mode = arguments.option("mode").unwrap_or(MODE);
    let measured = Duration::from_secs_f64(arguments.option("seconds").unwrap_or(20.0));
    let run = arguments.next();
    let runtime = mode.enter(Side::Server);
    let name = run.clone();
    let task = runtime.spawn(async move { measure(&name, measured).await });
    let figures = runtime.block_on(task).expect("the run went through");
    let sample = Sample { peer: "picom".to_owned(), workload: run, mode: mode.name().to_owned(), noise: 0.0, figures };
    println!("{}", serde_json::to_string(&sample).expect("a sample is JSON"));
}

async fn measure(run: &str, measured: Duration) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    let mut put = |name: &str, value: f64| {
        figures.insert(name.to_owned(), value);
    };
    let me = std::process::id();
    let empty = memory_kib(me);
    let begun = Instant::now();
    let nodes = Nodes::new(run).await;
    let services = register_all(&nodes).await;
    let mut watches = Vec::new();
    for service in SERVICES {
        let mut all: Vec<_> = nodes.registries.iter().map(|registry| registry.watch(service)).collect();
        everywhere(&mut all, "every service", |snapshot| snapshot.endpoints.len() == NODES).await;
        watches.extend(all);
    }
    put("joined_ms", millis(begun));
    sleep(PAUSE).await;

    for (name, mut times) in changes(&nodes).await {
        times.sort_by(f64::total_cmp);
        put(&format!("{name}_p50_ms"), times[times.len() / 2]);
        put(&format!("{name}_max_ms"), times[times.len() - 1]);
    }

    let (traffic, cpu, from) = (nodes.traffic(), cpu_seconds(me), Instant::now());
    sleep(measured).await;
    let (cpu, seconds) = (cpu_seconds(me) - cpu, from.elapsed().as_secs_f64());
    let after = nodes.traffic();
    put("cpu_percent", cpu / seconds * 100.0);
    put("kib_each", (memory_kib(me) - empty) / NODES as f64);
    let rates = |of: fn(&Totals) -> u64| -> (f64, f64) {
        let each = traffic.iter().zip(&after).map(|(before, after)| (of(after) - of(before)) as f64 / seconds);
        (each.clone().sum::<f64>() / NODES as f64, each.fold(0.0, f64::max))
    };
    for (name, busiest, (mean, most)) in [
        ("sent_b_s", Some("busiest_sent_b_s"), rates(|totals| totals.0.0)),
        ("sent_s", None, rates(|totals| totals.0.1)),
        ("received_b_s", Some("busiest_received_b_s"), rates(|totals| totals.1.0)),
        ("received_s", None, rates(|totals| totals.1.1)),
    ] {
        put(name, mean);
        // Where all are alike there is none.
        if let Some(busiest) = busiest.filter(|_| most > 2.0 * mean) {
            put(busiest, most);
        }
    }
    let datagrams = nodes.datagrams();
    if let Some(longest) = datagrams.last() {
        put("longest_b", *longest as f64);
        put("median_b", datagrams[datagrams.len() / 2] as f64);
    }
    for watch in &watches {
        let snapshot = watch.current();
        let all = (snapshot.endpoints.len(), snapshot.freshness) == (NODES, Freshness::Live);
        assert!(all, "somebody was lost meanwhile: {} are {:?}", snapshot.endpoints.len(), snapshot.freshness);
    }
    drop(services);
    figures
}

/// Registers every service of every node, all at once, as many machines do.
async fn register_all(nodes: &Nodes) -> Vec<Registration> {
    let register = |(n, registry): (usize, &Arc<dyn Registry>)| {
        let registry = Arc::clone(registry);
        SERVICES.map(|service| {
            let registry = Arc::clone(&registry);
            tokio::spawn(async move { registry.register(instance(service, n)).await.expect("it is fine") })
        })
    };
    let tasks: Vec<_> = nodes.registries.iter().enumerate().flat_map(register).collect();
    let mut registrations = Vec::new();
    for task in tasks {
        registrations.push(task.await.expect("it registers"));
    }
    registrations
}

/// What a node says of a service, with an id as nodes make it, a zone, a tag and a version.
fn instance(service: &str, n: usize) -> Instance {
    let incarnation = 0x00c0_ffee_00c0_0000 + n as u64;
    let port = u16::try_from(10_000 + n).expect("there are not so many");
    Instance {
        service: service.to_owned(),
        id: format!("{service}-127.0.0.1-{port}-{incarnation:016x}"),
        incarnation,
        address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        port,
        weight: 1,
        zone: Some("eu-west-1a".to_owned()),
        tags: vec!["blue".to_owned()],
        meta: [("version".to_owned(), "1.20.3".to_owned())].into(),
        status: NodeStatus::now(NodeState::Running, None),
    }
}

/// The times until everybody knew, in milliseconds, by kind of change.
async fn changes(nodes: &Nodes) -> BTreeMap<&'static str, Vec<f64>> {
    let mut watches: Vec<Watch> = nodes.registries.iter().map(|registry| registry.watch(NEWS)).collect();
    let mut times = BTreeMap::<_, Vec<f64>>::new();
    for changer in CHANGERS {
        let begun = Instant::now();
        let registry = Arc::clone(&nodes.registries[changer]);
        // Whoever registers waits until it is done; others know before that.
        let registration = tokio::spawn(async move { registry.register(instance(NEWS, changer)).await });
        everywhere(&mut watches, "a registration", |snapshot| snapshot.endpoints.len() == 1).await;
        times.entry("register").or_default().push(millis(begun));
        let registration = registration.await.expect("it registers").expect("it is fine");
        sleep(PAUSE).await;

        let begun = Instant::now();
        registration.set_status(NodeStatus::now(NodeState::Doing, Some("backup")));
        everywhere(&mut watches, "another state", |snapshot| {
            snapshot.endpoints.iter().any(|endpoint| endpoint.status.state == NodeState::Doing)
        })
        .await;
        times.entry("state").or_default().push(millis(begun));
        sleep(PAUSE).await;

        let begun = Instant::now();
        let left = tokio::spawn(registration.leave());
        everywhere(&mut watches, "a leave", |snapshot| snapshot.endpoints.is_empty()).await;
        times.entry("free").or_default().push(millis(begun));
        // They know by now. Where the machine is busy, whoever leaves may have given up waiting for its second copy.
        let _ = left.await.expect("it leaves");
        sleep(PAUSE).await;
    }
    times
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Waits until this is true of every node.
async fn everywhere(watches: &mut [Watch], what: &str, fits: impl Fn(&Endpoints) -> bool) {
    let all = async {
        for watch in watches {
            while !fits(&watch.current()) {
                watch.changed().await;
            }
        }
    };
    timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("not everybody knows of {what} after {PATIENCE:?}"));
}
