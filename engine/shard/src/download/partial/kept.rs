//! A piece in part, as it goes to disk and comes from there.
//!
//! Owns: which of its blocks are here, as bits and bytes; blocks that the disk is to bring.
//! Never: files (`keep`). Flow: `reserve` holds blocks for the disk -> `restored`, or `lost` and
//! asked of peers; at its end, or now and then, `Gathered` says what there is to write.

use seedring_platform::memory::{Class, Lease, Share};
use seedring_proto::units::{BLOCK_BYTES, PieceIndex};

use super::{CHUNK_BYTES, NOBODY, NoMemory, Partial, Sender, State, Whole};
use crate::connections::Key;

/// Who brings blocks from disk. No connection has this key, so that nobody is to blame for them.
pub const DISK: Key = Key(u64::MAX - 1);

/// Blocks of a piece that are here, read-only.
pub struct Gathered {
    pub piece: PieceIndex,
    pub length: u32,
    chunks: Vec<Option<Share>>,
    /// A bit a block, BEP 3 order.
    pub blocks: Box<[u8]>,
}

impl Gathered {
    /// Of a whole piece.
    pub fn whole(whole: &Whole) -> Gathered {
        let count = whole.length.div_ceil(BLOCK_BYTES);
        Gathered {
            piece: whole.piece,
            length: whole.length,
            chunks: whole.chunks.iter().cloned().map(Some).collect(),
            blocks: bits(count, |_| true),
        }
    }

    /// The runs of bytes that are here and not in `without`: where each begins in the piece, and
    /// the part of a chunk that it is.
    pub fn runs(&self, without: &[u8]) -> Vec<(u32, Share, std::ops::Range<usize>)> {
        let mut runs: Vec<(u32, Share, std::ops::Range<usize>)> = Vec::new();
        for at in 0..self.length.div_ceil(BLOCK_BYTES) {
            if !has(&self.blocks, at) || has(without, at) {
                continue;
            }
            let (begin, bytes) = span(at, self.length);
            let (chunk, from) = (begin / CHUNK_BYTES, (begin % CHUNK_BYTES) as usize);
            let Some(Some(share)) = self.chunks.get(chunk as usize) else { continue };
            let to = from + bytes;
            match runs.last_mut() {
                Some((start, _, range)) if *start / CHUNK_BYTES == chunk && range.end == from => {
                    range.end = to;
                }
                _ => runs.push((begin, share.clone(), from..to)),
            }
        }
        runs
    }
}

/// Whether a block's bit is set.
pub fn has(blocks: &[u8], at: u32) -> bool {
    blocks.get(at as usize / 8).is_some_and(|byte| byte & (0x80 >> (at % 8)) != 0)
}

/// Where a block begins in a piece of this length, and its bytes.
pub fn span(at: u32, length: u32) -> (u32, usize) {
    let begin = at * BLOCK_BYTES;
    (begin, BLOCK_BYTES.min(length - begin) as usize)
}

fn bits(count: u32, is_set: impl Fn(u32) -> bool) -> Box<[u8]> {
    let mut bits = vec![0_u8; count.div_ceil(8) as usize].into_boxed_slice();
    for at in (0..count).filter(|at| is_set(*at)) {
        bits[at as usize / 8] |= 0x80 >> (at % 8);
    }
    bits
}

impl Partial {
    /// Blocks that are here.
    pub fn here(&self) -> u32 {
        self.slots.len() as u32 - self.missing
    }

    fn here_bits(&self) -> Box<[u8]> {
        let here = |at: u32| self.slots[at as usize].state == State::Here;
        bits(self.slots.len() as u32, here)
    }

    /// These blocks come from the disk: nobody is asked for them. Those for which there is no
    /// memory do not.
    pub fn reserve(
        &mut self,
        blocks: impl Iterator<Item = u32>,
        mut lease: impl FnMut(Class) -> Option<Lease>,
    ) {
        for at in blocks.map(|at| at as usize) {
            let free = |slot: &super::Slot| slot.state == State::Missing && slot.asked[0] == NOBODY;
            if !self.slots.get(at).is_some_and(free) {
                continue;
            }
            match self.lease_for(at, &mut lease) {
                Ok(()) => {}
                Err(NoMemory) => return,
            }
            let slot = &mut self.slots[at];
            (slot.state, slot.asked[0]) = (State::Coming(DISK), DISK);
            self.unasked -= 1;
        }
    }

    /// The disk brought a block that was held for it.
    pub fn restored(&mut self, at: u32, bytes: &[u8]) {
        if self.slots.get(at as usize).is_some_and(|slot| slot.state == State::Coming(DISK)) {
            let block = self.block(at as usize);
            self.data(DISK, block, 0, bytes);
            let _ = self.arrived(Sender { key: DISK, ip: None }, block);
        }
    }

    /// The disk does not have it after all.
    pub fn lost(&mut self, at: u32) {
        if self.slots.get(at as usize).is_some_and(|slot| slot.state == State::Coming(DISK)) {
            let block = self.block(at as usize);
            self.returned(DISK, block);
        }
    }

