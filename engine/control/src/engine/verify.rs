//! Verification of whole torrents: which pieces are hashed where, and what came of it.
//!
//! Owns: the sharing out, progress and its speed, the verdict. Never: hashes; shards do.
//! Flow: begin -> Command::Verify to the shards -> Event::Verified -> seeding, partial or waiting.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use seedring_proto::units::PieceIndex;
use seedring_shard::{
    Command,
    torrent::{Phase, Shared, TorrentId},
};

use super::{
    Engine, LOOK_EVERY,
    torrents::{Recheck, State, Torrent},
};
use crate::config::model::Verify;

/// Pieces of a torrent that stays on one shard.
const SMALL_PIECES: u32 = 256;
/// A larger one is cut into parts, and each shard takes the next when it has done one. A part is
/// the share of one shard of what is left, divided by this: long at first, so that a disk is read
/// in long runs, and short at the end, so that no shard waits long for another.
const SHARE_PARTS: u32 = 4;
/// A part is a multiple of as many pieces as are hashed side by side.
const PART_PIECES_STEP: u32 = 16;
/// Parts that a shard has at a time: the next one is there when one is done.
const PARTS_AHEAD: usize = 2;
/// Weight of the newest second in the speed.
const SMOOTHING: f64 = 0.3;

/// How fast a torrent is hashed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Hashing {
    /// Hashed since the last look, and when that was; `None`: not begun.
    bytes: u64,
    looked_at: Option<Instant>,
    /// Bytes a second, smoothed; `None`: too early to say.
    per_s: Option<f64>,
}

impl Hashing {
    fn begun(now: Instant) -> Hashing {
        Hashing { looked_at: Some(now), ..Hashing::default() }
    }

    /// Once a second.
    fn look(&mut self, now: Instant) {
        let Some(before) = self.looked_at else { return };
        let elapsed = now.saturating_duration_since(before);
        if elapsed < Duration::from_millis(100) {
            return; // it has just begun
        }
        let newest = std::mem::take(&mut self.bytes) as f64 / elapsed.as_secs_f64();
        let smoothed = self.per_s.map_or(newest, |rate| rate + (newest - rate) * SMOOTHING);
        (self.looked_at, self.per_s) = (Some(now), Some(smoothed));
    }

    pub fn bytes_per_s(&self) -> f64 {
        self.per_s.unwrap_or(0.0)
    }
}

/// What a torrent's verification is cut into.
#[derive(Default)]
pub struct Parts {
    /// First piece and number of each that no shard has yet.
    waiting: VecDeque<(u32, u32)>,
    /// Those that shards have.
    under_way: u32,
}

/// Bytes of a torrent that are still to be hashed; 0 where nothing is.
pub fn unhashed_bytes(torrent: &Torrent) -> u64 {
    let State::Verifying { done, of, .. } = torrent.state else { return 0 };
    let left = u128::from(torrent.total_bytes) * u128::from(of.saturating_sub(done));
    (left / u128::from(torrent.shared.pieces.piece_count().max(1))) as u64
}

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
        if torrent.download.is_some() || torrent.recheck == Recheck::Asked {
            torrent.recheck = Recheck::Begun;
        }
        let ranges = match &torrent.download {
            Some(download) => download.to_verify.clone(),
            None => unverified(&torrent.shared),
        };
        let mut parts = parts_of(ranges, torrent.shared.pieces.piece_count(), shards as u32);
        if parts.is_empty() {
            parts.push_back((0, 0)); // verified meanwhile: an empty part says so
        }
        torrent.verifying = Parts { waiting: parts, under_way: 0 };
        torrent.hashing = Hashing::begun(Instant::now());
        let home = Shared::home(&torrent.info_hash(), shards);
        for n in 0..shards * PARTS_AHEAD {
            self.send_part(id, (home + n) % shards);
        }
    }

    /// The next part that nobody has. `false`: there is none.
    fn send_part(&mut self, id: TorrentId, shard: usize) -> bool {
        let parts = self.torrents.get_mut(id).map(|torrent| &mut torrent.verifying);
        let Some(parts) = parts else { return false };
        let Some((first, count)) = parts.waiting.pop_front() else { return false };
        parts.under_way += 1;
        let first = PieceIndex(first);
        self.shards.send(shard, Command::Verify { torrent: id, first, count, offer: true });
        true
    }

    pub(super) async fn verified(
        &mut self,
        shard: usize,
        id: TorrentId,
        (pieces, failed): (u32, u32),
        bytes: u64,
        part_done: bool,
    ) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let State::Verifying { done, failed: so_far, of } = &mut torrent.state else { return };
        torrent.hashing.bytes += bytes;
        *done = (*done + pieces).min(*of);
        *so_far += failed;
        let (of, failed) = (*of, *so_far);
        if !part_done {
            return;
        }
        torrent.verifying.under_way = torrent.verifying.under_way.saturating_sub(1);
        if self.send_part(id, shard) {
            return;
        }
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        if torrent.verifying.under_way > 0 {
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

    /// Once a second: how fast it goes, and what is due.
    pub(super) fn verify_second(&mut self) {
        let now = Instant::now();
        self.torrents.iter_mut().for_each(|torrent| torrent.hashing.look(now));
        self.verify_due(now);
    }

    fn verify_due(&mut self, now: Instant) {
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

/// Runs of pieces cut into parts.
fn parts_of(ranges: Vec<(u32, u32)>, count: u32, shards: u32) -> VecDeque<(u32, u32)> {
    let is_shared = shards > 1 && count > SMALL_PIECES;
    let mut left: u32 = ranges.iter().map(|(_, length)| length).sum();
    let mut parts = VecDeque::new();
    for (mut first, mut length) in ranges {
        while length > 0 {
            let share = left / (shards * SHARE_PARTS);
            let share = share.max(1).next_multiple_of(PART_PIECES_STEP);
            let part = if is_shared { length.min(share) } else { length };
            parts.push_back((first, part));
            (first, length, left) = (first + part, length - part, left - part);
        }
    }
    parts
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
        let lengths: Vec<u32> = parts.iter().map(|(_, n)| *n).collect();
        assert_eq!(lengths[0], 256, "an eighth, in whole rounds: {parts:?}");
        assert!(lengths[1..].iter().all(|n| *n < 256), "{parts:?}");
        assert!(lengths.iter().rev().take(8).all(|n| *n <= 16), "{parts:?}");
        assert_eq!(shared.pieces.offered_count(), 4);
        let fresh = Shared::new(TorrentId(2), InfoHash([0; 20]), 200);
        assert_eq!(parts_of(unverified(&fresh), 200, 2), [(0, 200)]);
        assert_eq!(parts_of(vec![(0, 9_000)], 9_000, 1), [(0, 9_000)], "nobody to share with");
    }

    #[test]
    fn the_speed_is_that_of_the_last_seconds() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut hashing = Hashing::begun(began);
        hashing.bytes = 100;
        hashing.look(at(20));
        assert_eq!(hashing.bytes_per_s(), 0.0, "too early to say");
        hashing.bytes += 400;
        hashing.look(at(500));
        assert_eq!(hashing.bytes_per_s(), 1_000.0);
        for second in 1..30 {
            hashing.bytes = 3_000;
            hashing.look(at(500 + 1_000 * second));
        }
        assert!((2_990.0..=3_000.0).contains(&hashing.bytes_per_s()), "{hashing:?}");
        for second in 30..60 {
            hashing.look(at(500 + 1_000 * second));
        }
        assert!(hashing.bytes_per_s() < 1.0, "{hashing:?}");
    }
}
