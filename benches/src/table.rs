//! Medians of many runs as text: one block for each workload.
//!
//! Must never judge. Next: `checks`, which does, and whose figures are shown with their spread.

use std::collections::BTreeMap;

use crate::checks::CHECKS;
use crate::peer::Peer as _;
use crate::peers::raw::Raw;
use crate::sample::{Middle, Sample, medians};

/// The figures that are shown, in this order, and how they are called.
const COLUMNS: [(&str, &str); 18] = [
    ("rate", "per s"),
    ("mb_s", "MB/s"),
    ("bulk_mb_s", "bulk MB/s"),
    ("p50_us", "p50 us"),
    ("p99_us", "p99 us"),
    ("p999_us", "p99.9 us"),
    ("quiet_p50_us", "quiet p50"),
    ("quiet_p99_us", "quiet p99"),
    ("cpu_us", "cpu us"),
    ("cpu_us_mb", "cpu us/MB"),
    ("client_cpu_us", "client"),
    ("server_cpu_us", "server"),
    ("client_kib", "client KiB"),
    ("server_kib", "server KiB"),
    ("client_idle_kib_each", "client idle KiB"),
    ("server_idle_kib_each", "server idle KiB"),
    ("client_kib_each", "client called KiB"),
    ("server_kib_each", "server called KiB"),
];

/// Every peer's medians in one workload, in the order in which the peers come, and its rate through that of `raw`, if that is among
/// them.
pub(crate) fn figures(samples: &[Sample]) {
    let Some(first) = samples.first() else { return };
    let mut peers: Vec<&str> = Vec::new();
    for sample in samples {
        if !peers.contains(&sample.peer.as_str()) {
            peers.push(&sample.peer);
        }
    }
    let middles: Vec<BTreeMap<String, Middle>> = peers.iter().map(|peer| medians_of(samples, peer)).collect();
    let columns: Vec<_> =
        COLUMNS.iter().filter(|(name, _)| middles.iter().any(|middles| middles.contains_key(*name))).collect();
    let spread = |name: &str| {
        let checked = CHECKS.iter().any(|check| {
            (check.workload, check.mode.name(), check.figure) == (first.workload.as_str(), first.mode.as_str(), name)
        });
        name == "rate" || checked
    };
    let raw = peers.iter().position(|peer| *peer == Raw::NAME).and_then(|at| middles[at].get("rate"));
    let mut head = format!("{:<16}", format!("{} {}", first.workload, first.mode));
    for (name, title) in &columns {
        head += &format!(" {title:>10}{}", if spread(name) { "     ±" } else { "" });
        if *name == "rate" && raw.is_some() {
            head += "  of raw";
        }
    }
    println!("\n{head}");
    for (peer, middles) in peers.iter().zip(&middles) {
        let mut line = format!("  {peer:<14}");
        for (name, title) in &columns {
            let middle = middles.get(*name);
            let width = title.len().max(10);
            line += &format!(" {:>width$}", middle.map_or(String::new(), |middle| short(middle.median)));
            if spread(name) {
                line += &middle.map_or(" ".repeat(6), |middle| format!("{:>4.0} %", middle.spread * 100.0));
            }
            if let (true, Some(raw)) = (*name == "rate", raw) {
                line += &middle.map_or(" ".repeat(8), |middle| format!(" {:>7}", short(middle.median / raw.median)));
            }
        }
        let noisy = samples.iter().filter(|sample| sample.peer == *peer && !sample.is_quiet()).count();
        if noisy > 0 {
            line += &format!("  {noisy} noisy");
        }
        println!("{}", line.trim_end());
    }
}

/// The medians of a peer's quiet runs if there are two, else of all.
pub(crate) fn medians_of(samples: &[Sample], peer: &str) -> BTreeMap<String, Middle> {
    let all = || samples.iter().filter(|sample| sample.peer == peer);
    match all().filter(|sample| sample.is_quiet()).count() {
        0 | 1 => medians(all()),
        _ => medians(all().filter(|sample| sample.is_quiet())),
    }
}

/// A number with three digits that matter.
pub(crate) fn short(value: f64) -> String {
    match value {
        1e8.. => format!("{:.0} M", value / 1e6),
        1e7.. => format!("{:.1} M", value / 1e6),
        1e6.. => format!("{:.2} M", value / 1e6),
        1e5.. => format!("{:.0} k", value / 1e3),
        1e4.. => format!("{:.1} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
