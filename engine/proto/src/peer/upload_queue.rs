//! Owns: the blocks a peer asked for and still waits for, in their order, each once.
//! Never: decides whether a request is allowed, or answers one.
//! Flow: the session fills it, upload takes blocks from the front, cancel and choke take them out.

use std::collections::VecDeque;

use crate::units::{Block, PieceIndex};

/// So many blocks are walked rather than counted by cell: 200 bytes, and no memory for cells where
/// a peer asks for little.
const WALKED_MAX: usize = 16;
/// Counting cells at least: half a KiB while more requests wait.
const CELLS_MIN: usize = 256;

/// See the module. Empty and released it holds no heap memory.
#[derive(Clone, Debug, Default)]
pub struct UploadQueue {
    blocks: VecDeque<Block>,
    /// How many queued blocks fall in each cell, to say "surely not here" without a walk; none
    /// while few wait, else a power of two and at least four times the queue. Real peers ask for
    /// consecutive blocks, which fall in different cells, so a new request rarely needs the walk.
    cells: Box<[u16]>,
}

impl UploadQueue {
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The block at this place, 0 being the one asked for first.
    pub fn get(&self, place: usize) -> Option<Block> {
        self.blocks.get(place).copied()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = Block> + '_ {
        self.blocks.iter().copied()
    }

    /// Bytes on the heap.
    pub fn held_bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<Block>() + size_of_val(&*self.cells)
    }

    /// Appends a block; false where it waits already.
    pub(super) fn push(&mut self, block: Block) -> bool {
        if self.position(block).is_some() {
            return false;
        }
        if self.blocks.len() >= WALKED_MAX && self.cells.len() <= 4 * self.blocks.len() {
            self.grow_cells();
        }
        self.blocks.push_back(block);
        if !self.cells.is_empty() {
            let cell = self.cell(block);
            self.cells[cell] += 1;
        }
        true
    }

    /// Takes out the block at this place: one step at the front, few near it.
    pub(super) fn remove(&mut self, place: usize) -> Option<Block> {
        let block = self.blocks.remove(place)?;
        self.forget(block);
        Some(block)
    }

    pub(super) fn position(&self, block: Block) -> Option<usize> {
        if !self.cells.is_empty() && self.cells[self.cell(block)] == 0 {
            return None;
        }
        self.blocks.iter().position(|queued| *queued == block)
    }

    /// Takes out every block that `wanted` names, in order, and hands it to `removed`.
    pub(super) fn remove_where(
        &mut self,
        wanted: impl Fn(PieceIndex) -> bool,
        mut removed: impl FnMut(Block),
    ) {
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.retain(|block| {
            let stays = !wanted(block.piece);
            if !stays {
                self.forget(*block);
                removed(*block);
            }
            stays
        });
        self.blocks = blocks;
    }

    /// Gives memory back while nothing waits.
    pub(super) fn release(&mut self) {
        if self.blocks.is_empty() {
            debug_assert!(self.cells.iter().all(|count| *count == 0));
            *self = Self::default();
        }
    }

    fn forget(&mut self, block: Block) {
        if !self.cells.is_empty() {
            let cell = self.cell(block);
            self.cells[cell] -= 1;
        }
    }

    /// Doubles the cells: the queue's bound bounds them too.
    fn grow_cells(&mut self) {
        self.cells = vec![0; (2 * self.cells.len()).max(CELLS_MIN)].into();
        for at in 0..self.blocks.len() {
            let cell = self.cell(self.blocks[at]);
            self.cells[cell] += 1;
        }
    }

    /// Consecutive blocks of 16 KiB have consecutive cells; pieces start anywhere.
    fn cell(&self, block: Block) -> usize {
        let start = block.piece.0.wrapping_mul(0x9e37_79b1) >> 8;
        start.wrapping_add(block.begin >> 14) as usize & (self.cells.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(number: u32) -> Block {
        Block { piece: PieceIndex(number / 4), begin: number % 4 * 16384, length: 16384 }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u32),
        Remove(usize),
        RemovePiece(u32),
        Release,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..40u32).prop_map(Step::Push),
            3 => (0..10usize).prop_map(Step::Remove),
            1 => (0..10u32).prop_map(Step::RemovePiece),
            1 => Just(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_plain_list(steps in prop::collection::vec(step(), 0..300)) {
            let mut queue = UploadQueue::default();
            let mut model: Vec<Block> = Vec::new();
            for step in steps {
                match step {
                    Step::Push(number) => {
                        let new = !model.contains(&block(number));
                        prop_assert_eq!(queue.push(block(number)), new);
                        if new {
                            model.push(block(number));
                        }
                    }
                    Step::Remove(place) => {
                        let expected = (place < model.len()).then(|| model.remove(place));
                        prop_assert_eq!(queue.remove(place), expected);
                    }
                    Step::RemovePiece(piece) => {
                        let mut gone = Vec::new();
                        queue.remove_where(|queued| queued.0 == piece, |block| gone.push(block));
                        let expected: Vec<Block> =
                            model.iter().copied().filter(|block| block.piece.0 == piece).collect();
                        model.retain(|block| block.piece.0 != piece);
                        prop_assert_eq!(gone, expected);
                    }
                    Step::Release => queue.release(),
                }
                prop_assert_eq!(queue.iter().collect::<Vec<_>>(), model.clone());
                for number in 0..40 {
                    let expected = model.iter().position(|queued| *queued == block(number));
                    prop_assert_eq!(queue.position(block(number)), expected);
                }
            }
        }
    }

    #[test]
    fn cells_grow_with_the_queue_and_consecutive_requests_share_none() {
        let mut queue = UploadQueue::default();
        for at in 0..500 {
            assert!(queue.push(Block { piece: PieceIndex(5), begin: at * 16384, length: 1 }));
            let counted = queue.cells.iter().map(|count| usize::from(*count)).sum::<usize>();
            match queue.len() <= WALKED_MAX {
                true => assert_eq!(queue.cells.len(), 0),
                false => assert_eq!(counted, queue.len()),
            }
            assert!(counted == 0 || queue.cells.len() >= 4 * (queue.len() - 1));
        }
        assert_eq!(queue.cells.len(), 2048);
        assert_eq!(queue.cells.iter().max(), Some(&1));
    }

    #[test]
    fn released_it_holds_nothing() {
        let mut queue = UploadQueue::default();
        (0..40).for_each(|number| assert!(queue.push(block(number))));
        queue.release();
        assert_eq!(queue.len(), 40, "only when empty");
        while queue.remove(0).is_some() {}
        assert!(queue.held_bytes() > 512);
        queue.release();
        assert_eq!(queue.held_bytes(), 0);
    }
}
