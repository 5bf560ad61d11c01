//! What shards and trackers tell.
//!
//! Owns: the reaction to each event. Never: data-plane work. Flow: mailbox -> here -> state, log,
//! commands.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use seedring_proto::{
    swarm::roster::Source,
    tracker::announce::Event as AnnounceEvent,
    units::{InfoHash, PieceIndex},
};
use seedring_shard::{
    Command, Event, Trouble,
    torrent::{KeptPiece, TorrentId},
};

use super::{Engine, torrents::State};
use crate::trackers;

/// A download with a file in trouble is looked at this much later, and not more often.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Events taken before the loop looks at other things again.
const EVENTS_MAX: usize = 4_096;

impl Engine {
    pub(super) async fn shard_events(&mut self) {
        for _ in 0..EVENTS_MAX {
            let Some((shard, event)) = self.shards.receive() else { return };
            self.shard_event(shard, event).await;
        }
    }

    async fn shard_event(&mut self, shard: usize, event: Event) {
        match event {
            Event::Activate(id) => self.activate(id),
            Event::Idle(id) => self.went_idle(id),
            Event::Verified { torrent, pieces, failed, bytes, done } => {
                self.verified(shard, torrent, (pieces, failed), bytes, done).await;
            }
            Event::Offered { torrent, piece } => {
                self.shards.send_all(|| Command::Have { torrent, piece });
            }
            Event::Lost { torrent, piece } => {
                self.shards.send_all(|| Command::Lost { torrent, piece });
            }
            // The bits are looked at every second; this only says that it is worth it now.
            Event::Complete(id) => self.finish_if_done(id),
            Event::WriteFailed { torrent, path, error } => {
                self.write_failed(torrent, &path, &error)
            }
            Event::Kept { info_hash, piece, slot, blocks } => {
                let id = self.id_of(&info_hash);
                if let Some(torrent) = id.and_then(|id| self.torrents.get_mut(id)) {
                    torrent.keep(KeptPiece { piece, slot, blocks });
                }
            }
            Event::Poisoned { torrent, ip, piece } => {
                tracing::debug!("{ip} is banned: its piece {} of {torrent:?} is bad", piece.0);
                self.ban(ip);
            }
            Event::Metadata { torrent, peer, address, said } => {
                self.metadata_said(torrent, (shard, peer), address, said);
            }
            Event::PieceFailed { torrent, piece } => self.piece_failed(torrent, piece.0),
            Event::Trouble { torrent, path, trouble, doubted } => {
                self.doubted(torrent, &doubted);
                self.trouble(torrent, &path, trouble);
            }
            Event::Dialed { torrent, address, outcome } => {
                self.dialed(torrent, address, outcome);
            }
            Event::Accepted { torrent, peer, address } => {
                self.accepted(shard, torrent, peer, address);
            }
            Event::Met { torrent, address, dialed, listen_port, seed } => {
                self.met(torrent, address, dialed, listen_port, seed);
            }
            Event::Left { torrent, address, listen_port } => {
                self.left(torrent, address, listen_port);
            }
            Event::Contacts { torrent, contacts } => self.contacts(torrent, &contacts),
            Event::AcceptFailed(error) => tracing::warn!(
                "shard {shard} can't accept connections: {error}; resting for a second. Raise the \
                 descriptor limit (LimitNOFILE, ulimit -n) or lower limits.connections"
            ),
            Event::PeerFault { address, why } => tracing::debug!("{address} disconnected: {why}"),
            Event::Stats(stats) => {
                self.stats[shard] = Some(*stats);
                self.heard_at[shard] = Instant::now();
            }
            Event::Peers { torrent, peers } => self.peers_reported(torrent, shard, &peers),
            Event::Stopped(stats) => self.stats[shard] = Some(*stats),
        }
    }

    fn activate(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        if torrent.shared.contents.load().is_some() {
            self.shards.send_all(|| Command::Look(id));
        } else if torrent.is_active() {
            self.load_contents(id);
        }
    }

