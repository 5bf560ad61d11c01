//! Deadlines of connections, in the order in which they come due.
//!
//! Owns: one heap of (deadline, key). Never: a clock, what a deadline means.
//! Flow: connections set a deadline; the tick pops what is due and asks the owner what to do.
//!
//! An entry is a reminder, not a truth: the owner knows the moment of its latest one and drops the
//! others. So bringing a deadline forward is one more entry, and no search.

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

    /// The next reminder that is due: its moment and whom it is for.
    pub fn pop_due(&mut self, now: Duration) -> Option<(Duration, K)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(due)| due)
    }

    /// All reminders are void.
    pub fn clear(&mut self) {
        self.heap.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reminders_come_in_order_and_not_early() {
        let mut timers = Timers::new();
        let at = Duration::from_secs;
        for (s, key) in [(3, 'c'), (1, 'a'), (2, 'b')] {
            timers.set(at(s), key);
        }
        assert_eq!(timers.pop_due(Duration::from_millis(999)), None);
        assert_eq!(timers.pop_due(at(2)), Some((at(1), 'a')));
        assert_eq!(timers.pop_due(at(2)), Some((at(2), 'b')));
        assert_eq!(timers.pop_due(at(2)), None);
        assert_eq!(timers.next(), Some(at(3)));
        timers.clear();
        assert_eq!(timers.next(), None);
    }
}
