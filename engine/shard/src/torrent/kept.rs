//! Blocks of pieces that are not whole, kept on disk: what shards share of them.
//!
//! Owns: which slots of the torrent's file of blocks are taken, and what an earlier run left in it.
//! Never: reads or writes it. Flow: control says what is left; the shard that claims such a piece
//! takes it up; a shard that keeps a piece takes a slot.
//!
//! The file lies in the torrent's folder for parts and has a slot of a piece's length for each
//! piece that is kept, wherever in the torrent that piece is. It is no content: what is in it
//! counts only once the whole piece was hashed.

use seedring_proto::units::{BLOCK_BYTES, PieceIndex};

use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The file's name in the folder for parts.
pub const BLOCKS: &str = "blocks";
/// Pieces of a torrent that are kept at once. More are not, and are fetched again.
const SLOTS_MAX: u32 = 4_096;
/// Slots begin at multiples of a page.
const ALIGNMENT: u64 = 4_096;

/// Of one piece, which blocks are on disk, and in which slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPiece {
    pub piece: PieceIndex,
    pub slot: u32,
    /// A bit a block, BEP 3 order.
    pub blocks: Box<[u8]>,
}

impl KeptPiece {
    /// The numbers of the blocks that are there.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        let bit = |at: u32| self.blocks[at as usize / 8] & (0x80 >> (at % 8)) != 0;
        (0..self.blocks.len() as u32 * 8).filter(move |at| bit(*at))
    }

    /// Whether it can be of a piece of this length.
    pub fn fits(&self, length: u32) -> bool {
        let count = length.div_ceil(BLOCK_BYTES);
        self.slot < SLOTS_MAX && self.numbers().all(|at| at < count)
    }
}

struct Left {
    kept: KeptPiece,
    /// A shard has taken it up, or it is no use any more.
    taken: AtomicU8,
}

/// See the module.
pub struct Kept {
    slots: Box<[AtomicU64]>,
    left: Box<[Left]>,
    /// Of `left`, those not taken.
    waiting: AtomicU32,
}

impl Kept {
    pub fn new(left: Vec<KeptPiece>) -> Kept {
        let mut slots = vec![0_u64; SLOTS_MAX as usize / 64];
        // A slot is one piece's; what can't be so is not believed.
        let good = left.into_iter().filter(|kept| {
            let bit = 1 << (kept.slot % 64);
            let word = slots.get_mut(kept.slot as usize / 64);
            word.is_some_and(|word| std::mem::replace(word, *word | bit) & bit == 0)
        });
        let left: Box<[Left]> = good.map(|kept| Left { kept, taken: AtomicU8::new(0) }).collect();
        Kept {
            slots: slots.into_iter().map(AtomicU64::new).collect(),
            waiting: AtomicU32::new(left.len() as u32),
            left,
        }
    }

    /// A slot for one piece. Relaxed, as all here: a number alone, the file is read and written
    /// by whoever holds it.
    pub fn take_slot(&self) -> Option<u32> {
        for (at, word) in self.slots.iter().enumerate() {
            let mut now = word.load(Ordering::Relaxed);
            while now != u64::MAX {
                let bit = now.trailing_ones();
                let taken = now | 1 << bit;
                match word.compare_exchange(now, taken, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Some(at as u32 * 64 + bit),
                    Err(other) => now = other,
                }
            }
        }
        None
    }

    pub fn free_slot(&self, slot: u32) {
        let word = &self.slots[slot as usize / 64];
        let before = word.fetch_and(!(1 << (slot % 64)), Ordering::Relaxed);
        assert!(before & 1 << (slot % 64) != 0, "a slot is freed by its holder, once");
    }

    /// Pieces that were left and that nobody has taken up.
    pub fn waiting(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        let some = self.waiting.load(Ordering::Relaxed) > 0;
        let left = if some { &*self.left } else { &[] };
        let waits = |left: &&Left| left.taken.load(Ordering::Relaxed) == 0;
        left.iter().filter(waits).map(|left| left.kept.piece)
    }

    /// What was left of a piece, once. For who has claimed it.
    pub fn take(&self, piece: PieceIndex) -> Option<&KeptPiece> {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let left = self.left.iter().find(|left| left.kept.piece == piece)?;
        if left.taken.swap(1, Ordering::Relaxed) != 0 {
            return None;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(&left.kept)
    }
}

/// Where a slot begins in the file.
pub fn kept_offset(slot: u32, piece_bytes: u32) -> u64 {
    u64::from(slot) * u64::from(piece_bytes).next_multiple_of(ALIGNMENT)
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    fn kept(piece: u32, slot: u32) -> KeptPiece {
        KeptPiece { piece: PieceIndex(piece), slot, blocks: Box::new([0b1010_0000, 0b0000_0001]) }
    }

    #[test]
    fn a_slot_is_one_pieces_and_what_was_left_is_taken_once() {
        let all = Kept::new(vec![kept(7, 1), kept(9, 65), kept(11, 65), kept(12, SLOTS_MAX)]);
        assert_eq!((all.take_slot(), all.take_slot()), (Some(0), Some(2)));
        all.free_slot(0);
        assert_eq!(all.take_slot(), Some(0));
        let free = std::iter::from_fn(|| all.take_slot()).count();
        assert_eq!(free as u32, SLOTS_MAX - 4, "all but 0, 1, 2 and 65");
        assert_eq!(all.waiting().collect::<Vec<_>>(), [PieceIndex(7), PieceIndex(9)]);
        assert!(all.take(PieceIndex(8)).is_none());
        assert_eq!(all.take(PieceIndex(9)).map(|kept| kept.slot), Some(65));
        assert!(all.take(PieceIndex(9)).is_none());
        assert_eq!(all.waiting().collect::<Vec<_>>(), [PieceIndex(7)]);
    }

    #[test]
    fn blocks_have_numbers_and_fit_only_a_piece_that_has_so_many() {
        let kept = kept(7, 1);
        assert_eq!(kept.numbers().collect::<Vec<_>>(), [0, 2, 15]);
        assert!(kept.fits(16 * BLOCK_BYTES) && !kept.fits(15 * BLOCK_BYTES));
        assert!(!KeptPiece { slot: SLOTS_MAX, ..kept }.fits(16 * BLOCK_BYTES));
        assert_eq!((kept_offset(0, 20_000), kept_offset(3, 20_000)), (0, 3 * 20_480));
    }
}
