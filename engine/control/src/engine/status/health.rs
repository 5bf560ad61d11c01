//! Whether the engine works, in a document that stays small whatever it seeds.
//!
//! Owns: what counts as working. Never: counts what a user has to mend (content that is away, a
//! full disk) as not working: a new start would not mend it.
//! Flow: `seedring health` -> control socket -> here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::{Engine, torrents::State};

/// Shards are asked for a report each second; one that was silent for so long hangs.
const SILENT_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HealthReport {
    pub version: String,
    pub uptime_s: u64,
    /// Everything wanted has been dealt with since the start.
    pub ready: bool,
    /// Shards that say nothing; with any of them the engine does not work.
    pub silent_shards: Vec<usize>,
    pub torrents: usize,
    pub preparing: usize,
    /// Torrents whose content is away.
    pub waiting: usize,
    /// Wanted torrents that could not be read or made.
    pub failed: usize,
    pub not_saved: Option<String>,
}

impl Engine {
    pub(super) fn health(&self) -> HealthReport {
        let silent = self.heard_at.iter().enumerate().filter(|(_, at)| at.elapsed() > SILENT_MAX);
        let waiting = self.torrents.iter().filter(|it| matches!(it.state, State::Waiting(_)));
        HealthReport {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: self.began.elapsed().as_secs(),
            ready: self.all_ready_after.is_some(),
            silent_shards: silent.map(|(shard, _)| shard).collect(),
            torrents: self.torrents.iter().count(),
            preparing: self.pending.len(),
            waiting: waiting.count(),
            failed: self.pending.failures().len(),
            not_saved: self.store.fault(),
        }
    }
}
