//! What a shard counts.
//!
//! Owns: plain counters of one shard (no atomics: one writer) and the block service time histogram.
//! Never: rates (the reader takes differences). Flow: everything counts; `Command::Report` copies
//! out.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Counters since the shard's start.
#[derive(Clone, Debug)]
pub struct Stats {
    pub shard: usize,
    pub connections: u32,
    pub half_open: u32,
    pub interested: u32,
    pub unchoked: u32,
    pub accepted: u64,
    pub dialed: u64,
    pub refused: u64,
    /// Connections closed for breaking the protocol.
    pub violations: u64,
    pub handed_over: u64,
    pub sent_bytes: u64,
    pub uploaded_bytes: u64,
    /// Payload that came, what was thrown away as well; and what of it was written.
    pub downloaded_bytes: u64,
    pub written_bytes: u64,
    pub blocks: u64,
    pub rejected: u64,
    pub sends: u64,
    pub zero_copy_sends: u64,
    pub zero_copy_copied: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub cache_bytes: u64,
    pub cache_cap_bytes: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub direct_reads: u64,
    pub open_files: u32,
    pub hashed_bytes: u64,
    pub hash_failures: u64,
    pub ticks: u64,
    pub memory_stalls: u64,
    /// Block service time, µs: request parsed to send completed.
    pub service_us: Histogram<u32>,
}

impl Stats {
    pub fn new(shard: usize) -> Self {
        // 1 µs to 1,000 s at two significant digits: about 20 KiB.
        let service_us =
            Histogram::new_with_bounds(1, 1_000_000_000, 2).expect("invariant: constant bounds");
        Stats {
            shard,
            connections: 0,
            half_open: 0,
            interested: 0,
            unchoked: 0,
            accepted: 0,
            dialed: 0,
            refused: 0,
            violations: 0,
            handed_over: 0,
            sent_bytes: 0,
            uploaded_bytes: 0,
            downloaded_bytes: 0,
            written_bytes: 0,
            blocks: 0,
            rejected: 0,
            sends: 0,
            zero_copy_sends: 0,
            zero_copy_copied: 0,
            cache_hits: 0,
            cache_misses: 0,
            cache_bytes: 0,
            cache_cap_bytes: 0,
            reads: 0,
            read_bytes: 0,
            direct_reads: 0,
            open_files: 0,
            hashed_bytes: 0,
            hash_failures: 0,
            ticks: 0,
            memory_stalls: 0,
            service_us,
        }
    }

    pub fn served(&mut self, took: Duration) {
        let us = took.as_micros().clamp(1, 1_000_000_000) as u64;
        self.service_us.record(us).expect("invariant: clamped to the bounds");
    }
}
