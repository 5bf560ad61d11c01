//! A torrent as shards know it.
//!
//! Owns: `Shared` (identity, piece map, counters, limits: bits and numbers that every shard and
//! control may touch), `Contents` (layout and hashes, present while somebody needs them).
//! Never: connections, sockets, decisions on when to announce. Flow: control makes it, shards read
//! it.

mod download;
mod kept;
mod local;
mod piece_map;
mod places;
mod suspects;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use seedring_platform::{descriptors::OwnedFile, op::Allocation};
use seedring_proto::{
    layout::{Layout, NewFile},
    metainfo::PieceHashes,
    peer::pex,
    units::{FileIndex, InfoHash, PeerId, PieceIndex},
};

pub use self::{
    download::{Choice, Download, PRIORITY_NORMAL},
    kept::{BLOCKS, KeptPiece, kept_offset},
    local::{Local, View},
    piece_map::PieceMap,
    places::{FilePlace, Places},
    suspects::{Sent, Suspects},
};
use crate::limits::Meter;

/// Above so many connections a torrent is spread over all shards.
const SPREAD_ABOVE: u32 = 8;

/// A torrent's number in this process; never used again after removal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TorrentId(pub u32);

/// What a torrent may do right now. Set by control, read by shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Serving.
    Active = 0,
    /// By the user's word: no connections.
    Paused = 1,
    /// Content is missing or in trouble: no connections, no bit cleared, until control says Active.
    Parked = 2,
    /// Gone: connections close, the torrent is dropped.
    Removed = 3,
}

/// The part of a torrent that is shared: identity, bits, counters. A few hundred bytes, because
/// torrents come by the 100,000; what is large is in `contents`, which comes and goes.
pub struct Shared {
    pub id: TorrentId,
    pub info_hash: InfoHash,
    pub pieces: PieceMap,
    /// `None`: cold. Loaded by control when a shard asks (`Event::Activate`).
    pub contents: ArcSwapOption<Contents>,
    phase: AtomicU8,
    /// Connections on all shards, from the handshake on.
    pub connections: AtomicU32,
    /// The same by shard: a torrent with many peers is spread evenly at admission.
    by_shard: Box<[AtomicU32]>,
    /// Who is connected, whichever shard has it: a second connection of one peer is refused.
    /// Replaced whole, since it is short; where one shard has them all, that one knows.
    present: ArcSwapOption<Vec<PeerId>>,
    /// Counts the times that content was found changed: bytes read before are not those that a
    /// verified bit of today speaks of.
    pub epoch: AtomicU32,
    /// The last change of a file that bits were cleared for (`storage::files::change_of`); 0: none.
    pub change: AtomicU64,
    /// Peers that want something, on all shards.
    pub interested: AtomicU32,
    /// While something that is wanted is missing: what shards share about getting it. Put here by
    /// control before `Phase::Active`, taken away by control when all is there and synced.
    pub download: ArcSwapOption<Download>,
    /// Peers may be told of each other (BEP 11): not where the user or the torrent says otherwise.
    /// Control sets it; a connection is opened with it as it is then.
    pub exchange: AtomicBool,
    /// Whom peers may be told of: put here by control, which hears from all shards who comes and
    /// goes. `None`: nobody is told anything.
    pub contacts: ArcSwapOption<pex::Book>,
    /// Payload bytes sent, all time (from the store, then counted up).
    pub uploaded_bytes: AtomicU64,
    /// Payload bytes received, all time, as trackers count them: what was thrown away as well.
    pub downloaded_bytes: AtomicU64,
    pub upload: Meter,
    /// Payload asked of its peers.
    pub receive: Meter,
    pub connections_max: AtomicU32,
    /// Unchoke slots; `u32::MAX` is unlimited.
    pub slots: AtomicU32,
    /// A seed shows its pieces one by one (BEP 16), on its home shard alone.
    pub super_seeding: AtomicBool,
}

impl Shared {
    /// For one shard; `over` makes it one of several.
    pub fn new(id: TorrentId, info_hash: InfoHash, piece_count: u32) -> Self {
        Shared {
            id,
            info_hash,
            pieces: PieceMap::new(piece_count),
            contents: ArcSwapOption::empty(),
            phase: AtomicU8::new(Phase::Parked as u8),
            connections: AtomicU32::new(0),
            by_shard: Box::new([AtomicU32::new(0)]),
            present: ArcSwapOption::empty(),
            epoch: AtomicU32::new(0),
            change: AtomicU64::new(0),
            interested: AtomicU32::new(0),
            download: ArcSwapOption::empty(),
            exchange: AtomicBool::new(false),
            contacts: ArcSwapOption::empty(),
            uploaded_bytes: AtomicU64::new(0),
            downloaded_bytes: AtomicU64::new(0),
            upload: Meter::new(None),
            receive: Meter::new(None),
            connections_max: AtomicU32::new(u32::MAX),
            slots: AtomicU32::new(u32::MAX),
            super_seeding: AtomicBool::new(false),
        }
    }

