//! Owns: the few messages the load speaks, as bytes (BEP 3, BEP 6, BEP 10).
//! Never: holds payload. Flow: connection writes handshake and requests here, inbound reads heads;
//! `seed.rs` answers with the same words.

use anyhow::{Result, ensure};
use seedring_proto::units::Block;

pub const HANDSHAKE_BYTES: usize = 68;
/// Length prefix, id, piece, offset: what comes before a block's bytes.
pub const PIECE_HEAD_BYTES: usize = 13;
/// The longest message read whole: a reject (BEP 6).
pub const SMALL_BYTES_MAX: usize = 17;
/// A message longer than this is taken for a broken stream: a bitfield of 16 million pieces fits.
pub const MESSAGE_BYTES_MAX: u32 = 2 << 20;

pub mod id {
    pub const CHOKE: u8 = 0;
    pub const UNCHOKE: u8 = 1;
    pub const INTERESTED: u8 = 2;
    pub const NOT_INTERESTED: u8 = 3;
    pub const HAVE: u8 = 4;
    pub const BITFIELD: u8 = 5;
    pub const REQUEST: u8 = 6;
    pub const PIECE: u8 = 7;
    pub const HAVE_NONE: u8 = 15;
    pub const REJECT: u8 = 16;
    pub const EXTENDED: u8 = 20;
}

const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";
/// Reserved byte 7: fast extension (BEP 6).
const FAST: u8 = 0x04;
/// Reserved byte 5: extension protocol (BEP 10).
const EXTENSIONS: u8 = 0x10;

/// Our handshake: fast extension, no extension protocol, so that nobody gossips with the load.
pub fn handshake(info_hash: &[u8; 20], peer_id: &[u8; 20]) -> [u8; HANDSHAKE_BYTES] {
    let mut bytes = [0; HANDSHAKE_BYTES];
    bytes[..20].copy_from_slice(PROTOCOL);
    bytes[27] = FAST;
    bytes[28..48].copy_from_slice(info_hash);
    bytes[48..].copy_from_slice(peer_id);
    bytes
}

/// Whether a handshake offers the extension protocol (BEP 10), and makes one of ours do so.
pub fn has_extensions(handshake: &[u8; HANDSHAKE_BYTES]) -> bool {
    handshake[25] & EXTENSIONS != 0
}

pub fn set_extensions(handshake: &mut [u8; HANDSHAKE_BYTES]) {
    handshake[25] |= EXTENSIONS;
}

/// Checks the target's handshake; says whether it speaks the fast extension.
pub fn read_handshake(bytes: &[u8], info_hash: &[u8; 20]) -> Result<bool> {
    ensure!(bytes.starts_with(PROTOCOL), "the target's handshake is not BitTorrent's");
    ensure!(&bytes[28..48] == info_hash, "the target answered with another info-hash");
    Ok(bytes[27] & FAST != 0)
}

pub fn push_request(out: &mut Vec<u8>, block: Block) {
    out.extend_from_slice(&[0, 0, 0, 13, id::REQUEST]);
    out.extend_from_slice(&block.piece.0.to_be_bytes());
    out.extend_from_slice(&block.begin.to_be_bytes());
    out.extend_from_slice(&block.length.to_be_bytes());
}

pub fn push_interested(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0, 1, id::INTERESTED]);
}

/// After a handshake with the fast extension a bitfield, have-all or have-none is due.
pub fn push_have_none(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0, 1, id::HAVE_NONE]);
}

pub fn push_keep_alive(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}

pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What the bytes at the start of a message say.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// Not yet: this many bytes from the message's start are needed.
    Need(usize),
    KeepAlive,
    /// A block follows: `length` bytes after the 13 of the head.
    Piece {
        piece: u32,
        begin: u32,
        length: u32,
    },
    /// Whole in the bytes given: id, and the message's length with its prefix.
    Small {
        id: u8,
        bytes: usize,
    },
    /// Not of interest and not whole: `bytes` with its prefix.
    Long {
        bytes: usize,
    },
    /// No message looks like this.
    Broken,
}

/// Reads the head of the message that `bytes` begins with.
pub fn head(bytes: &[u8]) -> Head {
    if bytes.len() < 4 {
        return Head::Need(4);
    }
    let length = word(bytes, 0);
    if length == 0 {
        return Head::KeepAlive;
    }
    if length > MESSAGE_BYTES_MAX {
        return Head::Broken;
    }
    let Some(&message) = bytes.get(4) else { return Head::Need(5) };
    let whole = 4 + length as usize;
    let fixed = match message {
        0..=3 | 14 | 15 => Some(1),
        4 | 13 | 17 => Some(5),
        6 | 8 | 16 => Some(13),
        9 => Some(3),
        _ => None,
    };
    if fixed.is_some_and(|fixed| fixed != length) || message > 23 {
        return Head::Broken;
    }
    if message == id::PIECE {
        if length < 9 {
            return Head::Broken;
        }
        if bytes.len() < PIECE_HEAD_BYTES {
            return Head::Need(PIECE_HEAD_BYTES);
        }
        let (piece, begin) = (word(bytes, 5), word(bytes, 9));
        return Head::Piece { piece, begin, length: length - 9 };
    }
    if whole <= bytes.len() {
        return Head::Small { id: message, bytes: whole };
    }
    if whole <= SMALL_BYTES_MAX { Head::Need(whole) } else { Head::Long { bytes: whole } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedring_proto::units::PieceIndex;

    #[test]
    fn heads_are_told_apart() {
        assert_eq!(head(&[0, 0, 0]), Head::Need(4));
        assert_eq!(head(&[0; 4]), Head::KeepAlive);
        assert_eq!(head(&[0, 0, 0, 1, 1, 9]), Head::Small { id: id::UNCHOKE, bytes: 5 });
        assert_eq!(head(&[0, 0, 0, 2, 1, 9]), Head::Broken);
        assert_eq!(head(&[0, 0, 0, 13, 16]), Head::Need(17));
        assert_eq!(head(&[0, 0, 1, 1, 5]), Head::Long { bytes: 261 });
        assert_eq!(head(&[0x70, 0, 1, 1, 5]), Head::Broken);
        let piece = [0, 0, 0x40, 9, 7, 0, 0, 0, 5, 0, 0, 0x40, 0];
        assert_eq!(head(&piece[..12]), Head::Need(13));
        assert_eq!(head(&piece), Head::Piece { piece: 5, begin: 16_384, length: 16_384 });
    }

    #[test]
    fn a_request_is_seventeen_bytes() {
        let mut out = Vec::new();
        push_request(&mut out, Block { piece: PieceIndex(1), begin: 2, length: 3 });
        assert_eq!(out, [0, 0, 0, 13, 6, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
    }
}
