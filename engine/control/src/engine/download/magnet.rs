//! A torrent of which only the link is known, until peers give its metadata.
//!
//! Owns: the waiting torrent, and its replacement by the real one. Never: fetches; peers are the
//! shards', and what they send is judged by `proto::swarm::metadata`.
//! Flow: begin -> announced, so that peers are known -> `metadata_arrived` -> kept on disk ->
//! prepared like any other download -> admitted in the place of the waiting one.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use seedring_proto::{magnet::Magnet, metainfo::Metainfo, units::InfoHash};
use seedring_shard::{
    Command,
    torrent::{Contents, Phase, TorrentId},
};

use super::super::{Engine, Note, prepare::write_whole, status::with_trackers, torrents::State};

use crate::plan::{From, Origin};

impl Engine {
    /// Announced and shown, and open for peers: it has nothing that they could ask for, and asks
    /// them for the metadata.
    pub(in crate::engine) async fn begin_metadata(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        torrent.state = State::Metadata;
        let shared = torrent.shared.clone();
        shared.contents.store(Some(Arc::new(Contents::unknown())));
        shared.set_phase(Phase::Active);
        // BEP 9 `x.pe`: numbers alone, since a name would have to be looked up for a stranger.
        let named: Vec<SocketAddr> = match &torrent.wanted.origin {
            Origin::Download { from: From::Magnet(link), .. } => {
                let peers = link.parse::<Magnet>().map(|magnet| magnet.peers).unwrap_or_default();
                let ip =
                    |(host, port): (String, u16)| Some(SocketAddr::new(host.parse().ok()?, port));
                peers.into_iter().filter_map(ip).collect()
            }
            _ => Vec::new(),
        };
        let announced = std::mem::replace(&mut torrent.announced, true);
        self.catalogue.put(torrent);
        if !announced {
            self.announce(id).await;
        }
        self.fetch_metadata(id);
        self.shards.send_all(|| Command::Add(vec![shared.clone()]));
        self.shards.send_all(|| Command::Look(id));
        self.peers.learn(id, &named, &self.shards.listening, Instant::now());
        self.dial_due(id);
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
        self.forget_fetch(old);
        waiting.shared.set_phase(Phase::Removed);
        self.shards.send_all(|| Command::Remove(old));
        // Whoever was connected is dialled again for the real torrent.
        self.peers.renumber(old, new.shared.id);
    }
}
