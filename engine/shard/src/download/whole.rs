//! Whole pieces: hashed beside others, then written or thrown away; who is to blame.
//!
//! Owns: pieces between their last block and their write; digests of the blocks of pieces that
//! failed. Never: blocks on their way, files. Flow: `block_arrived` -> here -> `writer` or the
//! claim is dropped.
//!
//! Hashing is several times cheaper a byte where many pieces go side by side (decision 0010), so a
//! piece waits a moment for others, never longer than [`WAIT`].
//!
//! Of a piece that fails, the digest of each block is kept with its sender. When the piece comes
//! good later, the senders of those blocks that differ are to blame, and nobody else. Where one
//! peer sent all of it, it is to blame at once.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use seedring_platform::{
    hash::{Feed, PieceHasher, sha1_many, update_many},
    op::{Io, Shutdown},
};
use seedring_proto::units::PieceIndex;

use super::partial::Whole;
use crate::{
    connections::Key,
    contract::Event,
    shard::Shard,
    torrent::{Download, Shared, TorrentId},
};

/// How long a piece may wait for others to be hashed with.
const WAIT: Duration = Duration::from_millis(20);
/// Bytes of each piece hashed in one go: 16 of them are a MiB.
const STEP_BYTES: usize = 64 << 10;
/// Pieces that failed and are remembered by block, a torrent.
const SUSPECTS_MAX: usize = 16;

struct Lane {
    torrent: TorrentId,
    whole: Whole,
    hasher: PieceHasher,
    done_bytes: usize,
    since: Duration,
}

/// See the module.
pub(super) struct Verifying {
    lanes: VecDeque<Lane>,
    /// Hashing has begun with those in front: it goes on without waiting.
    running: bool,
}

/// Who sent which bytes of a piece that failed.
pub(super) struct Suspect {
    blocks: Vec<([u8; 20], Key)>,
}

impl Verifying {
    pub fn new() -> Self {
        Verifying { lanes: VecDeque::new(), running: false }
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    pub fn push(&mut self, torrent: TorrentId, whole: Whole, now: Duration) {
        let hasher = PieceHasher::new();
        self.lanes.push_back(Lane { torrent, whole, hasher, done_bytes: 0, since: now });
    }

    /// When the oldest has waited long enough.
    pub fn due_at(&self) -> Option<Duration> {
        self.lanes.front().map(|lane| if self.running { Duration::ZERO } else { lane.since + WAIT })
    }

    /// A torrent's pieces go, which are these.
    pub fn drop_torrent(&mut self, torrent: TorrentId) -> Vec<Whole> {
        let (gone, stay): (VecDeque<Lane>, _) =
            self.lanes.drain(..).partition(|lane| lane.torrent == torrent);
        self.lanes = stay;
        self.running &= !self.lanes.is_empty();
        gone.into_iter().map(|lane| lane.whole).collect()
    }
}

impl<I: Io> Shard<I> {
    /// Hashes a step of the pieces that are whole. `true`: there is more to hash.
    pub(super) fn hash_whole(&mut self, now: Duration) -> bool {
        let verifying = &mut self.downloads.verifying;
        let streams = self.options.hashing.streams().max(1);
        let due = verifying.due_at().is_some_and(|at| now >= at);
        if !verifying.running && !due && verifying.lanes.len() < streams {
            return false;
        }
        let count = streams.min(verifying.lanes.len());
        verifying.running = count > 0;
        let mut lanes: Vec<Lane> = verifying.lanes.drain(..count).collect();
        let mut hashers: Vec<PieceHasher> =
            lanes.iter_mut().map(|lane| std::mem::take(&mut lane.hasher)).collect();
        let parts: Vec<[&[u8]; 1]> = lanes
            .iter()
            .map(|lane| {
                let (chunk, from) = (lane.done_bytes / (256 << 10), lane.done_bytes % (256 << 10));
                let bytes = &lane.whole.chunks[chunk][from..];
                [&bytes[..bytes.len().min(STEP_BYTES)]]
            })
            .collect();
        let mut feeds: Vec<Feed> =
            hashers.iter_mut().zip(&parts).map(|(hasher, parts)| Feed { hasher, parts }).collect();
        update_many(&mut feeds);
        let lengths: Vec<usize> = parts.iter().map(|part| part[0].len()).collect();
        for ((lane, hasher), length) in lanes.iter_mut().zip(hashers).zip(lengths) {
            lane.hasher = hasher;
            lane.done_bytes += length;
            self.stats.hashed_bytes += length as u64;
        }
        for lane in lanes.into_iter().rev() {
            if lane.done_bytes < lane.whole.length as usize {
                self.downloads.verifying.lanes.push_front(lane);
            } else {
                let hash = lane.hasher.finish();
                self.piece_hashed_whole(lane.torrent, lane.whole, hash);
            }
        }
        self.downloads.verifying.running &= !self.downloads.verifying.lanes.is_empty();
        self.downloads.verifying.running
    }

