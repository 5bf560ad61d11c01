//! What the engine says once everything wanted has been dealt with.
//!
//! Owns: the wording of it, with how to fetch what is seeded. Never: when it is said.
//! Flow: `tell_when_ready` -> here -> log and standard output.

use std::time::Duration;

use super::super::{
    Engine,
    torrents::{State, Torrent},
};

/// Magnet links printed at most.
const LINKS_MAX: usize = 10;

impl Engine {
    pub(in crate::engine) fn announce_ready(&self, after_start: Option<Duration>) {
        let count = |matching: fn(&State) -> bool| {
            self.torrents.iter().filter(|torrent| matching(&torrent.state)).count()
        };
        let seeding = count(|state| matches!(state, State::Seeding | State::Partial));
        let waiting = count(|state| matches!(state, State::Waiting(_)));
        let failed = self.pending.failures().len();
        let fetching = count(|state| matches!(state, State::Downloading | State::Metadata));
        let downloading =
            if fetching > 0 { format!("{fetching} downloading, ") } else { String::new() };
        let counts = format!(
            "{} seeding, {downloading}{waiting} waiting for content, {failed} failed",
            plural(seeding)
        );
        let Some(took) = after_start else { return tracing::info!("{counts}") };
        tracing::info!("{counts}, {:.1} s after start", took.as_secs_f64());
        let mut torrents: Vec<_> =
            self.torrents.iter().filter(|t| t.is_active() && !t.is_downloading()).collect();
        if torrents.len() > LINKS_MAX {
            let text = "`seedring show TORRENT` prints a magnet link";
            return crate::logs::print(&format!("{}; {text}", plural(torrents.len())));
        }
        torrents.sort_by(|a, b| a.name.cmp(&b.name));
        let mut text = String::new();
        for torrent in torrents {
            self.describe(torrent, &mut text);
        }
        if !text.is_empty() {
            crate::logs::print(&text);
        }
    }

    fn describe(&self, torrent: &Torrent, text: &mut String) {
        let hash = torrent.info_hash();
        let Some(magnet) = self.catalogue.magnet(&hash) else { return };
        let (name, bytes) = (&torrent.name, torrent.total_bytes);
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!("\nseeding {name} ({bytes} bytes)"));
        line(format!("  info-hash  {hash}"));
        line(format!("  magnet     {magnet}"));
        // The embedded tracker is only in what it gives away itself.
        let Some(url) = self.catalogue.torrent_url(&hash) else {
            return line(format!("  .torrent   {}", torrent.place.torrent_file.display()));
        };
        line(format!("  .torrent   {url}"));
        line(format!("  fetch it   aria2c --dir=/tmp/fetched --seed-time=0 '{url}'"));
        line("             or paste the magnet link into any client".into());
    }
}

/// `1 torrent`, `2 torrents`.
pub(super) fn plural(torrents: usize) -> String {
    format!("{torrents} torrent{}", if torrents == 1 { "" } else { "s" })
}
