//! Floors and targets beside what was measured.
//!
//! Must never measure, nor choose. Next: `checks` for the numbers.

use crate::checks::{Beside, CHECKS, Check};
use crate::peer::Peer as _;
use crate::peers::picom_name::ByName;
use crate::peers::raw::Raw;
use crate::sample::Sample;
use crate::table::{medians_of, short};

/// A name that stands for the best of all other frameworks.
const BEST: &str = "*";

/// The median of a figure.
fn median(samples: &[Sample], peer: &str, workload: &str, check: &Check) -> Option<f64> {
    let here = |sample: &&Sample| sample.workload == workload && sample.mode == check.mode.name();
    let samples: Vec<Sample> = samples.iter().filter(here).cloned().collect();
    medians_of(&samples, peer).get(check.figure).map(|middle| middle.median)
}

/// What this peer has reached of a check.
pub(crate) fn reached(samples: &[Sample], peer: &str, check: &Check) -> Option<f64> {
    let own = median(samples, peer, check.workload, check)?;
    let other = match check.beside {
        Beside::Raw(workload) => median(samples, Raw::NAME, workload, check)?,
        Beside::Peer(other) => median(samples, other, check.workload, check)?,
        Beside::Best(prefix) => samples
            .iter()
            .filter(|sample| sample.workload.starts_with(prefix))
            .filter_map(|sample| median(samples, peer, &sample.workload, check))
            .fold(own, f64::max),
        Beside::Nothing => 1.0,
    };
    Some(own / other)
}

impl Check {
    /// Whether a value is as good as a bound.
    pub(crate) fn holds(&self, value: f64, bound: f64) -> bool {
        if self.less { value <= bound } else { value >= bound }
    }

    pub(crate) fn name(&self) -> String {
        let figure = self.figure.trim_end_matches("_each");
        let peer = if matches!(self.beside, Beside::Peer(_)) { self.peer } else { "" };
        format!("{} {} {figure} {peer}", self.workload, self.mode.name()).trim_end().to_owned()
    }
}

/// One line for each check: picom's ratio, its bounds, the same ratio of CPU, its ratio to every other framework, and what was missed.
pub(crate) fn table(samples: &[Sample]) {
    let mut others: Vec<&str> = Vec::new();
    for sample in samples {
        let peer = sample.peer.as_str();
        if !peer.starts_with("picom") && !peer.starts_with("raw") && !others.contains(&peer) {
            others.push(peer);
        }
    }
    print!("\n{:<32} {:>8} {:>8} {:>7} {:>7} {:>7}", "picom beside raw", "typed", "by name", "floor", "target", "cpu");
    others.iter().for_each(|peer| print!(" {:>13}", format!("x {peer}")));
    println!("  missed");
    for check in &CHECKS {
        let Some(value) = reached(samples, check.peer, check) else { continue };
        let by_name = match check.beside {
            Beside::Peer(_) => None,
            _ => reached(samples, ByName::NAME, check),
        };
        let mut line = format!("{:<32} {:>8} {:>8}", check.name(), short(value), by_name.map_or(String::new(), short));
        // Neighbours hardly change what a call costs: where they are loud, this says more than the rate.
        let rate = check.figure == "rate" && !matches!(check.beside, Beside::Best(_));
        let cpu = rate.then(|| reached(samples, check.peer, &Check { figure: "cpu_us", ..*check }));
        let cpu = cpu.flatten().map_or(String::new(), short);
        line += &format!(" {:>7} {:>7} {cpu:>7}", check.floor, check.target);
        let ratios = ratios(samples, &others, check);
        for (_, ratio) in &ratios {
            line += &format!(" {:>13}", ratio.map_or(String::new(), short));
        }
        let mut all = missed(check, value, &ratios);
        if let Some(value) = by_name {
            let ratios = self::ratios(samples, &others, &Check { peer: ByName::NAME, ..*check });
            all.extend(missed(check, value, &ratios).iter().map(|missed| format!("by name {missed}")));
        }
        println!("{line}  {}", all.join(", "));
    }
}

/// A check's peer's figure through every other framework's.
fn ratios<'a>(samples: &[Sample], others: &[&'a str], check: &Check) -> Vec<(&'a str, Option<f64>)> {
    others.iter().map(|peer| (*peer, beside(samples, peer, check))).collect()
}

/// Its figure through another framework's.
fn beside(samples: &[Sample], peer: &str, check: &Check) -> Option<f64> {
    match check.beside {
        Beside::Peer(_) | Beside::Best(_) => None,
        _ => Some(median(samples, check.peer, check.workload, check)? / median(samples, peer, check.workload, check)?),
    }
}

fn missed(check: &Check, value: f64, ratios: &[(&str, Option<f64>)]) -> Vec<String> {
    let mut missed = Vec::new();
    if !check.holds(value, check.floor) {
        missed.push("FLOOR".to_owned());
    } else if !check.holds(value, check.target) {
        missed.push("target".to_owned());
    }
    for (peer, bound) in check.peers {
        for (other, ratio) in ratios {
            if (other == peer || *peer == BEST) && ratio.is_some_and(|ratio| !check.holds(ratio, *bound)) {
                missed.push(format!("{} x {other}", short(*bound)));
            }
        }
    }
    missed
}
