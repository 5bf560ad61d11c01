//! What time does to connections: limits that pass, and memory that is given back.
//!
//! Owns: each connection's one live reminder, the idle timeout, who settles after a burst.
//! Never: what silence means in the protocol (proto's session says). Flow: a stage sets a reminder
//! -> the tick fires it -> close, keep-alive, the next reminder.

use std::{collections::VecDeque, time::Duration};

use seedring_platform::op::{Io, Shutdown};

use super::{Key, Stage};
use crate::{shard::Shard, timers::Timers};

/// Connections that settle in one second; the others wait for the next.
const SETTLED_MAX: usize = 8_192;

/// Connections that ran out of work, in turn. Each is looked at once, one to two seconds later:
/// a leech that goes on keeps its buffers, one that rests gives them back.
#[derive(Debug, Default)]
pub struct Settling {
    keys: VecDeque<Key>,
    /// How many were there a second ago.
    aged: usize,
}

impl Settling {
    fn push(&mut self, key: Key) {
        self.keys.push_back(key);
    }

    /// Who has been here for a second, at most `max`.
    fn due(&mut self, max: usize) -> Vec<Key> {
        let due = self.keys.drain(..self.aged.min(max)).collect();
        if self.keys.is_empty() {
            self.keys = VecDeque::new();
        }
        self.aged = self.keys.len();
        due
    }
}

/// A shard's part in time.
pub struct Deadlines {
    pub timers: Timers<Key>,
    /// What open connections were last told of; `Globals` has what is wanted.
    idle_timeout: Duration,
    settling: Settling,
}

impl Deadlines {
    pub fn new(idle_timeout: Duration) -> Self {
        Deadlines { timers: Timers::new(), idle_timeout, settling: Settling::default() }
    }
}

impl<I: Io> Shard<I> {
    /// The connection is looked at then, and not by any reminder that was set before.
    pub(crate) fn remind(&mut self, key: Key, at: Duration) {
        if let Some(connection) = self.connections.get(key) {
            connection.deadline = at;
            self.deadlines.timers.set(at, key);
        }
    }

    /// Timers that are due: each connection is asked what it thinks of the time.
    pub(crate) fn fire_timers(&mut self, now: Duration, max: usize) -> bool {
        for _ in 0..max {
            let Some((at, key)) = self.deadlines.timers.pop_due(now) else { return false };
            if self.connections.get(key).is_some_and(|connection| connection.deadline == at) {
                self.check_deadline(key);
            }
        }
        true
    }

    /// Closes what is late; sends keep-alives; sets the next reminder.
    fn check_deadline(&mut self, key: Key) {
        let now = self.io.now();
        let idle_timeout = self.deadlines.idle_timeout;
        let Some(connection) = self.connections.get(key) else { return };
        let next = match &mut connection.stage {
            Stage::Closing(_) => return,
            Stage::Connecting | Stage::Greeting(_) | Stage::Waiting(..) => {
                return self.close(key, Shutdown::Reset);
            }
            Stage::Open(open) => {
                match open.session.timeout(now, idle_timeout, &mut connection.out) {
                    Ok(next) => next.unwrap_or(now + Duration::from_secs(60)),
                    Err(_) => return self.close(key, Shutdown::Orderly),
                }
            }
        };
        let exchange = self.exchange(key, now);
        let next = exchange.map_or(next, |at| next.min(at));
        let ready = self.connections.get(key).is_some_and(|c| !c.out.is_empty());
        self.remind(key, next.max(now + Duration::from_millis(1)));
        if ready {
            self.enqueue(key);
        }
    }

    /// A reload may have changed the idle timeout: every open connection is asked anew, because
    /// its reminder stands where the old value put it.
    pub(crate) fn follow_idle_timeout(&mut self, now: Duration) {
        let wanted = self.options.globals.idle_timeout();
        if std::mem::replace(&mut self.deadlines.idle_timeout, wanted) == wanted {
            return;
        }
        self.deadlines.timers.clear();
        for key in self.connections.keys() {
            let Some(connection) = self.connections.get(key) else { continue };
            let open = matches!(connection.stage, Stage::Open(_));
            let at = if open { now } else { connection.deadline };
            self.remind(key, at);
        }
    }

    /// A connection has nothing to send: unless it goes on soon, it gives back what it held.
    pub(crate) fn settle_later(&mut self, key: Key) {
        if let Some(connection) = self.connections.get(key)
            && matches!(connection.stage, Stage::Open(_))
            && !std::mem::replace(&mut connection.settling, true)
        {
            self.deadlines.settling.push(key);
        }
    }

    /// Once a second: those who had nothing to do for a second.
    pub(crate) fn settle(&mut self) {
        for key in self.deadlines.settling.due(SETTLED_MAX) {
            if let Some(connection) = self.connections.get(key) {
                connection.settling = false;
                connection.shrink();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_to_rest_is_due_after_a_second_and_in_turn() {
        let mut settling = Settling::default();
        settling.push(Key(1));
        settling.push(Key(2));
        assert_eq!(settling.due(10), []);
        settling.push(Key(3));
        assert_eq!(settling.due(1), [Key(1)]);
        assert_eq!(settling.due(10), [Key(2), Key(3)]);
        assert_eq!(settling.due(10), []);
    }
}
