//! A torrent of which only the link is known, until peers give its metadata.
//!
//! Owns: the waiting torrent, what is asked of whom, its replacement by the real one. Never: judges
//! metadata (`proto::swarm::metadata` does) or speaks to peers (shards do).
//! Flow: begin -> announced, so that peers are known -> `metadata_arrived` -> kept on disk ->
//! prepared like any other download -> admitted in the place of the waiting one.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use seedring_proto::{
    magnet::Magnet,
    metainfo::Metainfo,
    swarm::{
        metadata::{Action, MetadataFetch},
        roster::Source,
    },
    units::InfoHash,
};
use seedring_shard::{
    Command, MetadataSaid,
    torrent::{Contents, Phase, TorrentId},
};

use super::super::{Engine, Note, prepare::write_whole, status::with_trackers, torrents::State};

/// Peers are dialled again so soon after the metadata came: their connections ended with the
/// waiting torrent, and they have to notice.
const DIAL_AFTER: Duration = Duration::from_secs(1);

/// Metadata that could not be kept (the state folder's disk is full) is tried again so often.
const KEEP_AGAIN: Duration = Duration::from_secs(10);

/// A connection: the shard, and the name that it has there.
type PeerKey = (usize, u64);

/// The machine that fetches, and where the peers are that it speaks of.
pub struct Fetch {
    machine: MetadataFetch<PeerKey>,
    addresses: HashMap<PeerKey, SocketAddr>,
    began: Instant,
}

impl Fetch {
    fn new(hash: InfoHash) -> Fetch {
        let machine = MetadataFetch::new(hash);
        Fetch { machine, addresses: HashMap::new(), began: Instant::now() }
    }

    fn heard(
        &mut self,
        peer: PeerKey,
        from: SocketAddr,
        said: MetadataSaid,
    ) -> Vec<Action<PeerKey>> {
        let mut actions = Vec::new();
        self.addresses.insert(peer, from);
        match said {
            MetadataSaid::Size(bytes) => {
                self.machine.claimed(peer, bytes);
            }
            MetadataSaid::Piece { piece, total_bytes, data } => {
                let taken = self.machine.received(peer, piece, total_bytes, &data, &mut actions);
                if let Err(violation) = taken {
                    tracing::debug!("{from}: {violation}");
                    self.machine.left(peer);
                }
            }
            MetadataSaid::Rejected(piece) => {
                self.machine.rejected(peer, piece, self.began.elapsed());
            }
            MetadataSaid::Left => {
                self.machine.left(peer);
                self.addresses.remove(&peer);
            }
        }
        self.machine.step(self.began.elapsed(), &mut actions);
        actions
    }
}

