//! Hashing content that is on disk: whole torrents on command, single pieces before their first
//! upload.
//!
//! Owns: verification jobs, their order, who waits for a piece.
//! Never: reading (storage), what follows from a bad file (control). Flow: Command::Verify or a
//! request for an unverified piece -> gather -> hash -> piece map -> event, waiting connections.
//!
//! Pieces are hashed side by side, what is there of each, about 150 microseconds a tick, so that
//! uploads go on beside it; while they are behind, what no peer waits for rests. What lies in the
//! page cache is hashed there (`storage::windows`). The rest passes through the block cache: a
//! piece that a peer asked for is read once, hashed and sent; what nobody asked for leaves when it
//! is hashed.
//!
//! A piece is verified only if none of its files was found changed, by any shard, between its first
//! byte and its bit: `Shared::epoch` moves on before bits are cleared, and is compared before and
//! after a bit is set.

mod ahead;
mod lane;

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::atomic::Ordering,
    time::Duration,
};

use seedring_platform::{
    hash::{Feed, update_many},
    memory::Class,
    op::{Identity, Io},
};
use seedring_proto::units::{FileIndex, PieceIndex};

use self::{
    ahead::Width,
    lane::{Found, Lane, STEP_BYTES},
};
use crate::{
    connections::Key,
    contract::{Event, Trouble},
    shard::Shard,
    storage::{
        Gather,
        cache::Waiter,
        files::change_of,
        windows::{InPlace, Seen},
    },
    torrent::{Local, TorrentId},
};

/// Time for hashing a tick, so that verification never holds uploads up for long.
pub const HASH_TIME: Duration = Duration::from_micros(150);
/// Uploads that waited for longer than this are behind: nothing else takes their time.
const BEHIND: Duration = Duration::from_millis(1);
/// But so often verification has its turn, however busy uploads are: 1 % of the shard's time, some
/// 100 MiB a second.
const TURN_EVERY: Duration = Duration::from_millis(15);
/// Jobs worked on at once: many small torrents are bound by opens, not by hashing.
const ACTIVE_MAX: usize = 32;
/// So many pieces in a row have to be read until the next ones are taken to be on disk too.
const READ_MIN: u32 = 2;
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
    width: Width,
    /// When it had its last turn.
    turn_at: Duration,
    /// The bytes of the batch under way.
    seen: Vec<Seen>,
}

/// Pieces of a torrent, some of which are under way.
struct Job {
    torrent: TorrentId,
    /// The first that is not begun, and the one after the last.
    next: u32,
    end: u32,
    offer: bool,
    /// A peer waits for it; no progress is told.
    urgent: bool,
    /// Pieces begun since one whose first bytes lay in the page cache.
    read: u32,
    /// Pieces under way, in order.
    lanes: Vec<Lane>,
    ahead_to: u64,
    report: Report,
}

#[derive(Default)]
struct Report {
    pieces: u32,
    failed: u32,
    bytes: u64,
}

impl Job {
    fn new(torrent: TorrentId, first: PieceIndex, count: u32, offer: bool, urgent: bool) -> Self {
        Job {
            torrent,
            next: first.0,
            end: first.0.saturating_add(count),
            offer,
            urgent,
            read: READ_MIN,
            lanes: Vec::new(),
            ahead_to: 0,
            report: Report::default(),
        }
    }

    /// Who wants its bytes.
    fn waiter(&self) -> Waiter {
        if self.urgent { Waiter::Verify } else { Waiter::Scan }
    }

    /// It goes on in the page cache, perhaps but for a piece.
    fn is_in_place(&self) -> bool {
        self.read < READ_MIN
    }

    fn is_finished(&self) -> bool {
        self.lanes.is_empty() && self.next >= self.end
    }

