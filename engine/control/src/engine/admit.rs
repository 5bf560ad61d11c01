//! Prepared torrents into the registry and to the shards, and out again.
//!
//! Owns: admission, the way from admitted to seeding, removal, limits of each torrent.
//! Never: reads files, hashes. Flow: Note::Prepared -> admit -> (verify) -> seeding -> announce ->
//! remove.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use seedring_proto::units::PieceIndex;
use seedring_shard::{
    Command,
    torrent::{Phase, Shared, TorrentId},
};

use super::{
    Engine, LOOK_EVERY,
    look::has_bit,
    prepare::{self, Prepared},
    torrents::{Recheck, State, Torrent},
};
use crate::{
    config::model::Verify,
    plan::{Origin, Wanted},
};

impl Engine {
    pub(super) async fn admit_all(
        &mut self,
        results: Vec<Result<Prepared, (Wanted, prepare::Error)>>,
    ) {
        let mut admitted = Vec::with_capacity(results.len());
        for result in results {
            let origin = match &result {
                Ok(prepared) => &prepared.wanted.origin,
                Err((wanted, _)) => &wanted.origin,
            };
            if let Origin::Folder(folder) = origin {
                self.made_progress.remove(&folder.name);
            }
            let Some(wanted) = self.pending.settled(origin) else { continue };
            match result {
                Ok(prepared) => admitted.extend(self.admit(Prepared { wanted, ..prepared })),
                Err((_, error)) if error.is_cancelled() => {}
                Err((_, error)) => {
                    let why = error.to_string();
                    if self.pending.failed(wanted, why.clone(), Instant::now()) {
                        tracing::error!("{why}; it is tried again every few seconds");
                    }
                }
            }
        }
        // Shards hear of what has content; what waits for its content comes when that comes.
        let present = admitted.iter().filter_map(|id| self.torrents.get(*id));
        let away =
            |state: &State| matches!(state, State::Waiting(_) | State::Paused | State::Metadata);
        let present = present.filter(|torrent| !away(&torrent.state));
        let shared: Vec<Arc<Shared>> = present.map(|torrent| torrent.shared.clone()).collect();
        self.shards.send_all(|| Command::Add(shared.clone()));
        for id in admitted {
            self.begin(id).await;
        }
        self.answer_added();
    }

