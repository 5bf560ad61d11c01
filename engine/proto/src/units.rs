//! Owns: the small values every room counts in: info-hash, peer id, piece and file index, block.
//! Never: knows a file format or a message; holds anything that needs dropping.
//! Flow: parsers make them, layout and the peer machines reckon with them, logs print them.

use std::fmt;
use std::str::FromStr;

/// What a request asks for at most in practice: every client uses 16 KiB (BEP 3).
pub const BLOCK_BYTES: u32 = 16384;

/// SHA-1 of the raw `info` dictionary (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash(pub [u8; 20]);

/// The 20 bytes a client chooses for itself (BEP 20).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 20]);

/// Position of a piece in its torrent, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PieceIndex(pub u32);

/// Position of a file in its torrent, from 0, padding files counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileIndex(pub u32);

/// Part of a piece, as requests name it: `begin` and `length` in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Block {
    pub piece: PieceIndex,
    pub begin: u32,
    pub length: u32,
}

/// Why text is not an info-hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InfoHashError {
    #[error("an info-hash is 40 hexadecimal digits, this has {0} bytes")]
    HexLength(usize),
    #[error("a base32 info-hash is 32 characters, this has {0} bytes")]
    Base32Length(usize),
    #[error("byte {0} of the info-hash is not a digit of its alphabet")]
    Digit(usize),
}

impl InfoHash {
    /// The form that old magnet links carry: 32 characters of RFC 4648 base32, either case.
    ///
    /// # Errors
    /// Another length, or a character outside A-Z and 2-7.
    pub fn from_base32(text: &str) -> Result<Self, InfoHashError> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(InfoHashError::Base32Length(digits.len()));
        }
        let mut hash = [0u8; 20];
        let mut held: u32 = 0;
        let mut held_bits = 0;
        let mut filled = 0;
        for (at, digit) in digits.iter().enumerate() {
            let value = match digit.to_ascii_uppercase() {
                letter @ b'A'..=b'Z' => letter - b'A',
                figure @ b'2'..=b'7' => figure - b'2' + 26,
                _ => return Err(InfoHashError::Digit(at)),
            };
            held = (held << 5) | u32::from(value);
            held_bits += 5;
            if held_bits >= 8 {
                held_bits -= 8;
                hash[filled] = (held >> held_bits) as u8;
                filled += 1;
            }
        }
        Ok(Self(hash))
    }
}

impl FromStr for InfoHash {
    type Err = InfoHashError;

    fn from_str(text: &str) -> Result<Self, InfoHashError> {
        let digits = text.as_bytes();
        if digits.len() != 40 {
            return Err(InfoHashError::HexLength(digits.len()));
        }
        let mut hash = [0u8; 20];
        for (at, digit) in digits.iter().enumerate() {
            let value = (*digit as char).to_digit(16).ok_or(InfoHashError::Digit(at))?;
            hash[at / 2] = (hash[at / 2] << 4) | value as u8;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Printable ASCII as it is, every other byte as `\xNN`: safe in a log line.
impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for FileIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_hash_prints_and_parses_hex() {
        let text = "0123456789abcdef0123456789abcdeffedcba98";
        let hash: InfoHash = text.parse().expect("valid");
        assert_eq!(hash.0[..4], [0x01, 0x23, 0x45, 0x67]);
        assert_eq!(hash.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<InfoHash>(), Ok(hash));
        assert_eq!(text[1..].parse::<InfoHash>(), Err(InfoHashError::HexLength(39)));
        let wrong = text.replace('f', "g");
        assert_eq!(wrong.parse::<InfoHash>(), Err(InfoHashError::Digit(15)));
    }

    // Figures from Python: base64.b32encode(bytes(range(20))).
    #[test]
    fn info_hash_parses_base32() {
        let hash = InfoHash(std::array::from_fn(|at| at as u8));
        assert_eq!(InfoHash::from_base32("AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQT"), Ok(hash));
        assert_eq!(InfoHash::from_base32("aaaqeayeaudaocajbifqydiob4ibceqt"), Ok(hash));
        let wrong = "1AAQEAYEAUDAOCAJBIFQYDIOB4IBCEQT";
        assert_eq!(InfoHash::from_base32(wrong), Err(InfoHashError::Digit(0)));
        assert_eq!(InfoHash::from_base32("AA"), Err(InfoHashError::Base32Length(2)));
    }

    #[test]
    fn peer_id_is_safe_to_print() {
        let mut id = *b"-SR0100-0123456789ab";
        id[19] = 0x1b;
        assert_eq!(PeerId(id).to_string(), "-SR0100-0123456789a\\x1b");
    }
}
