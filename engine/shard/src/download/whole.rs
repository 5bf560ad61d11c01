//! Whole pieces: hashed beside others, then written or thrown away; who is to blame.
//!
//! Owns: pieces between their last block and their write. Never: blocks on their way, files.
//! Flow: `block_arrived` -> here -> `writer`, or the claim is dropped and `torrent::Suspects` keeps
//! whose blocks they were.
//!
//! Hashing is several times cheaper a byte where many pieces go side by side (decision 0010), so a
//! piece waits a moment for others, never longer than [`WAIT`].
//!
//! Of a piece that fails, the digest of each block is kept with its sender. When the piece comes
//! good later, the senders of those blocks that differ are to blame, and nobody else. Where one
//! peer sent all of it, it is to blame at once.

use std::{collections::VecDeque, net::IpAddr, sync::atomic::Ordering, time::Duration};

use seedring_platform::{
    hash::{Feed, PieceHasher, sha1_many, update_many},
    op::Io,
};
use seedring_proto::units::PieceIndex;

use super::{
    Downloads,
    partial::{Sender, Whole},
};
use crate::{
    contract::Event,
    shard::Shard,
    torrent::{Download, Sent, Shared, TorrentId},
};

/// How long a piece may wait for others to be hashed with.
const WAIT: Duration = Duration::from_millis(20);
/// Bytes of each piece hashed in one go: 16 of them are a MiB.
const STEP_BYTES: usize = 64 << 10;
/// Steps in one tick: more than is received in one, so that hashing does not fall behind receiving
/// and pieces do not leave the processor's caches while they wait.
const STEPS_MAX: usize = 2;

struct Lane {
    torrent: TorrentId,
    whole: Whole,
    hasher: PieceHasher,
    done_bytes: usize,
    since: Duration,
}

/// See the module.
pub(super) struct Verifying {
    /// In the order in which they became whole: the oldest in front.
    lanes: VecDeque<Lane>,
}

impl Verifying {
    pub fn new() -> Self {
        Verifying { lanes: VecDeque::new() }
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
        self.lanes.front().map(|lane| lane.since + WAIT)
    }

    /// A torrent's pieces go, which are these.
    pub fn drop_torrent(&mut self, torrent: TorrentId) -> Vec<Whole> {
        let (gone, stay): (VecDeque<Lane>, _) =
            self.lanes.drain(..).partition(|lane| lane.torrent == torrent);
        self.lanes = stay;
        gone.into_iter().map(|lane| lane.whole).collect()
    }
}

impl Downloads {
    /// Whether it is time for a step of hashing: as many pieces are at hand as pay, the oldest has
    /// waited long enough (also in the middle of its bytes), or no other one will come.
    fn hashes_now(&self, streams: usize, now: Duration) -> bool {
        let verifying = &self.verifying;
        let full = verifying.lanes.len() >= streams;
        let late = verifying.due_at().is_some_and(|at| now >= at);
        full || late || (!verifying.is_empty() && self.is_behind() && self.writer.writes_nothing())
    }
}

impl<I: Io> Shard<I> {
    /// Hashes some steps of the pieces that are whole. `true`: there is more to hash now.
    pub(super) fn hash_whole(&mut self, now: Duration) -> bool {
        let streams = self.options.hashing.streams().max(1);
        for _ in 0..STEPS_MAX {
            if !self.downloads.hashes_now(streams, now) {
                return false;
            }
            self.hash_step(streams);
        }
        self.downloads.hashes_now(streams, now)
    }

    /// Hashes a step of the oldest pieces, side by side.
    fn hash_step(&mut self, streams: usize) {
        let verifying = &mut self.downloads.verifying;
        let count = streams.min(verifying.lanes.len());
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
    }