    fn piece_failed(&mut self, id: TorrentId, piece: u32) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        if !matches!(torrent.state, State::Seeding | State::Partial) {
            return; // summed up when verification is done; or parked
        }
        if torrent.is_downloading() {
            return; // it is fetched again
        }
        let note = format!("piece {piece} does not match the torrent; it is not served");
        let line = format!("{}: {note}", torrent.name);
        torrent.note = Some(note);
        torrent.state = State::Partial;
        torrent.touch();
        let none_left = torrent.shared.pieces.offered_count() == 0;
        self.muffled.warn(&line);
        if none_left {
            self.give_up(id);
        }
    }

    /// Reads of these pieces failed. They are hashed again before they go out, but a disk that is
    /// away is no reason to forget them. Of a download only what is synced is stored, read or not.
    fn doubted(&mut self, id: TorrentId, pieces: &[PieceIndex]) {
        let torrent = self.torrents.get_mut(id).filter(|torrent| !torrent.is_downloading());
        if let Some(torrent) = torrent {
            torrent.doubted.extend_from_slice(pieces);
        }
    }

    /// A file can't be served as it is.
    fn trouble(&mut self, id: TorrentId, file: &Path, trouble: Trouble) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        if matches!(torrent.state, State::Waiting(_) | State::Paused) {
            return; // said by another shard, or before it was parked
        }
        let path = file.display();
        if torrent.is_downloading() {
            // Files of a download come and grow: only a look at them all says what it means.
            tracing::debug!("{}: {path}: {trouble:?}", torrent.name);
            let soon = Instant::now() + LOOK_SOON;
            self.looking.entry(id).or_insert(soon);
            return;
        }
        match trouble {
            Trouble::Io(error) => {
                torrent.troubles += 1;
                self.park(id, format!("{path}: {error}"));
            }
            Trouble::Short { expected_bytes, found_bytes } => self.park(
                id,
                format!("{path} has {found_bytes} bytes, the torrent says {expected_bytes}"),
            ),
            Trouble::Changed => {
                let note =
                    format!("{path} changed; its pieces are hashed again before they go out");
                if torrent.note.as_ref() != Some(&note) {
                    let line = format!("{}: {note}", torrent.name);
                    self.muffled.warn(&line);
                }
                torrent.note = Some(note);
                self.doubt(id, file);
                self.verify_later(id);
            }
        }
    }

    pub(super) fn tracker_event(&mut self, event: trackers::Event) {
        match event {
            trackers::Event::Peers { info_hash, peers, replace } => {
                let Some(id) = self.id_of(&info_hash) else { return };
                if replace {
                    self.leave_swarm(id);
                }
                self.learn(id, &peers, Source::Tracker);
                self.dial();
            }
            trackers::Event::Announced { info_hash, tracker, event, asked, result } => {
                if event == AnnounceEvent::Completed {
                    self.completed_told(&info_hash);
                }
                if let Ok(trackers::Heard { external_ip: Some(ip), .. }) = &result {
                    let port = self.globals.listen_port.load(Ordering::Relaxed);
                    self.peers.seen_at(SocketAddr::new(ip.to_canonical(), port));
                }
                match result {
                    // Who was asked in its place has said so.
                    Err(why) if !asked => {
                        tracing::debug!("{info_hash}: {event:?} to {tracker}: {why}");
                    }
                    result => self.log_announce(&info_hash, &tracker, event, result),
                }
            }
            trackers::Event::Removed { info_hash } => self.torrents.forget_totals(&info_hash),
        }
    }

    fn completed_told(&mut self, info_hash: &InfoHash) {
        let torrent = self.id_of(info_hash).and_then(|id| self.torrents.get_mut(id));
        if let Some(download) = torrent.and_then(|torrent| torrent.download.as_mut()) {
            download.telling = false;
        }
    }

    /// A failure that was said and is over is said to be over, too.
    fn log_announce(
        &mut self,
        info_hash: &InfoHash,
        tracker: &str,
        event: AnnounceEvent,
        result: Result<trackers::Heard, String>,
    ) {
        let torrent = self.id_of(info_hash).and_then(|id| self.torrents.get_mut(id));
        let failed_before =
            torrent.is_some_and(|torrent| std::mem::replace(&mut torrent.unheard, result.is_err()));
        match result {
            Ok(heard) => {
                if let Some(warning) = &heard.warning {
                    tracing::warn!("{tracker}: {warning}");
                }
                if failed_before {
                    tracing::info!("{info_hash}: {event:?} to {tracker}: it is heard again");
                }
                tracing::debug!(
                    "{info_hash}: {event:?} told to {tracker}, {} peers, seeders {:?}, \
                     leechers {:?}",
                    heard.peers,
                    heard.seeders,
                    heard.leechers
                );
            }
            Err(why) => tracing::info!("{info_hash}: {event:?} to {tracker}: {why}"),
        }
    }
}
