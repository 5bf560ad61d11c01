//! Of how many pieces verification reads at once, and how far ahead of the hashing.
//!
//! Owns: how many pieces of a job are under way, what is read for them before it is asked for.
//! Never: hashes. Flow: `find_bytes` begins pieces and reads ahead for each before it gathers.
//!
//! Small pieces are read in the order of the torrent, however many are hashed side by side. Large
//! ones have to be read at as many places at once: a device that seeks would become several times
//! slower. So there is one place until hashing is what takes the time, and one again when bytes
//! come slowly.

use std::time::Duration;

use seedring_platform::{memory::Class, op::Io};
use seedring_proto::units::PieceIndex;

use super::{Job, lane::Lane};
use crate::{shard::Shard, torrent::Contents};

/// Bytes read ahead of the hashing, over all active jobs; at most a quarter of the pool.
const AHEAD_BYTES: u64 = 8 << 20;
const CHUNK: u64 = 256 << 10;
/// More places at once than this are never worth their memory.
const LANES_MAX: usize = 16;
/// Ticks full of hashing, one after the other, after which there are twice as many places. One
/// chunk fills a tick of a single stream: it may have come alone.
const FULL_TICKS: u32 = 4;
/// A device that gives less than this in this time may be one that seeks: 256 MiB a second.
const SLOW_BYTES: u64 = 64 << 20;
const SLOW_TIME: Duration = Duration::from_millis(250);

/// At how many places of a torrent of large pieces is read at once.
pub(super) struct Width {
    lanes: usize,
    full_ticks: u32,
    /// When it was looked last, and how much was hashed by then.
    looked_at: Duration,
    hashed_bytes: u64,
}

impl Default for Width {
    fn default() -> Self {
        Width { lanes: 1, full_ticks: 0, looked_at: Duration::ZERO, hashed_bytes: 0 }
    }
}

impl Width {
    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    /// A tick's time was used up, and there may be more to hash.
    pub(super) fn hashing_is_behind(&mut self) {
        self.full_ticks += 1;
        if self.full_ticks == FULL_TICKS {
            self.full_ticks = 0;
            self.lanes = (self.lanes * 2).min(LANES_MAX);
        }
    }

    /// All that was there is hashed; so many bytes since the start.
    pub(super) fn disk_is_behind(&mut self, now: Duration, hashed_bytes: u64) {
        self.full_ticks = 0;
        if now.saturating_sub(self.looked_at) >= SLOW_TIME {
            if hashed_bytes - self.hashed_bytes < SLOW_BYTES {
                self.lanes = 1;
            }
            self.looked_at = now;
            self.hashed_bytes = hashed_bytes;
        }
    }
}

impl<I: Io> Shard<I> {
    /// What a job may have read ahead, beside so many others.
    fn ahead_bytes(&self, jobs: usize) -> u64 {
        let all = AHEAD_BYTES.min(self.io.pool().cap_bytes() as u64 / 4);
        (all / jobs as u64).max(CHUNK)
    }

    /// Whether all pieces under way, and as many again, are read ahead as one run of bytes.
    fn reads_in_order(&self, contents: &Contents, jobs: usize) -> bool {
        let pieces = 2 * self.options.hashing.streams() as u64;
        u64::from(contents.layout.piece_bytes) * pieces <= self.ahead_bytes(jobs)
    }

    /// Begins pieces of a job; `jobs` are active, and `room` pieces can be hashed beside those of
    /// the others. Answers how many pieces of it may be under way.
    pub(super) fn begin_lanes(
        &mut self,
        job: &mut Job,
        contents: &Contents,
        (jobs, room): (usize, usize),
        epoch: u32,
    ) -> usize {
        let streams = self.options.hashing.streams();
        let max = if job.is_in_place() {
            room // neither a disk that seeks nor memory is in the way
        } else if self.reads_in_order(contents, jobs) {
            (streams / jobs).max(1)
        } else {
            // A chunk of each is hashed while another is read.
            let by_memory = (self.ahead_bytes(jobs) / (2 * CHUNK)).max(1) as usize;
            (streams / jobs).clamp(1, self.verify.width.lanes()).min(by_memory)
        };
        while job.lanes.len() < max && job.next < job.end {
            job.lanes.push(Lane::new(PieceIndex(job.next), epoch));
            job.next += 1;
        }
        max
    }

    /// Keeps the disk busy ahead of the hashing: for one lane of a job, after so many bytes that it
    /// asks for now. `places`: at how many is read, over all jobs.
    pub(super) fn read_ahead(
        &mut self,
        job: &mut Job,
        lane: usize,
        contents: &Contents,
        (jobs, places): (usize, usize),
    ) {
        let layout = &contents.layout;
        let piece_end = |piece: u32| {
            let piece = PieceIndex(piece);
            layout.piece_offset(piece) + u64::from(layout.piece_length(piece))
        };
        let alone = job.is_in_place(); // what comes next may be in memory as well
        let at = &job.lanes[lane];
        let from = layout.piece_offset(at.piece) + u64::from(at.done_bytes);
        if self.reads_in_order(contents, jobs) {
            if lane == 0 && !alone {
                let to = (from + self.ahead_bytes(jobs)).min(piece_end(job.end - 1));
                job.ahead_to = self.read_range(job, contents, (job.ahead_to.max(from), to));
            }
            return;
        }
        let share = self.ahead_bytes(places);
        let (end, piece) = (piece_end(at.piece.0), at.piece.0);
        let to = (from + share).min(end);
        let ahead_to = self.read_range(job, contents, (at.ahead_to.max(from), to));
        job.lanes[lane].ahead_to = ahead_to;
        // What is left of the share goes to the piece that comes after it here.
        let next = job.next.saturating_add(lane as u32);
        if !alone && ahead_to >= end && next < job.end && next > piece {
            let start = layout.piece_offset(PieceIndex(next));
            let to = (start + share - (end - from).min(share)).min(piece_end(next));
            self.read_range(job, contents, (start, to));
        }
    }

    /// Starts reads for a range of the torrent, as far as memory goes. Answers how far it came.
    fn read_range(&mut self, job: &Job, contents: &Contents, (mut at, to): (u64, u64)) -> u64 {
        while at < to {
            let length = (to - at).min(CHUNK) as u32;
            let (io, stats, id) = (&mut self.io, &mut self.stats, job.torrent);
            let (range, class) = ((at, length), || Class::K256);
            let waiter = job.waiter();
            if !self.storage.look_ahead(io, stats, id, contents, range, class, waiter) {
                break;
            }
            at += u64::from(length);
        }
        at
    }
}