    fn piece_hashed_whole(&mut self, id: TorrentId, whole: Whole, hash: [u8; 20]) {
        let Some(fetch) = self.downloads.torrents.get_mut(&id) else {
            unreachable!("invariant: what is hashed leaves with its torrent")
        };
        let piece = whole.piece;
        if fetch.contents.piece_hash(piece) == hash {
            let suspect = fetch.suspects.remove(&piece);
            if let Some(suspect) = suspect {
                self.blame(id, &whole, &suspect);
            }
            return self.write_piece(id, whole);
        }
        self.stats.hash_failures += 1;
        fetch.download.release(piece, self.options.shard);
        fetch.picker.refresh();
        if let [only] = whole.senders[..] {
            self.poisoned(id, piece, only);
        } else if fetch.suspects.len() < SUSPECTS_MAX {
            let digests = digests(&whole);
            let senders = whole.sent_by.iter().map(|place| whole.senders[*place as usize]);
            fetch
                .suspects
                .insert(piece, Suspect { blocks: digests.into_iter().zip(senders).collect() });
        }
        self.downloads.settled(whole.length);
        self.forget_kept(id, piece);
        self.tell(Event::PieceFailed { torrent: id, piece });
    }

    /// The piece is good now: whose blocks were not, when it failed?
    fn blame(&mut self, id: TorrentId, whole: &Whole, suspect: &Suspect) {
        let mut guilty: Vec<Key> = digests(whole)
            .into_iter()
            .zip(&suspect.blocks)
            .filter(|(good, (sent, _))| good != sent)
            .map(|(_, (_, sender))| *sender)
            .collect();
        guilty.sort_unstable();
        guilty.dedup();
        guilty.into_iter().for_each(|key| self.poisoned(id, whole.piece, key));
    }

    fn poisoned(&mut self, id: TorrentId, piece: PieceIndex, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let address = connection.address;
        self.stats.violations += 1;
        self.tell(Event::Poisoned { torrent: id, address, piece });
        self.close(key, Shutdown::Reset);
    }

    /// A good piece is on disk: it is had, and peers hear of it.
    pub(super) fn piece_written(
        &mut self,
        shared: &Shared,
        download: &Download,
        piece: PieceIndex,
    ) {
        // What was read of its place before is not it.
        if let Some(contents) = &*shared.contents.load()
            && let Some(writing) = &contents.writing
        {
            writing.growth.written(piece);
        }
        // Verified before offered: whoever sees the offer may rely on the hash. Both before the
        // claim goes: whoever claims it next sees that it is had.
        shared.pieces.set_verified(piece, true);
        let news = shared.pieces.set_offered(piece, true);
        download.release(piece, self.options.shard);
        if news && shared.connections.load(Ordering::Relaxed) > 0 {
            self.tell(Event::Offered { torrent: shared.id, piece });
        }
    }
}

fn digests(whole: &Whole) -> Vec<[u8; 20]> {
    let blocks: Vec<&[u8]> = (0..whole.sent_by.len()).map(|at| whole.block(at)).collect();
    sha1_many(&blocks)
}
