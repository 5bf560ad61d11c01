//! Owns: which pieces a peer said it has.
//! Never: believes an index outside the torrent, or holds bits where a word says it all.
//! Flow: the session notes have, bitfield, have-all; listings read progress, the picker pieces.

use crate::units::PieceIndex;
use crate::wire::Violation;

/// See the module. A peer with no piece or all of them costs no heap memory.
#[derive(Clone, Debug)]
pub struct RemotePieces {
    total: u32,
    count: u32,
    /// One bit a piece from the lowest; empty where `count` is 0 or `total`.
    bits: Box<[u64]>,
}

impl RemotePieces {
    pub fn new(total: u32) -> Self {
        Self { total, count: 0, bits: Box::default() }
    }

    pub fn total(&self) -> u32 {
        self.total
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn is_complete(&self) -> bool {
        self.total > 0 && self.count == self.total
    }

    pub fn has(&self, piece: PieceIndex) -> bool {
        if piece.0 >= self.total {
            return false;
        }
        match self.bits.get(piece.0 as usize / 64) {
            Some(word) => word >> (piece.0 % 64) & 1 == 1,
            None => self.count > 0,
        }
    }

    /// Which of the 64 pieces from `64 * at` on it has, the first in the lowest bit.
    pub fn word(&self, at: usize) -> u64 {
        if let Some(word) = self.bits.get(at) {
            return *word;
        }
        if self.count == 0 {
            return 0;
        }
        match (self.total as usize).saturating_sub(at.saturating_mul(64)) {
            0 => 0,
            pieces @ 1..64 => (1 << pieces) - 1,
            _ => u64::MAX,
        }
    }

    /// Bytes on the heap.
    pub fn held_bytes(&self) -> usize {
        size_of_val(&*self.bits)
    }

    /// Notes a piece; false where it was known.
    ///
    /// # Errors
    /// An index outside the torrent.
    pub fn insert(&mut self, piece: PieceIndex) -> Result<bool, Violation> {
        if piece.0 >= self.total {
            return Err(Violation::PieceOutOfRange { piece, count: self.total });
        }
        if self.has(piece) {
            return Ok(false);
        }
        self.make_room();
        self.bits[piece.0 as usize / 64] |= 1 << (piece.0 % 64);
        self.count += 1;
        if self.count == self.total {
            self.bits = Box::default();
        }
        Ok(true)
    }

    /// Notes that the peer lost a piece (BEP 54); false where it had none.
    ///
    /// # Errors
    /// An index outside the torrent.
    pub fn remove(&mut self, piece: PieceIndex) -> Result<bool, Violation> {
        if piece.0 >= self.total {
            return Err(Violation::PieceOutOfRange { piece, count: self.total });
        }
        if !self.has(piece) {
            return Ok(false);
        }
        if self.bits.is_empty() {
            self.bits = (0..(self.total as usize).div_ceil(64)).map(|at| self.word(at)).collect();
        }
        self.bits[piece.0 as usize / 64] &= !(1 << (piece.0 % 64));
        self.count -= 1;
        if self.count == 0 {
            self.bits = Box::default();
        }
        Ok(true)
    }

    pub fn insert_all(&mut self) {
        self.count = self.total;
        self.bits = Box::default();
    }

    /// Notes a bitfield as BEP 3 lays it out: the first piece in the highest bit.
    ///
    /// # Errors
    /// Another length than the torrent's, or spare bits that are set.
    pub fn insert_bitfield(&mut self, field: &[u8]) -> Result<(), Violation> {
        let expected = (self.total as usize).div_ceil(8);
        if field.len() != expected {
            return Err(Violation::BitfieldLength { got: field.len(), expected });
        }
        let spare_bits = expected * 8 - self.total as usize;
        if field.last().is_some_and(|last| last.trailing_zeros() < spare_bits as u32) {
            return Err(Violation::BitfieldSpareBits);
        }
        let said: u32 = field.iter().map(|byte| byte.count_ones()).sum();
        if said == self.total {
            self.insert_all();
        } else if said > 0 && !self.is_complete() {
            self.make_room();
            for (word, bytes) in self.bits.iter_mut().zip(field.chunks(8)) {
                let mut chunk = [0; 8];
                chunk[..bytes.len()].copy_from_slice(bytes);
                *word |= u64::from_le_bytes(chunk.map(u8::reverse_bits));
            }
            self.count = self.bits.iter().map(|word| word.count_ones()).sum();
            if self.count == self.total {
                self.bits = Box::default();
            }
        }
        Ok(())
    }

    fn make_room(&mut self) {
        if self.bits.is_empty() {
            self.bits = vec![0; (self.total as usize).div_ceil(64)].into();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_piece_is_the_highest_bit() {
        let mut pieces = RemotePieces::new(10);
        pieces.insert_bitfield(&[0b1010_0000, 0b0100_0000]).expect("valid");
        let has: Vec<u32> = (0..12).filter(|at| pieces.has(PieceIndex(*at))).collect();
        assert_eq!(has, [0, 2, 9]);
        assert_eq!(pieces.count(), 3);
    }

    #[test]
    fn wrong_bitfields() {
        let mut pieces = RemotePieces::new(10);
        let length = Violation::BitfieldLength { got: 1, expected: 2 };
        assert_eq!(pieces.insert_bitfield(&[0]), Err(length));
        let spare = Err(Violation::BitfieldSpareBits);
        assert_eq!(pieces.insert_bitfield(&[0, 0b0010_0000]), spare);
        assert_eq!(pieces.insert_bitfield(&[0, 1]), spare);
        assert_eq!(RemotePieces::new(0).insert_bitfield(&[]), Ok(()));
        let outside = pieces.insert(PieceIndex(10));
        assert_eq!(outside, Err(Violation::PieceOutOfRange { piece: PieceIndex(10), count: 10 }));
    }

    #[test]
    fn a_lost_piece_of_a_complete_peer() {
        let mut pieces = RemotePieces::new(70);
        pieces.insert_all();
        assert_eq!((pieces.word(0), pieces.word(1), pieces.word(2)), (u64::MAX, 63, 0));
        assert_eq!(pieces.remove(PieceIndex(65)), Ok(true));
        assert_eq!(pieces.remove(PieceIndex(65)), Ok(false));
        assert_eq!((pieces.count(), pieces.word(1), pieces.word(2)), (69, 0b11_1101, 0));
        assert!(!pieces.is_complete() && !pieces.has(PieceIndex(65)));
        assert!(pieces.remove(PieceIndex(70)).is_err());
        (0..70).for_each(|at| _ = pieces.remove(PieceIndex(at)));
        assert_eq!((pieces.count(), pieces.held_bytes(), pieces.word(0)), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn haves_and_losses_after_a_bitfield_add_up(
            field in prop::collection::vec(any::<bool>(), 1..200),
            changes in prop::collection::vec((0..200u32, prop::bool::weighted(0.8)), 0..400),
        ) {
            let total = field.len() as u32;
            let mut bytes = vec![0u8; field.len().div_ceil(8)];
            for (at, set) in field.iter().enumerate() {
                bytes[at / 8] |= u8::from(*set) << (7 - at % 8);
            }
            let mut pieces = RemotePieces::new(total);
            let mut model = field.clone();
            prop_assert_eq!(pieces.insert_bitfield(&bytes), Ok(()));
            for (piece, have) in changes {
                let changed = match have {
                    true => pieces.insert(PieceIndex(piece)),
                    false => pieces.remove(PieceIndex(piece)),
                };
                match model.get_mut(piece as usize) {
                    Some(known) => {
                        prop_assert_eq!(changed, Ok(*known != have));
                        *known = have;
                    }
                    None => prop_assert!(changed.is_err()),
                }
            }
            let has: Vec<bool> = (0..total).map(|at| pieces.has(PieceIndex(at))).collect();
            prop_assert_eq!(pieces.is_complete(), model.iter().all(|known| *known));
            prop_assert_eq!(pieces.count() as usize, model.iter().filter(|known| **known).count());
            for at in 0..5 {
                let bit = |piece| model.get(piece).is_some_and(|known: &bool| *known);
                let word = (0..64).map(|place| u64::from(bit(64 * at + place)) << place).sum();
                prop_assert_eq!(pieces.word(at), word);
            }
            prop_assert_eq!(has, model);
        }
    }
}
