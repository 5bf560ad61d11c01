//! Owns: token buckets in virtual time.
//! Never: reads a clock, sleeps, or knows who shares a bucket.
//! Flow: upload asks each bucket of a path (global, torrent) before it sends.
//!
//! A path of buckets is used so: send at most the least `available`, then `take` from all of them;
//! where it is too little, come back at the latest `ready_at`.

use std::time::Duration;

/// What a bucket of [`Bucket::for_limit`] holds at most: this part of a second.
const BURST_PART_OF_SECOND: u64 = 10;
/// And at least this, so that a block always fits.
const BURST_BYTES_MIN: u64 = 16384;
/// Far away, and still far from overflow when added to.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

const NANOS: i128 = 1_000_000_000;

/// A configured rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    Unlimited,
    /// 0 lets nothing pass.
    BytesPerSecond(u64),
}

/// A token bucket. It may be overdrawn by one `take`, which the time after pays back, so that a
/// block larger than the burst passes and the mean still holds.
///
/// Over any span of `t` seconds at most `rate * t + burst + one block` bytes pass: with the burst
/// of [`Bucket::for_limit`] (0.1 s) and rates from 2 MB/s that is within 2 % over 10 s.
#[derive(Clone, Debug)]
pub struct Bucket {
    limit: Limit,
    burst_bytes: u64,
    /// Bytes times 10^9, so that no fraction is lost; negative while overdrawn.
    level: i128,
    settled_at: Duration,
}

impl Bucket {
    /// A full bucket.
    pub fn new(limit: Limit, burst_bytes: u64, now: Duration) -> Self {
        let burst_bytes = burst_bytes.max(1);
        Self { limit, burst_bytes, level: i128::from(burst_bytes) * NANOS, settled_at: now }
    }

    /// A full bucket with a burst of 0.1 s, at least a block.
    pub fn for_limit(limit: Limit, now: Duration) -> Self {
        Self::new(limit, burst_of(limit), now)
    }

    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Changes the rate from now on. What is overdrawn stays so; what is saved is cut to the new
    /// burst.
    pub fn set_limit(&mut self, limit: Limit, now: Duration) {
        self.settle(now);
        if self.limit == Limit::Unlimited {
            self.level = self.level.max(0);
        }
        self.limit = limit;
        self.burst_bytes = burst_of(limit);
        self.level = self.level.min(i128::from(self.burst_bytes) * NANOS);
    }

    /// Bytes that may pass now.
    pub fn available(&mut self, now: Duration) -> u64 {
        self.settle(now);
        match self.limit {
            Limit::Unlimited => u64::MAX,
            Limit::BytesPerSecond(_) => u64::try_from(self.level / NANOS).unwrap_or(0),
        }
    }

    /// Whether `bytes` may pass now, or a full burst where they are more than that.
    pub fn permits(&mut self, bytes: u64, now: Duration) -> bool {
        self.available(now) >= bytes.min(self.burst_bytes)
    }

    /// Counts bytes that pass, permitted or not.
    pub fn take(&mut self, bytes: u64, now: Duration) {
        self.settle(now);
        if self.limit != Limit::Unlimited {
            self.level -= i128::from(bytes) * NANOS;
        }
    }

    /// When `bytes` are permitted, if nothing is taken before: `now`, or later.
    pub fn ready_at(&mut self, bytes: u64, now: Duration) -> Duration {
        self.settle(now);
        let lacking = i128::from(bytes.min(self.burst_bytes)) * NANOS - self.level;
        let rate = match self.limit {
            Limit::Unlimited => return now,
            Limit::BytesPerSecond(_) if lacking <= 0 => return now,
            Limit::BytesPerSecond(0) => return NEVER,
            Limit::BytesPerSecond(rate) => i128::from(rate),
        };
        let nanos = u64::try_from((lacking + rate - 1) / rate).unwrap_or(u64::MAX);
        now.saturating_add(Duration::from_nanos(nanos)).min(NEVER)
    }

    fn settle(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.settled_at);
        self.settled_at = self.settled_at.max(now);
        if let Limit::BytesPerSecond(rate) = self.limit {
            let nanos = i128::from(u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX));
            let full = i128::from(self.burst_bytes) * NANOS;
            self.level =
                self.level.saturating_add(nanos.saturating_mul(i128::from(rate))).min(full);
        }
    }
}

fn burst_of(limit: Limit) -> u64 {
    match limit {
        Limit::Unlimited => BURST_BYTES_MIN,
        Limit::BytesPerSecond(rate) => (rate / BURST_PART_OF_SECOND).max(BURST_BYTES_MIN),
    }
}

#[cfg(test)]
mod tests;
