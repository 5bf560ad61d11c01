//! Owns: what a run of the load found, as it stands in reports.
//! Never: computes more than percentiles. Flow: measure -> `Outcome` -> JSON, tables, `merge`.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{histogram, stalls::Stalls};
use crate::{meters::Meters, probe::Reading};

/// What a run of the load found. Figures of the target are `None` without --pid.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub target: String,
    pub connections: usize,
    pub connections_served: usize,
    pub outstanding: usize,
    pub block_bytes: u32,
    pub pattern: String,
    pub open_loop_mib_per_s: Option<f64>,
    pub seconds: f64,
    pub payload_bytes: u64,
    pub mib_per_s: f64,
    /// The same of each tenth of a second of the window.
    #[serde(default)]
    pub mib_per_s_by_tenth: Vec<f64>,
    pub latency_ms: Latency,
    pub target_cpu_seconds_per_gib: Option<f64>,
    pub target_user_seconds_per_gib: Option<f64>,
    pub target_read_bytes: Option<u64>,
    pub target_switches_per_gib: Option<f64>,
    pub target_before: Option<Reading>,
    pub target_after: Option<Reading>,
    pub softirqd_seconds_per_gib: Option<f64>,
    pub load_cpu_seconds_per_gib: f64,
    /// Part of the window in which the load was on a CPU; near its thread count, it was the limit.
    pub load_busy: f64,
    /// The same of its threads that could have run and had no core.
    #[serde(default)]
    pub load_waiting: f64,
    #[serde(default)]
    pub load_threads: usize,
    /// In words, where the load and not the target was the limit.
    #[serde(default)]
    pub load_was_limit: Option<String>,
    pub idle_bytes_per_connection: Option<IdleBytes>,
    /// From a connection's first packet to its first block, of all connections until the end.
    #[serde(default)]
    pub first_block_ms: Latency,
    /// Jain's index over what the connections got, where they stay.
    #[serde(default)]
    pub fairness: Option<f64>,
    /// The target's CPU time over the window's.
    #[serde(default)]
    pub target_busy: Option<f64>,
    /// The target's own memory, each second of the window.
    #[serde(default)]
    pub target_private_by_second: Vec<u64>,
    #[serde(default)]
    pub beside: Beside,
    #[serde(default)]
    pub meters: Meters,
    pub rejects: u64,
    pub chokes: u64,
    pub reopened: u64,
    pub reordered: u64,
    pub unrequested_blocks: u64,
    pub overdue_dropped: u64,
    pub pieces_verified: u64,
    pub pieces_bad: u64,
    /// Gaps in which no connection got anything.
    #[serde(default)]
    pub stalls: Stalls,
    pub last_end: Option<String>,
    /// The deadline passed before the work was done.
    pub cut_short: bool,
    /// Why the window ended before its time: what is here was measured until then.
    #[serde(default)]
    pub partial: Option<String>,
    /// Where several agents made the load: what each found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_agent: Vec<ByAgent>,
}

/// One agent's part of a load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ByAgent {
    pub agent: String,
    pub node: String,
    pub outcome: Outcome,
}

/// Who was there beside those that are measured, and who came and went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Beside {
    pub torrents: usize,
    pub idle: usize,
    pub slow: usize,
    pub slow_kib_per_s: f64,
    pub arrivals: u64,
    pub departures: u64,
    /// Those that came while no place was free.
    pub turned_away: u64,
}

/// Request sent (open loop: due) to block received whole, in the window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    pub blocks: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    #[serde(default)]
    pub p99_99: f64,
    pub max: f64,
    /// Percentiles and their values, for a curve.
    #[serde(default)]
    pub curve: Vec<(f64, f64)>,
    /// Everything, exact, so that it can be added to another's: `histogram.rs` says how to read it.
    #[serde(default)]
    pub histogram: String,
}

/// Percentiles of a curve: each step leaves half of the blocks above.
const CURVE: [f64; 14] = [
    0.0,
    50.0,
    75.0,
    87.5,
    93.75,
    96.875,
    98.4375,
    99.21875,
    99.609_375,
    99.804_687_5,
    99.902_343_75,
    99.951_171_875,
    99.975_585_937_5,
    99.987_792_968_75,
];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct IdleBytes {
    pub private: f64,
    pub rss: f64,
    pub pss: f64,
}

impl Outcome {
    /// What a target that sent wrong bytes is told.
    pub fn bad_in_words(&self) -> String {
        let all = self.pieces_bad + self.pieces_verified;
        format!("{} of {all} pieces that were hashed did not have their hash", self.pieces_bad)
    }
}

impl Latency {
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        if histogram.is_empty() {
            return Latency::default();
        }
        Latency {
            blocks: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max() as f64 / 1000.0,
            curve: CURVE.iter().map(|percent| (*percent, at(percent / 100.0))).collect(),
            histogram: histogram::to_text(histogram),
        }
    }
}
