//! What control and the other shards ask, and the housekeeping of each second.
//!
//! Owns: carrying out commands, reports, the orderly end. Never: decisions of control.
//! Flow: mailbox -> here -> connections, verification, storage.

use std::{collections::hash_map::Entry, sync::Arc, time::Duration};

use seedring_platform::op::{Io, Shutdown};
use seedring_proto::units::PieceIndex;

use crate::{
    connections::{Key, Stage, ZeroCopy},
    contract::{Command, Event, PeerReport},
    shard::Shard,
    stats::Stats,
    token::Target,
    torrent::{Local, Phase, Shared, TorrentId},
};

/// A torrent without connections gives its contents back after this time.
const COLD_AFTER: Duration = Duration::from_secs(60);
/// What is queued to peers may drain for so long after a stop; then they are reset.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Torrents that go cold in one second.
const COOLED_MAX: usize = 64;
/// Lines in one peer report.
const PEERS_MAX: usize = 2_000;

impl<I: Io> Shard<I> {
    /// Takes messages, at most `max` of each queue. `true`: there may be more.
    pub(crate) fn receive_messages(&mut self, max: usize) -> bool {
        let mut more = true;
        for _ in 0..max {
            let Some(command) = self.links.commands.receive() else {
                more = false;
                break;
            };
            self.carry_out(command);
        }
        for from in 0..self.links.from_shards.len() {
            for _ in 0..max {
                let Some(handover) = self.links.from_shards[from].receive() else { break };
                self.taken_over(handover);
            }
            more |= !self.links.from_shards[from].is_empty();
        }
        more
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Add(torrents) => torrents.into_iter().for_each(|t| self.add(t)),
            Command::Remove(id) => self.remove(id),
            Command::Look(id) => self.look(id),
            Command::Disconnect(id) => self.disconnect(id),
            Command::Dial { torrent, address } => self.dial(torrent, address),
            Command::AskMetadata { torrent, peer, piece } => {
                self.ask_metadata(torrent, Key(peer), piece);
            }
            Command::Close { torrent, peer } => self.close_one(torrent, Key(peer)),
            Command::Turnover { torrent, count } => self.turn_over(torrent, count),
            Command::Shun(ip) => self.shun(ip),
            Command::Verify { torrent, first, count, offer } => {
                self.verify(torrent, first, count, offer);
            }
            Command::Have { torrent, piece } => self.tell_have(torrent, piece),
            Command::Lost { torrent, piece } => self.tell_lost(torrent, piece),
            Command::Slots(slots) => self.set_slots(slots),
            Command::Report => {
                self.tell_all_progress();
                let stats = self.report();
                self.tell(Event::Stats(Box::new(stats)));
            }
            Command::Peers(id) => self.tell_peers(id),
            Command::Stop => self.stop(),
        }
    }

    fn add(&mut self, shared: Arc<Shared>) {
        if let Entry::Vacant(place) = self.torrents.entry(shared.id) {
            self.by_hash.insert(shared.info_hash, shared.id);
            place.insert(Local::new(shared));
        }
    }

    fn keys_of(&self, id: TorrentId) -> Vec<Key> {
        let Some(local) = self.torrents.get(&id) else { return Vec::new() };
        local.peers.values().chain(&local.waiting).copied().collect()
    }

    fn remove(&mut self, id: TorrentId) {
        for key in self.keys_of(id) {
            self.close(key, Shutdown::Orderly);
        }
        self.verify.drop_torrent(id);
        self.end_download(id);
        self.downloads.writer.drop_torrent(id);
        self.storage.drop_torrent(id, &mut self.news);
        if let Some(local) = self.torrents.remove(&id)
            && self.by_hash.get(&local.shared.info_hash) == Some(&id)
        {
            self.by_hash.remove(&local.shared.info_hash);
        }
    }

    /// A torrent's phase or contents changed.
    fn look(&mut self, id: TorrentId) {
        let Some(local) = self.torrents.get_mut(&id) else { return };
        local.asked = false;
        if local.shared.phase() != Phase::Active {
            for key in self.keys_of(id) {
                self.close(key, Shutdown::Orderly);
            }
            return self.end_download(id);
        }
        self.follow_contents(id);
        self.follow_download(id);
        let Some(local) = self.torrents.get_mut(&id) else { return };
        // Only who needs the contents takes them: a shard without peers of it stays without.
        if !local.waiting.is_empty() && local.contents().is_some() {
            for key in std::mem::take(&mut local.waiting) {
                self.place(key, id);
            }
        }
        self.verify.ready = true;
    }

    /// Control has put other contents in place of those in use here: files are opened anew.
    fn follow_contents(&mut self, id: TorrentId) {
        let Some(local) = self.torrents.get_mut(&id) else { return };
        let now = local.shared.contents.load_full();
        let (Some(now), Some(before)) = (now, &local.contents) else { return };
        if !Arc::ptr_eq(&now, before) {
            local.contents = Some(now);
            self.storage.drop_torrent(id, &mut self.news);
        }
    }

    /// Whoever is connected came by trackers that the torrent has left.
    fn disconnect(&mut self, id: TorrentId) {
        self.dialing.forget(id);
        // Dials that are under way are in no list of the torrent's.
        let mut keys = self.connections.keys();
        keys.retain(|key| self.connections.get(*key).is_some_and(|c| c.dialed == Some(id)));
        keys.extend(self.keys_of(id));
        keys.into_iter().for_each(|key| self.close(key, Shutdown::Orderly));
    }

    /// A piece came to be offered after peers had been told what there is.
    fn tell_have(&mut self, id: TorrentId, piece: PieceIndex) {
        for key in self.keys_of(id) {
            if self.is_shown(id, key, piece) == Some(false) {
                continue;
            }
            let Some(connection) = self.connections.get(key) else { continue };
            if let Stage::Open(open) = &mut connection.stage {
                open.session.have(piece, &mut connection.out);
                self.enqueue(key);
            }
        }
    }

    /// A piece is offered no more.
    fn tell_lost(&mut self, id: TorrentId, piece: PieceIndex) {
        let offered = self.torrents.get(&id).is_none_or(|l| l.shared.pieces.is_offered(piece));
        if offered {
            return; // it is there again by now
        }
        for key in self.keys_of(id) {
            if self.is_shown(id, key, piece) == Some(false) {
                continue;
            }
            let Some(connection) = self.connections.get(key) else { continue };
            if let Stage::Open(open) = &mut connection.stage {
                open.session.dont_have(piece, &mut connection.out);
                self.enqueue(key);
            }
        }
    }

    /// Once a second.
    pub(crate) fn chores(&mut self, now: Duration) {
        for at in (0..self.accept_again.len()).rev() {
            let (when, listener) = self.accept_again[at];
            if when <= now && !self.stopping {
                self.accept_again.swap_remove(at);
                self.accept(listener);
            }
        }
        self.follow_idle_timeout(now);
        self.settle();
        self.rechoke(now);
        self.show_all_pieces();
        self.storage.close_unused(now);
        // Whoever found no memory or a full queue of pieces to hash is looked at again.
        self.memory_came_home |= !self.starved.is_empty();
        self.verify.ready |= !self.verify.is_idle();
        self.cool_down(now);
    }

    fn cool_down(&mut self, now: Duration) {
        let mut ids = Vec::new();
        for (id, local) in &mut self.torrents {
            let kept = !local.is_unused() || self.downloads.is_known(*id);
            if local.contents.is_none() || kept || ids.len() == COOLED_MAX {
                continue;
            }
            let since = *local.idle_since.get_or_insert(now);
            if now.saturating_sub(since) > COLD_AFTER {
                ids.push(*id);
            }
        }
        for id in ids {
            self.storage.drop_torrent(id, &mut self.news);
            if let Some(local) = self.torrents.get_mut(&id) {
                local.cool();
            }
            self.tell(Event::Idle(id));
        }
        // A request for contents that got lost is made again.
        let lost = |l: &&Local| !l.waiting.is_empty() && l.contents.is_none();
        let waiting: Vec<TorrentId> =
            self.torrents.values().filter(lost).map(|l| l.shared.id).collect();
        waiting.into_iter().for_each(|id| self.tell(Event::Activate(id)));
    }

    pub(crate) fn report(&mut self) -> Stats {
        let mut stats = self.stats.clone();
        stats.cache_bytes = self.storage.cache.bytes() as u64;
        stats.cache_cap_bytes = self.io.pool().cap_bytes() as u64;
        stats.open_files = self.storage.open_files() as u32;
        stats
    }

    fn tell_peers(&mut self, id: TorrentId) {
        let now = self.io.now();
        let keys: Vec<Key> = match self.torrents.get(&id) {
            Some(local) => local.peers.values().copied().take(PEERS_MAX).collect(),
            None => Vec::new(),
        };
        let mut peers = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(connection) = self.connections.get(key) else { continue };
            let (address, dialed) = (connection.address, connection.dialed.is_some());
            let contact = connection.contact();
            let Stage::Open(open) = &mut connection.stage else { continue };
            let peer = open.session.peer(open.peer_id);
            let have = u64::from(peer.pieces_have) * 1_000 / u64::from(peer.pieces_total.max(1));
            let report = PeerReport {
                address,
                contact,
                client: peer.client.into_owned(),
                dialed,
                interested: peer.peer_interested,
                unchoked: !peer.am_choking,
                queued_requests: peer.requests_queued as u32,
                uploaded_bytes: open.uploaded_bytes,
                upload_bytes_per_s: open.rate.per_s(now),
                progress_permille: have as u16,
                zero_copy: matches!(open.zero_copy, ZeroCopy::On { .. }),
            };
            peers.push(report);
        }
        self.tell(Event::Peers { torrent: id, peers });
    }

    /// Everything closes; `drain` sees to the end of it.
    fn stop(&mut self) {
        self.stopping = true;
        self.stop_by = self.io.now() + STOP_GRACE;
        for listener in 0..self.listeners.len() as u32 {
            self.io.cancel(Target::Listener(listener).token());
        }
        // Clients are refused at once, and a restart can bind while this one drains.
        self.listeners.clear();
        self.close_quiet();
        let ids: Vec<TorrentId> = self.torrents.keys().copied().collect();
        ids.into_iter().for_each(|id| {
            self.verify.drop_torrent(id);
            self.end_download(id);
        });
        self.downloads.writer.sync_all();
    }

    /// Closes every connection that has nothing in flight to its peer; those that do may finish
    /// the send (its blocks count) until the grace is over.
    fn close_quiet(&mut self) {
        let late = self.io.now() >= self.stop_by;
        for key in self.connections.keys() {
            let sending = self.connections.get(key).is_some_and(|c| c.sending);
            if late || !sending {
                self.close(key, Shutdown::Orderly);
            }
        }
    }

    /// `true` once nothing is in flight: all memory is home, and control has been told.
    pub(crate) fn drain(&mut self) -> bool {
        if self.stopped {
            return self.outbox.is_empty();
        }
        self.close_quiet();
        // What is good and on its way to the disk gets there.
        if !self.downloads.is_settled() {
            return false;
        }
        self.downloads.clear();
        self.storage.clear(&mut self.news);
        self.news.clear();
        self.parts.clear();
        if self.io.now() >= self.stop_by {
            // A peer that does not read keeps zero-copy pages pinned: reset it.
            for key in self.connections.keys() {
                if let Some(connection) = self.connections.get(key) {
                    self.io.shutdown(&connection.socket, Shutdown::Reset);
                }
            }
        }
        if self.io.in_flight() > 0 || !self.connections.is_empty() {
            return false;
        }
        assert_eq!(self.io.pool().leased_bytes(), 0, "all memory is home at shutdown");
        let stats = self.report();
        self.tell(Event::Stopped(Box::new(stats)));
        self.flush_outbox();
        self.stopped = true;
        self.outbox.is_empty()
    }
}
