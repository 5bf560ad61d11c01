//! Owns: who says when a load's window begins, hears how it goes, and may stop it; and what is said
//! of a load to be added to others'.
//! Never: measures. Flow: measure -> `Lead` (alone: at once; an agent: its controller's instant).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{
    Options, Outcome,
    crowd::Crowd,
    histogram,
    measure::Course,
    strain::Strain,
    tally::{Counts, Tally},
};

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

impl Lanes {
    pub fn of(bytes: &[u64]) -> Self {
        let bytes = || bytes.iter().map(|bytes| *bytes as f64);
        let squares = bytes().map(|bytes| bytes.powi(2)).sum();
        Lanes { count: bytes().count(), bytes: bytes().sum(), squares }
    }

    pub fn add(&mut self, other: Lanes) {
        self.count += other.count;
        self.bytes += other.bytes;
        self.squares += other.squares;
    }

    /// Jain's index: 1 where all got the same, 1/N where one of N got everything.
    pub fn fairness(self) -> Option<f64> {
        (self.squares > 0.0).then(|| self.bytes.powi(2) / (self.count as f64 * self.squares))
    }
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

/// What is known of a part of a load from its progress alone.
pub struct Kept {
    last: Progress,
    by_tenth: Vec<f64>,
    latency: Histogram<u64>,
}

impl Default for Kept {
    fn default() -> Self {
        Kept { last: Progress::default(), by_tenth: Vec::new(), latency: histogram::empty() }
    }
}

/// What came between two progresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub seconds: f64,
    pub mib_per_s: f64,
    pub blocks: u64,
    pub p99_ms: f64,
}

/// Tenths of a second of the longest window.
const TENTHS_MAX: usize = 36_000;

impl Kept {
    /// An agent may say anything: only what can be true is added.
    pub fn add(&mut self, progress: Progress) -> Result<Step> {
        let seconds = progress.seconds - self.last.seconds;
        let bytes = progress.payload_bytes.checked_sub(self.last.payload_bytes);
        let bytes = bytes.filter(|_| seconds > 0.0).context("a progress that goes back")?;
        let latency = histogram::from_text(&progress.latency)?;
        self.by_tenth.extend(&progress.mib_per_s_by_tenth);
        self.by_tenth.truncate(TENTHS_MAX);
        self.latency.add(&latency).context("histograms of different bounds")?;
        let step = Step {
            seconds: progress.seconds,
            mib_per_s: bytes as f64 / 1_048_576.0 / seconds,
            blocks: latency.len(),
            p99_ms: latency.value_at_quantile(0.99) as f64 / 1000.0,
        };
        self.last = Progress { latency: String::new(), ..progress };
        Ok(step)
    }

    /// What a part found that was not heard of again. `None`: nothing was heard of it at all.
    pub fn outcome(&self, options: &Options, why: &str) -> Option<Outcome> {
        let last = &self.last;
        if last.seconds <= 0.0 {
            return None;
        }
        let members = Crowd::new(options, Vec::new()).members();
        let tally = Tally { latency_us: self.latency.clone(), ..last.counts.tally() };
        let course = Course {
            served: last.served,
            seconds: last.seconds,
            payload_bytes: last.payload_bytes,
            by_tenth: self.by_tenth.clone(),
            own: Strain { cpu_seconds: last.cpu_seconds, waiting_seconds: last.waiting_seconds },
            partial: Some(why.to_owned()),
            ..Course::default()
        };
        Some(course.outcome(options, &members, &tally))
    }
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
