//! The torrents of the process, as control sees them.
//!
//! Owns: the registry (identity, place, state, problem of each), what is due to be saved.
//! Never: sockets, files. Flow: admit adds, events change state, status and the store read.

use std::{
    collections::HashMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use seedring_proto::{
    swarm::metadata::LEFT_WHILE_UNKNOWN_BYTES,
    tracker::announce::Totals,
    units::{InfoHash, PieceIndex},
};
use seedring_shard::torrent::{KeptPiece, Phase, Shared, Stamp, TorrentId};

use super::{
    download::Downloading,
    look::Condition,
    prepare::{Place, Prepared},
    verify::{Hashing, Parts},
};
use crate::{config::model::Verify, plan::Wanted, state::Record};

/// Equal to no `Torrent::progress`.
const NEVER_SAVED: Progress = (u64::MAX, 0, 0, false);
/// Uploaded bytes, downloaded bytes, pieces that count as had, whether a recheck is to be done.
type Progress = (u64, u64, u32, bool);

/// How far hashing all that is there is, whatever was known of it. The store has it too: what is
/// not hashed yet when the process ends is hashed after the next start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recheck {
    /// Nothing to do.
    No,
    /// Asked for: nothing counts as verified.
    Asked,
    /// What was hashed since it began counts. It reads what is on disk and nothing is received
    /// meanwhile, so nothing of it can be lost (D2).
    Begun,
}

/// What a torrent is doing, as the user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Pieces hashed of all.
    Verifying {
        done: u32,
        of: u32,
        failed: u32,
    },
    Seeding,
    /// Something that is wanted is missing.
    Downloading,
    /// A magnet: no peer has told yet what the files are.
    Metadata,
    /// By the user's word: no peers, no trackers, no file open.
    Paused,
    /// Some pieces do not match: the others are seeded.
    Partial,
    /// Content is not there, or not as the torrent says; looked at again every few seconds.
    Waiting(String),
}

pub struct Torrent {
    pub shared: Arc<Shared>,
    pub wanted: Wanted,
    pub name: String,
    pub total_bytes: u64,
    pub private: bool,
    pub tiers: Vec<Vec<String>>,
    pub place: Place,
    /// What the files were when the pieces that are verified were read.
    pub stamps: Box<[Option<Stamp>]>,
    pub state: State,
    pub announced: bool,
    pub added_at: i64,
    /// Uploaded when this process took it up: trackers are told what came since.
    pub uploaded_before: u64,
    /// Something went wrong that did not stop it: said once in the log, shown in listings.
    pub note: Option<String>,
    pub verifying: Parts,
    pub hashing: Hashing,
    /// Verification begins when the contents are loaded.
    pub awaits_contents: bool,
    /// Every piece was hashed and none matches: as long as the files stay as they are, hashing
    /// them again is no use.
    pub hopeless: bool,
    /// Times in a row that its files could not be read although they are there.
    pub troubles: u32,
    /// Trackers were told of it, and are told when it goes.
    pub on_trackers: bool,
    /// The last announce failed.
    pub unheard: bool,
    /// All that is there is hashed before it is served again.
    pub recheck: Recheck,
    /// How often it was set aside to be looked at anew: what a look from before found is of no use.
    pub set_aside: u32,
    pub downloaded_before: u64,
    /// It is, or was, downloaded.
    pub download: Option<Box<Downloading>>,
    /// Pieces whose last read failed: to be hashed again when their files can be read, and until
    /// then stored as they were.
    pub doubted: Vec<PieceIndex>,
    /// Blocks of pieces in part that are on disk.
    kept: Vec<KeptPiece>,
    /// What was verified before it was trusted: trust is not remembered as verification.
    proven: Option<Box<[u8]>>,
    saved: Progress,
}

impl Torrent {
    pub fn new(shared: Arc<Shared>, prepared: Prepared, added_at: i64) -> Torrent {
        let saved = match prepared.stored {
            true => {
                let pieces = shared.pieces.verified_count();
                (prepared.uploaded_bytes, prepared.downloaded_bytes, pieces, prepared.recheck)
            }
            false => NEVER_SAVED,
        };
        let state = match prepared.condition {
            _ if prepared.paused => State::Paused,
            Condition::Present { .. } => State::Seeding,
            Condition::Missing(why) | Condition::Differs(why) => State::Waiting(why),
            Condition::Unknown => State::Metadata,
        };
        let trusted = prepared.wanted.verify == Verify::Trust;
        Torrent {
            uploaded_before: prepared.uploaded_bytes,
            downloaded_before: prepared.downloaded_bytes,
            set_aside: 0,
            recheck: if prepared.recheck { Recheck::Begun } else { Recheck::No },
            download: prepared.download.map(|download| Box::new(Downloading::new(*download))),
            shared,
            name: prepared.name,
            total_bytes: prepared.total_bytes,
            private: prepared.private,
            tiers: prepared.tiers,
            place: prepared.place,
            stamps: prepared.stamps,
            state,
            announced: false,
            added_at,
            note: None,
            verifying: Parts::default(),
            hashing: Hashing::default(),
            awaits_contents: false,
            hopeless: false,
            troubles: 0,
            on_trackers: false,
            unheard: false,
            doubted: Vec::new(),
            kept: prepared.kept,
            proven: trusted.then(|| prepared.verified.into()),
            saved,
            wanted: prepared.wanted,
        }
    }

