//! Owns: this process's clock as numbers, and how far another's is from it.
//! Never: asks the wall clock, which may be set. Flow: ping, pong -> `Offset` -> an instant here as
//! a number there.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Where this process's clock begins: a day before its first use, so that what was a moment ago has
/// a number too.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
    })
}

/// Nanoseconds of this process's clock.
pub fn now() -> u64 {
    at(Instant::now())
}

pub fn at(instant: Instant) -> u64 {
    u64::try_from(instant.saturating_duration_since(epoch()).as_nanos()).unwrap_or(u64::MAX)
}

/// The instant of a number of this process's clock, however far off it is.
pub fn instant(nanos: u64) -> Instant {
    let begin = epoch();
    begin.checked_add(Duration::from_nanos(nanos)).unwrap_or(begin)
}

/// Another process's clock, as seen from here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// Its nanoseconds less ours.
    ahead: i64,
    /// The round trip that this was read from: the truth is within half of it.
    pub round_trip: u64,
    samples: u32,
}

impl Offset {
    /// Asked at `sent`, answered with `theirs`, which came at `received`. The least round trip
    /// counts: in it is the least that is not the same on both ways.
    pub fn add(&mut self, sent: u64, theirs: u64, received: u64) {
        let round_trip = received.saturating_sub(sent);
        if self.samples == 0 || round_trip <= self.round_trip {
            let middle = sent + round_trip / 2;
            self.ahead = theirs.wrapping_sub(middle) as i64;
            self.round_trip = round_trip;
        }
        self.samples = self.samples.saturating_add(1);
    }

    /// How many exchanges it is from.
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// A time of ours, by their clock.
    pub fn theirs(&self, ours: u64) -> u64 {
        ours.saturating_add_signed(self.ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_round_trip_counts() {
        let mut offset = Offset::default();
        // Theirs is 1,000,000 ahead. The first answer was late on its way back, the third on both.
        offset.add(100, 1_000_150, 900);
        offset.add(2_000, 1_002_010, 2_020);
        offset.add(3_000, 1_003_400, 3_500);
        assert_eq!((offset.theirs(5_000), offset.round_trip), (1_005_000, 20));
        assert_eq!(offset.samples(), 3);
    }

    #[test]
    fn clocks_that_are_behind_and_lies_do_not_overflow() {
        let mut behind = Offset::default();
        behind.add(1_000_000, 5_010, 1_000_020);
        assert_eq!(behind.theirs(1_000_000), 5_000);
        let mut lie = Offset::default();
        lie.add(u64::MAX - 5, 0, 3);
        lie.add(0, u64::MAX, 0);
        lie.theirs(u64::MAX);
        assert!(instant(u64::MAX) >= instant(0));
    }

    #[test]
    fn numbers_and_instants_are_the_same() {
        let moment = Instant::now();
        let there_and_back = instant(at(moment));
        assert!(moment.max(there_and_back) - moment.min(there_and_back) < Duration::from_micros(1));
    }
}
