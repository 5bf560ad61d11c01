//! Hashing content that is on disk: whole torrents on command, single pieces before their first
//! upload.
//!
//! Owns: verification jobs, their order, who waits for a piece.
//! Never: reading (storage), what follows from a bad file (control). Flow: Command::Verify or a
//! request for an unverified piece -> gather -> hash -> piece map -> event, waiting connections.
//!
//! At most 256 KiB are hashed a tick, so that uploads go on beside it. Bytes pass through the block
//! cache: a piece that a peer asked for is read once, and a scan of everything leaves the cache as
//! it was.
//!
//! A piece is verified only if none of its files was found changed, by any shard, between its first
//! byte and its bit: `Shared::epoch` moves on before bits are cleared, and is compared before and
//! after a bit is set.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::atomic::Ordering,
};

use seedring_platform::{hash::PieceHasher, memory::Class, op::Io};
use seedring_proto::units::{FileIndex, PieceIndex};

use crate::{
    connections::Key,
    contract::{Event, Trouble},
    shard::Shard,
    storage::{Gather, cache::Waiter},
    torrent::{Contents, Local, TorrentId},
};

/// Jobs worked on at once: many small torrents are bound by opens, not by hashing.
const ACTIVE_MAX: usize = 32;
/// Bytes read ahead of the hashing, over all active jobs; at most a quarter of the pool.
const AHEAD_BYTES: u64 = 8 << 20;
/// Bytes hashed in one go.
const STEP_BYTES: u32 = 64 << 10;
/// Pieces after which progress is told.
const REPORT_PIECES: u32 = 64;
/// Pieces that peers wait for; more requests for others are looked at when these are done.
const WANTED_MAX: usize = 256;

#[derive(Default)]
pub struct Verify {
    /// Something changed since the last step: there may be work.
    pub ready: bool,
    /// A job found no memory: it goes on when some comes home.
    pub starved: bool,
    jobs: VecDeque<Job>,
    active: VecDeque<Job>,
    /// Pieces that peers wait for: served first. At most `WANTED_MAX`.
    urgent: VecDeque<Job>,
    wanted: HashMap<(TorrentId, PieceIndex), Vec<Key>>,
}

struct Job {
    torrent: TorrentId,
    piece: PieceIndex,
    end: u32,
    offer: bool,
    /// A peer waits for it; no progress is told.
    urgent: bool,
    hasher: PieceHasher,
    done_bytes: u32,
    /// The torrent's epoch when the piece was begun.
    epoch: u32,
    ahead_to: u64,
    report: Report,
}

#[derive(Default)]
struct Report {
    pieces: u32,
    failed: u32,
    bytes: u64,
}

enum Turn {
    /// Hashed something; more may be ready.
    Hashed(usize),
    /// Waits for reads or memory.
    Waiting,
    Finished,
}

impl Job {
    fn new(torrent: TorrentId, first: PieceIndex, count: u32, offer: bool, urgent: bool) -> Self {
        Job {
            torrent,
            piece: first,
            end: first.0.saturating_add(count),
            offer,
            urgent,
            hasher: PieceHasher::new(),
            done_bytes: 0,
            epoch: 0,
            ahead_to: 0,
            report: Report::default(),
        }
    }

    /// Begins its piece (again): what was hashed of it counts for nothing.
    fn restart(&mut self, epoch: u32) {
        if self.done_bytes > 0 {
            self.hasher = PieceHasher::new();
            self.done_bytes = 0;
        }
        self.ahead_to = 0;
        self.epoch = epoch;
    }
}

impl Verify {
    /// A peer asked for an offered piece that nobody has hashed: hash it first. `false`: too many
    /// are asked for; the caller has to ask again when `piece_over` wakes who found no room.
    pub fn want(
        &mut self,
        torrent: TorrentId,
        piece: PieceIndex,
        key: Key,
        local: &mut Local,
    ) -> bool {
        let known = self.wanted.contains_key(&(torrent, piece));
        if !known && self.wanted.len() >= WANTED_MAX {
            return false;
        }
        let waiting = self.wanted.entry((torrent, piece)).or_default();
        if !waiting.contains(&key) {
            waiting.push(key);
        }
        if !known {
            local.jobs += 1;
            self.urgent.push_back(Job::new(torrent, piece, 1, false, true));
            self.ready = true;
        }
        true
    }

    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.active.is_empty() && self.urgent.is_empty()
    }

    /// Forgets a torrent's jobs.
    pub fn drop_torrent(&mut self, torrent: TorrentId) -> u32 {
        let mut dropped = 0;
        for queue in [&mut self.jobs, &mut self.active, &mut self.urgent] {
            let before = queue.len();
            queue.retain(|job| job.torrent != torrent);
            dropped += before - queue.len();
        }
        self.wanted.retain(|(id, _), _| *id != torrent);
        dropped as u32
    }
}

