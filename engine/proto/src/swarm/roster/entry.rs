//! Owns: what is known of one address: its source, failures, and what it is doing.
//! Never: knows other addresses, or counts connections.
//! Flow: the roster keeps one an address, and compares them where places are few.

use std::cmp::Reverse;
use std::time::Duration;

use super::{BACKOFF_FIRST, BACKOFF_MAX, LASTED, Source};
use crate::tracker::jitter::Jitter;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Not dialled before that time.
    Idle {
        again: Duration,
    },
    Dialling,
    /// We dialled it.
    Connected {
        since: Duration,
    },
    /// It came to us.
    Accepted {
        since: Duration,
    },
    /// Kept, so that it is not learnt and dialled again.
    Oneself,
}

#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The most trusted that named it.
    pub source: Source,
    /// All who named it say that it has everything.
    pub seed: bool,
    /// In a row.
    pub failures: u32,
    pub priority: u32,
    pub state: State,
    /// Forgotten when it is not in use any more.
    pub banned: bool,
    /// A connection with it lasted.
    proven: bool,
}

impl Entry {
    pub fn new(source: Source, seed: bool, priority: u32, from: Duration) -> Self {
        let state = State::Idle { again: from };
        Self { source, seed, failures: 0, priority, state, banned: false, proven: false }
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. })
    }

    /// Being dialled, or connected because we dialled.
    pub fn is_dialled(&self) -> bool {
        matches!(self.state, State::Dialling | State::Connected { .. })
    }

    pub fn is_live(&self) -> bool {
        self.is_dialled() || matches!(self.state, State::Accepted { .. })
    }

    pub fn again(&self) -> Option<Duration> {
        match self.state {
            State::Idle { again } => Some(again),
            _ => None,
        }
    }

    /// Rests, longer each time; up to a quarter more, so that those that failed together do not
    /// come back together.
    pub fn failed(&mut self, now: Duration, jitter: &mut Jitter) {
        let doubled = BACKOFF_FIRST.saturating_mul(2u32.saturating_pow(self.failures));
        let rest = doubled.min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Idle { again: now + rest + jitter.up_to(rest / 4) };
    }

    /// A connection ended. One that did not last is a failure like another.
    pub fn closed(&mut self, now: Duration, jitter: &mut Jitter) {
        let lasted = match self.state {
            State::Connected { since } | State::Accepted { since } => {
                now.saturating_sub(since) >= LASTED
            }
            _ => false,
        };
        if lasted {
            self.failures = 0;
        }
        self.failed(now, jitter);
        if lasted {
            self.failures = 0;
            self.proven = true;
        }
    }

    /// Who is worth least has the greatest.
    pub fn worth_less(&self) -> impl Ord + use<> {
        (self.failures, !self.proven, Reverse(self.source), Reverse(self.priority))
    }

    pub fn is_better_than(&self, other: &Self) -> bool {
        self.worth_less() < other.worth_less()
    }
}
