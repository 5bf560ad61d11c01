//! `seedring download`: the engine ends when everything is there.
//!
//! Owns: the verdict. Never: ends it; the loop does. Flow: after each turn of the loop.

use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::{Engine, download::mover, torrents::State};

/// Trackers have so long, at most, to hear `completed` before they hear `stopped`.
const LINGER: Duration = Duration::from_secs(1);

impl Engine {
    /// Whether all is there.
    ///
    /// # Errors
    /// Something can't be downloaded at all.
    pub(super) fn is_all_there(&mut self) -> anyhow::Result<bool> {
        if let Some((_, why)) = self.pending.failures().next() {
            return Err(anyhow!("{why}"));
        }
        let there = self.pending.is_idle()
            && !self.torrents.is_empty()
            && self.torrents.iter().all(|torrent| torrent.state == State::Seeding)
            && !self.is_moving()?;
        if !there {
            self.there_since = None;
            return Ok(false);
        }
        let told = self.torrents.iter().all(|torrent| {
            !torrent.on_trackers || torrent.download.as_ref().is_none_or(|it| !it.telling)
        });
        let since = *self.there_since.get_or_insert_with(Instant::now);
        Ok(told || since.elapsed() >= LINGER)
    }

    /// Whether something is not where it belongs yet.
    ///
    /// # Errors
    /// It can't be moved there.
    fn is_moving(&self) -> anyhow::Result<bool> {
        let downloads = self.torrents.iter().filter_map(|torrent| torrent.download.as_ref());
        let mut moving = downloads.filter(|it| mover::is_due(&it.row, &it.mover)).peekable();
        match moving.peek().and_then(|download| download.mover.problem.as_ref()) {
            Some(why) => Err(anyhow!("{why}")),
            None => Ok(moving.peek().is_some()),
        }
    }
}
