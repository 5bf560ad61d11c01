//! Owns: who says when a load's window begins, hears how it goes, and may stop it; and what is said
//! of a load to be added to others'.
//! Never: measures. Flow: measure -> `Lead` (alone: at once; an agent: its controller's instant).
#![allow(dead_code, reason = "agents are being written")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Outcome, tally::Counts};

/// Agents of one load, at most.
pub const PARTS_MAX: usize = 256;

/// Which members of the crowd are this process's: each so-many-th, so that parts are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub number: usize,
    pub of: usize,
}

impl Default for Part {
    fn default() -> Self {
        Part { number: 0, of: 1 }
    }
}

impl Part {
    pub fn check(self) -> Result<()> {
        ensure!(
            self.number < self.of && self.of <= PARTS_MAX,
            "part {} of {}: of {PARTS_MAX} at most, counted from 0",
            self.number,
            self.of
        );
        Ok(())
    }

    pub fn has(self, index: usize) -> bool {
        index % self.of == self.number
    }
}

/// What one process of several found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    pub outcome: Outcome,
    pub lanes: Lanes,
    /// After the window, while what the target does was counted.
    pub lingering_mib_per_s: Option<f64>,
}

/// What the connections got, for the fairness among all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lanes {
    pub count: usize,
    pub bytes: f64,
    pub squares: f64,
}

/// How a window goes: since the last time the latency and the tenths, since its begin the rest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub seconds: f64,
    pub payload_bytes: u64,
    pub served: usize,
    pub mib_per_s_by_tenth: Vec<f64>,
    /// As `histogram.rs` writes it.
    pub latency: String,
    pub counts: Counts,
    pub cpu_seconds: f64,
    pub waiting_seconds: f64,
}

/// What leads a load.
pub trait Lead {
    /// So many of so many connections are there. The window begins at the instant that this gives;
    /// `settle` has to pass before it.
    fn ready(&self, served: usize, of: usize, settle: Duration) -> Result<Instant>;

    /// How often it wants to hear; `None`: never.
    fn interval(&self) -> Option<Duration>;

    fn hear(&self, progress: Progress);

    /// Why the window should end now.
    fn stop(&self) -> Option<String>;
}

/// Nobody but this process.
pub struct Alone;

impl Lead for Alone {
    fn ready(&self, _: usize, _: usize, settle: Duration) -> Result<Instant> {
        Ok(Instant::now() + settle)
    }

    fn interval(&self) -> Option<Duration> {
        None
    }

    fn hear(&self, _: Progress) {}

    fn stop(&self) -> Option<String> {
        None
    }
}
