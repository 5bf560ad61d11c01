//! Which chunk is free: super-blocks of 256 KiB, each split in one class at a time.
//!
//! Owns: the free map. Never: the bytes (indices only, so this file is safe code).
//! Flow: a lease takes a chunk, its last holder gives it back; a super-block whose chunks are all
//! free can be split in another class, so no class can starve another for ever.

use super::Class;

pub(super) const BLOCK_BYTES: usize = 256 << 10;

/// A chunk: super-block, and place in it counted in chunks of its class.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct ChunkAt {
    pub block: u32,
    pub index: u8,
}

#[derive(Clone, Copy)]
struct Block {
    /// `None`: whole and on the free list.
    class: Option<Class>,
    /// A bit each free chunk.
    free: u16,
    /// Where it stands in `partial[class]`, while some but not all chunks are taken.
    partial_at: u32,
}

#[derive(Default)]
pub(super) struct Blocks {
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Split super-blocks with a free chunk, a list each class.
    partial: [Vec<u32>; 3],
}

impl Blocks {
    pub(super) fn add(&mut self, count: u32) {
        let first = self.blocks.len() as u32;
        self.blocks.extend((0..count).map(|_| Block { class: None, free: 0, partial_at: 0 }));
        // The lowest goes out first: arenas fill in order.
        self.free.splice(0..0, (first..first + count).rev());
    }

    pub(super) fn take(&mut self, class: Class) -> Option<ChunkAt> {
        let number = match self.partial[class as usize].last() {
            Some(&number) => number,
            None => {
                let number = self.free.pop()?;
                self.blocks[number as usize] =
                    Block { class: Some(class), free: class.all_free(), partial_at: 0 };
                self.enlist(number, class);
                number
            }
        };
        let block = &mut self.blocks[number as usize];
        assert!(block.class == Some(class) && block.free != 0, "a listed block has a free chunk");
        let index = block.free.trailing_zeros() as u8;
        block.free &= block.free - 1;
        if block.free == 0 {
            self.delist(number, class);
        }
        Some(ChunkAt { block: number, index })
    }

    pub(super) fn give_back(&mut self, at: ChunkAt, class: Class) {
        let block = &mut self.blocks[at.block as usize];
        assert!(block.class == Some(class), "a chunk returns to the class it was taken from");
        let bit = 1 << at.index;
        assert!(block.free & bit == 0, "a chunk returns once");
        let was_full = block.free == 0;
        block.free |= bit;
        let all_free = block.free == class.all_free();
        if was_full && !all_free {
            self.enlist(at.block, class);
        }
        if all_free {
            if !was_full {
                self.delist(at.block, class);
            }
            self.blocks[at.block as usize].class = None;
            self.free.push(at.block);
        }
    }

    fn enlist(&mut self, number: u32, class: Class) {
        let list = &mut self.partial[class as usize];
        self.blocks[number as usize].partial_at = list.len() as u32;
        list.push(number);
    }

    fn delist(&mut self, number: u32, class: Class) {
        let list = &mut self.partial[class as usize];
        let at = self.blocks[number as usize].partial_at as usize;
        assert!(list[at] == number, "a listed block knows its place");
        list.swap_remove(at);
        if let Some(&moved) = list.get(at) {
            self.blocks[moved as usize].partial_at = at as u32;
        }
    }
}

impl Class {
    fn all_free(self) -> u16 {
        let chunks = BLOCK_BYTES / self.bytes();
        (u16::MAX) >> (16 - chunks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::HashSet;

    use super::*;

    fn class(of: u8) -> Class {
        [Class::K16, Class::K64, Class::K256][of as usize % 3]
    }

    proptest! {
        /// Whatever the order: chunks never overlap, and everything comes home whole.
        #[test]
        fn chunks_never_overlap_and_blocks_come_home(
            steps in proptest::collection::vec((any::<bool>(), any::<u8>(), any::<u16>()), 0..400),
        ) {
            let mut blocks = Blocks::default();
            blocks.add(3);
            blocks.add(2);
            let mut out: Vec<(ChunkAt, Class)> = Vec::new();
            let mut slots: HashSet<(u32, usize)> = HashSet::new();
            let spanned = |at: ChunkAt, class: Class| {
                let width = class.bytes() / Class::K16.bytes();
                (0..width).map(move |i| (at.block, usize::from(at.index) * width + i))
            };
            for (take, of, pick) in steps {
                if take {
                    if let Some(at) = blocks.take(class(of)) {
                        for slot in spanned(at, class(of)) {
                            prop_assert!(slots.insert(slot), "overlap at {slot:?}");
                        }
                        out.push((at, class(of)));
                    } else {
                        // Refused only when no whole block is left.
                        let used: HashSet<u32> = out.iter().map(|(at, _)| at.block).collect();
                        prop_assert_eq!(used.len(), 5);
                    }
                } else if !out.is_empty() {
                    let (at, class) = out.swap_remove(pick as usize % out.len());
                    for slot in spanned(at, class) {
                        slots.remove(&slot);
                    }
                    blocks.give_back(at, class);
                }
            }
            for (at, class) in out.drain(..) {
                blocks.give_back(at, class);
            }
            for _ in 0..5 {
                prop_assert!(blocks.take(Class::K256).is_some());
            }
            prop_assert!(blocks.take(Class::K16).is_none());
        }
    }
}
