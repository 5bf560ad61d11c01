//! Owns: the schedule of the open loop: when each block should be asked for.
//! Never: waits for an answer before the next block, which is what makes it an open loop.
//! Flow: worker -> `due` -> connections. Latency counts from these times, so a stall of the target
//! is seen by every block that should have been asked for meanwhile. As many blocks are due at a
//! time at one connection as the closed loop asks for at a time: a target answers several requests
//! that come together for less, so that half of a rate would not be half of the load otherwise.

use std::time::{Duration, Instant};

/// Turns handed out at once, so that catching up does not starve receiving.
const BURST_MAX: usize = 64;

pub struct Pace {
    /// `None`: nothing was asked for yet.
    next: Option<Instant>,
    interval: Duration,
    turn: u64,
    at_once: usize,
}

impl Pace {
    /// Blocks that may wait at one connection; beyond it they are dropped and counted.
    pub const DUE_MAX: usize = 4096;

    /// `at_once`: blocks of one turn.
    pub fn new(blocks_per_second: f64, at_once: usize) -> Self {
        let interval = Duration::from_secs_f64(at_once as f64 / blocks_per_second.max(0.01));
        Pace { next: None, interval, turn: 0, at_once }
    }

    /// Blocks that are due in each turn.
    pub fn at_once(&self) -> usize {
        self.at_once
    }

    /// The turns due by `now`: a running number and the time of each. The first call is the
    /// schedule's begin.
    pub fn due(&mut self, now: Instant) -> impl Iterator<Item = (u64, Instant)> + '_ {
        let Pace { next, interval, turn, .. } = self;
        let next = next.get_or_insert(now);
        std::iter::from_fn(move || {
            if *next > now {
                return None;
            }
            let due = (*turn, *next);
            *turn += 1;
            *next += *interval;
            Some(due)
        })
        .take(BURST_MAX)
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_blocks_keep_the_times_they_were_due() {
        let start = Instant::now();
        let mut pace = Pace::new(4000.0, 4);
        assert_eq!(pace.next_due(), None);
        assert_eq!(pace.due(start).count(), 1);
        let late: Vec<_> = pace.due(start + Duration::from_millis(3)).collect();
        let times: Vec<u128> = late.iter().map(|(_, at)| (*at - start).as_millis()).collect();
        assert_eq!(times, [1, 2, 3]);
        assert_eq!(pace.due(start + Duration::from_millis(3)).count(), 0);
        assert_eq!(pace.next_due(), Some(start + Duration::from_millis(4)));
    }
}
