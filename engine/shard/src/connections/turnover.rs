//! Connections that make room for others.
//!
//! Owns: what this shard knows of its connections' worth, and their end.
//! Never: the order (proto's `turnover`), or when (control says; or somebody comes to a full
//! torrent). Flow: `Command::Turnover`, or a handshake that finds no room -> close.

use std::{ops::Bound, time::Duration};

use seedring_platform::op::{Io, Shutdown};
use seedring_proto::{
    swarm::turnover::{Member, least_useful},
    units::PeerId,
};

use super::Key;
use crate::{shard::Shard, torrent::TorrentId};

/// Connections that are looked at for one that comes: who comes again and again costs no more.
const LOOKED_AT_MAX: usize = 64;

impl<I: Io> Shard<I> {
    fn member(&mut self, key: Key, now: Duration) -> Option<Member<Key>> {
        let open = self.connections.get(key)?.open()?;
        let session = &open.session;
        Some(Member {
            key,
            opened: open.known.opened(),
            down_bytes_per_s: session.download_bytes_per_s(now),
            up_bytes_per_s: open.rate.per_s(now),
            am_interested: session.am_interested(),
            peer_interested: session.peer_interested(),
            serves: !session.peer_choking(),
        })
    }

    /// Closes so many connections of a download that are worth least.
    pub(crate) fn turn_over(&mut self, id: TorrentId, count: u32) {
        let now = self.io.now();
        let Some(local) = self.torrents.get(&id) else { return };
        let keys: Vec<Key> = local.peers.values().copied().collect();
        let mut members = keys.into_iter().filter_map(|key| self.member(key, now)).collect();
        let mut leaving = Vec::new();
        least_useful(&mut members, count as usize, now, &mut leaving);
        leaving.into_iter().for_each(|key| self.close(key, Shutdown::Orderly));
    }

    /// Somebody came to a torrent that has all the connections it may have: one that is of no use
    /// goes, if there is one near by. `true`: it did.
    pub(super) fn make_room(&mut self, id: TorrentId, newcomer: PeerId) -> bool {
        let now = self.io.now();
        let Some(local) = self.torrents.get(&id) else { return false };
        // From the newcomer's place on, round the circle: each sees others.
        let after = local.peers.range((Bound::Excluded(newcomer), Bound::Unbounded));
        let keys = after.chain(local.peers.range(..newcomer)).map(|(_, key)| *key);
        let keys: Vec<Key> = keys.take(LOOKED_AT_MAX).collect();
        let useless = keys
            .into_iter()
            .find(|key| self.member(*key, now).is_some_and(|member| member.is_useless(now)));
        if let Some(key) = useless {
            self.close(key, Shutdown::Orderly);
        }
        useless.is_some()
    }
}