    fn piece_hashed_whole(&mut self, id: TorrentId, whole: Whole, hash: [u8; 20]) {
        let Some(fetch) = self.downloads.torrents.get_mut(&id) else {
            unreachable!("invariant: what is hashed leaves with its torrent")
        };
        let piece = whole.piece;
        if fetch.contents.piece_hash(piece) == hash {
            if let Some(blocks) = fetch.download.suspects.take(piece) {
                self.blame(id, &whole, &blocks);
            }
            return self.write_piece(id, whole);
        }
        self.stats.hash_failures += 1;
        let only = match whole.senders[..] {
            [Sender { ip: Some(ip), .. }] => Some(ip),
            _ => None,
        };
        if only.is_none() {
            let ips = whole.sent_by.iter().map(|place| whole.senders[*place as usize].ip);
            fetch.download.suspects.keep(piece, digests(&whole).into_iter().zip(ips).collect());
        }
        // Kept before it is given back: another shard may have it whole in no time.
        fetch.download.release(piece, self.options.shard);
        fetch.picker.refresh();
        if let Some(only) = only {
            self.poisoned(id, piece, only);
        }
        self.downloads.settled(whole.length);
        self.forget_kept(id, piece);
        self.tell(Event::PieceFailed { torrent: id, piece });
    }

    /// The piece is good now: whose blocks were not, when it failed?
    fn blame(&mut self, id: TorrentId, whole: &Whole, blocks: &[Sent]) {
        let mut guilty: Vec<IpAddr> = digests(whole)
            .into_iter()
            .zip(blocks)
            .filter(|(good, (sent, _))| good != sent)
            .filter_map(|(_, (_, ip))| *ip)
            .collect();
        guilty.sort_unstable();
        guilty.dedup();
        guilty.into_iter().for_each(|ip| self.poisoned(id, whole.piece, ip));
    }

    /// Control bans the address, on all shards; what of it is here goes at once.
    fn poisoned(&mut self, id: TorrentId, piece: PieceIndex, ip: IpAddr) {
        self.stats.violations += 1;
        self.tell(Event::Poisoned { torrent: id, ip, piece });
        self.shun(ip);
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

#[cfg(test)]
mod tests {
    use seedring_platform::memory::{Class, Pool, PoolOptions};

    use super::*;
    use crate::{connections::Key, download::WRITE_BACK_MAX};

    const STREAMS: usize = 4;
    const NOW: Duration = Duration::from_secs(1);

    fn with_pieces(count: u32) -> Downloads {
        let pool = Pool::new(PoolOptions { cap_bytes: 1 << 20, huge_pages: false }).unwrap();
        let mut downloads = Downloads::default();
        for piece in 0..count {
            let length = 16 << 10;
            let chunks = vec![pool.lease(Class::K16).unwrap().freeze(length as usize)];
            let sender = Sender { key: Key(1), ip: None };
            let (senders, sent_by) = (vec![sender], vec![0].into_boxed_slice());
            let whole = Whole { piece: PieceIndex(piece), length, chunks, senders, sent_by };
            downloads.verifying.push(TorrentId(1), whole, NOW);
        }
        downloads
    }

    #[test]
    fn pieces_wait_for_others_and_those_that_are_left_wait_again() {
        let mut downloads = with_pieces(STREAMS as u32);
        assert!(downloads.hashes_now(STREAMS, NOW));
        downloads.verifying.lanes.pop_front(); // it was shorter, or began before
        assert!(!downloads.hashes_now(STREAMS, NOW), "fewer side by side cost more each");
        assert_eq!(downloads.verifying.due_at(), Some(NOW + WAIT));
        assert!(downloads.hashes_now(STREAMS, NOW + WAIT), "none waits for ever");
        assert!(!with_pieces(0).hashes_now(STREAMS, NOW + WAIT));
    }

    #[test]
    fn where_no_other_piece_may_come_none_waits() {
        let mut downloads = with_pieces(1);
        assert!(!downloads.hashes_now(STREAMS, NOW));
        downloads.write_back_bytes = WRITE_BACK_MAX;
        assert!(downloads.hashes_now(STREAMS, NOW), "pieces so large that few fit");
    }
}
