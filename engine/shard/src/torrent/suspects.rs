//! Whose bytes the pieces that failed were made of.
//!
//! Owns: of each such piece the digest of every block and the address that it came from, for all
//! shards: whichever gets the piece whole next, and whether or not the sender is still connected.
//! Never: hashes, bans. Flow: a piece fails -> `keep`; it comes good -> `take`, and who sent other
//! bytes than those is to blame.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use seedring_proto::units::PieceIndex;

/// Pieces that are remembered: the oldest make room.
const PIECES_MAX: usize = 16;

/// A block's SHA-1, and who sent it. `None`: it was on disk.
pub type Sent = ([u8; 20], Option<IpAddr>);
type Pieces = Vec<(PieceIndex, Arc<[Sent]>)>;

/// A list that is replaced whole: it is short, and changes only where a piece has failed.
#[derive(Default)]
pub struct Suspects(ArcSwapOption<Pieces>);

impl Suspects {
    fn change(&self, change: impl Fn(&mut Pieces)) {
        self.0.rcu(|all| {
            let mut all = all.as_deref().cloned().unwrap_or_default();
            change(&mut all);
            (!all.is_empty()).then(|| Arc::new(all))
        });
    }

    /// A piece failed: it was made of these. An older failure of the same piece goes.
    pub fn keep(&self, piece: PieceIndex, blocks: Arc<[Sent]>) {
        self.change(|all| {
            all.retain(|(other, _)| *other != piece);
            if all.len() == PIECES_MAX {
                all.remove(0);
            }
            all.push((piece, blocks.clone()));
        });
    }

    /// The piece is good now: of what it was made when it failed. Who has claimed a piece is the
    /// only one that asks for it.
    pub fn take(&self, piece: PieceIndex) -> Option<Arc<[Sent]>> {
        let all = self.0.load();
        let (_, blocks) = all.as_deref()?.iter().find(|(other, _)| *other == piece)?;
        let blocks = blocks.clone();
        self.change(|all| all.retain(|(other, _)| *other != piece));
        Some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_of_a_piece_counts_and_the_oldest_pieces_make_room() {
        let suspects = Suspects::default();
        let sent = |digest: u8| Arc::new([([digest; 20], None)]) as Arc<[Sent]>;
        assert!(suspects.take(PieceIndex(0)).is_none());
        suspects.keep(PieceIndex(0), sent(1));
        suspects.keep(PieceIndex(0), sent(2));
        assert_eq!(suspects.take(PieceIndex(0)), Some(sent(2)));
        assert!(suspects.take(PieceIndex(0)).is_none(), "once");
        (0..=PIECES_MAX as u32).for_each(|piece| suspects.keep(PieceIndex(piece), sent(3)));
        assert!(suspects.take(PieceIndex(0)).is_none());
        assert!(suspects.take(PieceIndex(1)).is_some());
    }
}
