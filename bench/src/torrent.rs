//! Owns: what the load needs of a .torrent: info-hash, lengths, piece hashes, and its blocks by
//! number.
//! Never: looks at file names or trackers. Flow: read once, shared by all workers, read-only.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use seedring_proto::{
    bencode::{Document, Value},
    units::{Block, PieceIndex},
};
use sha1::{Digest, Sha1};

pub struct Torrent {
    pub info_hash: [u8; 20],
    pub total_bytes: u64,
    pub piece_bytes: u32,
    pub piece_hashes: Vec<[u8; 20]>,
}

impl Torrent {
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let bytes = fs::read(path).with_context(|| format!("cannot read the torrent {name}"))?;
        Self::parse(&bytes).with_context(|| format!("{name} is not a v1 torrent"))
    }

    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let document = Document::parse(bytes)?;
        let info = document.root().dict_get("info").context("no \"info\" dictionary")?;
        let hashes =
            info.dict_get("pieces").and_then(|value| value.as_bytes()).context("no \"pieces\"")?;
        let piece_hashes: Vec<[u8; 20]> = hashes.as_chunks::<20>().0.to_vec();
        let torrent = Torrent {
            info_hash: Sha1::digest(info.raw()).into(),
            total_bytes: total_bytes(info)?,
            piece_bytes: u32::try_from(positive(info, "piece length")?)?,
            piece_hashes,
        };
        ensure!(
            torrent.total_bytes.div_ceil(u64::from(torrent.piece_bytes))
                == torrent.piece_hashes.len() as u64
                && hashes.len().is_multiple_of(20),
            "\"pieces\" does not fit the length of the content"
        );
        Ok(torrent)
    }

    pub fn piece_length(&self, piece: PieceIndex) -> u32 {
        let start = u64::from(piece.0) * u64::from(self.piece_bytes);
        (self.total_bytes - start).min(u64::from(self.piece_bytes)) as u32
    }
}

fn positive(value: Value<'_, '_>, key: &str) -> Result<u64> {
    value
        .dict_get(key)
        .and_then(|value| value.as_int())
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0)
        .with_context(|| format!("no \"{key}\""))
}

fn total_bytes(info: Value<'_, '_>) -> Result<u64> {
    if let Some(files) = info.dict_get("files") {
        let mut total = 0_u64;
        for file in files.list() {
            let length = file.dict_get("length").and_then(|value| value.as_int());
            let length =
                length.and_then(|value| u64::try_from(value).ok()).context("a file's length")?;
            total = total.checked_add(length).context("lengths overflow")?;
        }
        return Ok(total);
    }
    positive(info, "length")
}

/// The torrent cut into blocks of one size, numbered from 0; a piece's last block may be short.
#[derive(Clone, Copy)]
pub struct Grid {
    block_bytes: u32,
    piece_bytes: u32,
    total_bytes: u64,
    blocks_per_piece: u32,
    pub blocks: u64,
}

impl Grid {
    pub fn new(torrent: &Torrent, block_bytes: u32) -> Self {
        let blocks_per_piece = torrent.piece_bytes.div_ceil(block_bytes);
        let pieces = torrent.piece_hashes.len() as u64;
        let last = torrent.total_bytes - (pieces - 1) * u64::from(torrent.piece_bytes);
        let blocks =
            (pieces - 1) * u64::from(blocks_per_piece) + last.div_ceil(u64::from(block_bytes));
        Grid {
            block_bytes,
            piece_bytes: torrent.piece_bytes,
            total_bytes: torrent.total_bytes,
            blocks_per_piece,
            blocks,
        }
    }

    pub fn block(&self, number: u64) -> Block {
        let piece = number / u64::from(self.blocks_per_piece);
        let begin = (number % u64::from(self.blocks_per_piece)) as u32 * self.block_bytes;
        let offset = piece * u64::from(self.piece_bytes) + u64::from(begin);
        let length = u64::from(self.block_bytes)
            .min(u64::from(self.piece_bytes - begin))
            .min(self.total_bytes - offset);
        Block { piece: PieceIndex(piece as u32), begin, length: length as u32 }
    }

    /// The numbers of a piece's blocks.
    pub fn of_piece(&self, piece: u64) -> std::ops::Range<u64> {
        let start = piece * u64::from(self.blocks_per_piece);
        start..(start + u64::from(self.blocks_per_piece)).min(self.blocks)
    }

    pub fn pieces(&self) -> u64 {
        self.total_bytes.div_ceil(u64::from(self.piece_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn torrent(total_bytes: u64, piece_bytes: u32) -> Torrent {
        let pieces = total_bytes.div_ceil(u64::from(piece_bytes)) as usize;
        Torrent {
            info_hash: [0; 20],
            total_bytes,
            piece_bytes,
            piece_hashes: vec![[0; 20]; pieces],
        }
    }

    #[test]
    fn blocks_cover_every_byte_once() {
        for (total, piece, block) in [
            (100_000, 32_768, 16_384),
            (98_304, 32_768, 16_384),
            (50_001, 20_000, 16_384),
            (1, 16, 8),
        ] {
            let torrent = torrent(total, piece);
            let grid = Grid::new(&torrent, block);
            let mut next = 0;
            for number in 0..grid.blocks {
                let block = grid.block(number);
                let offset = u64::from(block.piece.0) * u64::from(piece) + u64::from(block.begin);
                assert_eq!(offset, next);
                assert!(grid.of_piece(u64::from(block.piece.0)).contains(&number));
                next = offset + u64::from(block.length);
            }
            assert_eq!(next, total);
            let by_piece: u64 =
                (0..grid.pieces()).map(|piece| grid.of_piece(piece).count() as u64).sum();
            assert_eq!(by_piece, grid.blocks);
        }
    }
}
