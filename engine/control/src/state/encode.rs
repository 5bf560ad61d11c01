//! File stamps and kept blocks as bytes.
//!
//! Owns: 17 bytes a file: a flag, size (u64 LE), modification time in ns (i64 LE); of each piece in
//! part its number, its slot, the length of its bits (u32 LE each), its bits. Never: what they
//! mean. Flow: store thread writes, `load` reads.

use seedring_proto::units::PieceIndex;
use seedring_shard::torrent::{KeptPiece, Stamp};

const BYTES: usize = 17;

pub fn stamps(stamps: &[Option<Stamp>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(stamps.len() * BYTES);
    for stamp in stamps {
        let (flag, size, time) = match stamp {
            Some(stamp) => (1, stamp.size_bytes, stamp.modified_ns as i64),
            None => (0, 0, 0),
        };
        bytes.push(flag);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&time.to_le_bytes());
    }
    bytes
}

pub fn kept(pieces: &[KeptPiece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for KeptPiece { piece, slot, blocks } in pieces {
        for number in [piece.0, *slot, blocks.len() as u32] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(blocks);
    }
    bytes
}

/// What can be read of it: the rest is fetched again.
pub fn parse_kept(mut bytes: &[u8]) -> Vec<KeptPiece> {
    let mut pieces = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<12>() {
        let number = |at: usize| {
            let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            u32::from_le_bytes(bytes)
        };
        let Some((blocks, rest)) = rest.split_at_checked(number(8) as usize) else { break };
        pieces.push(KeptPiece {
            piece: PieceIndex(number(0)),
            slot: number(4),
            blocks: blocks.into(),
        });
        bytes = rest;
    }
    pieces
}

/// `None`: not something that `stamps` wrote.
pub fn parse_stamps(bytes: &[u8]) -> Option<Vec<Option<Stamp>>> {
    if !bytes.len().is_multiple_of(BYTES) {
        return None;
    }
    let mut stamps = Vec::with_capacity(bytes.len() / BYTES);
    for row in bytes.chunks_exact(BYTES) {
        let size_bytes = u64::from_le_bytes(row[1..9].try_into().ok()?);
        let modified_ns = i128::from(i64::from_le_bytes(row[9..17].try_into().ok()?));
        stamps.push(match row[0] {
            0 => None,
            1 => Some(Stamp { size_bytes, modified_ns }),
            _ => return None,
        });
    }
    Some(stamps)
}