    /// What is here, at its end.
    pub fn into_gathered(self) -> Gathered {
        let blocks = self.here_bits();
        let freeze = |lease: Lease| {
            let bytes = lease.len();
            lease.freeze(bytes)
        };
        let chunks = self.chunks.into_iter().map(|lease| lease.map(freeze)).collect();
        Gathered { piece: self.piece, length: self.length, chunks, blocks }
    }

    /// A copy of what is here and not in `without`, since it is still being gathered. `None`: there
    /// is no memory for it.
    pub fn copied(
        &self,
        without: &[u8],
        mut lease: impl FnMut(Class) -> Option<Lease>,
    ) -> Option<Gathered> {
        let blocks = self.here_bits();
        let mut chunks = Vec::with_capacity(self.chunks.len());
        for (at, chunk) in self.chunks.iter().enumerate() {
            let per_chunk = CHUNK_BYTES / BLOCK_BYTES;
            let numbers = at as u32 * per_chunk..(at as u32 + 1) * per_chunk;
            let news = |number: &u32| has(&blocks, *number) && !has(without, *number);
            let mut numbers = numbers.filter(news).peekable();
            let (Some(from), true) = (chunk, numbers.peek().is_some()) else {
                chunks.push(None);
                continue;
            };
            let mut to = lease(from.class())?;
            for number in numbers {
                let (begin, bytes) = span(number, self.length);
                let begin = (begin % CHUNK_BYTES) as usize;
                to[begin..begin + bytes].copy_from_slice(&from[begin..begin + bytes]);
            }
            let bytes = to.len();
            chunks.push(Some(to.freeze(bytes)));
        }
        Some(Gathered { piece: self.piece, length: self.length, chunks, blocks })
    }
}

#[cfg(test)]
mod tests {
    use seedring_platform::memory::{Pool, PoolOptions};

    use super::*;

    const A: Key = Key(1);

    fn by(key: Key) -> Sender {
        Sender { key, ip: Some([10, 0, 0, 1].into()) }
    }

    const LENGTH: u32 = (256 << 10) + 20_000;

    fn take(partial: &mut Partial, pool: &Pool, byte: u8) {
        let block = partial.ask(A, |class| pool.lease(class)).unwrap().unwrap();
        partial.data(A, block, 0, &vec![byte; block.length as usize]);
        assert_eq!(partial.arrived(by(A), block), Some(None));
    }

    #[test]
    fn what_came_from_disk_and_what_came_from_a_peer_make_a_whole_piece() {
        let pool = Pool::new(PoolOptions { cap_bytes: 1 << 20, huge_pages: false }).unwrap();
        let mut partial = Partial::new(PieceIndex(3), LENGTH);
        partial.reserve([0, 2, 17, 99].into_iter(), |class| pool.lease(class));
        assert!(partial.is_asked_for() && !partial.is_begun());
        assert_eq!(partial.ask_again(A, true), None, "the disk brings it");
        partial.restored(0, &[1; 16 << 10]);
        partial.restored(1, &[9; 16 << 10]); // not held for it
        partial.restored(17, &[1; 3_616]);
        partial.lost(2);
        (0..16).for_each(|_| take(&mut partial, &pool, 2));
        let whole = partial.into_whole();
        let first: Vec<u8> = (0..18).map(|at| whole.block(at)[0]).collect();
        assert_eq!(first, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
        assert_eq!(whole.senders, [Sender { key: DISK, ip: None }, by(A)]);
    }

    #[test]
    fn what_is_here_is_written_in_runs_and_once() {
        let pool = Pool::new(PoolOptions { cap_bytes: 2 << 20, huge_pages: false }).unwrap();
        let mut partial = Partial::new(PieceIndex(3), LENGTH);
        (0..3).for_each(|at| take(&mut partial, &pool, at));
        let first = partial.copied(&[], |class| pool.lease(class)).unwrap();
        let spans = |runs: &[(u32, Share, std::ops::Range<usize>)]| {
            runs.iter().map(|(at, _, range)| (*at, range.clone())).collect::<Vec<_>>()
        };
        assert_eq!(spans(&first.runs(&[])), [(0, 0..48 << 10)]);
        assert_eq!(&*first.blocks, [0b1110_0000, 0, 0]);
        (3..18).for_each(|at| take(&mut partial, &pool, at));
        let more = partial.copied(&first.blocks, |class| pool.lease(class)).unwrap();
        let runs = more.runs(&first.blocks);
        let expected = [(48 << 10, 48 << 10..256 << 10), (256 << 10, 0..20_000)];
        assert_eq!(spans(&runs), expected);
        assert!(runs[0].1[48 << 10..64 << 10].iter().all(|byte| *byte == 3));
        let whole = Gathered::whole(&partial.into_whole());
        assert_eq!(&*whole.blocks, [0xff, 0xff, 0b1100_0000]);
        assert_eq!(spans(&whole.runs(&more.blocks)), []);
    }
}
