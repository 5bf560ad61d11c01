//! Metadata that is not known yet: what peers say of it, to control; what control asks, to peers.
//!
//! Owns: the way between sessions and control. Never: judges or keeps metadata (control does, with
//! proto's machine: checking 64 MiB would hold a shard up). Flow: session -> event; command ->
//! session.

use seedring_platform::op::Io;

use super::Sink;
use crate::{
    connections::{Key, Stage},
    contract::{Event, MetadataSaid},
    shard::Shard,
    torrent::TorrentId,
};

impl Sink<'_> {
    pub(super) fn keep_metadata(&mut self, piece: u32, total_bytes: u32, data: &[u8]) {
        let said = MetadataSaid::Piece { piece, total_bytes, data: data.into() };
        self.downloads.metadata.push((self.key, said));
    }
}

impl<I: Io> Shard<I> {
    pub(crate) fn ask_metadata(&mut self, torrent: TorrentId, key: Key, piece: u32) {
        if let Some(connection) = self.connections.get(key)
            && let Stage::Open(open) = &mut connection.stage
            && open.torrent == torrent
        {
            open.session.request_metadata(piece, &mut connection.out);
            self.enqueue(key);
        }
    }

    /// Pieces that came in the receive just now.
    pub(crate) fn tell_metadata(&mut self) {
        for (key, said) in std::mem::take(&mut self.downloads.metadata) {
            self.say_metadata(key, said);
        }
    }

    pub(super) fn say_metadata(&mut self, key: Key, said: MetadataSaid) {
        let Some(connection) = self.connections.get(key) else { return };
        let address = connection.address;
        let Stage::Open(open) = &connection.stage else { return };
        let torrent = open.torrent;
        let unknown = |local: &crate::torrent::Local| local.shared.pieces.piece_count() == 0;
        if self.torrents.get(&torrent).is_some_and(unknown) {
            self.tell(Event::Metadata { torrent, peer: key.0, address, said });
        }
    }
}
