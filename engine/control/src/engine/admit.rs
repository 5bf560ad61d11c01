//! Prepared torrents into the registry and to the shards; from state to state.
//!
//! Owns: admission, verification commands, loading of contents, what happens when content goes or comes.
//! Never: reading files itself. Flow: Note::Prepared -> admit -> (verify) -> seeding -> announce.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use seedring_proto::{
    tracker::{announcer::Origin as TrackerOrigin, schedule},
    units::PieceIndex,
};
use seedring_shard::{
    Command,
    torrent::{Contents, Phase, Shared, TorrentId},
};

use super::{
    Engine, LOOK_EVERY, Note,
    prepare::{self, Condition, Prepared, contents_of, has_bit, look, read_torrent},
    torrents::{State, Torrent, totals_of},
};
use crate::{
    config::model::{TrackerRef, Trackers as TrackerList, Verify},
    plan::Wanted,
    state::Record,
};

/// A torrent that could not be prepared is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

impl Engine {
    pub(super) async fn admit_all(
        &mut self,
        results: Vec<Result<Prepared, (Wanted, prepare::Error)>>,
    ) {
        let mut admitted = Vec::with_capacity(results.len());
        for result in results {
            match result {
                Ok(prepared) => admitted.extend(self.admit(prepared)),
                Err((wanted, error)) => self.preparing_failed(wanted, error.to_string()),
            }
        }
        let shared: Vec<Arc<Shared>> =
            admitted.iter().filter_map(|id| Some(self.torrents.get(*id)?.shared.clone())).collect();
        self.shards.send_all(|| Command::Add(shared.clone()));
        for id in admitted {
            self.begin(id).await;
        }
    }

    fn preparing_failed(&mut self, wanted: Wanted, why: String) {
        let known = self.failed.iter().position(|(failed, ..)| failed.origin == wanted.origin);
        let again = Instant::now() + RETRY;
        match known {
            Some(at) => self.failed[at] = (wanted, why, again),
            None => {
                tracing::error!("{why}");
                self.failed.push((wanted, why, again));
            }
        }
    }

    pub(super) fn try_failed_again(&mut self) {
        let now = Instant::now();
        for (wanted, _, again) in &mut self.failed {
            if *again <= now {
                // Stays in the list, so that it is said once; taken out when it is admitted.
                *again = now + Duration::from_secs(3_600);
                self.queue.push_back(wanted.clone());
            }
        }
        self.prepare_next();
    }

