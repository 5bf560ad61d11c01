//! Owns: the 68 bytes that open a connection (BEP 3) and their capability bits (BEP 5, 6, 10).
//! Never: decides whether a torrent is known or a peer wanted.
//! Flow: a connection gathers bytes until `parse` gives a handshake, then is placed and answered.

use std::time::Duration;

use crate::units::{InfoHash, PeerId};
use crate::wire::Violation;

const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";

/// Eight bytes of capabilities. Bits that nobody here knows are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Reserved(pub [u8; 8]);

impl Reserved {
    /// What this program says of itself: fast extension and extension protocol.
    pub const OURS: Self = Self([0, 0, 0, 0, 0, 0x10, 0, 0x04]);

    /// BEP 6.
    pub const fn fast(self) -> bool {
        self.0[7] & 0x04 != 0
    }

    /// BEP 10.
    pub const fn extended(self) -> bool {
        self.0[5] & 0x10 != 0
    }

    /// BEP 5.
    pub const fn dht(self) -> bool {
        self.0[7] & 0x01 != 0
    }

    pub const fn with_dht(mut self) -> Self {
        self.0[7] |= 0x01;
        self
    }
}

/// What both sides say first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handshake {
    pub reserved: Reserved,
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
}

impl Handshake {
    /// Bytes of every handshake.
    pub const LEN: usize = 68;
    /// From accept to the last byte. A total, so that a byte a second does not hold a connection.
    pub const DEADLINE: Duration = Duration::from_secs(10);

    /// Reads the handshake at the front; `None` until there are [`Handshake::LEN`] bytes.
    ///
    /// # Errors
    /// As soon as the bytes there cannot become the protocol string.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Violation> {
        let known = bytes.len().min(PROTOCOL.len());
        if bytes[..known] != PROTOCOL[..known] {
            return Err(Violation::NotBitTorrent);
        }
        let Some((reserved, rest)) = bytes[known..].split_first_chunk::<8>() else {
            return Ok(None);
        };
        let Some((info_hash, rest)) = rest.split_first_chunk::<20>() else {
            return Ok(None);
        };
        Ok(rest.first_chunk::<20>().map(|peer_id| Self {
            reserved: Reserved(*reserved),
            info_hash: InfoHash(*info_hash),
            peer_id: PeerId(*peer_id),
        }))
    }

    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..20].copy_from_slice(PROTOCOL);
        bytes[20..28].copy_from_slice(&self.reserved.0);
        bytes[28..48].copy_from_slice(&self.info_hash.0);
        bytes[48..].copy_from_slice(&self.peer_id.0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Handshake {
        Handshake {
            reserved: Reserved::OURS,
            info_hash: InfoHash([7; 20]),
            peer_id: PeerId(*b"-SR0100-0123456789ab"),
        }
    }

    #[test]
    fn bits_are_where_the_beps_put_them() {
        assert!(Reserved([0, 0, 0, 0, 0, 0, 0, 4]).fast());
        assert!(Reserved([0, 0, 0, 0, 0, 0x10, 0, 0]).extended());
        assert!(Reserved([0, 0, 0, 0, 0, 0, 0, 1]).dht());
        let ours = Reserved::OURS;
        assert!(ours.fast() && ours.extended() && !ours.dht() && ours.with_dht().dht());
        let none = Reserved([0xff, 0xff, 0xff, 0xff, 0xff, 0xef, 0xff, 0xfa]);
        assert!(!none.fast() && !none.extended() && !none.dht());
    }

    #[test]
    fn every_prefix_asks_for_more_and_the_whole_parses() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..20], b"\x13BitTorrent protocol");
        for end in 0..Handshake::LEN {
            assert_eq!(Handshake::parse(&bytes[..end]), Ok(None), "{end} bytes");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Handshake::parse(&longer), Ok(Some(sample())));
    }

    #[test]
    fn a_wrong_byte_is_refused_as_soon_as_it_is_there() {
        let bytes = sample().encode();
        for wrong in 0..20 {
            let mut bytes = bytes;
            bytes[wrong] ^= 0x20;
            assert_eq!(Handshake::parse(&bytes[..wrong]), Ok(None));
            assert_eq!(Handshake::parse(&bytes[..=wrong]), Err(Violation::NotBitTorrent));
        }
        assert_eq!(Handshake::parse(b"GET / HTTP/1.1"), Err(Violation::NotBitTorrent));
    }
}
