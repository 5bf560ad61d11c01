//! Owns: gaps in which no byte of content came on any connection. Never: latency of single blocks.
//! Flow: measure looks every few milliseconds -> `Watch` -> `Stalls` in the outcome.
//!
//! In closed loop a stall hits only the blocks that are outstanding, so that no percentile shows
//! it; a gap is seen in any loop.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A gap of this length is a stall; of a slow open loop, so many times the time between two blocks.
const LEAST: Duration = Duration::from_millis(100);
const BLOCKS_MISSING: f64 = 5.0;

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stalls {
    /// What counts: gaps longer than this.
    pub over_ms: f64,
    pub count: u64,
    pub longest_ms: f64,
    pub total_ms: f64,
}

pub struct Watch {
    bytes: u64,
    /// The last look at which something had come.
    changed: Instant,
    /// The last look since then at which nothing had: a late look does not make a gap.
    still: Instant,
    over: Duration,
    found: Stalls,
}

impl Watch {
    /// `blocks_per_second`: of the open loop.
    pub fn new(bytes: u64, now: Instant, blocks_per_second: Option<f64>) -> Self {
        let apart = blocks_per_second.map_or(0.0, |rate| BLOCKS_MISSING / rate.max(0.001));
        let over = LEAST.max(Duration::from_secs_f64(apart));
        let found = Stalls { over_ms: over.as_secs_f64() * 1000.0, ..Stalls::default() };
        Watch { bytes, changed: now, still: now, over, found }
    }

    pub fn look(&mut self, bytes: u64, now: Instant) {
        if bytes == self.bytes {
            self.still = now;
            return;
        }
        self.end_gap();
        self.bytes = bytes;
        (self.changed, self.still) = (now, now);
    }

    /// Since when nothing has come.
    pub fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.changed)
    }

    /// A gap that is still open counts as well.
    pub fn finish(mut self) -> Stalls {
        self.end_gap();
        self.found
    }

    fn end_gap(&mut self) {
        let gap = self.still.saturating_duration_since(self.changed);
        if gap > self.over {
            let ms = gap.as_secs_f64() * 1000.0;
            self.found.count += 1;
            self.found.total_ms += ms;
            self.found.longest_ms = self.found.longest_ms.max(ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 2 ms for a second; the bytes at each by a function of the millisecond.
    fn watched(rate: Option<f64>, bytes: impl Fn(u64) -> u64) -> Stalls {
        let start = Instant::now();
        let mut watch = Watch::new(bytes(0), start, rate);
        for ms in (0..1000).step_by(2) {
            watch.look(bytes(ms), start + Duration::from_millis(ms));
        }
        watch.finish()
    }

    #[test]
    fn gaps_are_counted_and_measured() {
        assert_eq!(watched(None, |ms| ms).count, 0);
        let one = watched(None, |ms| if (300..700).contains(&ms) { 300 } else { ms });
        assert_eq!(one.count, 1);
        assert!((390.0..=402.0).contains(&one.longest_ms), "{one:?}");
        let open = watched(None, |ms| ms.min(800));
        assert_eq!(open.count, 1, "it is not over when the window is");
        let short = watched(None, |ms| ms - ms % 90);
        assert_eq!(short.count, 0);
        let slow = watched(Some(10.0), |ms| ms - ms % 200);
        assert_eq!((slow.count, slow.over_ms), (0, 500.0), "ten blocks a second come apart");
    }

    #[test]
    fn a_late_look_is_no_gap() {
        let start = Instant::now();
        let mut watch = Watch::new(0, start, None);
        watch.look(1, start + Duration::from_millis(2));
        watch.look(500, start + Duration::from_millis(900));
        assert_eq!(watch.finish().count, 0);
    }
}
