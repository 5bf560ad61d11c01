//! Who is unchoked.
//!
//! Owns: this shard's slots, the calls of proto's choker, and the routes' zero-copy record.
//! Never: the choice itself (proto's choker decides). Flow: interest and every 10 s -> choker ->
//! sessions.

use std::{sync::atomic::Ordering, time::Duration};

use seedring_platform::op::Io;
use seedring_proto::swarm::{
    Candidate, Choker, Slots, Trade,
    choker::{seeding_slots, trading_slots},
};

use super::{Key, Stage, send::Routes};
use crate::{
    shard::Shard,
    torrent::{Local, TorrentId},
};

pub struct Choking {
    choker: Choker,
    /// Slots of this shard; `u32::MAX`: unlimited.
    pub slots: u32,
    pub unchoked: u32,
    next: Duration,
    pub routes: Routes,
}

impl Choking {
    pub fn new(seed: u64) -> Self {
        Choking {
            choker: Choker::new(Slots::Unlimited, seed),
            slots: u32::MAX,
            unchoked: 0,
            next: Duration::ZERO,
            routes: Routes::default(),
        }
    }
}

fn slots(n: u32) -> Slots {
    if n == u32::MAX { Slots::Unlimited } else { Slots::Limited(n) }
}

impl<I: Io> Shard<I> {
    /// Control's share of the engine's slots for this shard.
    pub(crate) fn set_slots(&mut self, slots: u32) {
        self.choking.slots = slots;
        self.choking.next = self.choking.next.min(self.io.now());
    }

    /// A peer wants something: it is unchoked at once while slots are free.
    pub(crate) fn became_interested(&mut self, key: Key) {
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        let torrent = open.torrent;
        if !std::mem::replace(&mut open.counted, true) {
            self.count_interest(torrent, true);
        }
        let Some(local) = self.torrents.get(&torrent) else { return };
        let free = self.choking.unchoked < self.choking.slots
            && local.unchoked < local.quota(self.slots_of(local));
        if free && !self.is_owed_nothing(key) {
            self.set_unchoked(key, true);
        }
    }