    /// The same torrent from new content: old descriptors, chunks and pending hashes belong to
    /// the number before, and can't touch what is known from here on.
    pub fn taken_up(&mut self, shared: Arc<Shared>, stamps: Box<[Option<Stamp>]>, bits: Vec<u8>) {
        if self.proven.is_some() {
            self.proven = Some(bits.into());
        }
        self.shared = shared;
        self.stamps = stamps;
        self.doubted.clear();
        self.state = State::Seeding;
        self.note = None;
        self.verifying = Parts::default();
        self.hashing = Hashing::default();
        self.awaits_contents = false;
        self.hopeless = false;
        self.touch();
    }

    pub fn info_hash(&self) -> InfoHash {
        self.shared.info_hash
    }

    pub fn uploaded_bytes(&self) -> u64 {
        self.shared.uploaded_bytes.load(Ordering::Relaxed)
    }

    pub fn downloaded_bytes(&self) -> u64 {
        self.shared.downloaded_bytes.load(Ordering::Relaxed)
    }

    /// Whether something that is wanted is missing, as far as is known.
    pub fn is_downloading(&self) -> bool {
        self.shared.download.load().is_some()
    }

    pub fn is_paused(&self) -> bool {
        self.state == State::Paused
    }

    /// What the store would keep, in numbers: another one means that it is to be saved.
    fn progress(&self) -> Progress {
        let pieces = match (self.recheck, &*self.shared.download.load()) {
            (Recheck::Asked, _) => 0,
            (Recheck::No, Some(download)) => {
                download.synced_bitfield().iter().map(|byte| byte.count_ones()).sum()
            }
            _ => self.shared.pieces.verified_count(),
        };
        let recheck = self.recheck != Recheck::No;
        (self.uploaded_bytes(), self.downloaded_bytes(), pieces, recheck)
    }

    pub fn is_active(&self) -> bool {
        self.shared.phase() == Phase::Active
    }

    /// The record to save, if something changed since the last one.
    pub fn record_if_changed(&mut self) -> Option<Record> {
        let now = self.progress();
        if now == self.saved {
            return None;
        }
        self.saved = now;
        Some(self.record())
    }

    /// What is known of it. Only what was hashed counts as verified.
    pub fn record(&self) -> Record {
        Record {
            name: self.name.clone(),
            uploaded_bytes: self.uploaded_bytes(),
            verified: self.verified_or_doubted(),
            stamps: self.stamps.to_vec(),
            added_at: self.added_at,
            downloaded_bytes: self.downloaded_bytes(),
            paused: self.is_paused(),
            kept: self.kept(),
            recheck: self.recheck != Recheck::No,
        }
    }

    /// What is on disk of pieces that are not had.
    pub fn kept(&self) -> Vec<KeptPiece> {
        let missing = |kept: &&KeptPiece| !self.shared.pieces.is_verified(kept.piece);
        self.kept.iter().filter(missing).cloned().collect()
    }

    /// Blocks of a piece in part were synced, or (`blocks` is empty) are worth nothing.
    pub fn keep(&mut self, kept: KeptPiece) {
        let of_other = |other: &KeptPiece| other.piece != kept.piece && other.slot != kept.slot;
        self.kept.retain(of_other);
        if !kept.blocks.is_empty() {
            self.kept.push(kept);
        }
        self.touch();
    }

    /// All of it is there: nothing of it is in part.
    pub fn keep_nothing(&mut self) {
        self.kept = Vec::new();
    }

    /// What may be stored as had: hashed, and of a download synced besides (D2).
    pub fn verified(&self) -> Vec<u8> {
        let pieces = &self.shared.pieces;
        match (self.recheck, &self.proven, &*self.shared.download.load()) {
            (Recheck::Asked, ..) => vec![0; pieces.piece_count().div_ceil(8) as usize],
            (Recheck::Begun, ..) => pieces.verified_bitfield(),
            (Recheck::No, Some(bits), _) => bits.to_vec(),
            (Recheck::No, None, Some(download)) => download.synced_bitfield(),
            (Recheck::No, None, None) => pieces.verified_bitfield(),
        }
    }

