//! A piece that is being gathered: its buffer, and where each of its blocks stands.
//!
//! Owns: the leases that blocks are received into, who was asked for a block, who sent it.
//! Never: which piece to take up or whom to ask (`ask`). Flow: `ask` claims it -> blocks arrive ->
//! whole: its chunks are frozen, hashed and written; or it ends before, and `kept` takes its blocks
//! to disk.

mod kept;

use std::net::IpAddr;

use seedring_platform::copy;
use seedring_platform::memory::{Class, Lease, Share};
use seedring_proto::units::{BLOCK_BYTES, Block, PieceIndex};

pub use self::kept::Gathered;
use crate::connections::Key;

/// Nobody.
const NOBODY: Key = Key(u64::MAX);
/// A block may be asked of so many peers at once: the second one where the first is late.
pub const ASKED_MAX: usize = 2;
const CHUNK_BYTES: u32 = 256 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Missing,
    /// Its first bytes have come from this peer: no other one's are taken until it is gone or
    /// late, and then from the first byte on, so that a block is one peer's work.
    Coming(Key),
    Here,
}

#[derive(Clone, Copy)]
struct Slot {
    state: State,
    asked: [Key; ASKED_MAX],
    /// It is late: another peer may be asked too.
    late: bool,
    /// In `senders`; of a block that is here.
    sender: u16,
}

/// See the module.
pub struct Partial {
    piece: PieceIndex,
    length: u32,
    chunks: Box<[Option<Lease>]>,
    slots: Box<[Slot]>,
    /// Blocks that are not here, and those of them that nobody was asked for.
    missing: u32,
    unasked: u32,
    /// Everybody who sent a block of it.
    senders: Vec<Sender>,
    /// Looks since a block came whole.
    quiet: u32,
}

/// Who sent blocks of a piece. The address outlives the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    pub key: Key,
    /// `None`: its bytes were on disk.
    pub ip: Option<IpAddr>,
}

/// A whole piece: its bytes, and who sent which block.
pub struct Whole {
    pub piece: PieceIndex,
    pub length: u32,
    pub chunks: Vec<Share>,
    pub senders: Vec<Sender>,
    /// Of each block, its place in `senders`.
    pub sent_by: Box<[u16]>,
}

impl Whole {
    /// The bytes of one block.
    pub fn block(&self, at: usize) -> &[u8] {
        let begin = at * BLOCK_BYTES as usize;
        let end = (begin + BLOCK_BYTES as usize).min(self.length as usize);
        let chunk = begin / CHUNK_BYTES as usize;
        let offset = chunk * CHUNK_BYTES as usize;
        &self.chunks[chunk][begin - offset..end - offset]
    }
}

impl Partial {
    pub fn new(piece: PieceIndex, length: u32) -> Partial {
        let blocks = length.div_ceil(BLOCK_BYTES);
        let slot =
            Slot { state: State::Missing, asked: [NOBODY; ASKED_MAX], late: false, sender: 0 };
        Partial {
            piece,
            length,
            chunks: (0..length.div_ceil(CHUNK_BYTES)).map(|_| None).collect(),
            slots: vec![slot; blocks as usize].into_boxed_slice(),
            missing: blocks,
            unasked: blocks,
            senders: Vec::new(),
            quiet: 0,
        }
    }

    /// Once a second: how many seconds no block has come for, this one included.
    pub fn look(&mut self) -> u32 {
        self.quiet += 1;
        self.quiet
    }

    /// Bytes that its chunks take once all of them are leased.
    pub fn buffer_bytes(length: u32) -> usize {
        let last = length % CHUNK_BYTES;
        let whole = (length / CHUNK_BYTES * CHUNK_BYTES) as usize;
        if last == 0 { whole } else { whole + Class::for_bytes(last as usize).bytes() }
    }

    pub fn piece(&self) -> PieceIndex {
        self.piece
    }

    pub fn length(&self) -> u32 {
        self.length
    }

    pub fn is_whole(&self) -> bool {
        self.missing == 0
    }

    pub fn has_unasked(&self) -> bool {
        self.unasked > 0
    }

    pub fn is_begun(&self) -> bool {
        (self.missing as usize) < self.slots.len()
    }

