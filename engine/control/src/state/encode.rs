//! File stamps as bytes.
//!
//! Owns: 17 bytes a file: a flag, size (u64 LE), modification time in ns (i64 LE). Never: what they
//! mean.
//! Flow: store thread writes, `load` reads.

use seedring_shard::torrent::Stamp;

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
