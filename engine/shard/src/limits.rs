//! Rate limits that shards share: one atomic word a limit, no lock, no refill thread.
//!
//! Owns: the generic cell rate algorithm (ITU-T I.371) over an atomic theoretical arrival time.
//! Never: connections, queues. Flow: upload asks `take` before it fills a batch, downloads before
//! they ask a peer for a block, and sleep until `ready_at`.

use std::time::Duration;

use crate::sync::atomic::{AtomicU64, Ordering};

/// How far a limited flow may run ahead of its rate. 50 ms keeps any 10 s window within 0.5 %.
const BURST: Duration = Duration::from_millis(50);
/// Zero means unlimited.
const UNLIMITED: u64 = 0;

/// A shared rate limit in bytes a second. All times are since the process's common epoch.
#[derive(Debug, Default)]
pub struct Meter {
    rate_bytes_per_s: AtomicU64,
    /// When all that was taken is paid for, ns since the epoch.
    arrival_ns: AtomicU64,
}

impl Meter {
    pub fn new(rate_bytes_per_s: Option<u64>) -> Self {
        let meter = Meter::default();
        meter.set(rate_bytes_per_s);
        meter
    }

    /// Sets the rate of a meter from which nothing was taken yet.
    pub fn set(&self, rate_bytes_per_s: Option<u64>) {
        let rate = rate_bytes_per_s.map_or(UNLIMITED, |r| r.max(1));
        self.rate_bytes_per_s.store(rate, Ordering::Relaxed);
    }

    /// Changes the rate in use. What was taken and is not paid for is paid at the new rate.
    pub fn change(&self, rate_bytes_per_s: Option<u64>, now: Duration) {
        let rate = rate_bytes_per_s.map_or(UNLIMITED, |r| r.max(1));
        let before = self.rate_bytes_per_s.swap(rate, Ordering::Relaxed);
        if before == rate {
            return;
        }
        let now_ns = now.as_nanos() as u64;
        let _ = self.arrival_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
            let debt_ns = u128::from(arrival.saturating_sub(now_ns));
            let scaled = match (before, rate) {
                (UNLIMITED, _) | (_, UNLIMITED) => 0,
                (before, rate) => debt_ns * u128::from(before) / u128::from(rate),
            };
            Some(now_ns.saturating_add(scaled.min(u128::from(u64::MAX)) as u64))
        });
    }

    pub fn rate(&self) -> Option<u64> {
        match self.rate_bytes_per_s.load(Ordering::Relaxed) {
            UNLIMITED => None,
            rate => Some(rate),
        }
    }

    /// Whether something may be sent now. The amount does not matter: what goes over is paid for
    /// afterwards, so one block always fits a limit that is smaller than a block.
    pub fn is_open(&self, now: Duration) -> bool {
        self.rate().is_none() || self.ready_at() <= now
    }

    /// The earliest time at which `is_open` holds.
    pub fn ready_at(&self) -> Duration {
        Duration::from_nanos(self.arrival_ns.load(Ordering::Relaxed)).saturating_sub(BURST)
    }

    /// Bytes that may be taken now without running further ahead than the burst; at least one
    /// block's worth when open. `u64::MAX` when unlimited.
    pub fn room_bytes(&self, now: Duration) -> u64 {
        let Some(rate) = self.rate() else { return u64::MAX };
        let arrival = Duration::from_nanos(self.arrival_ns.load(Ordering::Relaxed));
        let ahead = (now + BURST).saturating_sub(arrival.max(now.saturating_sub(BURST)));
        (ahead.as_nanos() as u64).saturating_mul(rate) / 1_000_000_000
    }

    /// Takes `bytes`, whether or not the meter is open; the next `ready_at` moves accordingly.
    pub fn take(&self, bytes: u64, now: Duration) {
        let Some(rate) = self.rate() else { return };
        let cost_ns = (u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64;
        let now_ns = now.as_nanos() as u64;
        // Relaxed: the word itself is the whole state; nothing else is published with it.
        let _ = self.arrival_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
            Some(arrival.max(now_ns).saturating_add(cost_ns))
        });
    }

    /// Gives back what was taken for bytes that will not come.
    pub fn give_back(&self, bytes: u64) {
        let Some(rate) = self.rate() else { return };
        let cost_ns = (u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64;
        let _ = self.arrival_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
            Some(arrival.saturating_sub(cost_ns))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(meter: &Meter, block: u64, seconds: u64) -> u64 {
        let (mut now, mut sent) = (Duration::from_secs(5), 0);
        let end = now + Duration::from_secs(seconds);
        while now < end {
            if meter.is_open(now) {
                meter.take(block, now);
                sent += block;
            } else {
                now = meter.ready_at();
            }
        }
        sent
    }

    #[test]
    fn a_limit_holds_within_two_percent() {
        for (rate, block) in [(100_000, 16_384), (10_000_000, 16_384), (10_000_000, 262_144)] {
            let sent = run(&Meter::new(Some(rate)), block, 10) as f64;
            let ratio = sent / (rate as f64 * 10.0);
            assert!((0.98..=1.02).contains(&ratio), "{rate}/{block}: {ratio}");
        }
    }

    #[test]
    fn a_block_larger_than_a_second_of_the_rate_still_goes() {
        let meter = Meter::new(Some(4_096));
        assert!(meter.is_open(Duration::ZERO));
        meter.take(16_384, Duration::ZERO);
        assert!(!meter.is_open(Duration::from_secs(3)));
        assert!(meter.is_open(Duration::from_secs(4)));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let (meter, now) = (Meter::new(Some(1_000)), Duration::from_secs(9));
        meter.take(10_000, now);
        meter.give_back(9_000);
        assert!(!meter.is_open(now) && meter.is_open(now + Duration::from_secs(1)));
    }

    #[test]
    fn unlimited_is_always_open_and_a_change_takes_effect_at_once() {
        let meter = Meter::new(None);
        meter.take(u64::MAX, Duration::ZERO);
        assert!(meter.is_open(Duration::ZERO));
        let now = Duration::from_secs(1);
        meter.change(Some(1_000), now);
        meter.take(10_000, now);
        assert!(!meter.is_open(Duration::from_secs(10)));
        meter.change(Some(10_000), now);
        assert!(meter.is_open(Duration::from_secs(2)), "ten seconds of debt are one now");
        meter.change(None, now);
        assert!(meter.is_open(now));
    }
}