impl<I: Io> Shard<I> {
    pub(crate) fn verify(&mut self, id: TorrentId, first: PieceIndex, count: u32, offer: bool) {
        let Some(local) = self.torrents.get_mut(&id) else { return };
        let count = count.min(local.shared.pieces.piece_count().saturating_sub(first.0));
        local.jobs += 1;
        local.idle_since = None;
        self.verify.jobs.push_back(Job::new(id, first, count, offer, false));
        self.verify.ready = true;
    }

    /// Hashes up to `budget` bytes. `true`: there is more to do at once.
    pub(crate) fn verify_step(&mut self, budget: usize) -> bool {
        // Each tick, also where nothing is hashed: what the machine could not do is tried again.
        self.storage.go_on(&mut self.io);
        if !std::mem::take(&mut self.verify.ready) {
            return false;
        }
        let mut left = budget;
        for urgent in [true, false] {
            if self.verify_queue(urgent, &mut left) {
                self.verify.ready = true;
                return true;
            }
        }
        false
    }

    /// Each job of a queue goes on as far as its bytes are there. `true`: the budget is used up.
    fn verify_queue(&mut self, urgent: bool, left: &mut usize) -> bool {
        // Jobs at the back of the queue that had their turn and wait.
        let mut waiting = 0;
        loop {
            let Verify { jobs, active, urgent: asked_for, .. } = &mut self.verify;
            if !urgent {
                let room = ACTIVE_MAX.saturating_sub(active.len()).min(jobs.len());
                active.extend(jobs.drain(..room));
            }
            let queue = if urgent { asked_for } else { active };
            if waiting >= queue.len() {
                return false;
            }
            let Some(mut job) = queue.pop_front() else { return false };
            let turn = self.verify_turn(&mut job);
            let queue = if urgent { &mut self.verify.urgent } else { &mut self.verify.active };
            match turn {
                Turn::Hashed(bytes) => {
                    *left = left.saturating_sub(bytes);
                    if *left == 0 {
                        // The next tick goes on with the next job, so that all get on.
                        queue.push_back(job);
                        return true;
                    }
                    queue.push_front(job);
                }
                Turn::Waiting => {
                    waiting += 1;
                    queue.push_back(job);
                }
                Turn::Finished => self.job_finished(job),
            }
        }
    }

    fn job_finished(&mut self, job: Job) {
        let now = self.io.now();
        if !job.urgent {
            self.tell_progress(&job, true);
        }
        if let Some(local) = self.torrents.get_mut(&job.torrent) {
            local.jobs -= 1;
            if local.is_unused() {
                local.idle_since = Some(now);
            }
        }
    }

    fn tell_progress(&mut self, job: &Job, done: bool) {
        let Report { pieces, failed, bytes } = job.report;
        self.tell(Event::Verified { torrent: job.torrent, pieces, failed, bytes, done });
    }

    fn verify_turn(&mut self, job: &mut Job) -> Turn {
        if job.piece.0 >= job.end {
            return Turn::Finished;
        }
        let Some(local) = self.torrents.get_mut(&job.torrent) else { return Turn::Finished };
        let Some(contents) = local.contents().cloned() else { return Turn::Finished };
        let (id, epoch) = (local.shared.id, local.shared.epoch.load(Ordering::Acquire));
        self.storage.see_epoch(id, epoch, &mut self.news);
        if job.epoch != epoch {
            job.restart(epoch);
        }
        let length = contents.layout.piece_length(job.piece);
        let offset = contents.layout.piece_offset(job.piece) + u64::from(job.done_bytes);
        let step = (length - job.done_bytes).min(STEP_BYTES);
        self.read_ahead(job, &contents, offset + u64::from(step));
        let (io, stats) = (&mut self.io, &mut self.stats);
        let gathered = self.storage.gather(
            io,
            stats,
            id,
            &contents,
            (offset, step),
            || Class::K256,
            Waiter::Verify,
            &mut self.parts,
        );
        match gathered {
            Gather::Ready => {
                for part in self.parts.drain(..) {
                    job.hasher.update(&part.share[part.from..part.to]);
                }
                // What was hashed can be evicted now.
                self.memory_came_home |= !self.starved.is_empty();
                job.done_bytes += step;
                self.stats.hashed_bytes += u64::from(step);
                if job.done_bytes == length {
                    let hasher = std::mem::replace(&mut job.hasher, PieceHasher::new());
                    let good = hasher.finish() == contents.piece_hash(job.piece);
                    self.piece_hashed(job, length, good);
                }
                Turn::Hashed(step as usize)
            }
            Gather::Waiting => Turn::Waiting,
            Gather::NoMemory => {
                self.stats.memory_stalls += 1;
                self.verify.starved = true;
                Turn::Waiting
            }
            Gather::Failed => {
                job.hasher = PieceHasher::new();
                self.piece_unreadable(job, length);
                Turn::Hashed(STEP_BYTES as usize)
            }
        }
    }

