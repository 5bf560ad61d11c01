//! The lock-free piece map: the one thing about content that shards share.
//!
//! Owns: a torrent's `offered` and `verified` bits and their counts.
//! Never: bytes, hashes, files, decisions. Flow: verify sets bits (Release); any shard reads
//! (Acquire).
//!
//! `offered`: what peers are told that we have. `verified`: what was hashed, and is therefore safe
//! to send. A piece may be offered before it is verified (`quick`): then a request hashes it first.

use seedring_proto::units::PieceIndex;

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Two bits a piece, shared by all shards and control without locks.
pub struct PieceMap {
    words: Box<[Word]>,
    piece_count: u32,
    offered_count: AtomicU32,
    verified_count: AtomicU32,
}

#[derive(Default)]
struct Word {
    offered: AtomicU64,
    verified: AtomicU64,
}

impl PieceMap {
    pub fn new(piece_count: u32) -> Self {
        let words = (0..piece_count.div_ceil(64)).map(|_| Word::default()).collect();
        PieceMap {
            words,
            piece_count,
            offered_count: AtomicU32::new(0),
            verified_count: AtomicU32::new(0),
        }
    }

    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    fn at(&self, piece: PieceIndex) -> (&Word, u64) {
        assert!(piece.0 < self.piece_count, "piece {} of {}", piece.0, self.piece_count);
        (&self.words[piece.0 as usize / 64], 1 << (piece.0 % 64))
    }

    /// Partner of the Release in `set_offered`.
    pub fn is_offered(&self, piece: PieceIndex) -> bool {
        let (word, bit) = self.at(piece);
        word.offered.load(Ordering::Acquire) & bit != 0
    }

    /// Partner of the Release in `set_verified`: a reader that sees the bit sees a hashed piece.
    pub fn is_verified(&self, piece: PieceIndex) -> bool {
        let (word, bit) = self.at(piece);
        word.verified.load(Ordering::Acquire) & bit != 0
    }

    /// Returns whether the bit changed. Counts follow the bits: the thread that flips counts.
    pub fn set_offered(&self, piece: PieceIndex, on: bool) -> bool {
        let (word, bit) = self.at(piece);
        flip(&word.offered, bit, on, &self.offered_count)
    }

    /// Returns whether the bit changed.
    pub fn set_verified(&self, piece: PieceIndex, on: bool) -> bool {
        let (word, bit) = self.at(piece);
        flip(&word.verified, bit, on, &self.verified_count)
    }

    pub fn offered_count(&self) -> u32 {
        self.settled(&self.offered_count)
    }

    pub fn verified_count(&self) -> u32 {
        self.settled(&self.verified_count)
    }

    /// A bit is flipped first and counted then, so that of two threads that flip one bit the
    /// second may be counted first: for that instant a count is one below zero or above all.
    fn settled(&self, count: &AtomicU32) -> u32 {
        let count = count.load(Ordering::Acquire) as i32;
        count.clamp(0, self.piece_count as i32) as u32
    }

    pub fn offers_all(&self) -> bool {
        self.offered_count() == self.piece_count
    }

    pub fn set_all_offered(&self, on: bool) {
        (0..self.piece_count).for_each(|p| {
            self.set_offered(PieceIndex(p), on);
        });
    }

    pub fn set_all_verified(&self, on: bool) {
        (0..self.piece_count).for_each(|p| {
            self.set_verified(PieceIndex(p), on);
        });
    }

    /// The verified bits in BEP 3 order (high bit first), for the state store.
    pub fn verified_bitfield(&self) -> Vec<u8> {
        self.bitfield(|piece| self.is_verified(piece))
    }

    fn bitfield(&self, is_set: impl Fn(PieceIndex) -> bool) -> Vec<u8> {
        let mut bytes = vec![0u8; self.piece_count.div_ceil(8) as usize];
        for piece in (0..self.piece_count).filter(|&p| is_set(PieceIndex(p))) {
            bytes[piece as usize / 8] |= 0x80 >> (piece % 8);
        }
        bytes
    }
}

fn flip(word: &AtomicU64, bit: u64, on: bool, count: &AtomicU32) -> bool {
    if on {
        let changed = word.fetch_or(bit, Ordering::AcqRel) & bit == 0;
        if changed {
            count.fetch_add(1, Ordering::AcqRel);
        }
        changed
    } else {
        let changed = word.fetch_and(!bit, Ordering::AcqRel) & bit != 0;
        if changed {
            count.fetch_sub(1, Ordering::AcqRel);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_counts_agree() {
        let map = PieceMap::new(131);
        assert!(map.set_offered(PieceIndex(0), true));
        assert!(!map.set_offered(PieceIndex(0), true), "a second set changes nothing");
        assert!(map.set_offered(PieceIndex(130), true));
        assert_eq!(map.offered_count(), 2);
        assert!(!map.is_verified(PieceIndex(130)), "the two bits are separate");
        map.set_all_verified(true);
        assert_eq!(map.verified_count(), 131);
        assert!(map.set_verified(PieceIndex(64), false));
        assert_eq!(map.verified_count(), 130);
        let bits = map.verified_bitfield();
        assert_eq!(bits.len(), 17);
        assert_eq!((bits[0], bits[8], bits[16]), (0xff, 0x7f, 0b1110_0000));
    }

    #[test]
    fn many_threads_count_each_piece_once() {
        let map = PieceMap::new(5_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| map.set_all_offered(true));
            }
        });
        assert_eq!(map.offered_count(), 5_000);
        assert!(map.offers_all());
    }
}