    /// Where slots are bounded, who snubs us waits for its turn even while one is free.
    fn is_owed_nothing(&mut self, key: Key) -> bool {
        let now = self.io.now();
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return true };
        open.session.gives_nothing(now) && {
            let torrent = open.torrent;
            self.is_bounded(torrent)
        }
    }

    /// A torrent's unchoke slots on all shards. Where the user sets no number anywhere and limits
    /// the rate, as many as are worth something to those who have them.
    fn slots_of(&self, local: &Local) -> u32 {
        let own = local.shared.slots.load(Ordering::Relaxed);
        if own != u32::MAX || self.choking.slots != u32::MAX {
            return own;
        }
        let meters = [&self.options.globals.upload, &local.shared.upload];
        let Some(rate) = meters.into_iter().filter_map(|meter| meter.rate()).min() else {
            return own;
        };
        if self.downloads.is_trading(local.shared.id) {
            return trading_slots(rate);
        }
        let piece_bytes = local.contents.as_ref().map(|contents| contents.layout.piece_bytes);
        piece_bytes.map_or(own, |piece_bytes| seeding_slots(rate, piece_bytes))
    }

    /// Where slots are bounded, one that nobody uses goes to somebody else.
    pub(crate) fn lost_interest(&mut self, key: Key) {
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        let torrent = open.torrent;
        if std::mem::take(&mut open.counted) {
            self.count_interest(torrent, false);
        }
        if self.is_bounded(torrent) {
            self.set_unchoked(key, false);
            self.choking.next = self.choking.next.min(self.io.now());
        }
    }

    pub(crate) fn is_bounded(&self, torrent: TorrentId) -> bool {
        let bounded = |local: &Local| self.slots_of(local) != u32::MAX;
        self.choking.slots != u32::MAX || self.torrents.get(&torrent).is_some_and(bounded)
    }

    /// What bounds a torrent's slots has changed: it has begun or ceased to trade.
    pub(crate) fn rechoke_soon(&mut self) {
        self.choking.next = self.choking.next.min(self.io.now());
    }

    /// Counts a peer that began or ceased to want something.
    pub(crate) fn count_interest(&mut self, torrent: TorrentId, wants: bool) {
        let Some(local) = self.torrents.get_mut(&torrent) else { return };
        if wants {
            self.stats.interested += 1;
            local.interested += 1;
            local.shared.interested.fetch_add(1, Ordering::Relaxed);
        } else {
            self.stats.interested -= 1;
            local.interested -= 1;
            local.shared.interested.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn set_unchoked(&mut self, key: Key, unchoke: bool) {
        let now = self.io.now();
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Open(open) = &mut connection.stage else { return };
        if open.session.am_choking() != unchoke {
            return;
        }
        let Some(local) = self.torrents.get_mut(&open.torrent) else { return };
        if unchoke {
            open.session.unchoke(now, &mut connection.out);
            self.choking.unchoked += 1;
            local.unchoked += 1;
        } else {
            open.session.choke(now, &mut connection.out);
            self.choking.unchoked -= 1;
            local.unchoked -= 1;
        }
        self.stats.unchoked = self.choking.unchoked;
        self.enqueue(key);
    }

    /// Requests of a peer were dropped that cannot be told so: when nothing else of it waits, a
    /// choke says that none of them will come. The next round unchokes it, if it has its turn, and
    /// it asks again: by then what made them fail may have passed.
    pub(crate) fn choke_unheard(&mut self, key: Key) {
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        if open.session.unheard() && open.session.queue().is_empty() {
            self.set_unchoked(key, false);
        }
    }

    /// An unchoked connection is gone.
    pub(crate) fn slot_freed(&mut self, torrent: TorrentId) {
        self.choking.unchoked -= 1;
        self.stats.unchoked = self.choking.unchoked;
        if let Some(local) = self.torrents.get_mut(&torrent) {
            local.unchoked -= 1;
        }
        if self.is_bounded(torrent) {
            // Somebody waits for the slot: rechoke with the next chores.
            self.choking.next = self.choking.next.min(self.io.now());
        }
    }

    /// Every 10 s, or when a slot came free: the choker looks at all that are interested.
    pub(crate) fn rechoke(&mut self, now: Duration) {
        if now < self.choking.next {
            return;
        }
        let (mut candidates, mut unheard) = (Vec::new(), Vec::new());
        for key in self.connections.keys() {
            let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { continue };
            let id = open.torrent;
            if open.session.unheard() {
                unheard.push(key);
            }
            let session = &open.session;
            let given = session.requests().map_or(0, |requests| requests.given_bytes_per_s(now));
            let trade = Trade { gives_bytes_per_s: given, snubs: session.gives_nothing(now) };
            let candidate = Candidate {
                key,
                torrent: id.0,
                torrent_slots: Slots::Unlimited,
                interested: session.peer_interested(),
                unchoked: !session.am_choking(),
                rate_bytes_per_s: open.rate.per_s(now),
                trade: self.downloads.is_trading(id).then_some(trade),
                last_unchoked: open.session.last_unchoked(),
                waiting_since: open.session.waiting_since(),
            };
            let Some(local) = self.torrents.get(&id) else { continue };
            let torrent_slots = slots(local.quota(self.slots_of(local)));
            candidates.push(Candidate { torrent_slots, ..candidate });
        }
        let mut decisions = Vec::new();
        self.choking.choker.set_slots(slots(self.choking.slots));
        self.choking.choker.rechoke(now, &candidates, &mut decisions);
        self.choking.next = self.choking.choker.rotates_at();
        for (key, unchoke) in decisions {
            self.set_unchoked(key, unchoke);
        }
        // Whose other requests keep coming: it hears of those that were dropped in the end too.
        unheard.into_iter().for_each(|key| self.set_unchoked(key, false));
    }
}
