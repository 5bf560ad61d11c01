//! The torrents of the process, as control sees them.
//!
//! Owns: the registry (identity, place, state, problem of each), what is due to be saved.
//! Never: sockets, files. Flow: admit adds, events change state, status and the store read.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock, atomic::Ordering},
};

use seedring_proto::{tracker::announce::Totals, units::InfoHash};
use seedring_shard::torrent::{Phase, Shared, Stamp, TorrentId};

use super::prepare::Place;
use crate::{plan::Wanted, state::Record};

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
    pub stamps: Box<[Option<Stamp>]>,
    pub state: State,
    pub announced: bool,
    pub added_at: i64,
    /// Uploaded when this process took it up: trackers are told what came since.
    pub uploaded_before: u64,
    /// Something went wrong that did not stop it: said once in the log, shown in listings.
    pub note: Option<String>,
    /// Verification parts under way (one a shard).
    pub verifying: u32,
    saved: (u64, u32),
}

impl Torrent {
    #[allow(clippy::too_many_arguments)]
    pub fn new(shared: Arc<Shared>, prepared: super::prepare::Prepared, added_at: i64) -> Torrent {
        let stamps = match &prepared.condition {
            super::prepare::Condition::Present { stamps, .. } => stamps.clone(),
            _ => Box::default(),
        };
        Torrent {
            uploaded_before: prepared.uploaded_bytes,
            saved: (u64::MAX, 0),
            shared,
            name: prepared.name,
            total_bytes: prepared.total_bytes,
            private: prepared.private,
            tiers: prepared.tiers,
            place: prepared.place,
            stamps,
            state: State::Seeding,
            announced: false,
            added_at,
            note: None,
            verifying: 0,
            wanted: prepared.wanted,
        }
    }

    pub fn info_hash(&self) -> InfoHash {
        self.shared.info_hash
    }

    pub fn uploaded_bytes(&self) -> u64 {
        self.shared.uploaded_bytes.load(Ordering::Relaxed)
    }

    pub fn is_active(&self) -> bool {
        self.shared.phase() == Phase::Active
    }

    /// The record to save, if something changed since the last one.
    pub fn record_if_changed(&mut self) -> Option<Record> {
        let now = (self.uploaded_bytes(), self.shared.pieces.verified_count());
        if now == self.saved {
            return None;
        }
        self.saved = now;
        Some(Record {
            name: self.name.clone(),
            uploaded_bytes: now.0,
            verified: self.shared.pieces.verified_bitfield(),
            stamps: self.stamps.to_vec(),
            added_at: self.added_at,
        })
    }

    /// Makes the next `record_if_changed` return one.
    pub fn touch(&mut self) {
        self.saved = (u64::MAX, 0);
    }
}

/// The registry.
#[derive(Default)]
pub struct Torrents {
    by_id: HashMap<TorrentId, Torrent>,
    by_hash: HashMap<InfoHash, TorrentId>,
    /// What trackers are told, readable from their task.
    totals: Arc<RwLock<HashMap<InfoHash, (Arc<Shared>, u64, u64)>>>,
    next: u32,
}

impl Torrents {
    pub fn next_id(&mut self) -> TorrentId {
        self.next += 1;
        TorrentId(self.next)
    }

    pub fn insert(&mut self, torrent: Torrent) {
        let (id, hash) = (torrent.shared.id, torrent.info_hash());
        let row = (torrent.shared.clone(), torrent.uploaded_before, torrent.total_bytes);
        self.totals.write().expect("invariant: no panic while held").insert(hash, row);
        self.by_hash.insert(hash, id);
        self.by_id.insert(id, torrent);
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
            totals.get(hash).map_or_else(Totals::default, |(shared, before, total)| {
                totals_of(shared, *before, *total)
            })
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

pub fn totals_of(shared: &Shared, uploaded_before: u64, total_bytes: u64) -> Totals {
    let uploaded = shared.uploaded_bytes.load(Ordering::Relaxed) - uploaded_before;
    let pieces = u64::from(shared.pieces.piece_count()).max(1);
    let missing = pieces.saturating_sub(u64::from(shared.pieces.offered_count()));
    Totals {
        uploaded_bytes: uploaded,
        downloaded_bytes: 0,
        // Bits, not bytes, are known here: a missing piece counts as an average one.
        left_bytes: (u128::from(total_bytes) * u128::from(missing) / u128::from(pieces)) as u64,
    }
}
