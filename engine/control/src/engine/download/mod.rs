//! Torrents that are downloaded, from admission to the last piece and beyond.
//!
//! Owns: what control keeps of a download while it runs, its begin and its end, what happens when
//! it can't be written on.
//! Never: picks pieces, writes content; shards do.
//! Flow: prepared -> what is there is hashed -> `Shared::download` is set, peers and trackers
//! -> every second: is all of it there and synced? -> taken away, `completed`, seeding.

mod copy;
pub mod delete;
pub mod look;
pub mod magnet;
pub mod mover;
pub mod moving;
pub mod places;
pub mod prepare;
pub mod root;
pub mod select;

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use seedring_proto::units::{InfoHash, PieceIndex};
use seedring_shard::{
    Command,
    torrent::{PieceMap, TorrentId},
};

use self::{
    look::{Found, Trust},
    mover::Mover,
    prepare::{PreparedDownload, now_s},
};
use super::{
    Engine, Note,
    look::Condition,
    prepare::read_torrent,
    torrents::{Recheck, State, Torrent},
};
use crate::state::Download;

/// How often it is looked whether a halted download can go on.
const RESUME_EVERY: Duration = Duration::from_secs(5);
/// A full file system has room again when there is so much, or all that is missing.
const ROOM_BYTES_MIN: u64 = 32 << 20;
/// With fewer connections than this, trackers are asked for more peers.
const PEERS_MIN: u32 = 8;
/// A download's files are looked for as often.
const FILES_EVERY: Duration = Duration::from_secs(10);
const MORE_PEERS_EVERY: Duration = Duration::from_secs(60);
/// Weight of the newest second in the rates.
const SMOOTHING: f64 = 0.25;

/// What control keeps of a download.
pub struct Downloading {
    pub row: Download,
    /// Runs of pieces to hash before anything is fetched.
    pub to_verify: Vec<(u32, u32)>,
    /// It can't be written on.
    pub halted: Option<Halt>,
    /// What was said last about a halt: the same is said once, until it is over.
    said: Option<String>,
    /// Pieces had when writing was last tried again: with one more the halt is over.
    had: u32,
    /// Something was missing when it began: its end is told to trackers.
    pub fetches: bool,
    /// When it was complete before a recheck.
    pub completed_before: Option<i64>,
    /// `completed` is on its way to a tracker.
    pub telling: bool,
    finishing: bool,
    more_peers_at: Option<Instant>,
    /// When its files were looked at last, while it goes on.
    looked_at: Instant,
    pub rates: Rates,
    /// Of a magnet, until its metadata is known.
    pub metadata: Option<Box<magnet::Fetch>>,
    pub mover: Mover,
    warning: Option<String>,
}

pub struct Halt {
    pub why: String,
    /// More room is what it waits for.
    needs_room: bool,
    again: Instant,
}

/// Bytes a second, smoothed.
#[derive(Clone, Copy, Default)]
pub struct Rates {
    pub down: f64,
    pub up: f64,
    bytes: Option<(u64, u64)>,
}

impl Rates {
    /// Once a second, with the totals.
    fn step(&mut self, down: u64, up: u64) {
        if let Some((down_before, up_before)) = self.bytes.replace((down, up)) {
            let smooth = |rate: &mut f64, now: u64, before: u64| {
                *rate += (now.saturating_sub(before) as f64 - *rate) * SMOOTHING;
            };
            smooth(&mut self.down, down, down_before);
            smooth(&mut self.up, up, up_before);
        }
    }
}

impl Downloading {
    pub fn new(prepared: PreparedDownload) -> Downloading {
        let PreparedDownload { row, to_verify, warning, .. } = prepared;
        Downloading {
            row,
            to_verify,
            halted: None,
            said: None,
            had: 0,
            fetches: false,
            completed_before: None,
            telling: false,
            finishing: false,
            more_peers_at: None,
            looked_at: Instant::now(),
            rates: Rates::default(),
            metadata: None,
            mover: Mover::default(),
            warning,
        }
    }

    /// From a new look.
    pub fn taken_up(&mut self, to_verify: Vec<(u32, u32)>) {
        self.to_verify = to_verify;
        (self.halted, self.finishing) = (None, false);
        self.mover.settled = false;
    }
}

/// Whether all that is wanted is had, and all that is had is on the device.
pub fn is_done(download: &seedring_shard::torrent::Download, had: &PieceMap) -> bool {
    download.is_complete(had) && download.synced_bitfield() == had.verified_bitfield()
}

impl Engine {
    /// Keeps a download's row, here and in the store.
    pub(super) fn save_download(&mut self, hash: InfoHash, row: &Download) {
        self.known.keep_download(hash, row.clone());
        self.store.save_download(hash, row.clone());
    }