    fn give_up(&mut self) {
        self.lanes.clear();
        self.next = self.end;
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

    /// Jobs that wait are worked on as far as there is room. Parts of one torrent follow each
    /// other: read side by side they would be more places of the disk.
    fn activate(&mut self) {
        let mut at = 0;
        while self.active.len() < ACTIVE_MAX && at < self.jobs.len() {
            let torrent = self.jobs[at].torrent;
            let goes_on = |job: &Job| job.torrent == torrent && job.next < job.end;
            if self.active.iter().any(goes_on) {
                at += 1;
            } else {
                self.active.extend(self.jobs.remove(at));
            }
        }
    }

    /// Whether what no peer waits for rests, with the oldest request as old as this.
    fn gives_way(&self, now: Duration, oldest_request: Option<Duration>) -> bool {
        let is_behind = oldest_request.is_some_and(|since| now.saturating_sub(since) > BEHIND);
        is_behind && now.saturating_sub(self.turn_at) < TURN_EVERY
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

    /// Hashes for about as long as `budget`. `true`: there is more to do at once.
    pub(crate) fn verify_step(&mut self, budget: Duration) -> bool {
        // Each tick, also where nothing is hashed: what the machine could not do is tried again.
        self.storage.go_on(&mut self.io);
        if !std::mem::take(&mut self.verify.ready) {
            return false;
        }
        let mut left = budget;
        let now = self.io.now();
        for urgent in [true, false] {
            if !urgent {
                if self.verify.gives_way(now, self.turns.oldest()) {
                    self.verify.ready = true;
                    return true;
                }
                self.verify.turn_at = now;
            }
            while let Some(spent) = self.verify_batch(urgent) {
                left = left.saturating_sub(spent);
                if left < spent {
                    self.verify.ready = true;
                    self.verify.width.hashing_is_behind();
                    return true;
                }
            }
        }
        self.verify.width.disk_is_behind(now, self.stats.hashed_bytes);
        if self.verify.is_idle() {
            self.storage.close_windows();
        }
        false
    }

    /// Hashes what is there of as many pieces as go side by side, of the jobs at the front of a
    /// queue, which go to its back. Answers how long it took; `None`: all of them wait.
    fn verify_batch(&mut self, urgent: bool) -> Option<Duration> {
        if !urgent {
            self.verify.activate();
        }
        let Verify { active, urgent: asked_for, .. } = &mut self.verify;
        let count = if urgent { asked_for.len() } else { active.len() };
        let mut room = self.options.hashing.streams();
        let mut batch: Vec<Job> = Vec::new();
        while room > 0 && batch.len() < count {
            let queue = if urgent { &mut self.verify.urgent } else { &mut self.verify.active };
            let Some(mut job) = queue.pop_front() else { break };
            room -= self.find_bytes(&mut job, count, room);
            batch.push(job);
        }
        let spent = self.hash_batch(&mut batch);
        let mut finished = false;
        for mut job in batch {
            self.settle_lanes(&mut job);
            if job.is_finished() {
                finished = true;
                self.job_finished(job);
            } else if urgent {
                self.verify.urgent.push_back(job);
            } else {
                self.verify.active.push_back(job);
            }
        }
        (finished || !spent.is_zero()).then_some(spent)
    }

    /// Looks for the next bytes of a job's pieces, at most `room` of them, and begins more pieces
    /// where it may. Answers of how many there is something to do. `jobs` are active.
    fn find_bytes(&mut self, job: &mut Job, jobs: usize, room: usize) -> usize {
        let Some(local) = self.torrents.get_mut(&job.torrent) else {
            job.give_up();
            return 0;
        };
        let Some(contents) = local.contents().cloned() else {
            job.give_up();
            return 0;
        };
        let (id, epoch) = (local.shared.id, local.shared.epoch.load(Ordering::Acquire));
        self.storage.see_epoch(id, epoch, &mut self.news);
        let lanes_max = self.begin_lanes(job, &contents, (jobs, room), epoch);
        let mut found = 0;
        for index in 0..job.lanes.len() {
            if found == room {
                break;
            }
            let lane = &mut job.lanes[index];
            if lane.epoch != epoch {
                // What was hashed of it counts for nothing.
                *lane = Lane::new(lane.piece, epoch);
            }
            let length = contents.layout.piece_length(lane.piece);
            let (step, staggered) = (lane.step(length), lane.staggered_step(length));
            let offset = contents.layout.piece_offset(lane.piece) + u64::from(lane.done_bytes);
            let (range, seen) = ((offset, step), &mut self.verify.seen);
            let before = seen.len();
            // What a peer waits for is read once, hashed, and sent from the same memory.
            let place = if job.urgent {
                InPlace::Not
            } else {
                let range = (offset, staggered);
                self.storage.see_in_place(&mut self.io, id, &contents, range, seen)
            };
            if place != InPlace::Opening && !std::mem::replace(&mut job.lanes[index].looked, true) {
                job.read = if place == InPlace::Seen { 0 } else { job.read.saturating_add(1) };
            }
            match place {
                InPlace::Seen => {
                    job.lanes[index].found = Found::Bytes(staggered, before..seen.len());
                    found += 1;
                    continue;
                }
                InPlace::Opening => continue,
                InPlace::Not => {}
            }
            let places = (jobs, jobs * lanes_max);
            self.read_ahead(job, index, &contents, places);
            let (io, stats, parts) = (&mut self.io, &mut self.stats, &mut self.parts);
            let (class, waiter) = (|| Class::K256, job.waiter());
            match self.storage.gather(io, stats, id, &contents, range, class, waiter, parts) {
                Gather::Ready => {
                    let seen = &mut self.verify.seen;
                    seen.extend(self.parts.drain(..).map(Seen::from));
                    job.lanes[index].found = Found::Bytes(step, before..seen.len());
                    found += 1;
                }
                Gather::Waiting => {}
                Gather::NoMemory => {
                    self.stats.memory_stalls += 1;
                    self.verify.starved = true;
                    break;
                }
                Gather::Failed => {
                    job.lanes[index].found = Found::Failed;
                    found += 1;
                }
            }
        }
        found
    }

    /// Feeds what was found to the hashers of all lanes. Answers how long that takes.
    fn hash_batch(&mut self, batch: &mut [Job]) -> Duration {
        let seen = std::mem::take(&mut self.verify.seen);
        let slices: Vec<&[u8]> = seen.iter().map(|seen| &**seen).collect();
        let (mut feeds, mut longest, mut failed) = (Vec::new(), 0, false);
        for lane in batch.iter_mut().flat_map(|job| &mut job.lanes) {
            match &lane.found {
                Found::Bytes(bytes, parts) => {
                    longest = longest.max(*bytes);
                    self.stats.hashed_bytes += u64::from(*bytes);
                    feeds.push(Feed { hasher: &mut lane.hasher, parts: &slices[parts.clone()] });
                }
                Found::Failed => failed = true,
                Found::Nothing | Found::Torn => {}
            }
        }
        if failed {
            // A piece that can't be read costs something too: there may be very many.
            longest = STEP_BYTES;
        }
        let streams = feeds.len();
        if streams > 0 {
            update_many(&mut feeds);
            // What was hashed can be evicted now.
            self.memory_came_home |= !self.starved.is_empty();
            self.find_torn(batch, &seen);
        }
        let spent = match longest {
            0 => Duration::ZERO,
            bytes => self.options.hashing.time(streams, bytes as usize),
        };
        self.verify.seen = seen;
        self.verify.seen.clear();
        spent
    }

    /// Of the bytes just hashed, what was taken away meanwhile: their pieces begin again, and are
    /// read, so that what is wrong with the file is found out.
    fn find_torn(&mut self, batch: &mut [Job], seen: &[Seen]) {
        if seen.iter().all(Seen::is_whole) {
            return;
        }
        self.storage.shut_torn_windows();
        for lane in batch.iter_mut().flat_map(|job| &mut job.lanes) {
            if let Found::Bytes(_, bytes) = &lane.found
                && !seen[bytes.clone()].iter().all(Seen::is_whole)
            {
                lane.found = Found::Torn;
            }
        }
    }

    /// After a batch: what is hashed whole is compared, what can't be read is over.
    fn settle_lanes(&mut self, job: &mut Job) {
        let local = self.torrents.get_mut(&job.torrent);
        let Some(contents) = local.and_then(|local| local.contents().cloned()) else {
            return job.give_up();
        };
        for mut lane in std::mem::take(&mut job.lanes) {
            let length = contents.layout.piece_length(lane.piece);
            match std::mem::take(&mut lane.found) {
                Found::Nothing => job.lanes.push(lane),
                Found::Torn => job.lanes.push(Lane::new(lane.piece, lane.epoch)),
                Found::Failed => self.piece_unreadable(job, lane.piece, length),
                Found::Bytes(bytes, _) => {
                    lane.done_bytes += bytes;
                    if lane.done_bytes < length {
                        job.lanes.push(lane);
                        continue;
                    }
                    let good = lane.hasher.finish() == contents.piece_hash(lane.piece);
                    let piece = (lane.piece, length);
                    if let Err(epoch) = self.piece_hashed(job, piece, lane.epoch, good) {
                        job.lanes.push(Lane::new(lane.piece, epoch));
                    }
                }
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

    /// Large pieces, or a slow disk: what was hashed since is told before there are many pieces.
    pub(crate) fn tell_all_progress(&mut self) {
        let mut active = std::mem::take(&mut self.verify.active);
        for job in active.iter_mut().filter(|job| job.report.pieces > 0) {
            self.tell_progress(job, false);
            job.report = Report::default();
        }
        self.verify.active = active;
    }

    /// Sets the bits of a piece that was begun in this epoch. `Err`: a file changed meanwhile, and
    /// the piece has to begin again, in the epoch that is told.
    fn piece_hashed(
        &mut self,
        job: &mut Job,
        (piece, length): (PieceIndex, u32),
        begun: u32,
        good: bool,
    ) -> Result<(), u32> {
        let mut news = None;
        if let Some(local) = self.torrents.get(&job.torrent) {
            let shared = &local.shared;
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != begun {
                return Err(epoch);
            }
            // Verified before offered: whoever sees the offer may rely on the hash.
            shared.pieces.set_verified(piece, good);
            // Who found a file changed moved the epoch on and then cleared the bits: either the
            // bit is cleared after it was set here, or the new epoch is seen here.
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != begun {
                shared.pieces.set_verified(piece, false);
                return Err(epoch);
            }
            let offered = good && (job.offer || shared.pieces.is_offered(piece));
            let heard = shared.connections.load(Ordering::Relaxed) > 0;
            news = (shared.pieces.set_offered(piece, offered) && heard).then_some(offered);
        }
        job.report.bytes += u64::from(length);
        match news {
            Some(true) => self.tell(Event::Offered { torrent: job.torrent, piece }),
            Some(false) => self.tell(Event::Lost { torrent: job.torrent, piece }),
            None => {}
        }
        if !good {
            job.report.failed += 1;
            self.stats.hash_failures += 1;
            self.tell(Event::PieceFailed { torrent: job.torrent, piece });
        }
        self.piece_over(job, piece, good);
        Ok(())
    }

    /// A file of the piece is in trouble: its bits stay as storage's news leave them.
    fn piece_unreadable(&mut self, job: &mut Job, piece: PieceIndex, length: u32) {
        job.report.bytes += u64::from(length);
        job.report.failed += 1;
        self.piece_over(job, piece, false);
    }

    fn piece_over(&mut self, job: &mut Job, piece: PieceIndex, good: bool) {
        job.report.pieces += 1;
        if let Some(waiting) = self.verify.wanted.remove(&(job.torrent, piece)) {
            self.piece_settled(waiting, piece, good);
            // There is room among the wanted pieces again.
            self.memory_came_home |= !self.starved.is_empty();
        }
        if !job.urgent && job.report.pieces >= REPORT_PIECES && !job.is_finished() {
            self.tell_progress(job, false);
            job.report = Report::default();
        }
    }

    /// A file can't be served, or changed: what is in doubt is not sent before it is hashed again.
    ///
    /// Every shard that has the file finds the same change. The first clears bits and tells
    /// control; who finds that done takes the file as it is now, so that what was hashed meanwhile
    /// stays verified.
    pub(crate) fn file_trouble(
        &mut self,
        torrent: TorrentId,
        file: FileIndex,
        trouble: Trouble,
        range: Option<std::ops::Range<u64>>,
        found: Option<Identity>,
    ) {
        let Some(local) = self.torrents.get_mut(&torrent) else { return };
        let Some(contents) = local.contents().cloned() else { return };
        let found = found.filter(|_| matches!(trouble, Trouble::Changed));
        let change = found.map(|found| change_of(file, &found));
        // Partner of the swap below: what it followed (the epoch, the cleared bits) is seen here.
        if let Some(found) = found
            && change == Some(local.shared.change.load(Ordering::Acquire))
        {
            self.verify.ready = true;
            return self.storage.known_change(torrent, file, found);
        }
        if range.is_some() && matches!(trouble, Trouble::Changed | Trouble::Short { .. }) {
            // Before the bits are cleared; its partners are the loads around `set_verified`. Every
            // shard drops what it has of the torrent, and pieces half hashed begin again.
            let before = local.shared.epoch.fetch_add(1, Ordering::AcqRel);
            self.storage.moved_epoch(torrent, before);
        }
        let mut doubted = Vec::new();
        if let Some(range) = range {
            let layout = &contents.layout;
            let start = layout.files[file.0 as usize].offset;
            let (from, to) = (start + range.start, (start + range.end).min(layout.total_bytes));
            let piece_bytes = u64::from(layout.piece_bytes);
            for piece in from / piece_bytes..to.div_ceil(piece_bytes) {
                let piece = PieceIndex(piece as u32);
                let was = local.shared.pieces.set_verified(piece, false);
                if was && matches!(trouble, Trouble::Io(_)) {
                    doubted.push(piece);
                }
            }
        }
        self.verify.ready = true;
        // Of two that found it at the same moment both have cleared, and one tells.
        let told = change.is_some_and(|c| local.shared.change.swap(c, Ordering::AcqRel) == c);
        if told {
            return;
        }
        let path: PathBuf = contents.path(file);
        self.tell(Event::Trouble { torrent, path, trouble, doubted });
    }
}

#[cfg(test)]
pub(crate) mod tests;
