//! Pieces that an earlier run left in part: taken up first.
//!
//! Owns: which of them a peer is asked for. Never: reads. Flow: `ask` wants a piece -> one that was
//! left -> its buffer waits for what is on disk.

use seedring_platform::memory::{Class, Lease};
use seedring_proto::units::PieceIndex;

use super::Part;

impl super::super::Fetch {
    pub(in super::super) fn part(&self) -> Part<'_> {
        Part { shared: &self.shared, contents: &self.contents, download: &self.download }
    }

    /// A piece that an earlier run left in part, and that this peer has.
    pub(in super::super) fn left_behind(
        &self,
        may: impl Fn(PieceIndex) -> bool,
        claim: impl Fn(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        let wanted = |piece: &PieceIndex| self.download.priority(*piece) > 0 && may(*piece);
        self.download.kept.waiting().find(|piece| wanted(piece) && claim(*piece))
    }

    /// What was left of a piece that was just claimed; its buffer waits for it.
    pub(in super::super) fn take_left(
        &mut self,
        piece: PieceIndex,
        lease: impl FnMut(Class) -> Option<Lease>,
    ) {
        let Some(kept) = self.download.kept.take(piece) else { return };
        let Some(partial) = self.partials.get_mut(&piece) else { return };
        if kept.fits(partial.length()) {
            partial.reserve(kept.numbers(), lease);
            self.to_restore.push(kept.clone());
        }
    }
}