    /// The same, served by this many shards.
    pub fn over(mut self, shards: usize) -> Self {
        self.by_shard = (0..shards.max(1)).map(|_| AtomicU32::new(0)).collect();
        self
    }

    /// Partner of the Release in `set_phase`.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Active,
            1 => Phase::Paused,
            2 => Phase::Parked,
            _ => Phase::Removed,
        }
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Counts a connection that came to shard `here`, and says which shard it belongs to: the home
    /// shard for the first few, so that content is cached once, and for all where one shard has to
    /// see all peers; then the one with the fewest.
    /// Counted before it moves, so that a burst spreads too. `None`: the torrent has all it may.
    ///
    /// Relaxed: counts, nothing is published with them; two that race differ by one.
    pub fn admit(&self, here: usize) -> Option<usize> {
        let open = self.connections.fetch_add(1, Ordering::Relaxed);
        if open >= self.connections_max.load(Ordering::Relaxed) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let gathers = self.super_seeding.load(Ordering::Relaxed);
        let shard = if open < SPREAD_ABOVE || gathers {
            Self::home(&self.info_hash, self.by_shard.len())
        } else {
            let counts = self.by_shard.iter().map(|count| count.load(Ordering::Relaxed));
            let least = counts.enumerate().min_by_key(|(n, count)| (*count, *n != here));
            least.map_or(here, |(shard, _)| shard)
        };
        self.by_shard[shard].fetch_add(1, Ordering::Relaxed);
        Some(shard)
    }

    /// A connection counted for one shard stays on another.
    pub fn moved(&self, from: usize, to: usize) {
        self.by_shard[from].fetch_sub(1, Ordering::Relaxed);
        self.by_shard[to].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection counted by `admit` is gone.
    pub fn left(&self, shard: usize) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.by_shard[shard].fetch_sub(1, Ordering::Relaxed);
    }

    /// A peer's handshake is whole. `false`: it is connected already.
    pub fn enters(&self, peer: &PeerId) -> bool {
        if self.by_shard.len() == 1 {
            return true;
        }
        let mut is_new = false;
        self.present.rcu(|all| {
            let mut all = all.as_deref().cloned().unwrap_or_default();
            is_new = !all.contains(peer);
            if is_new {
                all.push(*peer);
            }
            Some(Arc::new(all))
        });
        is_new
    }

    /// A peer that entered is gone.
    pub fn leaves(&self, peer: &PeerId) {
        if self.by_shard.len() == 1 {
            return;
        }
        self.present.rcu(|all| {
            let mut all = all.as_deref().cloned().unwrap_or_default();
            all.retain(|other| other != peer);
            (!all.is_empty()).then(|| Arc::new(all))
        });
    }

    /// Connections that belong to a shard. Relaxed: a count.
    pub fn connections_on(&self, shard: usize) -> u32 {
        self.by_shard[shard].load(Ordering::Relaxed)
    }

    /// The shard that a torrent's first connections gather on, so that its content is cached once.
    pub fn home(info_hash: &InfoHash, shards: usize) -> usize {
        let bytes = &info_hash.0;
        let word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        word as usize % shards.max(1)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "torrent {} ({})", self.id.0, self.info_hash)
    }
}

/// Smaller files go through the page cache: direct I/O would not pay.
const DIRECT_FILE_BYTES_MIN: u64 = 65_536;
/// The page cache's, and the most that direct I/O is aligned to here.
pub const PAGE_BYTES: u64 = 4_096;

/// What serving needs and a cold torrent does not keep in memory.
pub struct Contents {
    pub layout: Layout,
    pub piece_hashes: PieceHashes,
    /// The raw info dictionary, for peers that came by magnet (BEP 9).
    pub raw_info: Arc<[u8]>,
    pub private: bool,
    /// Where the content lies, without symlinks (canonical): the folder that holds the layout's
    /// files, or, for a single file, the file itself.
    pub base: PathBuf,
    pub base_is_file: bool,
    /// Files that lie elsewhere than under their own names.
    pub places: Places,
    /// Size and time of each file when its pieces were verified; `None`: not known, take it as it
    /// is at the first open. May be empty.
    pub stamps: Box<[Option<Stamp>]>,
    pub direct_io: bool,
    /// `Some`: this torrent is downloaded; without it, nothing is ever written.
    pub writing: Option<Writing>,
}

/// Where a downloading torrent's files are made.
#[derive(Debug)]
pub struct Writing {
    /// The folder that control opened when it had made sure that it is the right one, and not what
    /// lies under a disk that is not mounted. Files are opened and made beneath it. Whatever
    /// happens to its path afterwards, nothing is made elsewhere.
    pub folder: OwnedFile,
    /// Where it was when it was opened: what paths of files begin with.
    pub folder_path: PathBuf,
    pub allocation: Allocation,
    pub growth: Growth,
}

/// Which bytes of a growing file are newer than what was read of it.
///
/// A read takes a whole chunk, which may hold a part of the next piece that is not written yet. So
/// each written piece gets a number, and each read has the number that was the last when it began:
/// its bytes count for a piece only if it began after that piece was written.
#[derive(Debug)]
pub struct Growth {
    last: AtomicU32,
    pieces: Box<[AtomicU32]>,
}

