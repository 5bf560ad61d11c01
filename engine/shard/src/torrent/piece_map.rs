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

    /// Verified bits of 64 pieces from `64 * at`, the lowest bit the first.
    pub fn verified_word(&self, at: usize) -> u64 {
        self.words[at].verified.load(Ordering::Acquire)
    }

    pub fn offered_count(&self) -> u32 {
        self.settled(&self.offered_count)
    }

    pub fn verified_count(&self) -> u32 {
        self.settled(&self.verified_count)
    }

    /// Bits are flipped first and counted then, so that of two threads that flip one word the
    /// second may be counted first: for that instant a count may be below zero or above all.
    fn settled(&self, count: &AtomicU32) -> u32 {
        let count = count.load(Ordering::Acquire) as i32;
        count.clamp(0, self.piece_count as i32) as u32
    }

    pub fn offers_all(&self) -> bool {
        self.offered_count() == self.piece_count
    }

    pub fn set_all_offered(&self, on: bool) {
        self.set_all(|word| &word.offered, on, &self.offered_count);
    }

    pub fn set_all_verified(&self, on: bool) {
        self.set_all(|word| &word.verified, on, &self.verified_count);
    }

    /// Counted once a word: see `settled`.
    fn set_all(&self, bits_of: impl Fn(&Word) -> &AtomicU64, on: bool, count: &AtomicU32) {
        for (at, word) in self.words.iter().enumerate() {
            let pieces = (self.piece_count - at as u32 * 64).min(64);
            flip(bits_of(word), u64::MAX >> (64 - pieces), on, count);
        }
    }

    /// The verified bits in BEP 3 order (high bit first), for the state store.
    pub fn verified_bitfield(&self) -> Vec<u8> {
        let mut field = vec![0; self.piece_count.div_ceil(8) as usize];
        self.write(|word| &word.verified, &mut field);
        field
    }

    /// Fills in the offered bits in BEP 3 order, for peers. Whether there is one.
    pub fn write_offered(&self, field: &mut [u8]) -> bool {
        self.write(|word| &word.offered, field)
    }

    /// 64 pieces at a time: a shard writes one for each connection, and the largest torrents have
    /// two million pieces.
    fn write(&self, bits_of: impl Fn(&Word) -> &AtomicU64, field: &mut [u8]) -> bool {
        assert_eq!(field.len(), self.piece_count.div_ceil(8) as usize, "a bit a piece");
        let mut some = false;
        for (word, bytes) in self.words.iter().zip(field.chunks_mut(8)) {
            // Partner of the Release in `flip`, as in `is_offered` and `is_verified`.
            let bits = bits_of(word).load(Ordering::Acquire);
            some |= bits != 0;
            bytes.copy_from_slice(&bits.reverse_bits().to_be_bytes()[..bytes.len()]);
        }
        some
    }
}

/// Whether a bit changed; as many are counted as did.
fn flip(word: &AtomicU64, bits: u64, on: bool, count: &AtomicU32) -> bool {
    if on {
        let changed = (bits & !word.fetch_or(bits, Ordering::AcqRel)).count_ones();
        if changed > 0 {
            count.fetch_add(changed, Ordering::AcqRel);
        }
        changed > 0
    } else {
        let changed = (bits & word.fetch_and(!bits, Ordering::AcqRel)).count_ones();
        if changed > 0 {
            count.fetch_sub(changed, Ordering::AcqRel);
        }
        changed > 0
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

    /// A piece at a time, from the first.
    fn by_piece(map: &PieceMap, is_set: fn(&PieceMap, PieceIndex) -> bool) -> Vec<u8> {
        let mut field = vec![0; map.piece_count().div_ceil(8) as usize];
        for piece in (0..map.piece_count()).filter(|piece| is_set(map, PieceIndex(*piece))) {
            field[piece as usize / 8] |= 0x80 >> (piece % 8);
        }
        field
    }

    #[test]
    fn words_say_what_pieces_say() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |below: u32| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32 % below
        };
        for _ in 0..5_000 {
            let map = PieceMap::new(draw(300));
            for _ in 0..draw(40) {
                let (kind, on) = (draw(20), draw(3) > 0);
                match (kind, map.piece_count()) {
                    (0, _) => map.set_all_offered(on),
                    (1, _) => map.set_all_verified(on),
                    (_, 0) => {}
                    (2..11, count) => _ = map.set_offered(PieceIndex(draw(count)), on),
                    (_, count) => _ = map.set_verified(PieceIndex(draw(count)), on),
                }
            }
            let (offered, verified) =
                (by_piece(&map, PieceMap::is_offered), by_piece(&map, PieceMap::is_verified));
            let mut field = vec![0; offered.len()];
            let some = map.write_offered(&mut field);
            assert_eq!((&field, some), (&offered, offered.iter().any(|byte| *byte > 0)));
            assert_eq!(map.verified_bitfield(), verified);
            let ones = |field: &[u8]| field.iter().map(|byte| byte.count_ones()).sum::<u32>();
            assert_eq!(map.offered_count(), ones(&offered));
            assert_eq!(map.verified_count(), ones(&verified));
            assert_eq!(map.offers_all(), ones(&offered) == map.piece_count());
        }
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