    /// Whether nothing of it has come.
    pub fn is_untouched(&self) -> bool {
        self.slots.iter().all(|slot| slot.state == State::Missing)
    }

    fn block(&self, at: usize) -> Block {
        let begin = at as u32 * BLOCK_BYTES;
        Block { piece: self.piece, begin, length: BLOCK_BYTES.min(self.length - begin) }
    }

    fn place(&self, block: Block) -> Option<usize> {
        let at = (block.begin / BLOCK_BYTES) as usize;
        (at < self.slots.len() && self.block(at) == block).then_some(at)
    }

    /// Notes that `key` is asked for a block, and says which: the first that nobody was asked for.
    /// Its chunk is leased. `Err`: there is no memory for it.
    pub fn ask(
        &mut self,
        key: Key,
        lease: impl FnOnce(Class) -> Option<Lease>,
    ) -> Result<Option<Block>, NoMemory> {
        if self.unasked == 0 {
            return Ok(None);
        }
        let free = |slot: &Slot| slot.state == State::Missing && slot.asked == [NOBODY; ASKED_MAX];
        let at = self.slots.iter().position(free).expect("invariant: counted");
        self.lease_for(at, lease)?;
        self.slots[at].asked[0] = key;
        self.unasked -= 1;
        Ok(Some(self.block(at)))
    }

    /// The same of a block that somebody else was asked for: one that is late, or (`any`) one that
    /// has not begun to come.
    pub fn ask_again(&mut self, key: Key, any: bool) -> Option<Block> {
        let at = self.slots.iter().position(|slot| {
            slot.state != State::Here
                && slot.asked[0] != NOBODY
                && slot.asked[1] == NOBODY
                && slot.asked[0] != key
                && (slot.late || (any && slot.state == State::Missing))
        })?;
        self.slots[at].asked[1] = key;
        Some(self.block(at))
    }

    /// A peer takes longer than it usually does.
    pub fn is_late(&mut self, block: Block) {
        if let Some(at) = self.place(block) {
            self.slots[at].late = true;
        }
    }

    fn lease_for(
        &mut self,
        block: usize,
        lease: impl FnOnce(Class) -> Option<Lease>,
    ) -> Result<(), NoMemory> {
        let chunk = block * BLOCK_BYTES as usize / CHUNK_BYTES as usize;
        if self.chunks[chunk].is_none() {
            let left = self.length as usize - chunk * CHUNK_BYTES as usize;
            let class = Class::for_bytes(left.min(CHUNK_BYTES as usize));
            self.chunks[chunk] = Some(lease(class).ok_or(NoMemory)?);
        }
        Ok(())
    }

    /// Bytes of a block from a peer that was asked for it.
    pub fn data(&mut self, key: Key, block: Block, offset: u32, bytes: &[u8]) {
        let Some(at) = self.place(block) else { return };
        let slot = &mut self.slots[at];
        let open = match slot.state {
            State::Missing => true,
            State::Coming(other) => slot.late && other != key,
            State::Here => false,
        };
        if open && offset == 0 && slot.asked.contains(&key) {
            slot.state = State::Coming(key);
            slot.late = false;
        }
        if slot.state != State::Coming(key) {
            return; // another one's are here, or are coming
        }
        let begin = (block.begin + offset) as usize;
        let chunk = begin / CHUNK_BYTES as usize;
        let from = begin - chunk * CHUNK_BYTES as usize;
        let lease = self.chunks[chunk].as_mut().expect("invariant: leased when it was asked for");
        // Read again when the piece is whole: to be hashed, and written.
        copy::past_caches(&mut lease[from..from + bytes.len()], bytes);
    }

    /// A block came whole. Who else was asked for it, if it was taken; `None`: it was not.
    pub fn arrived(&mut self, sender: Sender, block: Block) -> Option<Option<Key>> {
        let key = sender.key;
        let at = self.place(block)?;
        let slot = &mut self.slots[at];
        if slot.state != State::Coming(key) {
            // Its bytes were not taken, because another one's were coming; if that one is gone
            // since, nobody owes the block any more.
            self.forget(key, at);
            return None;
        }
        slot.state = State::Here;
        self.quiet = 0;
        let other = slot.asked.into_iter().find(|asked| *asked != key && *asked != NOBODY);
        let place = self.senders.iter().position(|known| known.key == key);
        let place = place.unwrap_or_else(|| {
            self.senders.push(sender);
            self.senders.len() - 1
        });
        slot.sender = place as u16;
        self.missing -= 1;
        Some(other)
    }

