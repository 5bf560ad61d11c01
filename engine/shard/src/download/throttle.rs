//! Rate limits of downloads: peers are asked for less.
//!
//! Owns: which limits hold for a block, and the connections that they hold back.
//! Never: what is asked for. Flow: `ask` looks at `Limits` before each block -> `hold_back` ->
//! `ask_held` when there is room again -> asked on, in turn.
//!
//! What is asked for is what comes, a round trip later, so a block is paid for when it is asked
//! for, and given back when its peer will not send it.

use std::{collections::VecDeque, time::Duration};

use seedring_platform::op::Io;

use crate::{connections::Key, contract::Globals, limits::Meter, shard::Shard, torrent::Shared};

/// Blocks asked of one connection in its turn while a limit holds, so that all get some.
pub const BLOCKS_HELD_MAX: usize = 4;
/// The least time between two turns: many blocks go in one, and the burst of a meter is longer.
const REST_MIN: Duration = Duration::from_millis(5);

/// The limits that a block of one torrent is under.
#[derive(Clone, Copy)]
pub struct Limits<'a>([&'a Meter; 2]);

impl<'a> Limits<'a> {
    pub fn of(globals: &'a Globals, shared: &'a Shared) -> Limits<'a> {
        Limits([&globals.download, &shared.receive])
    }

    /// Whether there is any.
    pub fn hold(&self) -> bool {
        self.0.iter().any(|meter| meter.rate().is_some())
    }

    /// `None`: a block may be asked for now.
    pub fn held_until(&self, now: Duration) -> Option<Duration> {
        let held = self.0.iter().filter(|meter| !meter.is_open(now));
        held.map(|meter| meter.ready_at()).max()
    }

    pub fn take(&self, bytes: u32, now: Duration) {
        self.0.iter().for_each(|meter| meter.take(u64::from(bytes), now));
    }

    pub fn give_back(&self, bytes: u32) {
        self.0.iter().for_each(|meter| meter.give_back(u64::from(bytes)));
    }
}

/// Connections that a limit holds back, in turn.
#[derive(Default)]
pub struct HeldBack {
    keys: VecDeque<Key>,
    until: Duration,
}

impl HeldBack {
    pub fn due_at(&self) -> Option<Duration> {
        (!self.keys.is_empty()).then_some(self.until)
    }
}

impl<I: Io> Shard<I> {
    /// A limit is used up: this connection waits, as if it were queued.
    pub(super) fn hold_back(&mut self, key: Key, until: Duration, now: Duration) {
        let held = &mut self.downloads.held_back;
        let until = until.max(now + REST_MIN);
        held.until = if held.keys.is_empty() { until } else { held.until.min(until) };
        held.keys.push_back(key);
        if let Some(open) = self.connections.get(key).and_then(|connection| connection.open()) {
            open.source.get_or_insert_default().queued = true;
        }
    }

    /// Limits have room again.
    pub(super) fn ask_held(&mut self, now: Duration) {
        let held = &mut self.downloads.held_back;
        if held.due_at().is_some_and(|at| at <= now) {
            self.downloads.asking.append(&mut held.keys);
        }
    }
}
