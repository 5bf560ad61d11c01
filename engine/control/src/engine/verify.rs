//! Verification of whole torrents: which pieces are hashed where, and what came of it.
//!
//! Owns: the sharing out, progress, the verdict. Never: hashes; shards do.
//! Flow: begin -> Command::Verify to the shards -> Event::Verified -> seeding, partial or waiting.

use std::time::Instant;

use seedring_proto::units::PieceIndex;
use seedring_shard::{
    Command,
    torrent::{Phase, Shared, TorrentId},
};

use super::{Engine, LOOK_EVERY, torrents::State};
use crate::config::model::Verify;

/// Pieces that a shard is given at least: a small torrent stays on one shard.
const PART_PIECES_MIN: u32 = 256;

impl Engine {
    /// Hashes every piece that is not verified, in parts over all shards.
    pub(super) fn verify_missing(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let pieces = &torrent.shared.pieces;
        let (done, of) = (pieces.verified_count(), pieces.piece_count());
        torrent.state = State::Verifying { done, of, failed: 0 };
        if torrent.shared.contents.load().is_none() {
            torrent.awaits_contents = true;
            return self.load_contents(id);
        }
        self.send_verify(id);
    }

    pub(super) fn send_verify(&mut self, id: TorrentId) {
        let shards = self.shards.len();
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let ranges = match &torrent.download {
            Some(download) => download.to_verify.clone(),
            None => unverified(&torrent.shared),
        };
        let mut parts = parts_of(ranges, torrent.shared.pieces.piece_count(), shards as u32);
        if parts.is_empty() {
            parts.push((0, 0)); // verified meanwhile: an empty part says so
        }
        torrent.verifying = parts.len() as u32;
        let home = Shared::home(&torrent.info_hash(), shards);
        for (n, (first, count)) in parts.into_iter().enumerate() {
            let first = PieceIndex(first);
            let command = Command::Verify { torrent: id, first, count, offer: true };
            self.shards.send((home + n) % shards, command);
        }
    }

    pub(super) async fn verified(
        &mut self,
        id: TorrentId,
        pieces: u32,
        failed: u32,
        part_done: bool,
    ) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let State::Verifying { done, failed: so_far, of } = &mut torrent.state else { return };
        *done = (*done + pieces).min(*of);
        *so_far += failed;
        let (of, failed) = (*of, *so_far);
        if part_done {
            torrent.verifying = torrent.verifying.saturating_sub(1);
        }
        if torrent.verifying > 0 {
            return;
        }
        if torrent.download.is_some() {
            self.download_verified(id, failed).await;
            return self.tell_when_ready();
        }
        let good = torrent.shared.pieces.verified_count();
        if good == of {
            torrent.note = None;
            let line = format!("{}: all {of} pieces verified", torrent.name);
            self.muffled.info(&line);
        } else if failed > 0 && good > 0 {
            let note = format!("{} of {of} pieces do not match the torrent", of - good);
            tracing::error!("{}: {note}; the others are seeded", torrent.name);
            torrent.note = Some(note);
        }
        if good == 0 {
            self.give_up(id);
        } else {
            self.seed(id).await;
        }
        self.tell_when_ready();
    }

    /// No piece is any good: other files have to come.
    pub(super) fn give_up(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        torrent.hopeless = true;
        let why = format!("{}: no piece matches the torrent", torrent.place.content.display());
        self.park(id, why);
    }

    /// A file changed under a torrent that is to be verified in full: when it has settled.
    pub(super) fn verify_later(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        if torrent.wanted.verify == Verify::Full {
            self.rehash.insert(id, Instant::now() + LOOK_EVERY);
        }
    }

    /// Once a second.
    pub(super) fn verify_due(&mut self) {
        let now = Instant::now();
        let due: Vec<TorrentId> =
            self.rehash.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.rehash.remove(&id);
            let Some(torrent) = self.torrents.get(id) else { continue };
            match torrent.state {
                State::Seeding | State::Partial
                    if torrent.shared.phase() == Phase::Active && torrent.download.is_none() =>
                {
                    self.verify_missing(id);
                }
                State::Verifying { .. } => {
                    self.rehash.insert(id, now + LOOK_EVERY);
                }
                _ => {}
            }
        }
    }
}

/// Runs of pieces that are not verified; the others are offered.
fn unverified(shared: &Shared) -> Vec<(u32, u32)> {
    let pieces = &shared.pieces;
    let count = pieces.piece_count();
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
    ranges
}

/// Runs of pieces cut so that every shard has some.
fn parts_of(ranges: Vec<(u32, u32)>, count: u32, shards: u32) -> Vec<(u32, u32)> {
    let part = count.div_ceil(shards).max(PART_PIECES_MIN);
    let cuts = |(first, length): (u32, u32)| {
        (0..length).step_by(part as usize).map(move |at| (first + at, part.min(length - at)))
    };
    ranges.into_iter().flat_map(cuts).collect()
}

#[cfg(test)]
mod tests {
    use seedring_proto::units::InfoHash;

    use super::*;

    #[test]
    fn every_unverified_piece_is_hashed_once_and_by_all_shards() {
        let shared = Shared::new(TorrentId(1), InfoHash([0; 20]), 2_000);
        for piece in [0, 700, 701, 1_999] {
            shared.pieces.set_verified(PieceIndex(piece), true);
        }
        let parts = parts_of(unverified(&shared), 2_000, 2);
        let pieces: Vec<u32> = parts.iter().flat_map(|(at, n)| *at..*at + *n).collect();
        let expected: Vec<u32> = (0..2_000).filter(|p| ![0, 700, 701, 1_999].contains(p)).collect();
        assert_eq!(pieces, expected);
        assert!(parts.len() > 2 && parts.iter().all(|(_, n)| *n <= 1_000));
        assert_eq!(shared.pieces.offered_count(), 4);
        let fresh = Shared::new(TorrentId(2), InfoHash([0; 20]), 200);
        assert_eq!(parts_of(unverified(&fresh), 200, 2), [(0, 200)]);
    }
}
