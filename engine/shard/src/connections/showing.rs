//! Pieces shown to peers one by one (BEP 16).
//!
//! Owns: what proto's machine hears of a super seed's peers, and what it has shown to them.
//! Never: which piece is shown to whom (proto's `swarm/super_seed`). Flow: a connection opens as
//! one of a seed that hides -> its pieces -> `have` of one more.

use std::sync::atomic::Ordering;

use seedring_platform::op::{Io, Shutdown};
use seedring_proto::{peer::session::Event as Said, units::PieceIndex};

use super::{Key, Stage};
use crate::{shard::Shard, torrent::TorrentId};

/// Peers of a larger torrent are closed when all is to be shown: who comes anew gets a bitfield
/// instead of so many `have` (9 bytes each).
const HAVES_MAX: u32 = 16_384;

impl<I: Io> Shard<I> {
    /// Whether a piece was shown to a peer; `None`: it is told of all there is.
    pub(crate) fn is_shown(&self, id: TorrentId, key: Key, piece: PieceIndex) -> Option<bool> {
        let seed = self.torrents.get(&id)?.super_seed.as_ref()?;
        seed.is_known(key).then(|| seed.is_shown(key, piece))
    }

    /// What a peer says that it has, where pieces are shown one by one.
    pub(crate) fn leech_said(&mut self, key: Key, said: Said) {
        if !matches!(said, Said::Have(_) | Said::Pieces | Said::DontHave(_)) {
            return;
        }
        let now = self.io.now();
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        let id = open.torrent;
        let Some(local) = self.torrents.get_mut(&id) else { return };
        let Some(seed) = local.super_seed.as_mut().filter(|seed| seed.is_known(key)) else {
            return;
        };
        match said {
            Said::Have(piece) => seed.got(key, piece, now),
            Said::DontHave(piece) => seed.lost(key, piece),
            _ => seed.has(key, open.session.pieces(), now),
        }
        self.show_pieces(id);
    }

    /// Shows what the machine says is to be shown now.
    pub(crate) fn show_pieces(&mut self, id: TorrentId) {
        let now = self.io.now();
        let Some(local) = self.torrents.get_mut(&id) else { return };
        let Some(seed) = &mut local.super_seed else { return };
        if seed.others_seed() || !local.shared.super_seeding.load(Ordering::Relaxed) {
            return self.show_all(id);
        }
        let (pieces, contents) = (&local.shared.pieces, &local.contents);
        let contents = contents.as_ref().expect("invariant: kept while a peer is here");
        let offered = |piece: &PieceIndex| pieces.is_offered(*piece);
        let bytes = |piece| Some(piece).filter(offered).map(|p| contents.layout.piece_length(p));
        for (key, piece) in seed.next(now, bytes) {
            let Some(connection) = self.connections.get(key) else { continue };
            let Stage::Open(open) = &mut connection.stage else { continue };
            open.session.have(piece, &mut connection.out);
            self.enqueue(key);
        }
    }

    /// Something was served to a connection.
    pub(crate) fn show_next(&mut self, key: Key) {
        if self.showing
            && let Some(open) = self.connections.get(key).and_then(|c| c.open())
        {
            let id = open.torrent;
            self.show_pieces(id);
        }
    }

    /// Once a second: patience ends, peers that are stuck are helped.
    pub(crate) fn show_all_pieces(&mut self) {
        self.showing = false;
        let showing = self.torrents.iter().filter(|(_, local)| local.super_seed.is_some());
        let mut ids: Vec<TorrentId> = showing.map(|(id, _)| *id).collect();
        self.showing = !ids.is_empty();
        ids.sort_unstable();
        ids.into_iter().for_each(|id| self.show_pieces(id));
    }

    /// There is nothing to begin any more: a seed like any other.
    fn show_all(&mut self, id: TorrentId) {
        let Some(local) = self.torrents.get_mut(&id) else { return };
        let Some(seed) = local.super_seed.take() else { return };
        // Where the user says so later, it begins anew.
        local.shown_all = local.shared.super_seeding.load(Ordering::Relaxed);
        let shared = local.shared.clone();
        let count = shared.pieces.piece_count();
        for key in seed.keys() {
            if count > HAVES_MAX {
                self.close(key, Shutdown::Orderly);
                continue;
            }
            let Some(connection) = self.connections.get(key) else { continue };
            let Stage::Open(open) = &mut connection.stage else { continue };
            let hidden = |piece: &PieceIndex| {
                shared.pieces.is_offered(*piece) && !seed.is_shown(key, *piece)
            };
            for piece in (0..count).map(PieceIndex).filter(hidden) {
                open.session.have(piece, &mut connection.out);
            }
            self.enqueue(key);
        }
    }
}
