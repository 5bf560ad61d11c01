//! Metadata from peers, for torrents of which only the link is known (BEP 9).
//!
//! Owns: a fetch a torrent (proto's machine), and its way to and from shards.
//! Never: judges (proto), keeps what arrived (`magnet`). Flow: `Event::Metadata` -> machine ->
//! `Command::AskMetadata`, a ban, or the whole dictionary.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use seedring_proto::swarm::metadata::{Action, MetadataFetch};
use seedring_shard::{Command, MetadataSaid, torrent::TorrentId};

use super::super::Engine;

/// A connection: its shard, and its name there.
type Peer = (usize, u64);

/// Fetches under way.
#[derive(Default)]
pub struct Fetches {
    fetches: BTreeMap<TorrentId, Fetch>,
}

struct Fetch {
    machine: MetadataFetch<Peer>,
    /// For bans: also of those that have left.
    addresses: BTreeMap<Peer, SocketAddr>,
}

/// Addresses of peers kept a torrent; the machine itself is bounded by what it holds.
const ADDRESSES_MAX: usize = 4_096;

impl Engine {
    pub(in crate::engine) fn fetch_metadata(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let machine = MetadataFetch::new(torrent.info_hash());
        let fetch = Fetch { machine, addresses: BTreeMap::new() };
        self.fetches.fetches.insert(id, fetch);
    }

    pub(in crate::engine) fn forget_fetch(&mut self, id: TorrentId) {
        self.fetches.fetches.remove(&id);
    }

    /// What a peer says of metadata.
    pub(in crate::engine) fn metadata_said(
        &mut self,
        id: TorrentId,
        shard: usize,
        peer: u64,
        address: SocketAddr,
        said: MetadataSaid,
    ) {
        let now = self.shards.now();
        let Some(fetch) = self.fetches.fetches.get_mut(&id) else { return };
        let peer = (shard, peer);
        let mut actions = Vec::new();
        if fetch.addresses.len() < ADDRESSES_MAX {
            fetch.addresses.insert(peer, address);
        }
        match said {
            MetadataSaid::Size(bytes) => {
                fetch.machine.claimed(peer, bytes);
            }
            MetadataSaid::Rejected(piece) => fetch.machine.rejected(peer, piece, now),
            MetadataSaid::Left => fetch.machine.left(peer),
            MetadataSaid::Piece { piece, total_bytes, data } => {
                let taken = fetch.machine.received(peer, piece, total_bytes, &data, &mut actions);
                if let Err(violation) = taken {
                    tracing::debug!("{address} gives bad metadata: {violation}");
                    fetch.machine.left(peer);
                }
            }
        }
        fetch.machine.step(now, &mut actions);
        self.metadata_do(id, actions);
    }

    /// Once a second: answers that did not come are asked for elsewhere.
    pub(in crate::engine) fn metadata_second(&mut self) {
        let now = self.shards.now();
        let ids: Vec<TorrentId> = self.fetches.fetches.keys().copied().collect();
        ids.into_iter().for_each(|id| self.metadata_step(id, now));
    }

    fn metadata_step(&mut self, id: TorrentId, now: Duration) {
        let Some(fetch) = self.fetches.fetches.get_mut(&id) else { return };
        let mut actions = Vec::new();
        fetch.machine.step(now, &mut actions);
        self.metadata_do(id, actions);
    }

    fn metadata_do(&mut self, id: TorrentId, actions: Vec<Action<Peer>>) {
        for action in actions {
            match action {
                Action::Ask { peer: (shard, peer), piece } => {
                    self.shards.send(shard, Command::AskMetadata { torrent: id, peer, piece });
                }
                Action::Ban(peer) => {
                    let fetch = self.fetches.fetches.get(&id);
                    if let Some(address) = fetch.and_then(|fetch| fetch.addresses.get(&peer)) {
                        tracing::debug!("{address} is banned: it gives false metadata");
                        self.peers.ban(address.ip());
                    }
                }
                Action::Done(raw_info) => {
                    self.forget_fetch(id);
                    let Some(torrent) = self.torrents.get(id) else { return };
                    self.metadata_arrived(torrent.info_hash(), &raw_info);
                    return;
                }
            }
        }
    }
}
