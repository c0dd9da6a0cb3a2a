//! What one run measured, and what several of them say together.
//!
//! Owns names and units: rates are per second, latencies microseconds, CPU microseconds a call (which is seconds per
//! million calls). Must never average: medians and half of the range. Next: `run`, `workloads`.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) peer: String,
    pub(crate) workload: String,
    pub(crate) mode: String,
    pub(crate) figures: BTreeMap<String, f64>,
}

/// A median and how far the runs lay apart: half of the range, as a share of the median.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Middle {
    pub(crate) median: f64,
    pub(crate) spread: f64,
}

impl Middle {
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (first, last) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 };
        let spread = if median == 0.0 { 0.0 } else { (last - first) / 2.0 / median };
        Some(Self { median, spread })
    }
}

/// The median of every figure of these runs.
pub(crate) fn medians<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> BTreeMap<String, Middle> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for sample in samples {
        for (name, value) in &sample.figures {
            values.entry(name).or_default().push(*value);
        }
    }
    values.into_iter().filter_map(|(name, values)| Some((name.to_owned(), Middle::of(values)?))).collect()
}

/// Latencies in nanoseconds up to a minute, to three digits.
pub(crate) fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds that make sense")
}

/// The percentiles that every run of calls has.
pub(crate) fn percentiles(histogram: &Histogram<u32>, figures: &mut BTreeMap<String, f64>) {
    for (name, quantile) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        figures.insert(name.to_owned(), histogram.value_at_quantile(quantile) as f64 / 1e3);
    }
}