    /// What the store keeps: content that can't be read is not content that is gone.
    fn verified_or_doubted(&self) -> Vec<u8> {
        let mut bits = self.verified();
        for piece in &self.doubted {
            if let Some(byte) = bits.get_mut(piece.0 as usize / 8) {
                *byte |= 0x80 >> (piece.0 % 8);
            }
        }
        bits
    }

    /// Makes the next `record_if_changed` return one.
    pub fn touch(&mut self) {
        self.saved = NEVER_SAVED;
    }
}

/// What totals are made of.
struct TotalsRow {
    shared: Arc<Shared>,
    uploaded_before: u64,
    downloaded_before: u64,
    total_bytes: u64,
}

impl TotalsRow {
    fn of(torrent: &Torrent) -> TotalsRow {
        TotalsRow {
            shared: torrent.shared.clone(),
            uploaded_before: torrent.uploaded_before,
            downloaded_before: torrent.downloaded_before,
            total_bytes: torrent.total_bytes,
        }
    }

    fn totals(&self) -> Totals {
        let since =
            |count: &AtomicU64, before| count.load(Ordering::Relaxed).saturating_sub(before);
        let map = &self.shared.pieces;
        let pieces = u64::from(map.piece_count());
        // Of a seed that offers what it has not hashed yet (`verify: quick`) nothing is left.
        let had = u64::from(map.offered_count().max(map.verified_count()));
        let missing = u128::from(pieces.saturating_sub(had));
        // Bits, not bytes, are known here: a missing piece counts as an average one.
        let left = u128::from(self.total_bytes) * missing / u128::from(pieces.max(1));
        Totals {
            uploaded_bytes: since(&self.shared.uploaded_bytes, self.uploaded_before),
            downloaded_bytes: since(&self.shared.downloaded_bytes, self.downloaded_before),
            left_bytes: if pieces == 0 { LEFT_WHILE_UNKNOWN_BYTES } else { left as u64 },
        }
    }
}

/// What trackers are told of a torrent now.
pub fn totals_of(torrent: &Torrent) -> Totals {
    TotalsRow::of(torrent).totals()
}

/// The registry.
#[derive(Default)]
pub struct Torrents {
    by_id: HashMap<TorrentId, Torrent>,
    by_hash: HashMap<InfoHash, TorrentId>,
    /// What trackers are told, readable from their task.
    totals: Arc<RwLock<HashMap<InfoHash, TotalsRow>>>,
    next: u32,
}

impl Torrents {
    pub fn next_id(&mut self) -> TorrentId {
        self.next += 1;
        TorrentId(self.next)
    }

    pub fn insert(&mut self, torrent: Torrent) {
        let (id, hash) = (torrent.shared.id, torrent.info_hash());
        self.set_totals(hash, TotalsRow::of(&torrent));
        self.by_hash.insert(hash, id);
        self.by_id.insert(id, torrent);
    }

    /// From here on trackers hear what is uploaded from now on (`started` anew).
    pub fn reset_totals(&mut self, id: TorrentId) {
        let Some(torrent) = self.by_id.get_mut(&id) else { return };
        torrent.uploaded_before = torrent.uploaded_bytes();
        torrent.downloaded_before = torrent.downloaded_bytes();
        let (hash, row) = (torrent.info_hash(), TotalsRow::of(torrent));
        self.set_totals(hash, row);
    }

    fn set_totals(&self, hash: InfoHash, row: TotalsRow) {
        self.totals.write().expect("invariant: no panic while held").insert(hash, row);
    }

    pub fn remove(&mut self, id: TorrentId) -> Option<Torrent> {
        let torrent = self.by_id.remove(&id)?;
        self.by_hash.remove(&torrent.info_hash());
        Some(torrent)
    }

    /// After `stopped` went out: nobody asks for its totals any more.
    pub fn forget_totals(&self, hash: &InfoHash) {
        if !self.by_hash.contains_key(hash) {
            self.totals.write().expect("invariant: no panic while held").remove(hash);
        }
    }

    /// Totals since this process took a torrent up, for trackers.
    pub fn totals_source(&self) -> impl Fn(&InfoHash) -> Totals + Send + Sync + 'static {
        let totals = self.totals.clone();
        move |hash| {
            let totals = totals.read().expect("invariant: no panic while held");
            totals.get(hash).map_or_else(Totals::default, TotalsRow::totals)
        }
    }

    pub fn get(&self, id: TorrentId) -> Option<&Torrent> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: TorrentId) -> Option<&mut Torrent> {
        self.by_id.get_mut(&id)
    }

    pub fn id_of(&self, hash: &InfoHash) -> Option<TorrentId> {
        self.by_hash.get(hash).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Torrent> {
        self.by_id.values()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Torrent> {
        self.by_id.values_mut()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}
