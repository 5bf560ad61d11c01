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

use super::{
    look::Condition,
    prepare::{Place, Prepared},
};
use crate::{config::model::Verify, plan::Wanted, state::Record};

/// Equal to no (uploaded bytes, verified pieces).
const NEVER_SAVED: (u64, u32) = (u64::MAX, 0);

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
    /// What the files were when the pieces that are verified were read.
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
    /// Verification begins when the contents are loaded.
    pub awaits_contents: bool,
    /// Every piece was hashed and none matches: as long as the files stay as they are, hashing
    /// them again is no use.
    pub hopeless: bool,
    /// Times in a row that its files could not be read although they are there.
    pub troubles: u32,
    /// Trackers were told of it, and are told when it goes.
    pub on_trackers: bool,
    /// What was verified before it was trusted: trust is not remembered as verification.
    proven: Option<Box<[u8]>>,
    saved: (u64, u32),
}

impl Torrent {
    pub fn new(shared: Arc<Shared>, prepared: Prepared, added_at: i64) -> Torrent {
        let saved = match prepared.stored {
            true => (prepared.uploaded_bytes, shared.pieces.verified_count()),
            false => NEVER_SAVED,
        };
        let state = match prepared.condition {
            Condition::Present { .. } => State::Seeding,
            Condition::Missing(why) | Condition::Differs(why) => State::Waiting(why),
        };
        let trusted = prepared.wanted.verify == Verify::Trust;
        Torrent {
            uploaded_before: prepared.uploaded_bytes,
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
            verifying: 0,
            awaits_contents: false,
            hopeless: false,
            troubles: 0,
            on_trackers: false,
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
        self.state = State::Seeding;
        self.note = None;
        self.verifying = 0;
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
        Some(self.record())
    }

    /// What is known of it. Only what was hashed counts as verified.
    pub fn record(&self) -> Record {
        Record {
            name: self.name.clone(),
            uploaded_bytes: self.uploaded_bytes(),
            verified: self.verified(),
            stamps: self.stamps.to_vec(),
            added_at: self.added_at,
        }
    }

    pub fn verified(&self) -> Vec<u8> {
        match &self.proven {
            Some(bits) => bits.to_vec(),
            None => self.shared.pieces.verified_bitfield(),
        }
    }

    /// Makes the next `record_if_changed` return one.
    pub fn touch(&mut self) {
        self.saved = NEVER_SAVED;
    }
}

/// The counters, what was uploaded before they count for trackers, and the torrent's bytes.
type TotalsRow = (Arc<Shared>, u64, u64);

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
        let row = (torrent.shared.clone(), torrent.uploaded_before, torrent.total_bytes);
        self.totals.write().expect("invariant: no panic while held").insert(hash, row);
        self.by_hash.insert(hash, id);
        self.by_id.insert(id, torrent);
    }

    /// From here on trackers hear what is uploaded from now on (`started` anew).
    pub fn reset_totals(&mut self, id: TorrentId) {
        let Some(torrent) = self.by_id.get_mut(&id) else { return };
        torrent.uploaded_before = torrent.uploaded_bytes();
        let row = (torrent.shared.clone(), torrent.uploaded_before, torrent.total_bytes);
        let hash = torrent.info_hash();
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
    let uploaded = shared.uploaded_bytes.load(Ordering::Relaxed);
    let uploaded = uploaded.saturating_sub(uploaded_before);
    let pieces = u64::from(shared.pieces.piece_count()).max(1);
    let missing = pieces.saturating_sub(u64::from(shared.pieces.offered_count()));
    Totals {
        uploaded_bytes: uploaded,
        downloaded_bytes: 0,
        // Bits, not bytes, are known here: a missing piece counts as an average one.
        left_bytes: (u128::from(total_bytes) * u128::from(missing) / u128::from(pieces)) as u64,
    }
}
