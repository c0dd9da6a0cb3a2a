//! Servers that are slow, cold, failing and back again.
//!
//! Owns the bounds that are promised. All figures come from one run of the simulation each, and are printed.

use std::sync::Arc;

use super::super::{Balancer, Boxcar, PeakEwma, RoundRobin};
use super::simulation::{Figures, Scenario, figures, run};

const SERVERS: usize = 10;
/// Mean time that a worker takes for a call, in seconds.
const MEAN: f64 = 0.010;
/// 70 % of what ten servers with four workers each can do in a second.
const RATE: f64 = 0.7 * 4.0 / MEAN * SERVERS as f64;

fn scenario(policy: impl Balancer, clients: usize) -> Scenario {
    Scenario {
        policy: Arc::new(policy),
        servers: SERVERS,
        clients,
        rate: RATE,
        seconds: 20.0,
        deadline: 1.0,
        mean: |_, _| MEAN,
        fails: |_, _| false,
        joins: 0.0,
        reports: false,
        seed: 42,
    }
}

fn shown(what: &str, policy: &str, clients: usize, figures: Figures) -> Figures {
    let Figures { calls, p50, p99, timed_out, failed, share, most } = figures;
    println!(
        "{what}: {policy}, {clients} clients, {calls} calls: p50 {:.1} ms, p99 {:.1} ms, {:.3} % over the deadline, \
         {:.3} % failed, share {:.2} %, most/mean {most:.2}",
        p50 * 1e3,
        p99 * 1e3,
        timed_out * 100.0,
        failed * 100.0,
        share * 100.0
    );
    figures
}

#[test]
fn one_of_ten_that_is_ten_times_slower_is_hardly_noticed() {
    for clients in [8, 100] {
        let slow = |server, at| if server == 0 && at >= 5.0 { 10.0 * MEAN } else { MEAN };
        let of = |policy: &str, calls: &[_]| shown("slow", policy, clients, figures(calls, SERVERS, 5.0, 20.0));
        let healthy =
            shown("all well", "peak EWMA", clients, figures(&run(&scenario(PeakEwma, clients)), SERVERS, 5.0, 20.0));
        let ewma = of("peak EWMA", &run(&Scenario { mean: slow, ..scenario(PeakEwma, clients) }));
        let robin = of("round robin", &run(&Scenario { mean: slow, ..scenario(RoundRobin, clients) }));
        assert!(ewma.timed_out <= 0.0015, "{clients} clients: {ewma:?}");
        assert!(ewma.p99 <= 1.5 * healthy.p99, "{clients} clients: {ewma:?}, without the slow one {healthy:?}");
        assert!(ewma.share <= 0.03, "{clients} clients: {ewma:?}");
        assert!(robin.timed_out > 0.01, "the model is too kind: round robin does as well, {robin:?}");
    }
}

#[test]
fn a_policy_that_hears_of_the_load_bears_a_slow_server_too() {
    for clients in [8, 100] {
        let slow = |server, at| if server == 0 && at >= 5.0 { 10.0 * MEAN } else { MEAN };
        let calls = run(&Scenario { mean: slow, reports: true, ..scenario(Boxcar::new(), clients) });
        let boxcar = shown("slow", "boxcar", clients, figures(&calls, SERVERS, 5.0, 20.0));
        let calls = run(&Scenario { reports: true, ..scenario(Boxcar::new(), clients) });
        let healthy = shown("all well", "boxcar", clients, figures(&calls, SERVERS, 5.0, 20.0));
        assert!(boxcar.timed_out <= 0.0015, "{clients} clients: {boxcar:?}");
        assert!(boxcar.p99 <= 1.5 * healthy.p99, "{clients} clients: {boxcar:?}, without the slow one {healthy:?}");
        assert!(healthy.most <= 1.15, "{clients} clients: {healthy:?}");
    }
}

#[test]
fn equal_servers_get_equal_shares() {
    for (clients, load) in [(1, 0.1), (8, 0.1), (8, 0.7), (100, 0.7)] {
        let calls = run(&Scenario { rate: RATE / 0.7 * load, ..scenario(PeakEwma, clients) });
        let figures = shown("all well", "peak EWMA", clients, figures(&calls, SERVERS, 5.0, 20.0));
        assert!(figures.most <= 1.3, "{clients} clients, load {load}: {figures:?}");
    }
}

#[test]
fn a_cold_server_gets_its_share_when_it_is_warm_and_hurts_little_before() {
    for clients in [8, 100] {
        // Twenty times slower at first; warm, to one part in a hundred, after 23 s.
        let cold = |server, at: f64| MEAN * if server == 0 { 1.0 + 19.0 * (-(at - 8.0) / 3.0).exp() } else { 1.0 };
        let calls = run(&Scenario { mean: cold, joins: 8.0, seconds: 55.0, ..scenario(PeakEwma, clients) });
        let before = shown("cold", "peak EWMA", clients, figures(&calls, SERVERS, 8.0, 31.0));
        let after = shown("warm", "peak EWMA", clients, figures(&calls, SERVERS, 46.0, 55.0));
        assert!(before.timed_out <= 0.0005, "{clients} clients: {before:?}");
        assert!(after.share >= 0.05, "{clients} clients: {after:?}");
    }
}

#[test]
fn a_server_that_was_slow_has_its_share_again_after_15_seconds() {
    for clients in [8, 100] {
        let slow = |server, at| if server == 0 && (5.0..15.0).contains(&at) { 10.0 * MEAN } else { MEAN };
        let calls = run(&Scenario { mean: slow, seconds: 40.0, ..scenario(PeakEwma, clients) });
        let after = shown("recovered", "peak EWMA", clients, figures(&calls, SERVERS, 30.0, 40.0));
        assert!(after.share >= 0.05, "{clients} clients: {after:?}");
    }
}

#[test]
fn a_server_that_hangs_costs_each_client_a_call_every_few_seconds() {
    for clients in [8, 100] {
        let hangs = |server, at| if server == 0 && at >= 5.0 { 1e9 } else { MEAN };
        let calls = run(&Scenario { mean: hangs, rate: RATE / 0.7 * 0.5, ..scenario(PeakEwma, clients) });
        let hanging = shown("hanging", "peak EWMA", clients, figures(&calls, SERVERS, 5.0, 20.0));
        // Each client finds out for itself, and asks again about every four seconds.
        let most = (5 * clients) as f64 / hanging.calls as f64;
        assert!(hanging.timed_out <= most, "{clients} clients: {hanging:?}");
    }
}

#[test]
fn a_server_that_fails_at_once_does_not_look_like_the_fastest() {
    for clients in [8, 100] {
        let fails = |server, at| server == 0 && (5.0..9.0).contains(&at);
        let calls = run(&Scenario { fails, seconds: 40.0, ..scenario(PeakEwma, clients) });
        let failing = shown("failing", "peak EWMA", clients, figures(&calls, SERVERS, 6.0, 9.0));
        let after = shown("works again", "peak EWMA", clients, figures(&calls, SERVERS, 30.0, 40.0));
        assert!(failing.share <= 0.01, "{clients} clients: {failing:?}");
        assert!(after.share >= 0.05, "{clients} clients: {after:?}");
    }
    // A policy that looks at nothing is helped by the circuit alone.
    let fails = |server, at| server == 0 && at >= 5.0;
    let calls = run(&Scenario { fails, ..scenario(RoundRobin, 8) });
    let failing = shown("failing", "round robin", 8, figures(&calls, SERVERS, 6.0, 20.0));
    assert!(failing.share <= 0.01, "{failing:?}");
}