    fn admit(&mut self, mut prepared: Prepared) -> Option<TorrentId> {
        self.pending.done(&prepared.wanted.origin);
        let hash = prepared.info_hash;
        if let Some(made) = &prepared.made {
            let path = prepared.wanted.origin.path().to_owned();
            self.known.remember_made(path.clone(), made.clone());
            self.store.made(path, made.clone());
        }
        let mut waiting = None;
        if let Some(other) = self.torrents.id_of(&hash).and_then(|id| self.torrents.get(id)) {
            let same = other.wanted.origin == prepared.wanted.origin;
            if same && other.state == State::Metadata && prepared.piece_count > 0 {
                waiting = Some(other.shared.id);
            } else if !same {
                tracing::warn!(
                    "{} is the same torrent as {} ({hash}); it is seeded once",
                    prepared.wanted.origin.path().display(),
                    other.wanted.origin.path().display()
                );
            }
            waiting?;
        }
        if let Some(download) = prepared.download.as_mut()
            && std::mem::take(&mut download.fresh)
        {
            let row = download.row.clone();
            self.save_download(hash, &row);
        }
        self.known.drop_record(&hash);
        let id = self.torrents.next_id();
        let shared = new_shared(id, &prepared, self.shards.len());
        if let Some(contents) = &prepared.contents {
            shared.contents.store(Some(contents.clone()));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let added_at = prepared.added_at.unwrap_or(now);
        let mut torrent = Torrent::new(Arc::new(shared), prepared, added_at);
        if let Some(waiting) = waiting {
            self.replace_waiting(waiting, &mut torrent);
        }
        self.torrents.insert(torrent);
        self.apply_limits(id);
        Some(id)
    }

    /// The smaller of the torrent's own limits and the engine's.
    pub(super) fn apply_limits(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let (own, shared) = (&torrent.wanted.limits, &torrent.shared);
        shared.upload.change(own.upload.bytes_per_second, self.shards.now());
        shared.receive.change(own.download.bytes_per_second, self.shards.now());
        let connections = own.connections.unwrap_or(self.config.limits.connections_per_torrent);
        shared.connections_max.store(connections, Ordering::Relaxed);
        shared.slots.store(own.upload_slots.0.unwrap_or(u32::MAX), Ordering::Relaxed);
        shared.super_seeding.store(own.super_seeding, Ordering::Relaxed);
        self.apply_exchange(id);
    }

    /// A torrent whose content was just looked at: verify or seed it, or let it wait.
    pub(super) async fn begin(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        if let State::Waiting(why) = &torrent.state {
            let line = format!("{}: {why}; it is looked for every few seconds", torrent.name);
            self.catalogue.put(torrent);
            self.looking.insert(id, Instant::now() + LOOK_EVERY);
            self.muffled.warn(&line);
            return;
        }
        if torrent.is_paused() {
            torrent.shared.set_phase(Phase::Paused);
            self.catalogue.put(torrent);
            return;
        }
        if torrent.state == State::Metadata {
            return self.begin_metadata(id).await;
        }
        if torrent.download.is_some() {
            return self.begin_download(id).await;
        }
        if torrent.recheck != Recheck::No {
            return self.verify_missing(id);
        }
        let pieces = &torrent.shared.pieces;
        match torrent.wanted.verify {
            Verify::Trust => {
                pieces.set_all_verified(true);
                pieces.set_all_offered(true);
            }
            Verify::Quick => pieces.set_all_offered(true),
            Verify::Full if pieces.verified_count() < pieces.piece_count() => {
                return self.verify_missing(id);
            }
            Verify::Full => pieces.set_all_offered(true),
        }
        self.seed(id).await;
    }

    /// Open for peers, and announced.
    pub(super) async fn seed(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let whole = torrent.shared.pieces.offers_all();
        let missing = torrent.shared.download.load().is_some();
        // Of a download, files may be missing because nobody wants them.
        let chosen = torrent.download.is_some() && torrent.note.is_none();
        torrent.state = match (missing, whole || chosen) {
            (true, _) => State::Downloading,
            (false, true) => State::Seeding,
            (false, false) => State::Partial,
        };
        if missing
            && !whole
            && let Some(download) = &mut torrent.download
        {
            download.fetches = true;
        }
        torrent.recheck = Recheck::No;
        torrent.shared.set_phase(Phase::Active);
        let announced = std::mem::replace(&mut torrent.announced, true);
        let hash = torrent.info_hash();
        if let Some(record) = torrent.record_if_changed() {
            self.store.save(hash, record);
        }
        self.catalogue.put(torrent);
        if !announced {
            self.announce(id).await;
        }
        self.shards.send_all(|| Command::Look(id));
        if missing && let Some(facts) = self.facts(id) {
            let now = self.shards.now();
            self.peers.begin_anew(facts, now);
            self.dial();
        }
    }

    /// A torrent leaves: peers, trackers (`stopped` with the last totals), listings. What is known
    /// of it is kept, so that it comes back with its totals and needs no hashing.
    pub(super) async fn remove(&mut self, id: TorrentId) {
        let Some(mut torrent) = self.torrents.remove(id) else { return };
        torrent.shared.set_phase(Phase::Removed);
        if let Some(download) = &torrent.download {
            download.mover.cancel();
        }
        let hash = torrent.info_hash();
        self.shards.send_all(|| Command::Remove(id));
        if let Some(record) = torrent.record_if_changed() {
            self.store.save(hash, record);
        }
        self.known.keep(hash, torrent.record());
        self.say_goodbye(&torrent).await;
        if let Some(embedded) = &self.embedded {
            embedded.disallow(&hash);
        }
        self.looking.remove(&id);
        self.forget_peers(id);
        self.catalogue.remove(&hash);
    }
}

fn new_shared(id: TorrentId, prepared: &Prepared, shards: usize) -> Shared {
    let shared = Shared::new(id, prepared.info_hash, prepared.piece_count).over(shards);
    shared.uploaded_bytes.store(prepared.uploaded_bytes, Ordering::Relaxed);
    shared.downloaded_bytes.store(prepared.downloaded_bytes, Ordering::Relaxed);
    let transfer = prepared.download.as_ref().and_then(|download| download.transfer.clone());
    shared.download.store(transfer);
    set_verified(&shared, &prepared.verified);
    shared
}

pub(super) fn set_verified(shared: &Shared, bits: &[u8]) {
    (0..shared.pieces.piece_count()).map(PieceIndex).for_each(|piece| {
        if has_bit(bits, piece) {
            shared.pieces.set_verified(piece, true);
        }
    });
}
