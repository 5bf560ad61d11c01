//! The running hash of all that happened, and its last lines in words.
//!
//! Owns: what makes two runs of a seed comparable. Never: addresses, wall time, map order. Flow:
//! each submit and each completion is noted; a failure prints the tail.

use std::{collections::VecDeque, fmt::Write};

use super::rng::mix;

const TAIL_MAX: usize = 200;

#[derive(Clone, Copy, Debug)]
struct Entry {
    at_ns: u64,
    shard: u32,
    what: &'static str,
    a: u64,
    b: i64,
}

#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    entries: u64,
    tail: VecDeque<Entry>,
}

impl Trace {
    pub fn note(&mut self, at_ns: u64, shard: usize, what: &'static str, a: u64, b: i64) {
        let mut hash = self.hash ^ mix(at_ns);
        for byte in what.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.hash = mix(hash ^ a.rotate_left(17) ^ (b as u64).rotate_left(41) ^ shard as u64);
        self.entries += 1;
        if self.tail.len() == TAIL_MAX {
            self.tail.pop_front();
        }
        self.tail.push_back(Entry { at_ns, shard: shard as u32, what, a, b });
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The last lines: virtual seconds, shard, what, name (token, descriptor), value.
    pub fn tail(&self, lines: usize) -> String {
        let mut out = String::new();
        for e in self.tail.iter().skip(self.tail.len().saturating_sub(lines)) {
            let seconds = e.at_ns as f64 / 1e9;
            let _ = writeln!(out, "{seconds:12.6} s{} {:<22} {:#x} {}", e.shard, e.what, e.a, e.b);
        }
        out
    }
}
