//! What the engine says once everything wanted has been dealt with.
//!
//! Owns: the wording of it, with how to fetch what is seeded. Never: when it is said.
//! Flow: `tell_when_ready` -> here -> log and standard output.

use std::time::Duration;

use super::super::{Engine, torrents::State};

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
        let counts =
            format!("{seeding} torrents seeding, {waiting} waiting for content, {failed} failed");
        let Some(took) = after_start else { return tracing::info!("{counts}") };
        tracing::info!("{counts}, {:.1} s after start", took.as_secs_f64());
        let mut torrents: Vec<_> =
            self.torrents.iter().filter(|torrent| torrent.is_active()).collect();
        if torrents.len() > LINKS_MAX {
            println!("{} torrents; `seedring show TORRENT` prints a magnet link", torrents.len());
            return;
        }
        torrents.sort_by(|a, b| a.name.cmp(&b.name));
        for torrent in torrents {
            let hash = torrent.info_hash();
            let Some(magnet) = self.catalogue.magnet(&hash) else { continue };
            println!(
                "\nseeding {} ({} bytes)\n  info-hash  {hash}",
                torrent.name, torrent.total_bytes
            );
            println!("  magnet     {magnet}");
            let url = self.catalogue.torrent_url(&hash);
            if let Some(url) = &url {
                println!("  .torrent   {url}");
            }
            println!("  file       {}", torrent.place.torrent_file.display());
            if let Some(url) = url {
                println!("  fetch it   aria2c --dir=/tmp/fetched --seed-time=0 '{url}'");
                println!("             or paste the magnet link into any client");
            }
        }
        println!();
    }
}
