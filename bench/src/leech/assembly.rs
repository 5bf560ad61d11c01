//! Owns: pieces being put together by a connection that verifies, and their hashing.
//! Never: holds more pieces than there are requests outstanding. Flow: inbound fills, `arrived`
//! hashes.

use std::collections::HashMap;

use seedring_proto::units::Block;
use sha1::{Digest, Sha1};

use super::sample::Sample;
use crate::torrent::Torrent;

pub struct Assembly {
    sample: Sample,
    open: HashMap<u32, Piece>,
    /// Buffers of finished pieces, to be used again.
    spare: Vec<Vec<u8>>,
}

struct Piece {
    bytes: Vec<u8>,
    missing_bytes: u32,
}

impl Assembly {
    /// Of the pieces in the sample.
    pub fn new(sample: Sample) -> Self {
        Assembly { sample, open: HashMap::new(), spare: Vec::new() }
    }

    /// Whether this block's piece is hashed.
    pub fn wants(&self, block: Block) -> bool {
        self.sample.has(block.piece)
    }

    /// Where this block's bytes go.
    pub fn slot(&mut self, torrent: &Torrent, block: Block) -> &mut [u8] {
        let spare = &mut self.spare;
        let piece = self.open.entry(block.piece.0).or_insert_with(|| {
            let length = torrent.piece_length(block.piece);
            let mut bytes = spare.pop().unwrap_or_default();
            bytes.resize(length as usize, 0);
            Piece { bytes, missing_bytes: length }
        });
        &mut piece.bytes[block.begin as usize..][..block.length as usize]
    }

    /// A block is whole. `Some(good)` when that finished its piece.
    pub fn arrived(&mut self, torrent: &Torrent, block: Block) -> Option<bool> {
        let piece = self.open.get_mut(&block.piece.0)?;
        piece.missing_bytes = piece.missing_bytes.saturating_sub(block.length);
        if piece.missing_bytes > 0 {
            return None;
        }
        let piece = self.open.remove(&block.piece.0)?;
        let good = Sha1::digest(&piece.bytes)[..] == torrent.piece_hashes[block.piece.0 as usize];
        self.spare.push(piece.bytes);
        Some(good)
    }
}

#[cfg(test)]
mod tests {
    use seedring_proto::units::PieceIndex;

    use super::*;

    #[test]
    fn a_flipped_byte_is_found() {
        let bytes: Vec<u8> = (0..40_u8).collect();
        let torrent = Torrent {
            info_hash: [0; 20],
            total_bytes: 40,
            piece_bytes: 32,
            piece_hashes: bytes.chunks(32).map(|piece| Sha1::digest(piece).into()).collect(),
        };
        for flip in [false, true] {
            let mut assembly = Assembly::new(Sample::ALL);
            let mut verdicts = Vec::new();
            for begin in [16_u32, 0] {
                let block = Block { piece: PieceIndex(0), begin, length: 16 };
                let source = &bytes[begin as usize..][..16];
                assembly.slot(&torrent, block).copy_from_slice(source);
                if flip {
                    assembly.slot(&torrent, block)[3] ^= 1;
                }
                verdicts.push(assembly.arrived(&torrent, block));
            }
            assert_eq!(verdicts, [None, Some(!flip)]);
            assert!(assembly.open.is_empty());
        }
    }
}
