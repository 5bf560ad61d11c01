//! Written files to the device.
//!
//! Owns: when a file is synced, and what a sync, good or failed, says of its pieces.
//! Never: writes. Flow: a file is dirty -> after a while, or many bytes, or at the end: sync ->
//! its pieces are synced when all their files are.

use std::{io, time::Duration};

use seedring_platform::op::{Io, Op};
use seedring_proto::units::PieceIndex;

use super::{Entry, SLOW_MAX, State, same};
use crate::{contract::Event, shard::Shard, token::Target, torrent::TorrentId};

/// A written file is synced after this time at the latest.
const SYNC_AFTER: Duration = Duration::from_secs(4);
/// And when so many bytes are not.
const SYNC_BYTES: u64 = 48 << 20;

impl<I: Io> Shard<I> {
    pub(super) fn sync_due(&mut self, now: Duration) {
        let writer = &self.downloads.writer;
        let all = writer.sync_all;
        let due = |entry: &Entry| {
            let late = now >= entry.dirty_since + SYNC_AFTER || entry.dirty_bytes >= SYNC_BYTES;
            // Complete, or ended: there is no more to share a sync with.
            let fetch = self.downloads.torrents.get(&entry.torrent);
            let over = all || (entry.writes == 0 && fetch.is_none_or(|fetch| fetch.complete));
            !entry.dirty.is_empty() && entry.syncing.is_none() && (late || over)
        };
        let files: Vec<u32> = writer
            .files
            .iter()
            .filter(|(_, entry)| due(entry))
            .map(|(file, _)| *file)
            .take(SLOW_MAX.saturating_sub(writer.slow))
            .collect();
        for number in files {
            let Some(entry) = self.downloads.writer.files.get_mut(&number) else { continue };
            let State::Open(file) = &entry.state else { continue };
            let token = Target::Sync(number).token();
            let op = Op::Sync { token, file: file.clone(), data_only: true };
            if self.io.submit(op).is_err() {
                return;
            }
            let writer = &mut self.downloads.writer;
            writer.slow += 1;
            if let Some(entry) = writer.files.get_mut(&number) {
                entry.syncing = Some(std::mem::take(&mut entry.dirty));
                entry.dirty_bytes = 0;
            }
        }
    }

    /// Completion of a sync.
    pub(crate) fn synced(&mut self, number: u32, result: io::Result<()>) {
        let now = self.io.now();
        let writer = &mut self.downloads.writer;
        writer.slow -= 1;
        let Some(entry) = writer.files.get_mut(&number) else { return };
        let pieces = entry.syncing.take().unwrap_or_default();
        entry.used_at = now;
        entry.dirty_since = now;
        let (torrent, download, path) = (entry.torrent, entry.download.clone(), entry.path());
        match result {
            Ok(()) => {
                for piece in pieces {
                    let Some(left) = writer.unsynced.get_mut(&(torrent, piece)) else { continue };
                    *left -= 1;
                    if *left == 0 {
                        writer.unsynced.remove(&(torrent, piece));
                        download.set_synced(piece);
                    }
                }
                self.look_whether_complete(torrent);
            }
            Err(error) => {
                let mut lost = pieces;
                lost.append(&mut entry.dirty);
                entry.dirty_bytes = 0;
                // Pieces that are written in part: what this sync covered of them is lost too,
                // and no later one brings it back.
                for job in writer.jobs.values_mut().filter(|job| job.files.contains(&number)) {
                    job.failed.get_or_insert_with(|| (path.clone(), same(&error)));
                }
                self.sync_failed(torrent, lost);
                self.write_failed(torrent, path, error);
            }
        }
    }

    /// Nobody knows what of these is on the device, and the page cache can't be asked: they are
    /// fetched again.
    fn sync_failed(&mut self, torrent: TorrentId, lost: Vec<PieceIndex>) {
        for piece in lost {
            self.downloads.writer.unsynced.remove(&(torrent, piece));
            let Some(local) = self.torrents.get(&torrent) else { continue };
            let offered = local.shared.pieces.set_offered(piece, false);
            local.shared.pieces.set_verified(piece, false);
            if offered {
                self.tell(Event::Lost { torrent, piece });
            }
        }
        if let Some(fetch) = self.downloads.torrents.get_mut(&torrent) {
            fetch.picker.refresh();
        }
    }
}
