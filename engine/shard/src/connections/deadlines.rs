//! What time does to connections.
//!
//! Owns: each connection's one live reminder, the idle timeout.
//! Never: what silence means in the protocol (proto's session says). Flow: a stage sets a reminder
//! -> the tick fires it -> close, keep-alive, the next reminder.

use std::time::Duration;

use seedring_platform::op::{Io, Shutdown};

use super::{Key, Stage};
use crate::{shard::Shard, timers::Timers};

/// A shard's part in time.
pub struct Deadlines {
    pub timers: Timers<Key>,
    /// What open connections were last told of; `Globals` has what is wanted.
    idle_timeout: Duration,
}

impl Deadlines {
    pub fn new(idle_timeout: Duration) -> Self {
        Deadlines { timers: Timers::new(), idle_timeout }
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
            Stage::Closing => return,
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
        connection.shrink();
        let ready = !connection.out.is_empty();
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
}