    /// Keeps the disk busy ahead of the hashing.
    fn read_ahead(&mut self, job: &mut Job, contents: &Contents, from: u64) {
        const CHUNK: u64 = 256 << 10;
        let end = u64::from(job.end - 1) * u64::from(contents.layout.piece_bytes)
            + u64::from(contents.layout.piece_length(PieceIndex(job.end - 1)));
        let jobs = 1 + self.verify.active.len() + self.verify.urgent.len(); // and this one
        let all = AHEAD_BYTES.min(self.io.pool().cap_bytes() as u64 / 4);
        let to = (from + (all / jobs as u64).max(CHUNK)).min(end);
        let mut at = job.ahead_to.max(from);
        while at < to {
            let length = (to - at).min(CHUNK) as u32;
            let (io, stats, id) = (&mut self.io, &mut self.stats, job.torrent);
            let (range, class) = ((at, length), || Class::K256);
            if !self.storage.look_ahead(io, stats, id, contents, range, class, Waiter::Verify) {
                return;
            }
            at += u64::from(length);
            job.ahead_to = at;
        }
    }

    fn piece_hashed(&mut self, job: &mut Job, length: u32, good: bool) {
        let piece = job.piece;
        let mut news = false;
        if let Some(local) = self.torrents.get(&job.torrent) {
            let shared = &local.shared;
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != job.epoch {
                return job.restart(epoch);
            }
            // Verified before offered: whoever sees the offer may rely on the hash.
            shared.pieces.set_verified(piece, good);
            // Who found a file changed moved the epoch on and then cleared the bits: either the
            // bit is cleared after it was set here, or the new epoch is seen here.
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != job.epoch {
                shared.pieces.set_verified(piece, false);
                return job.restart(epoch);
            }
            let offered = good && (job.offer || shared.pieces.is_offered(piece));
            news = shared.pieces.set_offered(piece, offered)
                && offered
                && shared.connections.load(Ordering::Relaxed) > 0;
        }
        job.report.bytes += u64::from(length);
        if news {
            self.tell(Event::Offered { torrent: job.torrent, piece });
        }
        if !good {
            job.report.failed += 1;
            self.stats.hash_failures += 1;
            self.tell(Event::PieceFailed { torrent: job.torrent, piece });
        }
        self.piece_over(job, good);
    }

    /// A file of the piece is in trouble: its bits stay as storage's news leave them.
    fn piece_unreadable(&mut self, job: &mut Job, length: u32) {
        job.report.bytes += u64::from(length);
        job.report.failed += 1;
        self.piece_over(job, false);
    }

    fn piece_over(&mut self, job: &mut Job, good: bool) {
        let piece = job.piece;
        job.report.pieces += 1;
        job.piece = PieceIndex(piece.0 + 1);
        job.done_bytes = 0;
        if let Some(waiting) = self.verify.wanted.remove(&(job.torrent, piece)) {
            self.piece_settled(waiting, piece, good);
            // There is room among the wanted pieces again.
            self.memory_came_home |= !self.starved.is_empty();
        }
        if !job.urgent && job.report.pieces >= REPORT_PIECES && job.piece.0 < job.end {
            self.tell_progress(job, false);
            job.report = Report::default();
        }
    }

    /// A file can't be served, or changed: what is in doubt is not sent before it is hashed again.
    pub(crate) fn file_trouble(
        &mut self,
        torrent: TorrentId,
        file: FileIndex,
        trouble: Trouble,
        range: Option<std::ops::Range<u64>>,
    ) {
        let Some(local) = self.torrents.get_mut(&torrent) else { return };
        let Some(contents) = local.contents().cloned() else { return };
        if range.is_some() && matches!(trouble, Trouble::Changed | Trouble::Short { .. }) {
            // Before the bits are cleared; its partners are the loads around `set_verified`. Every
            // shard drops what it has of the torrent, and pieces half hashed begin again.
            let before = local.shared.epoch.fetch_add(1, Ordering::AcqRel);
            self.storage.moved_epoch(torrent, before);
        }
        if let Some(range) = range {
            let layout = &contents.layout;
            let start = layout.files[file.0 as usize].offset;
            let (from, to) = (start + range.start, (start + range.end).min(layout.total_bytes));
            let piece_bytes = u64::from(layout.piece_bytes);
            for piece in from / piece_bytes..to.div_ceil(piece_bytes) {
                let piece = PieceIndex(piece as u32);
                local.shared.pieces.set_verified(piece, false);
            }
        }
        let path: PathBuf = contents.path(file);
        self.verify.ready = true;
        self.tell(Event::Trouble { torrent, path, trouble });
    }
}

#[cfg(test)]
mod tests;