    /// A download that was just looked at: hash what may be there, or go on at once.
    pub(super) async fn begin_download(&mut self, id: TorrentId) {
        if self.torrents.get(id).is_some_and(Torrent::is_downloading) {
            self.learn_named(id);
        }
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let pieces = &torrent.shared.pieces;
        for piece in (0..pieces.piece_count()).map(PieceIndex) {
            if pieces.is_verified(piece) {
                pieces.set_offered(piece, true);
            }
        }
        let name = torrent.name.clone();
        let Some(download) = &mut torrent.download else { return };
        let of: u32 = download.to_verify.iter().map(|(_, count)| count).sum();
        let warning = download.warning.take();
        if of > 0 {
            torrent.state = State::Verifying { done: 0, of, failed: 0 };
            self.send_verify(id);
        } else {
            self.seed(id).await;
        }
        if let Some(warning) = warning {
            tracing::warn!("{name}: {warning}; make room, or it stops there and waits");
        }
    }

    /// What was there is hashed: it counts as had, and the rest is fetched.
    pub(super) async fn download_verified(&mut self, id: TorrentId, failed: u32) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let pieces = &torrent.shared.pieces;
        let had = (0..pieces.piece_count()).map(PieceIndex).filter(|p| pieces.is_verified(*p));
        match &*torrent.shared.download.load() {
            // Their files were synced before they were hashed.
            Some(transfer) => had.for_each(|piece| transfer.set_synced(piece)),
            None if failed > 0 => {
                let note = format!(
                    "{failed} pieces do not match the torrent any more; `seedring recheck` has \
                     them fetched again"
                );
                tracing::error!("{}: {note}", torrent.name);
                torrent.note = Some(note);
            }
            None => torrent.note = None,
        }
        if let Some(download) = &mut torrent.download {
            download.to_verify.clear();
        }
        torrent.recheck = Recheck::No;
        self.seed(id).await;
    }

    /// Once a second.
    pub(super) async fn downloads_second(&mut self) {
        let now = Instant::now();
        let (mut done, mut halted, mut lonely) = (Vec::new(), Vec::new(), Vec::new());
        let mut gone = Vec::new();
        for torrent in self.torrents.iter_mut() {
            let (down, up) = (torrent.downloaded_bytes(), torrent.uploaded_bytes());
            let (id, hash, shared) = (torrent.shared.id, torrent.info_hash(), &torrent.shared);
            let Some(download) = &mut torrent.download else { continue };
            download.rates.step(down, up);
            let transfer = shared.download.load_full();
            let Some(transfer) = transfer.filter(|_| torrent.state == State::Downloading) else {
                continue;
            };
            // Who writes to a file that was deleted hears nothing of that.
            if now.duration_since(download.looked_at) > FILES_EVERY
                && transfer.synced_bitfield().iter().any(|byte| *byte != 0)
            {
                download.looked_at = now;
                gone.push(id);
            }
            let had = shared.pieces.verified_count();
            if download.halted.is_none() && had > download.had && download.said.take().is_some() {
                tracing::info!("{}: it is written again, the download goes on", torrent.name);
            }
            if is_done(&transfer, &shared.pieces) {
                if !std::mem::replace(&mut download.finishing, true) {
                    done.push(id);
                }
            } else if let Some(halt) = &mut download.halted {
                if halt.again <= now {
                    halt.again = now + RESUME_EVERY;
                    halted.push((id, download.row.folder.clone(), download.row.root.clone()));
                }
            } else if shared.connections.load(std::sync::atomic::Ordering::Relaxed) < PEERS_MIN
                && download.more_peers_at.is_none_or(|at| at <= now)
            {
                // The first time its trackers have just been asked.
                if download.more_peers_at.replace(now + MORE_PEERS_EVERY).is_some() {
                    lonely.push(hash);
                }
            }
        }
        for id in gone {
            self.looking.entry(id).or_insert(now);
        }
        for id in done {
            self.finish(id);
        }
        self.metadata_second();
        self.moves_second();
        for (id, folder, root) in halted {
            let notes = self.notes.0.clone();
            tokio::task::spawn_blocking(move || {
                let room = root::check(&folder, &root).map(|root| look::free_bytes(&root));
                let _ = notes.send(Note::Room(id, room));
            });
        }
        for hash in lonely {
            self.trackers.want_more_peers(hash).await;
        }
    }

    /// A shard says that all is there.
    pub(super) fn finish_if_done(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let Some(transfer) = torrent.shared.download.load_full() else { return };
        let done =
            torrent.state == State::Downloading && is_done(&transfer, &torrent.shared.pieces);
        if let Some(download) = &mut torrent.download
            && done
            && !std::mem::replace(&mut download.finishing, true)
        {
            self.finish(id);
        }
    }

    /// All of it is there and synced: its files are looked at for the last time as files that we
    /// write to.
    fn finish(&self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let Some(download) = &torrent.download else { return };
        let (row, record) = (download.row.clone(), torrent.record());
        let (path, direct_io) = (torrent.place.torrent_file.clone(), self.known.direct_io);
        let notes = self.notes.0.clone();
        tokio::task::spawn_blocking(move || {
            let found = read_torrent(&path).map_err(|error| error.to_string());
            let found = found.map(|metainfo| {
                if let Ok(root) = root::check(&row.folder, &row.root) {
                    let _ = places::drop_blocks(&root, &metainfo.info_hash);
                }
                look::look(&row, &metainfo, Some(&record), direct_io, Trust::Finished)
            });
            let _ = notes.send(Note::Finished(id, found.map(Box::new)));
        });
    }

    pub(super) async fn finished(&mut self, id: TorrentId, found: Result<Box<Found>, String>) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let (hash, name) = (torrent.info_hash(), torrent.name.clone());
        let Some(download) = &mut torrent.download else { return };
        download.finishing = false;
        let transfer = torrent.shared.download.load_full();
        let still = transfer.is_some_and(|transfer| is_done(&transfer, &torrent.shared.pieces));
        if torrent.state != State::Downloading || !still {
            return; // paused, parked, or more is wanted meanwhile
        }
        let found = match found {
            Ok(found) => *found,
            Err(why) => return self.park(id, why),
        };
        if let Condition::Missing(why) | Condition::Differs(why) = found.condition {
            return self.park(id, why);
        }
        // A recheck that had nothing fetched leaves it as complete as it was.
        let before = download.completed_before.take().filter(|_| !download.fetches);
        download.row.completed_at = Some(before.unwrap_or_else(now_s));
        download.halted = None;
        let (row, fetches) = (download.row.clone(), download.fetches);
        torrent.stamps = found.stamps;
        torrent.note = None;
        torrent.keep_nothing();
        torrent.shared.download.store(None);
        torrent.shared.contents.store(found.contents);
        torrent.touch();
        let pieces = &torrent.shared.pieces;
        let whole = pieces.verified_count() == pieces.piece_count();
        if let Some(download) = &mut torrent.download {
            download.telling = fetches && whole;
        }
        self.save_download(hash, &row);
        self.seed(id).await;
        if fetches {
            tracing::info!("{name}: all that is wanted is there");
            if whole {
                self.trackers.completed(hash).await;
            }
        }
        self.tell_when_ready();
    }

    /// A shard can't write: uploads go on, and writing is tried again every few seconds.
    pub(super) fn write_failed(&mut self, id: TorrentId, path: &Path, error: &io::Error) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let Some(download) = &mut torrent.download else { return };
        if download.halted.is_some() {
            return; // said by another shard
        }
        let needs_room =
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let (what, remedy) = match error.kind() {
            _ if needs_room => (String::from("no space left"), "make room"),
            io::ErrorKind::ReadOnlyFilesystem => {
                (String::from("read-only file system"), "mount it writable")
            }
            io::ErrorKind::PermissionDenied => {
                (error.to_string(), "let this user write to the folder and its files")
            }
            _ => (error.to_string(), "look at the disk and the kernel's log"),
        };
        let why = format!("{what} on {}", path.display());
        if download.said.as_ref() != Some(&why) {
            tracing::error!(
                "{}: halted: {why}; {remedy}. It is tried again every {} s, uploads go on",
                torrent.name,
                RESUME_EVERY.as_secs()
            );
            download.said = Some(why.clone());
        }
        let again = Instant::now() + RESUME_EVERY;
        download.halted = Some(Halt { why, needs_room, again });
    }

    /// What a look at a halted download's folder found: bytes free, or that it is not there.
    pub(super) fn room(&mut self, id: TorrentId, room: Result<u64, String>) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        if torrent.state != State::Downloading {
            return;
        }
        let free = match room {
            Ok(free) => free,
            Err(why) => return self.park(id, why),
        };
        let missing = missing_bytes(torrent);
        let had = torrent.shared.pieces.verified_count();
        let Some(download) = &mut torrent.download else { return };
        let Some(transfer) = torrent.shared.download.load_full() else { return };
        if download.halted.as_ref().is_none_or(|halt| halt.needs_room)
            && free < missing.min(ROOM_BYTES_MIN)
        {
            return;
        }
        (download.halted, download.had) = (None, had);
        transfer.resume();
        self.shards.send_all(|| Command::Look(id));
    }
}

/// Bytes that are wanted and missing; a piece counts as an average one.
pub fn missing_bytes(torrent: &Torrent) -> u64 {
    let pieces = &torrent.shared.pieces;
    let missing = match &*torrent.shared.download.load() {
        Some(download) => download.missing_count(pieces),
        None => 0,
    };
    let of = u128::from(pieces.piece_count().max(1));
    (u128::from(torrent.total_bytes) * u128::from(missing) / of) as u64
}