    /// A peer will not send a block that it was asked for.
    pub fn returned(&mut self, key: Key, block: Block) {
        let Some(at) = self.place(block) else { return };
        let slot = &mut self.slots[at];
        if slot.state == State::Coming(key) {
            slot.state = State::Missing;
        }
        self.forget(key, at);
    }

    /// A peer owes a block no more. Whoever else does comes first, so that a third may be asked;
    /// a block that nobody owes is free.
    fn forget(&mut self, key: Key, at: usize) {
        let slot = &mut self.slots[at];
        if slot.state == State::Here || !slot.asked.contains(&key) {
            return;
        }
        slot.asked.iter_mut().filter(|asked| **asked == key).for_each(|a| *a = NOBODY);
        slot.asked.sort_unstable(); // NOBODY is the highest
        if slot.asked[0] == NOBODY {
            slot.late = false;
            self.unasked += 1;
        }
    }

    /// Whether anybody was asked for a block that is not here.
    pub fn is_asked_for(&self) -> bool {
        self.missing > self.unasked
    }

    /// All blocks are here: what was received, read-only from now on.
    pub fn into_whole(self) -> Whole {
        assert!(self.is_whole(), "all blocks are here");
        let mut left = self.length as usize;
        let chunks = self.chunks.into_iter().map(|lease| {
            let lease = lease.expect("invariant: every block was asked for");
            let valid = left.min(CHUNK_BYTES as usize);
            left -= valid;
            lease.freeze(valid)
        });
        Whole {
            piece: self.piece,
            length: self.length,
            chunks: chunks.collect(),
            senders: self.senders,
            sent_by: self.slots.iter().map(|slot| slot.sender).collect(),
        }
    }
}

/// No chunk can be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

#[cfg(test)]
mod tests {
    use seedring_platform::memory::{Pool, PoolOptions};

    use super::*;

    const A: Key = Key(1);
    const B: Key = Key(2);

    fn by(key: Key) -> Sender {
        Sender { key, ip: Some([10, 0, 0, key.0 as u8].into()) }
    }

    const PIECE: PieceIndex = PieceIndex(3);

    fn pool() -> Pool {
        Pool::new(PoolOptions { cap_bytes: 1 << 20, huge_pages: false }).unwrap()
    }

    fn take(partial: &mut Partial, key: Key, block: Block, byte: u8) -> Option<Option<Key>> {
        let bytes = vec![byte; block.length as usize];
        let (first, rest) = bytes.split_at(100.min(bytes.len()));
        partial.data(key, block, 0, first);
        partial.data(key, block, 100, rest);
        partial.arrived(by(key), block)
    }

    #[test]
    fn blocks_of_several_peers_make_a_whole_piece() {
        let pool = pool();
        let length = (256 << 10) + 20_000;
        let mut partial = Partial::new(PIECE, length);
        let mut at = 0;
        while let Some(block) = partial.ask([A, B][at % 2], |class| pool.lease(class)).unwrap() {
            assert_eq!(block.begin, at as u32 * BLOCK_BYTES);
            assert_eq!(take(&mut partial, [A, B][at % 2], block, at as u8), Some(None));
            at += 1;
        }
        let whole = partial.into_whole();
        assert_eq!(whole.chunks.iter().map(|chunk| chunk.len()).sum::<usize>(), length as usize);
        assert_eq!(pool.leased_bytes(), Partial::buffer_bytes(length));
        assert!((0..at).all(|at| whole.block(at).iter().all(|byte| *byte == at as u8)));
        assert_eq!(whole.block(at - 1).len(), 20_000 - BLOCK_BYTES as usize);
        assert_eq!(
            (&whole.senders[..], whole.sent_by[2], whole.sent_by[3]),
            (&[by(A), by(B)][..], 0, 1)
        );
    }

