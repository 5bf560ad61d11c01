//! Who is told of a torrent: its trackers and the embedded one.
//!
//! Owns: hello and goodbye. Never: when to announce again (the trackers' schedule does).
//! Flow: a torrent begins to seed, changes its trackers or leaves -> here -> trackers.

use seedring_proto::tracker::{announcer::Origin as TrackerOrigin, schedule};
use seedring_shard::torrent::TorrentId;

use super::{
    Engine,
    torrents::{Torrent, totals_of},
};
use crate::{
    config::model::{TrackerRef, Trackers as TrackerList},
    plan::uses_embedded,
};

impl Engine {
    /// Trackers changed: the old ones are told goodbye, the new ones hello. A private torrent's
    /// peers go with the old ones (BEP 27); a public one's stay.
    pub(super) async fn announce_anew(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        self.catalogue.put(torrent);
        if !torrent.announced {
            return;
        }
        let private = torrent.private;
        self.say_goodbye(torrent).await;
        if private {
            self.leave_swarm(id);
        }
        // A tracker that stays in the list hears `stopped` with all, then `started` with nothing.
        self.torrents.reset_totals(id);
        self.announce(id).await;
    }

    /// `stopped`, with the totals as they are now.
    pub(super) async fn say_goodbye(&self, torrent: &Torrent) {
        let hash = torrent.info_hash();
        if torrent.on_trackers {
            self.trackers.remove(hash, totals_of(torrent)).await;
        } else {
            self.torrents.forget_totals(&hash);
        }
        if let Some(embedded) = &self.embedded {
            embedded.unregister_self(&hash);
        }
    }

    pub(super) async fn announce(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let (hash, whole) = (torrent.info_hash(), torrent.shared.pieces.offers_all());
        let announce = announcement(torrent);
        torrent.on_trackers = announce.tiers.iter().any(|tier| !tier.is_empty());
        if let Some(embedded) = &self.embedded {
            embedded.allow(hash);
            if uses_embedded(&torrent.wanted.trackers) {
                embedded.register_self(hash, whole);
            }
        }
        if torrent.on_trackers {
            self.trackers.add(announce).await;
        }
    }
}

fn announcement(torrent: &Torrent) -> schedule::Torrent {
    let (tiers, origin) = match &torrent.wanted.trackers {
        TrackerList::Keep => (torrent.tiers.clone(), TrackerOrigin::Torrent),
        TrackerList::Tiers(tiers) => {
            let urls = |tier: &Vec<TrackerRef>| {
                let urls = tier.iter().filter_map(|tracker| match tracker {
                    TrackerRef::Url(url) => Some(url.clone()),
                    TrackerRef::Embedded => None,
                });
                urls.collect::<Vec<_>>()
            };
            let tiers = tiers.iter().map(urls).filter(|tier| !tier.is_empty()).collect();
            (tiers, TrackerOrigin::User)
        }
    };
    let (info_hash, private) = (torrent.info_hash(), torrent.private);
    schedule::Torrent { info_hash, tiers, origin, private }
}
