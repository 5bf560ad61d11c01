//! Dials, within what the torrent, the engine and the network bear.
//!
//! Owns: how many connections a torrent aims at, and what is left for those who come to us.
//! Never: whom (the roster) or in which order (the turns). Flow: once a second, and when addresses
//! came -> turns -> `Command::Dial`.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use seedring_proto::swarm::turnover::{TURNOVER_EVERY, part};
use seedring_shard::{
    Command,
    torrent::{Shared, TorrentId},
};

use super::super::{Engine, torrents::State};

/// Connections up to which a download dials: as many as give it a choice of pieces and of peers
/// that are good to it; transmission has 50 at most, libtorrent goes on to its limit.
const DOWNLOAD_AIM: u32 = 50;
/// The same for a seed, which serves whoever comes and dials for those who cannot.
const SEED_AIM: u32 = 30;
/// Dials in one turn.
const TURN: u32 = 4;
/// A torrent that had no room is looked at again after this time.
const REST: Duration = Duration::from_secs(10);

impl Engine {
    /// Gives out dials until there is no room or nobody has its turn.
    pub(in crate::engine) fn dial(&mut self) {
        let now = self.shards.now();
        let torrents = &self.torrents;
        self.peers.turns.gather(now, |id| {
            let wants = |t: &super::Torrent| t.is_downloading() || t.state == State::Metadata;
            torrents.get(id).is_some_and(wants)
        });
        let mut room = self.peers.turns.room(now);
        // What is over belongs to those who come to us. Relaxed: counts.
        let open = self.globals.connections.load(Ordering::Relaxed);
        let max = self.globals.connections_max.load(Ordering::Relaxed);
        if open >= max - max / 10 {
            room = 0;
        }
        while room > 0 {
            let Some(id) = self.peers.turns.next(open < max.div_ceil(2)) else { break };
            match self.turn_to_dial(id, room) {
                // Full, halted or away.
                0 => self.peers.rest(id, now, now + REST),
                begun => {
                    room = room.saturating_sub(begun);
                    self.peers.turns.begun(begun);
                }
            }
        }
    }

    /// The dials that a torrent begins in its turn.
    fn turn_to_dial(&mut self, id: TorrentId, room: u32) -> u32 {
        let (Some(torrent), Some(facts)) = (self.torrents.get(id), self.facts(id)) else {
            return 0;
        };
        if !torrent.is_active() {
            return 0;
        }
        let home = self.home(&torrent.info_hash());
        let aim = aim(&torrent.shared, facts.wants);
        let open = torrent.shared.connections.load(Ordering::Relaxed);
        let now = self.shards.now();
        let mut dial = Vec::new();
        self.peers.known_roster(facts, |roster| {
            let room = aim.saturating_sub(open + roster.dialling()).min(room).min(TURN);
            roster.next(now, room as usize, &mut dial);
        });
        for address in &dial {
            self.shards.send(home, Command::Dial { torrent: id, address: *address });
        }
        dial.len() as u32
    }

    /// Once a second; every five minutes, downloads that have as many connections as they dial for,
    /// and know whom to dial besides, part with a few.
    pub(in crate::engine) fn turn_over(&mut self) {
        if self.peers.turned_over.elapsed() < TURNOVER_EVERY {
            return;
        }
        self.peers.turned_over = Instant::now();
        let now = self.shards.now();
        let mut full = Vec::new();
        for torrent in self.torrents.iter().filter(|t| t.is_downloading() && t.is_active()) {
            let (id, shared) = (torrent.shared.id, &torrent.shared);
            let open = shared.connections.load(Ordering::Relaxed);
            if open >= aim(shared, true) && self.peers.could_dial(id, now) {
                full.push((id, shared.clone(), part(open)));
            }
        }
        // Each shard its part, rounded up, as long as there is something left; another one first
        // each time.
        let shards = self.shards.len();
        let first = (now.as_secs() / TURNOVER_EVERY.as_secs()) as usize % shards;
        for (torrent, shared, mut left) in full {
            for shard in (first..shards).chain(0..first) {
                let count = part(shared.connections_on(shard)).min(left);
                if count > 0 {
                    left -= count;
                    self.shards.send(shard, Command::Turnover { torrent, count });
                }
            }
        }
    }
}

/// A tenth stays for those who come, as in the engine as a whole. Relaxed: a number alone.
fn aim(shared: &Shared, wants: bool) -> u32 {
    let aim = if wants { DOWNLOAD_AIM } else { SEED_AIM };
    let max = shared.connections_max.load(Ordering::Relaxed);
    aim.min(max - max / 10)
}