    #[test]
    fn a_block_is_one_peers_work_whoever_else_sends_it() {
        let pool = pool();
        let mut partial = Partial::new(PIECE, BLOCK_BYTES);
        let block = partial.ask(A, |class| pool.lease(class)).unwrap().unwrap();
        assert_eq!(partial.ask_again(B, false), None, "it is not late");
        partial.is_late(block);
        assert_eq!((partial.ask_again(A, true), partial.ask_again(B, false)), (None, Some(block)));
        partial.data(A, block, 0, &[1; 100]);
        assert_eq!(take(&mut partial, B, block, 2), None, "it is coming from another peer");
        partial.data(A, block, 100, &vec![1; BLOCK_BYTES as usize - 100]);
        assert_eq!(partial.arrived(by(A), block), Some(None));
        assert!(partial.into_whole().block(0).iter().all(|byte| *byte == 1));
    }

    #[test]
    fn who_was_asked_too_is_named_so_that_it_can_be_cancelled() {
        let pool = pool();
        let mut partial = Partial::new(PIECE, BLOCK_BYTES);
        let block = partial.ask(A, |class| pool.lease(class)).unwrap().unwrap();
        partial.ask_again(B, true);
        assert_eq!(take(&mut partial, B, block, 2), Some(Some(A)));
        partial.returned(A, block); // its cancel was answered
        assert!(partial.is_whole());
    }

    #[test]
    fn what_a_peer_does_not_send_is_asked_of_others() {
        let pool = pool();
        let mut partial = Partial::new(PIECE, 2 * BLOCK_BYTES);
        let block = partial.ask(A, |class| pool.lease(class)).unwrap().unwrap();
        partial.data(A, block, 0, &[9; 500]);
        partial.returned(A, block);
        assert!(!partial.is_asked_for());
        assert_eq!(partial.ask(B, |class| pool.lease(class)), Ok(Some(block)));
        assert_eq!(take(&mut partial, A, block, 1), None, "it was not asked any more");
        assert_eq!(take(&mut partial, B, block, 1), Some(None));
    }

    #[test]
    fn who_stops_in_the_middle_of_a_block_does_not_hold_it() {
        let pool = pool();
        let mut partial = Partial::new(PIECE, BLOCK_BYTES);
        let block = partial.ask(A, |class| pool.lease(class)).unwrap().unwrap();
        partial.data(A, block, 0, &[1; 500]);
        assert_eq!(partial.ask_again(B, true), None, "it is coming");
        partial.is_late(block);
        assert_eq!(partial.ask_again(B, false), Some(block));
        partial.data(B, block, 0, &[2; 1_000]);
        partial.data(A, block, 500, &[1; 500]); // too late
        partial.data(B, block, 1_000, &vec![2; BLOCK_BYTES as usize - 1_000]);
        assert_eq!(partial.arrived(by(B), block), Some(Some(A)));
        assert!(partial.into_whole().block(0).iter().all(|byte| *byte == 2));
    }

    #[test]
    fn a_block_that_nobody_owes_any_more_is_free() {
        let pool = pool();
        let mut partial = Partial::new(PIECE, BLOCK_BYTES);
        let block = partial.ask(A, |class| pool.lease(class)).unwrap().unwrap();
        partial.ask_again(B, true);
        partial.data(B, block, 0, &[2; 500]);
        partial.data(A, block, 0, &[1; 500]); // B's are coming
        partial.returned(B, block); // and come no more
        partial.data(A, block, 500, &vec![1; BLOCK_BYTES as usize - 500]);
        assert_eq!(partial.arrived(by(A), block), None, "its beginning was not taken");
        assert!(partial.has_unasked());
        assert_eq!(partial.ask(A, |class| pool.lease(class)), Ok(Some(block)));
        assert_eq!(take(&mut partial, A, block, 1), Some(None));
    }

    #[test]
    fn without_memory_nothing_is_asked() {
        let pool = Pool::new(PoolOptions { cap_bytes: 256 << 10, huge_pages: false }).unwrap();
        let _all = pool.lease(Class::K256).unwrap();
        let mut partial = Partial::new(PIECE, BLOCK_BYTES);
        assert_eq!(partial.ask(A, |class| pool.lease(class)), Err(NoMemory));
        assert!(partial.has_unasked());
    }
}