impl Growth {
    pub fn new(piece_count: u32) -> Growth {
        let pieces = (0..piece_count).map(|_| AtomicU32::new(0)).collect();
        Growth { last: AtomicU32::new(0), pieces }
    }

    /// The number of a read that begins now. Acquire: the partner of `written`.
    pub fn now(&self) -> u32 {
        self.last.load(Ordering::Acquire)
    }

    /// A piece was written just now; before its verified bit is set, whose Release publishes it.
    pub fn written(&self, piece: PieceIndex) {
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        self.pieces[piece.0 as usize].store(number, Ordering::Release);
    }

    /// The least number of a read that has this piece's bytes.
    pub fn of(&self, piece: PieceIndex) -> u32 {
        self.pieces[piece.0 as usize].load(Ordering::Acquire)
    }
}

/// What a file was when its pieces were verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub size_bytes: u64,
    pub modified_ns: i128,
}

impl Contents {
    /// Of a torrent of which only the info-hash is known (`Shared` with no pieces): its connections
    /// fetch the metadata, and nothing here is looked at.
    pub fn unknown() -> Contents {
        let byte = NewFile { length: 1, ..NewFile::default() };
        Contents {
            layout: Layout::new(1, vec![byte]).expect("invariant: a byte is a layout"),
            piece_hashes: PieceHashes::none(),
            raw_info: Arc::from([]),
            private: false,
            base: PathBuf::new(),
            base_is_file: false,
            places: Places::default(),
            stamps: Box::default(),
            direct_io: false,
            writing: None,
        }
    }

    pub fn piece_hash(&self, piece: PieceIndex) -> [u8; 20] {
        *self.piece_hashes.get(piece).expect("invariant: as many hashes as pieces in the layout")
    }

    /// Whether a file is read and written past the page cache. One that is being written: only
    /// where every piece's part of it starts at a page, so that a direct write and a buffered one
    /// never share a page. (The kernel fails a file's next sync where they do.)
    pub fn is_direct(&self, file: FileIndex) -> bool {
        let (layout, page) = (&self.layout, PAGE_BYTES);
        let file = &layout.files[file.0 as usize];
        let aligned = file.offset % page == 0 && u64::from(layout.piece_bytes) % page == 0;
        self.direct_io
            && file.length >= DIRECT_FILE_BYTES_MIN
            && (self.writing.is_none() || aligned)
    }

    /// The number of a read that begins now, and the least that a read of this byte must have.
    pub fn growth_at(&self, offset: u64) -> (u32, u32) {
        let piece = PieceIndex((offset / u64::from(self.layout.piece_bytes)) as u32);
        self.writing.as_ref().map_or((0, 0), |w| (w.growth.now(), w.growth.of(piece)))
    }

    /// The piece of the byte before this place in the torrent, if that is a place.
    pub fn piece_before(&self, end: u64) -> Option<PieceIndex> {
        let inside = 1..=self.layout.total_bytes;
        let index = |end: u64| (end - 1) / u64::from(self.layout.piece_bytes);
        inside.contains(&end).then(|| PieceIndex(index(end) as u32))
    }

    /// The absolute path of a file of this torrent.
    pub fn path(&self, file: FileIndex) -> PathBuf {
        self.places.path(file, || match self.base_is_file {
            true => self.base.clone(),
            false => self.base.join(&*self.layout.files[file.0 as usize].path),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::Key;

    #[test]
    fn a_peer_is_connected_once_whichever_shard_it_comes_to() {
        let shared = Arc::new(Shared::new(TorrentId(1), InfoHash([0; 20]), 4).over(2));
        let peer = PeerId([7; 20]);
        let (mut one, mut two) = (Local::new(shared.clone()), Local::new(shared.clone()));
        assert!(one.enters(peer, Key(1)) && !one.enters(peer, Key(2)) && !two.enters(peer, Key(1)));
        assert!(two.enters(PeerId([8; 20]), Key(2)), "another one");
        one.left(&peer);
        assert!(two.enters(peer, Key(3)) && !one.enters(peer, Key(3)));
        two.left(&peer);
        two.left(&PeerId([8; 20]));
        assert!(shared.present.load().is_none(), "nothing is kept of a torrent without peers");
    }

    #[test]
    fn the_first_peers_gather_at_home_and_a_burst_spreads_evenly() {
        let shared = Shared::new(TorrentId(1), InfoHash([0; 20]), 1).over(2);
        let homes: Vec<_> = (0..8).map(|_| shared.admit(1)).collect();
        assert_eq!(homes, [Some(0); 8]);
        (0..42).for_each(|n| assert!(shared.admit(n % 2).is_some()));
        let counts: Vec<u32> = shared.by_shard.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [25, 25]);
        shared.connections_max.store(50, Ordering::Relaxed);
        assert_eq!(shared.admit(0), None, "the torrent is full");
        shared.left(1);
        assert_eq!(shared.admit(0), Some(1), "the shard with the fewest");
    }
}