impl Engine {
    /// What a peer says of metadata that is waited for.
    pub(in crate::engine) fn metadata_said(
        &mut self,
        id: TorrentId,
        peer: PeerKey,
        from: SocketAddr,
        said: MetadataSaid,
    ) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let fetch = torrent.download.as_mut().and_then(|download| download.metadata.as_mut());
        let actions = fetch.map(|fetch| fetch.heard(peer, from, said)).unwrap_or_default();
        self.carry_out_fetch(id, actions);
    }

    /// Once a second: what was not answered in time is asked of others.
    pub(in crate::engine) fn metadata_second(&mut self) {
        let mut all = Vec::new();
        for torrent in self.torrents.iter_mut().filter(|torrent| torrent.state == State::Metadata) {
            let id = torrent.shared.id;
            let fetch = torrent.download.as_mut().and_then(|download| download.metadata.as_mut());
            let Some(fetch) = fetch else { continue };
            let (now, mut actions) = (fetch.began.elapsed(), Vec::new());
            if fetch.machine.next_step(now).is_some_and(|at| at <= now) {
                fetch.machine.step(now, &mut actions);
                all.push((id, actions));
            }
        }
        all.into_iter().for_each(|(id, actions)| self.carry_out_fetch(id, actions));
    }

    fn carry_out_fetch(&mut self, id: TorrentId, actions: Vec<Action<PeerKey>>) {
        for action in actions {
            match action {
                Action::Ask { peer: (shard, peer), piece } => {
                    let ask = Command::AskMetadata { torrent: id, peer, piece };
                    self.shards.send(shard, ask);
                }
                Action::Ban(peer) => {
                    let torrent = self.torrents.get(id);
                    let download = torrent.and_then(|torrent| torrent.download.as_ref());
                    let fetch = download.and_then(|download| download.metadata.as_ref());
                    if let Some(address) = fetch.and_then(|fetch| fetch.addresses.get(&peer)) {
                        tracing::debug!("{address} is banned: it sent metadata that is wrong");
                        let ip = address.ip();
                        self.ban(ip);
                    }
                }
                Action::Done(raw_info) => {
                    if let Some(hash) = self.torrents.get(id).map(|torrent| torrent.info_hash()) {
                        self.metadata_arrived(hash, &raw_info);
                    }
                }
            }
        }
    }

    /// Announced and shown; peers are asked for what it is.
    pub(in crate::engine) async fn begin_metadata(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        torrent.state = State::Metadata;
        let (hash, shared) = (torrent.info_hash(), torrent.shared.clone());
        if let Some(download) = &mut torrent.download {
            download.metadata = Some(Box::new(Fetch::new(hash)));
        }
        shared.contents.store(Some(Arc::new(Contents::unknown())));
        shared.set_phase(Phase::Active);
        let announced = std::mem::replace(&mut torrent.announced, true);
        self.catalogue.put(torrent);
        if !announced {
            self.announce(id).await;
        }
        self.shards.send_all(|| Command::Add(vec![shared.clone()]));
        self.learn_named(id);
        self.dial();
    }

    /// Peers that the link itself names.
    pub(in crate::engine) fn learn_named(&mut self, id: TorrentId) {
        let download = self.torrents.get(id).and_then(|torrent| torrent.download.as_ref());
        let Some(link) = download.and_then(|download| download.row.magnet.as_deref()) else {
            return;
        };
        let named = named_peers(link);
        self.learn(id, &named, Source::Magnet);
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
        let mut metainfo = match Metainfo::from_info(raw_info) {
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
        let link = torrent.download.as_ref().and_then(|download| download.row.magnet.as_deref());
        metainfo.web_seeds = link.map(web_seeds).unwrap_or_default();
        let bytes = with_trackers(&metainfo, &torrent.tiers);
        self.keep_metadata(hash, bytes, Duration::ZERO);
    }

    /// Writes the .torrent of a magnet, after a while; `metadata_kept` hears of it.
    fn keep_metadata(&mut self, hash: InfoHash, bytes: Vec<u8>, after: Duration) {
        let Some(torrent) = self.id_of(&hash).and_then(|id| self.torrents.get(id)) else { return };
        let path = torrent.place.torrent_file.clone();
        let notes = self.notes.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            tokio::task::spawn_blocking(move || {
                let written = write_whole(&path, &bytes);
                let why = |error| (format!("{}: {error}", path.display()), bytes);
                let _ = notes.send(Note::MetadataKept(hash, written.map_err(why)));
            });
        });
    }

    /// `Err`: why not, and what was to be written.
    pub(in crate::engine) fn metadata_kept(
        &mut self,
        hash: InfoHash,
        written: Result<(), (String, Vec<u8>)>,
    ) {
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
            Err(_) if torrent.state != State::Metadata => {} // paused: then it is fetched again
            Err((why, bytes)) => {
                let note = format!("its metadata can't be kept, which is tried again: {why}");
                if torrent.note.as_ref() != Some(&note) {
                    tracing::error!("{}: {note}", torrent.name);
                    torrent.note = Some(note);
                }
                self.keep_metadata(hash, bytes, KEEP_AGAIN);
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
        waiting.shared.set_phase(Phase::Removed);
        self.shards.send_all(|| Command::Remove(old));
        let again = (self.shards.now(), DIAL_AFTER);
        self.peers.renumber(old, new.shared.id, new.private, again);
    }
}

/// `ws`: they stay with the torrent, as those of a .torrent do (BEP 19).
fn web_seeds(link: &str) -> Vec<String> {
    link.parse::<Magnet>().map(|magnet| magnet.web_seeds).unwrap_or_default()
}

/// BEP 9 `x.pe`: numbers alone, since a name would have to be looked up for a stranger.
fn named_peers(link: &str) -> Vec<SocketAddr> {
    let peers = link.parse::<Magnet>().map(|magnet| magnet.peers).unwrap_or_default();
    let address = |(host, port): (String, u16)| Some(SocketAddr::new(host.parse().ok()?, port));
    peers.into_iter().filter_map(address).collect()
}
