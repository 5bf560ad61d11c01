//! Owns: the schedule of the open loop: when each block should be asked for.
//! Never: waits for an answer before the next block, which is what makes it an open loop.
//! Flow: worker -> `due` -> connections. Latency counts from these times, so a stall of the target
//! is seen by every block that should have been asked for meanwhile.

use std::time::{Duration, Instant};

/// Blocks handed out at once, so that catching up does not starve receiving.
const BURST_MAX: usize = 256;

pub struct Pace {
    next: Instant,
    interval: Duration,
    turn: u64,
}

impl Pace {
    /// Blocks that may wait at one connection; beyond it they are dropped and counted.
    pub const DUE_MAX: usize = 4096;

    pub fn new(blocks_per_second: f64, start: Instant) -> Self {
        let interval = Duration::from_secs_f64(1.0 / blocks_per_second.max(0.01));
        Pace { next: start, interval, turn: 0 }
    }

    /// The blocks due by `now`: a running number and the time of each.
    pub fn due(&mut self, now: Instant) -> impl Iterator<Item = (u64, Instant)> + '_ {
        std::iter::from_fn(move || {
            if self.next > now {
                return None;
            }
            let due = (self.turn, self.next);
            self.turn += 1;
            self.next += self.interval;
            Some(due)
        })
        .take(BURST_MAX)
    }

    pub fn next_due(&self) -> Instant {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_blocks_keep_the_times_they_were_due() {
        let start = Instant::now();
        let mut pace = Pace::new(1000.0, start);
        let late: Vec<_> = pace.due(start + Duration::from_millis(3)).collect();
        let times: Vec<u128> = late.iter().map(|(_, at)| (*at - start).as_millis()).collect();
        assert_eq!(times, [0, 1, 2, 3]);
        assert_eq!(pace.due(start + Duration::from_millis(3)).count(), 0);
        assert_eq!(pace.next_due(), start + Duration::from_millis(4));
    }
}
