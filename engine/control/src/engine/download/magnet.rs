//! A torrent of which only the link is known, until peers give its metadata.
//!
//! Owns: the waiting torrent, and its replacement by the real one. Never: fetches; peers are the
//! shards', and what they send is judged by `proto::swarm::metadata`.
//! Flow: begin -> announced, so that peers are known -> `metadata_arrived` -> kept on disk ->
//! prepared like any other download -> admitted in the place of the waiting one.

use std::sync::Arc;

use seedring_proto::{metainfo::Metainfo, units::InfoHash};
use seedring_shard::torrent::TorrentId;

use super::super::{Engine, Note, prepare::write_whole, status::with_trackers, torrents::State};

impl Engine {
    /// Announced and shown; it has nothing that peers could ask for.
    pub(in crate::engine) async fn begin_metadata(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        torrent.state = State::Metadata;
        let announced = std::mem::replace(&mut torrent.announced, true);
        self.catalogue.put(torrent);
        if !announced {
            self.announce(id).await;
        }
    }

    pub(in crate::engine) fn waits_for_metadata(&self, hash: &InfoHash) -> bool {
        let torrent = self.id_of(hash).and_then(|id| self.torrents.get(id));
        torrent.is_some_and(|torrent| torrent.state == State::Metadata)
    }

    /// The `info` dictionary of a magnet, of which every byte was checked against the info-hash.
    /// It is kept, so that a restart does not fetch it again; then the torrent is a real one.
    pub(in crate::engine) fn metadata_arrived(&mut self, hash: InfoHash, raw_info: &[u8]) {
        let Some(torrent) = self.id_of(&hash).and_then(|id| self.torrents.get(id)) else { return };
        if torrent.state != State::Metadata {
            return; // twice, or paused meanwhile: then it is fetched again
        }
        let metainfo = match Metainfo::from_info(raw_info) {
            Ok(metainfo) if metainfo.info_hash == hash => metainfo,
            Ok(_) => return tracing::error!("{hash}: metadata of another torrent came; left out"),
            Err(error) => {
                // Its hash is right: whoever made the torrent made it so.
                let note = format!("the torrent can't be downloaded: {error}");
                tracing::error!("{}: {note}", torrent.name);
                if let Some(torrent) = self.id_of(&hash).and_then(|id| self.torrents.get_mut(id)) {
                    torrent.note = Some(note);
                }
                return;
            }
        };
        let bytes = with_trackers(&metainfo, &torrent.tiers);
        let path = torrent.place.torrent_file.clone();
        let notes = self.notes.0.clone();
        tokio::task::spawn_blocking(move || {
            let written = write_whole(&path, &bytes);
            let written = written.map_err(|error| format!("{}: {error}", path.display()));
            let _ = notes.send(Note::MetadataKept(hash, written));
        });
    }

    pub(in crate::engine) fn metadata_kept(&mut self, hash: InfoHash, written: Result<(), String>) {
        let Some(torrent) = self.id_of(&hash).and_then(|id| self.torrents.get_mut(id)) else {
            return;
        };
        match written {
            Ok(()) => {
                tracing::info!("{}: its metadata is known", torrent.name);
                let wanted = torrent.wanted.clone();
                self.pending.push(wanted);
                self.prepare_next();
            }
            Err(why) => {
                tracing::error!("{}: its metadata can't be kept: {why}", torrent.name);
                torrent.note = Some(why);
            }
        }
    }

    /// The real torrent comes in the place of the one that waited: trackers and peers stay.
    pub(in crate::engine) fn replace_waiting(
        &mut self,
        old: TorrentId,
        new: &mut super::super::torrents::Torrent,
    ) {
        let Some(waiting) = self.torrents.remove(old) else { return };
        new.announced = waiting.announced;
        new.on_trackers = waiting.on_trackers;
        new.private |= waiting.private;
        self.peers.renumber(old, new.shared.id);
        debug_assert!(Arc::strong_count(&waiting.shared) <= 2, "no shard knows it");
    }
}
