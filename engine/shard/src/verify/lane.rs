//! A piece that is being hashed, and how much of it next.
//!
//! Owns: its progress, the length of a step. Never: where the bytes are (storage), what comes of
//! the hash. Flow: `find_bytes` asks for a step -> found -> hashed -> settled.

use std::ops::Range;

use seedring_platform::hash::PieceHasher;
use seedring_proto::units::PieceIndex;

/// Bytes of a piece hashed in one go.
pub(super) const STEP_BYTES: u32 = 64 << 10;
/// By how much one group of pieces is behind the one before, and how long a piece is for which it
/// pays.
const STAGGER_BYTES: u32 = 512;
const STAGGERED_MIN_BYTES: u32 = 256 << 10;

/// A piece that is being hashed.
pub(super) struct Lane {
    pub piece: PieceIndex,
    pub hasher: PieceHasher,
    pub done_bytes: u32,
    /// The torrent's epoch when the piece was begun.
    pub epoch: u32,
    pub ahead_to: u64,
    /// Whether it lies in memory was looked at.
    pub looked: bool,
    pub found: Found,
}

/// What a look for a lane's next bytes found.
#[derive(Default)]
pub(super) enum Found {
    #[default]
    Nothing,
    /// So many bytes, in these of the bytes `seen`.
    Bytes(u32, Range<usize>),
    /// What was hashed was not the file's: it begins again.
    Torn,
    /// A file of it is in trouble.
    Failed,
}

impl Lane {
    pub fn new(piece: PieceIndex, epoch: u32) -> Self {
        let hasher = PieceHasher::new();
        let (ahead_to, looked, found) = (0, false, Found::Nothing);
        Lane { piece, hasher, done_bytes: 0, epoch, ahead_to, looked, found }
    }

    /// How much of a piece of this length is read next: up to where a chunk can end.
    pub fn step(&self, length: u32) -> u32 {
        (STEP_BYTES - self.done_bytes % STEP_BYTES).min(length - self.done_bytes)
    }

    /// How much of it is hashed next where it lies in the page cache. Four groups of pieces stay
    /// apart from their first step to their last, so that they are not at the same place of their
    /// pages, which is one set of the CPU's caches: what `hash::lanes` does in each batch anew.
    pub fn staggered_step(&self, length: u32) -> u32 {
        let left = length - self.done_bytes;
        let first = match self.done_bytes {
            0 if length >= STAGGERED_MIN_BYTES => self.piece.0 / 4 % 4 * STAGGER_BYTES,
            _ => 0,
        };
        if left <= STEP_BYTES + 3 * STAGGER_BYTES { left - first } else { STEP_BYTES - first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps of a piece, until it is done.
    fn steps(piece: u32, length: u32, of: impl Fn(&Lane) -> u32) -> Vec<u32> {
        let mut lane = Lane::new(PieceIndex(piece), 0);
        std::iter::from_fn(|| {
            let step = (lane.done_bytes < length).then(|| of(&lane))?;
            lane.done_bytes += step;
            Some(step)
        })
        .collect()
    }

    #[test]
    fn groups_of_pieces_stay_apart_and_end_together() {
        for length in [1 << 20, 256 << 10, 16 << 20, (1 << 20) - 1] {
            let all: Vec<_> =
                (0..16).map(|n| steps(n, length, |lane| lane.staggered_step(length))).collect();
            for (piece, steps) in all.iter().enumerate() {
                assert_eq!(steps.iter().sum::<u32>(), length);
                assert_eq!(steps.len(), all[0].len(), "none has a step more than the others");
                let group = piece as u32 / 4;
                assert_eq!(steps[0], STEP_BYTES - group * STAGGER_BYTES);
                let middle = &steps[1..steps.len() - 1];
                assert!(middle.iter().all(|step| *step == STEP_BYTES), "{steps:?}");
            }
        }
        assert_eq!(steps(7, 65_536, |lane| lane.staggered_step(65_536)), [65_536], "too short");
        assert_eq!(steps(7, 70_000, |lane| lane.step(70_000)), [65_536, 4_464]);
    }

    #[test]
    fn what_is_read_after_a_look_in_memory_ends_with_a_chunk_again() {
        let mut lane = Lane::new(PieceIndex(12), 0);
        lane.done_bytes = lane.staggered_step(1 << 20);
        assert_eq!(lane.done_bytes + lane.step(1 << 20), STEP_BYTES);
    }
}