    fn admit(&mut self, prepared: Prepared) -> Option<TorrentId> {
        self.failed.retain(|(wanted, ..)| wanted.origin != prepared.wanted.origin);
        let hash = prepared.info_hash;
        let path = prepared.wanted.origin.path().display().to_string();
        if let Some(other) = self.torrents.id_of(&hash).and_then(|id| self.torrents.get(id)) {
            if other.wanted.origin != prepared.wanted.origin {
                tracing::warn!(
                    "{path} is the same torrent as {} ({hash}); it is seeded once",
                    other.wanted.origin.path().display()
                );
            }
            return None;
        }
        let id = self.torrents.next_id();
        let shared = Arc::new(Shared::new(id, hash, prepared.piece_count));
        shared.uploaded_bytes.store(prepared.uploaded_bytes, Ordering::Relaxed);
        if let Some(made) = &prepared.made {
            self.store.made(prepared.wanted.origin.path().clone(), made.clone());
        }
        (0..prepared.piece_count).map(PieceIndex).for_each(|piece| {
            if has_bit(&prepared.verified, piece) {
                shared.pieces.set_verified(piece, true);
            }
        });
        if let Some(contents) = &prepared.contents {
            shared.contents.store(Some(contents.clone()));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let added_at = prepared.added_at.unwrap_or(now);
        let state = match &prepared.condition {
            Condition::Present { .. } => State::Seeding,
            Condition::Missing(why) | Condition::Differs(why) => State::Waiting(why.clone()),
        };
        let mut torrent = Torrent::new(shared, prepared, added_at);
        torrent.state = state;
        self.torrents.insert(torrent);
        self.apply_limits(id);
        Some(id)
    }

    /// The smaller of the torrent's own limits and the engine's.
    pub(super) fn apply_limits(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let (own, shared) = (&torrent.wanted.limits, &torrent.shared);
        shared.upload.set(own.upload.bytes_per_second);
        let connections = own.connections.unwrap_or(self.config.limits.connections_per_torrent);
        shared.connections_max.store(connections, Ordering::Relaxed);
        shared.slots.store(own.upload_slots.0.unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// A torrent whose content was just looked at: verify or seed it, or let it wait.
    async fn begin(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        if let State::Waiting(why) = &torrent.state {
            tracing::warn!("{}: {why}; it is looked for every few seconds", torrent.name);
            self.looking.insert(id, Instant::now() + LOOK_EVERY);
            self.catalogue.put(torrent);
            return;
        }
        let pieces = &torrent.shared.pieces;
        match torrent.wanted.verify {
            Verify::Trust => {
                pieces.set_all_verified(true);
                pieces.set_all_offered(true);
            }
            Verify::Quick => pieces.set_all_offered(true),
            Verify::Full => {
                let whole = pieces.verified_count() == pieces.piece_count();
                if !whole {
                    return self.verify_missing(id);
                }
                pieces.set_all_offered(true);
            }
        }
        self.seed(id).await;
    }

    /// Hashes every piece that is not verified, in parts over all shards.
    fn verify_missing(&mut self, id: TorrentId) {
        let shards = self.shards.len();
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let pieces = &torrent.shared.pieces;
        let count = pieces.piece_count();
        let verified = pieces.verified_count();
        if torrent.shared.contents.load().is_none() {
            self.load_contents(id);
        }
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let pieces = &torrent.shared.pieces;
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for piece in 0..count {
            if pieces.is_verified(PieceIndex(piece)) {
                pieces.set_offered(PieceIndex(piece), true);
            } else if let Some(last) = ranges.last_mut()
                && last.0 + last.1 == piece
            {
                last.1 += 1;
            } else {
                ranges.push((piece, 1));
            }
        }
        // Large runs are shared out; a small torrent stays on one shard.
        let part = count.div_ceil(shards as u32).max(256);
        let mut parts = Vec::new();
        for (first, length) in ranges {
            let cuts = (0..length).step_by(part as usize);
            parts.extend(cuts.map(|at| (first + at, part.min(length - at))));
        }
        torrent.state = State::Verifying { done: verified, of: count, failed: 0 };
        torrent.verifying = parts.len() as u32;
        let home = Shared::home(&torrent.info_hash(), shards);
        for (n, (first, length)) in parts.into_iter().enumerate() {
            let command = Command::Verify {
                torrent: id,
                first: PieceIndex(first),
                count: length,
                offer: true,
            };
            self.shards.send((home + n) % shards, command);
        }
    }

    /// Open for peers, and announced.
    pub(super) async fn seed(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let whole = torrent.shared.pieces.offers_all();
        torrent.state = if whole { State::Seeding } else { State::Partial };
        torrent.shared.set_phase(Phase::Active);
        let announced = std::mem::replace(&mut torrent.announced, true);
        let hash = torrent.info_hash();
        if let Some(record) = torrent.record_if_changed() {
            self.store.save(hash, record);
        }
        let torrent = self.torrents.get(id).expect("invariant: looked up above");
        self.catalogue.put(torrent);
        if !announced {
            self.announce(id).await;
        }
        self.shards.send_all(|| Command::Look(id));
        self.tell_when_ready();
    }

    /// Trackers changed: the old ones are told goodbye, the new ones hello.
    pub(super) async fn announce_anew(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        if !torrent.announced {
            return;
        }
        let hash = torrent.info_hash();
        let totals = totals_of(&torrent.shared, torrent.uploaded_before, torrent.total_bytes);
        self.trackers.remove(hash, totals).await;
        if let Some(embedded) = &self.embedded {
            embedded.unregister_self(&hash);
        }
        self.announce(id).await;
    }

    async fn announce(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let (hash, whole) = (torrent.info_hash(), torrent.shared.pieces.offers_all());
        let announce = self.announcement(torrent);
        if let Some(embedded) = &self.embedded {
            embedded.allow(hash);
            if uses_embedded(torrent) {
                embedded.register_self(hash, whole);
            }
        }
        if announce.tiers.iter().any(|tier| !tier.is_empty()) {
            self.trackers.add(announce).await;
        }
    }

    fn announcement(&self, torrent: &Torrent) -> schedule::Torrent {
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

    /// A torrent leaves: peers, trackers (`stopped` with the last totals), listings.
    pub(super) async fn remove(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        torrent.shared.set_phase(Phase::Removed);
        torrent.touch();
        let hash = torrent.info_hash();
        if let Some(record) = torrent.record_if_changed() {
            self.store.save(hash, record);
        }
        let totals = totals_of(&torrent.shared, torrent.uploaded_before, torrent.total_bytes);
        if torrent.announced {
            self.trackers.remove(hash, totals).await;
        }
        if let Some(embedded) = &self.embedded {
            embedded.unregister_self(&hash);
            embedded.disallow(&hash);
        }
        self.looking.remove(&id);
        self.peers.forget(id);
        self.catalogue.remove(&hash);
        self.torrents.remove(id);
        self.shards.send_all(|| Command::Remove(id));
    }

    /// Reads a torrent's layout and hashes for the shards, beside the loop.
    pub(super) fn load_contents(&self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let (place, stamps) = (torrent.place.clone(), torrent.stamps.clone());
        let (notes, direct_io) = (self.notes.0.clone(), self.known.direct_io);
        tokio::task::spawn_blocking(move || {
            let loaded = read_torrent(&place.torrent_file).map_err(|e| e.to_string());
            let contents = loaded.and_then(|metainfo| {
                let base = std::fs::canonicalize(&place.content)
                    .map_err(|error| format!("{}: {error}", place.content.display()))?;
                let condition = Condition::Present { base, stamps };
                contents_of(&metainfo, &place, &condition, direct_io)
                    .ok_or_else(|| "no content".to_owned())
            });
            let _ = notes.send(Note::Contents(id, contents.map(Arc::new)));
        });
    }

    pub(super) fn contents_loaded(&mut self, id: TorrentId, result: Result<Arc<Contents>, String>) {
        let Some(torrent) = self.torrents.get(id) else { return };
        match result {
            Ok(contents) => {
                torrent.shared.contents.store(Some(contents));
                self.shards.send_all(|| Command::Look(id));
            }
            Err(why) => self.park(id, why),
        }
    }

    /// Content is in trouble: no connections, nothing announced as lost, looked at until it is well.
    pub(super) fn park(&mut self, id: TorrentId, why: String) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        if !matches!(torrent.state, State::Waiting(_)) {
            tracing::warn!("{}: {why}; it is looked for every few seconds", torrent.name);
        }
        torrent.state = State::Waiting(why);
        torrent.shared.set_phase(Phase::Parked);
        torrent.shared.contents.store(None);
        self.looking.insert(id, Instant::now() + LOOK_EVERY);
        self.shards.send_all(|| Command::Look(id));
    }

    /// Looks at content that is away, beside the loop.
    pub(super) fn look_again(&mut self) {
        const AT_ONCE: usize = 64;
        let now = Instant::now();
        let due = self.looking.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id);
        for id in due.take(AT_ONCE).collect::<Vec<_>>() {
            self.looking.insert(id, now + Duration::from_secs(3_600));
            let Some(torrent) = self.torrents.get(id) else { continue };
            let (place, notes) = (torrent.place.clone(), self.notes.0.clone());
            let record = Record {
                verified: torrent.shared.pieces.verified_bitfield(),
                stamps: torrent.stamps.to_vec(),
                ..Record::default()
            };
            tokio::task::spawn_blocking(move || {
                let note = match read_torrent(&place.torrent_file) {
                    Err(error) => Note::Looked(id, Condition::Missing(error.to_string()), vec![]),
                    Ok(metainfo) => {
                        let layout = &metainfo.info.layout;
                        let condition = look(layout, &place);
                        let verified = match &condition {
                            Condition::Present { stamps, .. } => {
                                prepare::still_verified(layout, &record, stamps)
                            }
                            _ => Vec::new(),
                        };
                        Note::Looked(id, condition, verified)
                    }
                };
                let _ = notes.send(note);
            });
        }
    }

    /// Content was looked at again: still away, or back (pieces whose files are the same need no
    /// hashing).
    pub(super) async fn looked(&mut self, id: TorrentId, condition: Condition, verified: &[u8]) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        match condition {
            Condition::Missing(why) | Condition::Differs(why) => {
                torrent.state = State::Waiting(why);
                self.looking.insert(id, Instant::now() + LOOK_EVERY);
            }
            Condition::Present { stamps, .. } => {
                self.looking.remove(&id);
                let pieces = &torrent.shared.pieces;
                let known_before = torrent.stamps.iter().any(Option::is_some);
                for piece in (0..pieces.piece_count()).map(PieceIndex) {
                    if known_before && !has_bit(verified, piece) {
                        pieces.set_verified(piece, false);
                    }
                }
                torrent.stamps = stamps;
                torrent.state = State::Seeding;
                torrent.touch();
                tracing::info!("{}: content is there", torrent.name);
                self.begin(id).await;
            }
        }
    }

    /// Says once that everything wanted has been dealt with.
    pub(super) fn tell_when_ready(&mut self) {
        let busy = self.preparing > 0
            || !self.queue.is_empty()
            || self.torrents.iter().any(|t| matches!(t.state, State::Verifying { .. }));
        if busy || self.all_ready_after.is_some() {
            return;
        }
        let took = self.began.elapsed();
        self.all_ready_after = Some(took);
        self.made_progress = None;
        self.announce_ready(took);
    }
}

fn uses_embedded(torrent: &Torrent) -> bool {
    crate::plan::uses_embedded(&torrent.wanted.trackers)
}
