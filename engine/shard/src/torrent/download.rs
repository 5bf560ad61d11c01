//! What shards share of a torrent while it is downloaded: who works on a piece, how many peers have
//! it, whether it is wanted, whether it is safe on disk. Bits and numbers, no lock.
//!
//! Owns: claims, availability, priorities, synced bits, through `kept` what is on disk of pieces in
//! part, through `suspects` whose blocks failed.
//! Never: buffers, blocks, peers. Flow: control sets priorities; shards claim, count and release;
//! the state store keeps what is synced.

use seedring_proto::{
    swarm::picker::{self, Order, PRIORITY_MAX},
    units::PieceIndex,
};

use super::{
    PieceMap,
    kept::{Kept, KeptPiece},
    suspects::Suspects,
};
use crate::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Pieces taken up in random order before rarity counts (BEP 3's advice; libtorrent: 4).
const RANDOM_FIRST: u32 = 4;
/// What a file's pieces have when nobody said otherwise.
pub const PRIORITY_NORMAL: u8 = 4;
const NOBODY: u8 = 0;

/// About 4 bytes a piece; there only while something is missing.
pub struct Download {
    pieces: Box<[Piece]>,
    words: Box<[Word]>,
    /// Connected peers that have everything: not counted piece by piece.
    seeds: AtomicU32,
    sequential: AtomicU8,
    /// Not to be written on for now (disk full, read-only): nothing is asked for.
    halted: AtomicU8,
    /// Blocks of pieces that are not whole, on disk.
    pub kept: Kept,
    /// Whose blocks the pieces that failed were made of.
    pub suspects: Suspects,
}

#[derive(Default)]
struct Piece {
    /// The shard that works on it, plus one.
    claim: AtomicU8,
    priority: AtomicU8,
    availability: AtomicU16,
}

#[derive(Default)]
struct Word {
    /// Priority above 0.
    wanted: AtomicU64,
    /// Written, and the file synced after that.
    synced: AtomicU64,
}

impl Download {
    /// Everything wanted, nothing claimed.
    pub fn new(piece_count: u32) -> Self {
        let download = Download {
            pieces: (0..piece_count).map(|_| Piece::default()).collect(),
            words: (0..piece_count.div_ceil(64)).map(|_| Word::default()).collect(),
            seeds: AtomicU32::new(0),
            sequential: AtomicU8::new(0),
            halted: AtomicU8::new(0),
            kept: Kept::new(Vec::new()),
            suspects: Suspects::default(),
        };
        (0..piece_count).for_each(|at| download.set_priority(PieceIndex(at), PRIORITY_NORMAL));
        download
    }

    /// With blocks that an earlier run left on disk.
    #[must_use]
    pub fn with_kept(mut self, left: Vec<KeptPiece>) -> Self {
        self.kept = Kept::new(left);
        self
    }

    fn piece(&self, piece: PieceIndex) -> &Piece {
        &self.pieces[piece.0 as usize]
    }

    fn word(&self, piece: PieceIndex) -> (&Word, u64) {
        (&self.words[piece.0 as usize / 64], 1 << (piece.0 % 64))
    }

    /// Takes up a piece for a shard. `false`: it is had, or somebody else's.
    ///
    /// The exchange is the partner of the Release in `release`: who claims a piece that was
    /// completed and released sees its bit, and gives it back.
    pub fn claim(&self, had: &PieceMap, piece: PieceIndex, shard: usize) -> bool {
        let claim = &self.piece(piece).claim;
        let mine = u8::try_from(shard + 1).expect("invariant: under 255 shards");
        if claim.compare_exchange(NOBODY, mine, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        if had.is_verified(piece) {
            claim.store(NOBODY, Ordering::Release);
            return false;
        }
        true
    }

    /// Gives a piece back: had by now (its bit was set before), or given up.
    pub fn release(&self, piece: PieceIndex, shard: usize) {
        let before = self.piece(piece).claim.swap(NOBODY, Ordering::Release);
        assert_eq!(usize::from(before), shard + 1, "a claim is released by its holder, once");
    }

    pub fn is_claimed(&self, piece: PieceIndex) -> bool {
        self.piece(piece).claim.load(Ordering::Acquire) != NOBODY
    }

    pub fn is_claimed_by(&self, piece: PieceIndex, shard: usize) -> bool {
        usize::from(self.piece(piece).claim.load(Ordering::Acquire)) == shard + 1
    }

    /// 0: not wanted. Relaxed: a piece more or less that is taken up under the old one is harmless.
    pub fn priority(&self, piece: PieceIndex) -> u8 {
        self.piece(piece).priority.load(Ordering::Relaxed)
    }

    pub fn set_priority(&self, piece: PieceIndex, priority: u8) {
        self.piece(piece).priority.store(priority.min(PRIORITY_MAX), Ordering::Relaxed);
        let (word, bit) = self.word(piece);
        if priority > 0 {
            word.wanted.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.wanted.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    pub fn set_sequential(&self, on: bool) {
        self.sequential.store(u8::from(on), Ordering::Relaxed);
    }

    /// Set by the shard that could not write, cleared by control. `true`: it was not halted before.
    pub fn halt(&self) -> bool {
        self.halted.swap(1, Ordering::AcqRel) == 0
    }

    pub fn resume(&self) {
        self.halted.store(0, Ordering::Release);
    }

    pub fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire) != 0
    }

    /// In which order pieces are taken up now.
    pub fn order(&self, had: &PieceMap) -> Order {
        if self.sequential.load(Ordering::Relaxed) != 0 {
            Order::Sequential
        } else if had.verified_count() < RANDOM_FIRST {
            Order::Random
        } else {
            Order::RarestFirst
        }
    }

    /// A peer has one more piece. Relaxed, as all counts here: a statistic.
    pub fn peer_has(&self, piece: PieceIndex) {
        self.piece(piece).availability.fetch_add(1, Ordering::Relaxed);
    }

    /// A peer that had this piece is gone, or counts as a seed from now on.
    pub fn peer_had(&self, piece: PieceIndex) {
        self.piece(piece).availability.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether no connected peer has it but those that have everything.
    pub fn only_seeds_have(&self, piece: PieceIndex) -> bool {
        self.piece(piece).availability.load(Ordering::Relaxed) == 0
    }

    /// Connected peers that have everything.
    pub fn seeds(&self) -> u32 {
        self.seeds.load(Ordering::Relaxed)
    }

    pub fn seed_came(&self) {
        self.seeds.fetch_add(1, Ordering::Relaxed);
    }

    pub fn seed_left(&self) {
        self.seeds.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wanted and not had, 64 pieces from `64 * at`, the lowest bit the first.
    pub fn missing_word(&self, had: &PieceMap, at: usize) -> u64 {
        self.words[at].wanted.load(Ordering::Relaxed) & !had.verified_word(at)
    }

    /// Whether nothing that is wanted is missing.
    pub fn is_complete(&self, had: &PieceMap) -> bool {
        (0..self.words.len()).all(|at| self.missing_word(had, at) == 0)
    }

    /// Pieces that are wanted and missing.
    pub fn missing_count(&self, had: &PieceMap) -> u32 {
        (0..self.words.len()).map(|at| self.missing_word(had, at).count_ones()).sum()
    }

    /// The piece's bytes are on the device. Release: whoever stores the bit may do so at once.
    pub fn set_synced(&self, piece: PieceIndex) {
        let (word, bit) = self.word(piece);
        word.synced.fetch_or(bit, Ordering::Release);
    }

    /// Its bytes are in doubt.
    pub fn clear_synced(&self, piece: PieceIndex) {
        let (word, bit) = self.word(piece);
        word.synced.fetch_and(!bit, Ordering::Release);
    }

    pub fn is_synced(&self, piece: PieceIndex) -> bool {
        let (word, bit) = self.word(piece);
        word.synced.load(Ordering::Acquire) & bit != 0
    }

    /// What the state store may keep: synced bits in BEP 3 order.
    pub fn synced_bitfield(&self) -> Vec<u8> {
        let bytes = (self.pieces.len()).div_ceil(8);
        let words = self.words.iter().map(|word| word.synced.load(Ordering::Acquire));
        let bits = words.flat_map(|word| word.reverse_bits().to_be_bytes());
        bits.take(bytes).collect()
    }
}

/// A download and what is had of it, as the picker sees them.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    pub download: &'a Download,
    pub had: &'a PieceMap,
}

impl picker::Pieces for Choice<'_> {
    fn count(&self) -> u32 {
        self.had.piece_count()
    }
    fn priority(&self, piece: PieceIndex) -> u8 {
        self.download.priority(piece)
    }
    fn availability(&self, piece: PieceIndex) -> u32 {
        let partial = self.download.piece(piece).availability.load(Ordering::Relaxed);
        u32::from(partial) + self.download.seeds()
    }
    fn is_free(&self, piece: PieceIndex) -> bool {
        !self.download.is_claimed(piece) && !self.had.is_verified(piece)
    }
    fn only_seeds_have(&self, piece: PieceIndex) -> bool {
        self.download.only_seeds_have(piece)
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use seedring_proto::swarm::picker::Pieces;

    use super::*;

    #[test]
    fn one_shard_works_on_a_piece_and_nobody_on_one_that_is_had() {
        let (download, had) = (Download::new(3), PieceMap::new(3));
        let piece = PieceIndex(1);
        assert!(download.claim(&had, piece, 0));
        assert!(!download.claim(&had, piece, 1), "claimed");
        had.set_verified(piece, true);
        download.release(piece, 0);
        assert!(!download.claim(&had, piece, 1), "had");
        assert!(!download.is_claimed(piece));
    }

    #[test]
    fn what_is_missing_follows_wishes_and_pieces() {
        let (download, had) = (Download::new(130), PieceMap::new(130));
        assert_eq!(download.missing_count(&had), 130);
        (0..100).for_each(|at| download.set_priority(PieceIndex(at), 0));
        (100..129).for_each(|at| {
            had.set_verified(PieceIndex(at), true);
        });
        assert_eq!((download.missing_count(&had), download.is_complete(&had)), (1, false));
        had.set_verified(PieceIndex(129), true);
        assert!(download.is_complete(&had));
    }

    #[test]
    fn availability_counts_seeds_and_partial_peers() {
        let (download, had) = (Download::new(2), PieceMap::new(2));
        download.seed_came();
        download.peer_has(PieceIndex(1));
        let choice = Choice { download: &download, had: &had };
        assert_eq!([0, 1].map(|at| choice.availability(PieceIndex(at))), [1, 2]);
        assert_eq!([0, 1].map(|at| choice.only_seeds_have(PieceIndex(at))), [true, false]);
        download.seed_left();
        download.peer_had(PieceIndex(1));
        assert_eq!([0, 1].map(|at| choice.availability(PieceIndex(at))), [0, 0]);
    }

    #[test]
    fn synced_bits_are_laid_out_as_a_bitfield() {
        let download = Download::new(75);
        for at in [0, 9, 63, 64, 74] {
            download.set_synced(PieceIndex(at));
        }
        download.clear_synced(PieceIndex(63));
        let bits = download.synced_bitfield();
        assert_eq!(bits.len(), 10);
        assert_eq!((bits[0], bits[1], bits[7], bits[8], bits[9]), (0x80, 0x40, 0, 0x80, 0x20));
    }
}
