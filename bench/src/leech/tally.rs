//! Owns: what one worker has counted, and the counters the measuring thread reads while it runs.
//! Never: decides anything. Flow: connections count here; workers' tallies are merged at the end.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::histogram;

/// Shared by the workers and the measuring thread. All `Relaxed`: each is a count of its own, and
/// nothing else is published through them.
#[derive(Default)]
pub struct Board {
    pub stop: AtomicBool,
    /// Latencies are recorded while this is set.
    pub measuring: AtomicBool,
    /// Payload bytes received whole, all workers.
    pub payload_bytes: AtomicU64,
    /// Connections that were unchoked at least once (idle mode: whose handshake was answered).
    pub ready: AtomicUsize,
    /// Connections that have fetched all they should (--once).
    pub done: AtomicUsize,
}

/// What is counted and not measured, of one worker or of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub rejects: u64,
    pub chokes: u64,
    pub reopened: u64,
    pub reordered: u64,
    pub unrequested_blocks: u64,
    pub overdue_dropped: u64,
    pub pieces_verified: u64,
    pub pieces_bad: u64,
    pub slow_bytes: u64,
    pub arrivals: u64,
    pub departures: u64,
    pub turned_away: u64,
    pub last_end: Option<String>,
}

#[derive(Clone)]
pub struct Tally {
    pub latency_us: Histogram<u64>,
    /// From a connection's first packet to its first block, of all connections.
    pub first_block_us: Histogram<u64>,
    /// Payload of slow readers in the window.
    pub slow_bytes: u64,
    pub arrivals: u64,
    pub departures: u64,
    /// Those that came while no place was free.
    pub turned_away: u64,
    /// What each connection got in the window, where they stay.
    pub lane_bytes: Vec<u64>,
    pub blocks: u64,
    pub rejects: u64,
    pub chokes: u64,
    /// Connections opened again, because the target closed them.
    pub reopened: u64,
    /// Connections opened again, because blocks came in another order while heads were skipped.
    pub reordered: u64,
    pub unrequested_blocks: u64,
    pub pieces_verified: u64,
    pub pieces_bad: u64,
    /// Open loop: blocks whose time came while too many waited; they were never asked for.
    pub overdue_dropped: u64,
    /// Why connections ended, the last reason.
    pub last_end: Option<String>,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            latency_us: histogram::empty(),
            first_block_us: histogram::empty(),
            slow_bytes: 0,
            arrivals: 0,
            departures: 0,
            turned_away: 0,
            lane_bytes: Vec::new(),
            blocks: 0,
            rejects: 0,
            chokes: 0,
            reopened: 0,
            reordered: 0,
            unrequested_blocks: 0,
            pieces_verified: 0,
            pieces_bad: 0,
            overdue_dropped: 0,
            last_end: None,
        }
    }
}

impl Tally {
    pub fn record(&mut self, latency: Duration) {
        self.latency_us.saturating_record(latency.as_micros() as u64);
    }

    pub fn record_first_block(&mut self, time: Duration) {
        self.first_block_us.saturating_record(time.as_micros() as u64);
    }

    pub fn merge(&mut self, other: &Tally) {
        self.latency_us.add(&other.latency_us).expect("invariant: same bounds");
        self.first_block_us.add(&other.first_block_us).expect("invariant: same bounds");
        self.slow_bytes += other.slow_bytes;
        self.arrivals += other.arrivals;
        self.departures += other.departures;
        self.turned_away += other.turned_away;
        self.lane_bytes.extend_from_slice(&other.lane_bytes);
        self.blocks += other.blocks;
        self.rejects += other.rejects;
        self.chokes += other.chokes;
        self.reopened += other.reopened;
        self.reordered += other.reordered;
        self.unrequested_blocks += other.unrequested_blocks;
        self.pieces_verified += other.pieces_verified;
        self.pieces_bad += other.pieces_bad;
        self.overdue_dropped += other.overdue_dropped;
        if other.last_end.is_some() {
            self.last_end.clone_from(&other.last_end);
        }
    }
}
