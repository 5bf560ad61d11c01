//! Piece hashing: SHA-1 of many pieces side by side, each as its bytes arrive.
//!
//! Owns: the state of a piece that is being hashed, and the interface to all hashing of pieces.
//! Never: what is expected (verify compares), where bytes come from. Flow: whoever has bytes of
//! several pieces hands them to `update_many` together; `lanes` cuts them into steps, `pace`
//! says which of the `kernels` runs each.
//!
//! SHA-1 is serial: a stream uses a part of the core. Whoever has several pieces at hand should
//! therefore hash them together: 16 take three to six times as long as one (decision 0010).

mod kernels;
mod lanes;
mod pace;
#[cfg(test)]
mod tests;

pub use kernels::Kernel;
pub use lanes::{Feed, update_at, update_many};
pub use pace::Pace;

pub type Sha1Hash = [u8; 20];

const BLOCK_BYTES: usize = 64;
type Block = [u8; BLOCK_BYTES];
type State = [u32; 5];

/// FIPS 180-4, 5.3.1.
const INITIAL: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
/// Where the length stands in the last block.
const LENGTH_AT: usize = BLOCK_BYTES - 8;

/// Hashes each input whole. The order of the results is the order of the inputs.
pub fn sha1_many(inputs: &[&[u8]]) -> Vec<Sha1Hash> {
    let mut hashers = vec![PieceHasher::new(); inputs.len()];
    let pairs = hashers.iter_mut().zip(inputs);
    let mut feeds: Vec<Feed> =
        pairs.map(|(hasher, input)| Feed { hasher, parts: std::slice::from_ref(input) }).collect();
    update_many(&mut feeds);
    hashers.into_iter().map(PieceHasher::finish).collect()
}

/// One piece, hashed as its bytes arrive: alone with `update`, beside others with `update_many`.
#[derive(Clone)]
pub struct PieceHasher {
    state: State,
    /// Bytes taken in, those in `tail` included.
    length: u64,
    /// What is left over after the last whole block: `length` modulo 64 bytes of it.
    tail: Block,
}

impl Default for PieceHasher {
    fn default() -> PieceHasher {
        PieceHasher { state: INITIAL, length: 0, tail: [0; BLOCK_BYTES] }
    }
}

impl PieceHasher {
    pub fn new() -> PieceHasher {
        PieceHasher::default()
    }

    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        let (blocks, rest) = self.complete_tail(bytes).as_chunks();
        kernels::single(&mut self.state, blocks);
        self.took(blocks.len());
        self.keep(rest);
        self
    }

    pub fn finish(mut self) -> Sha1Hash {
        let held = self.held();
        let bits = self.length * 8;
        self.tail[held..].fill(0);
        self.tail[held] = 0x80;
        if held >= LENGTH_AT {
            kernels::single(&mut self.state, &[self.tail]);
            self.tail = [0; BLOCK_BYTES];
        }
        self.tail[LENGTH_AT..].copy_from_slice(&bits.to_be_bytes());
        kernels::single(&mut self.state, &[self.tail]);
        let mut hash = [0; 20];
        for (bytes, word) in hash.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        hash
    }

    fn held(&self) -> usize {
        (self.length % BLOCK_BYTES as u64) as usize
    }

    /// Fills up a block that was begun; returns what is left of `bytes`. Either nothing is left, or
    /// the tail is empty.
    fn complete_tail<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let held = self.held();
        if held == 0 {
            return bytes;
        }
        let (head, left) = bytes.split_at(bytes.len().min(BLOCK_BYTES - held));
        self.keep(head);
        if self.held() == 0 && !head.is_empty() {
            kernels::single(&mut self.state, &[self.tail]);
        }
        left
    }

    /// Puts bytes into the tail, which has room for them.
    fn keep(&mut self, bytes: &[u8]) {
        let held = self.held();
        self.tail[held..held + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u64;
    }

    /// The state went over this many blocks of the input.
    fn took(&mut self, blocks: usize) {
        debug_assert!(
            blocks == 0 || self.held() == 0,
            "blocks hashed before what came before them"
        );
        self.length += (blocks * BLOCK_BYTES) as u64;
    }
}
