//! Owns: the pieces that a choked peer may have anyway (BEP 6), and how much of them it had.
//! Never: depends on anything but address and torrent: a peer that comes again gets the same set.
//! Flow: drawn when a session opens, asked for each request of a choked peer.

use std::net::IpAddr;

use sha1::{Digest, Sha1};

use crate::units::{Block, InfoHash, PieceIndex};

/// Pieces of a set at most; BEP 6 takes 10.
pub const ALLOWED_FAST_MAX: usize = 10;
/// A choked peer gets the bytes of its set this many times, then must wait for its turn.
const SERVED_TIMES: u64 = 3;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct AllowedFast {
    pieces: [u32; ALLOWED_FAST_MAX],
    len: u8,
    bytes_left: u64,
}

impl AllowedFast {
    /// Draws at most `wanted` pieces.
    pub fn new(ip: IpAddr, info_hash: InfoHash, piece_count: u32, wanted: usize) -> Self {
        let wanted = wanted.min(ALLOWED_FAST_MAX).min(piece_count as usize);
        let mut set = Self::default();
        let mut digest: [u8; 20] = {
            let mut hasher = Sha1::new();
            match ip {
                IpAddr::V4(ip) => {
                    hasher.update([ip.octets()[0], ip.octets()[1], ip.octets()[2], 0])
                }
                // BEP 6 knows IPv4 only. A network of one subscriber is a /64, so one set for it.
                IpAddr::V6(ip) => hasher.update(&ip.octets()[..8]),
            }
            hasher.update(info_hash.0);
            hasher.finalize().into()
        };
        while usize::from(set.len) < wanted {
            for number in digest.chunks_exact(4) {
                let number = u32::from_be_bytes([number[0], number[1], number[2], number[3]]);
                let piece = PieceIndex(number % piece_count);
                if usize::from(set.len) < wanted && !set.contains(piece) {
                    set.pieces[usize::from(set.len)] = piece.0;
                    set.len += 1;
                }
            }
            digest = Sha1::digest(digest).into();
        }
        set
    }

    /// Drops pieces that are not offered and sets what may be served of the others.
    pub fn keep(
        &mut self,
        offered: impl Fn(PieceIndex) -> bool,
        length: impl Fn(PieceIndex) -> u32,
    ) {
        let before = self.clone();
        self.len = 0;
        self.bytes_left = 0;
        for piece in before.iter().filter(|piece| offered(*piece)) {
            self.pieces[usize::from(self.len)] = piece.0;
            self.len += 1;
            self.bytes_left += SERVED_TIMES * u64::from(length(piece));
        }
    }

    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.pieces[..usize::from(self.len)].iter().map(|piece| PieceIndex(*piece))
    }

    pub fn contains(&self, piece: PieceIndex) -> bool {
        self.pieces[..usize::from(self.len)].contains(&piece.0)
    }

    /// Counts a request of a choked peer; false where it may not have the block.
    pub fn admit(&mut self, block: Block) -> bool {
        let bytes = u64::from(block.length);
        let admitted = self.contains(block.piece) && bytes <= self.bytes_left;
        if admitted {
            self.bytes_left -= bytes;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(piece_count: u32, wanted: usize) -> Vec<u32> {
        let ip = IpAddr::from([80, 4, 4, 200]);
        let set = AllowedFast::new(ip, InfoHash([0xaa; 20]), piece_count, wanted);
        set.iter().map(|piece| piece.0).collect()
    }

    // The two example sets of BEP 6.
    #[test]
    fn the_examples_of_bep_6() {
        assert_eq!(drawn(1313, 7), [1059, 431, 808, 1217, 287, 376, 1188]);
        assert_eq!(drawn(1313, 9), [1059, 431, 808, 1217, 287, 376, 1188, 353, 508]);
    }

    #[test]
    fn small_torrents_give_all_their_pieces() {
        let mut all = drawn(3, 10);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
        assert!(drawn(0, 10).is_empty());
        assert_eq!(drawn(1000, 99).len(), ALLOWED_FAST_MAX);
    }

    #[test]
    fn a_network_shares_a_set() {
        let sets = [[80, 4, 4, 1], [80, 4, 4, 250], [80, 4, 5, 1]].map(|ip| {
            let set = AllowedFast::new(ip.into(), InfoHash([1; 20]), 100_000, 5);
            set.iter().collect::<Vec<_>>()
        });
        assert_eq!(sets[0], sets[1]);
        assert_ne!(sets[0], sets[2]);
    }

    #[test]
    fn a_set_is_served_three_times() {
        let mut set = AllowedFast::new([80, 4, 4, 200].into(), InfoHash([0xaa; 20]), 1313, 2);
        set.keep(|piece| piece.0 == 431, |_| 16384);
        let block = |piece| Block { piece: PieceIndex(piece), begin: 0, length: 16384 };
        assert!(!set.admit(block(1059)), "not offered");
        for _ in 0..SERVED_TIMES {
            assert!(set.admit(block(431)));
        }
        assert!(!set.admit(block(431)));
    }
}
