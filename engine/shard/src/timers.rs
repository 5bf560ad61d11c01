//! Deadlines of connections, in the order in which they come due.
//!
//! Owns: one heap of (deadline, key). Never: a clock, what a deadline means.
//! Flow: connections set a deadline; the tick pops what is due and asks the owner what to do.
//!
//! An entry is a reminder, not a truth: the owner checks its own deadline when reminded and sets
//! the next one. So moving a deadline further away costs nothing.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

#[derive(Debug, Default)]
pub struct Timers<K: Ord> {
    heap: BinaryHeap<Reverse<(Duration, K)>>,
}

impl<K: Ord + Copy> Timers<K> {
    pub fn new() -> Self {
        Timers { heap: BinaryHeap::new() }
    }

    pub fn set(&mut self, at: Duration, key: K) {
        self.heap.push(Reverse((at, key)));
    }

    /// The earliest reminder.
    pub fn next(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The next key whose reminder is due.
    pub fn pop_due(&mut self, now: Duration) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, key))| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reminders_come_in_order_and_not_early() {
        let mut timers = Timers::new();
        for (s, key) in [(3, 'c'), (1, 'a'), (2, 'b')] {
            timers.set(Duration::from_secs(s), key);
        }
        assert_eq!(timers.pop_due(Duration::from_millis(999)), None);
        assert_eq!(timers.pop_due(Duration::from_secs(2)), Some('a'));
        assert_eq!(timers.pop_due(Duration::from_secs(2)), Some('b'));
        assert_eq!(timers.pop_due(Duration::from_secs(2)), None);
        assert_eq!(timers.next(), Some(Duration::from_secs(3)));
    }
}
