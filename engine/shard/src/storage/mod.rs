//! Where bytes come from: files, reads and the block cache of one shard.
//!
//! Owns: the path from "these bytes of that torrent" to shares of cached chunks.
//! Never: peers, choking, hashing. Flow: upload and verify `gather`; a miss opens and reads
//! (`reads`); the completion fills the cache and names who waited.

pub mod cache;
pub mod files;
mod reads;
pub mod windows;

use std::time::Duration;

use seedring_platform::{
    descriptors::File,
    memory::{Class, Lease, Pool, Share},
    op::{Identity, Io},
};
use seedring_proto::units::FileIndex;

use self::{
    cache::{Cache, EntryId, Found, TOUCH_MAX, Waiter},
    files::{FileId, Files, State},
    reads::{Reads, Wanted},
    windows::Windows,
};
use crate::{
    contract::Trouble,
    stats::Stats,
    torrent::{Contents, TorrentId},
};

/// Evictions tried for one chunk.
const EVICTIONS_MAX: usize = 64;
/// The part of the pool that may be read ahead of use (a quarter).
const AHEAD_PART: usize = 4;
/// Files not read for this long are closed.
const FILE_IDLE: Duration = Duration::from_secs(60);

/// A piece of a block: bytes `from .. to` of a chunk.
#[derive(Debug)]
pub struct Part {
    pub share: Share,
    pub from: usize,
    pub to: usize,
}

/// What became of a `gather`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gather {
    /// All parts are there.
    Ready,
    /// Reads are under way; the waiter hears of them.
    Waiting,
    /// No chunk can be had until a send or a read lets go of one.
    NoMemory,
    /// A file is in trouble.
    Failed,
}

/// What completions tell the shard.
#[derive(Debug)]
pub enum News {
    /// Look again: a chunk that you waited for came or failed.
    Wake(Waiter),
    /// A file can't be served; `range`: file offsets whose pieces are in doubt, if any; `found`:
    /// what a changed one is now.
    Trouble {
        torrent: TorrentId,
        file: FileIndex,
        trouble: Trouble,
        range: Option<std::ops::Range<u64>>,
        found: Option<Identity>,
    },
}

/// Limits of a shard's storage.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub reads_max: usize,
    pub open_files_max: usize,
    /// What lies in the page cache may be hashed there.
    pub in_place: bool,
}

pub struct Storage {
    pub cache: Cache,
    files: Files,
    reads: Reads,
    windows: Windows,
    in_place: bool,
    root: File,
    zeros: Option<Share>,
    /// The chunks of the gather under way, and what it takes of each.
    touched: Vec<(EntryId, usize, usize)>,
}

impl Storage {
    /// `root`: a descriptor of `/`, below which every file is opened.
    pub fn new(options: Options, root: File, pool: &Pool) -> Self {
        let zeros = pool.lease(Class::K16).map(|mut lease| {
            lease.fill(0);
            let length = lease.len();
            lease.freeze(length)
        });
        Storage {
            cache: Cache::new(),
            files: Files::new(options.open_files_max),
            reads: Reads::new(options.reads_max),
            windows: Windows::default(),
            in_place: options.in_place,
            root,
            zeros,
            touched: Vec::new(),
        }
    }

    pub fn open_files(&self) -> usize {
        self.files.open_count()
    }

    /// Collects the chunks of `length` bytes at `offset` of a torrent into `parts`, starting reads
    /// of `class` (asked only then) for what is missing. `parts` grows only on `Ready`.
    #[allow(clippy::too_many_arguments)]
    pub fn gather<I: Io>(
        &mut self,
        io: &mut I,
        stats: &mut Stats,
        torrent: TorrentId,
        contents: &Contents,
        (offset, length): (u64, u32),
        class: impl Fn() -> Class,
        waiter: Waiter,
        parts: &mut Vec<Part>,
    ) -> Gather {
        let before = parts.len();
        let mut state = Gather::Ready;
        let (_, number_min) = contents.growth_at(offset);
        self.touched.clear();
        for segment in contents.layout.segments(offset, u64::from(length)) {
            if segment.padding {
                self.gather_zeros(segment.length, parts);
                continue;
            }
            let file = self.files.id(torrent, contents, segment.file);
            if self.is_failed(file, io.now()) {
                state = Gather::Failed;
                break;
            }
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                let (entry, entry_end) = match self.cache.find(file, at) {
                    Found::Ready(_, _, entry) if self.cache.number(entry) < number_min => {
                        // It was read before this piece was written.
                        self.cache.drop_files(&[file]);
                        continue;
                    }
                    Found::Ready(share, start, entry) => {
                        let from = (at - start) as usize;
                        let to = share.len().min((end - start) as usize);
                        parts.push(Part { from, to, share });
                        self.touched.push((entry, from, to));
                        at = start + to as u64;
                        continue;
                    }
                    Found::Loading(entry, entry_end) => (entry, entry_end),
                    Found::Missing => {
                        match self.begin(io, stats, (file, at), contents, class(), waiter) {
                            Some(begun) => begun,
                            None => {
                                state = Gather::NoMemory;
                                break;
                            }
                        }
                    }
                };
                self.cache.wait(entry, waiter);
                state = Gather::Waiting;
                at = entry_end;
            }
            if state == Gather::NoMemory {
                break;
            }
        }
        if state == Gather::Ready {
            // What waits for the rest of its block is not counted: it comes again and again.
            stats.cache_hits += self.touched.len() as u64;
            let scans = waiter == Waiter::Scan;
            for (entry, from, to) in self.touched.drain(..) {
                self.cache.take(entry, from, to, scans);
            }
        } else {
            // In a tight pool the rest of a block must not push out what it has already.
            self.touched.drain(..).for_each(|(entry, _, _)| self.cache.keep(entry));
            parts.truncate(before);
        }
        state
    }

    /// Several blocks that begin at these offsets will be gathered at once: brings what the cache
    /// knows of them near.
    pub fn touch(
        &mut self,
        torrent: TorrentId,
        contents: &Contents,
        offsets: impl Iterator<Item = u64>,
    ) {
        let mut places = [(FileId(0), 0); TOUCH_MAX];
        let mut count = 0;
        let first = |offset| contents.layout.segments(offset, 1).next();
        for segment in offsets.filter_map(first).filter(|s| !s.padding).take(TOUCH_MAX) {
            let file = self.files.id(torrent, contents, segment.file);
            places[count] = (file, segment.offset);
            count += 1;
        }
        self.cache.touch(&places[..count]);
    }

    /// Starts the reads that a `gather` of these bytes will want later, without taking or counting
    /// anything. `false`: enough was read ahead for now, or no memory can be had for it, or a file
    /// is in trouble.
    ///
    /// What is loaded ahead and not yet used is at most a quarter of the pool, over all readers:
    /// else the look-ahead of one evicts what was read for another.
    #[allow(clippy::too_many_arguments)]
    pub fn look_ahead<I: Io>(
        &mut self,
        io: &mut I,
        stats: &mut Stats,
        torrent: TorrentId,
        contents: &Contents,
        (offset, length): (u64, u32),
        class: impl Fn() -> Class,
        waiter: Waiter,
    ) -> bool {
        let ahead_max = io.pool().cap_bytes() / AHEAD_PART;
        for segment in contents.layout.segments(offset, u64::from(length)) {
            if segment.padding {
                continue;
            }
            let file = self.files.id(torrent, contents, segment.file);
            if self.is_failed(file, io.now()) {
                return false;
            }
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                if let Some(covered_to) = self.cache.covered_to(file, at) {
                    at = covered_to;
                    continue;
                }
                if self.cache.ahead_bytes() >= ahead_max {
                    return false;
                }
                match self.begin(io, stats, (file, at), contents, class(), waiter) {
                    Some((entry, entry_end)) => {
                        self.cache.wait(entry, waiter);
                        at = entry_end;
                    }
                    None => return false,
                }
            }
        }
        true
    }

    fn gather_zeros(&mut self, length: u64, parts: &mut Vec<Part>) {
        let zeros = self.zeros.as_ref().expect("invariant: held until shutdown");
        let mut left = length as usize;
        while left > 0 {
            let to = left.min(zeros.len());
            parts.push(Part { share: zeros.clone(), from: 0, to });
            left -= to;
        }
    }

    fn is_failed(&mut self, file: FileId, now: Duration) -> bool {
        let Some(entry) = self.files.get(file) else { return true };
        entry.used_at = now;
        match entry.state {
            State::Failed(until) if until <= now => {
                entry.state = State::Closed;
                false
            }
            State::Failed(_) => true,
            _ => false,
        }
    }

    /// Starts a read of the chunk that covers `at`; returns it and where it ends. `None`: no
    /// memory.
    fn begin<I: Io>(
        &mut self,
        io: &mut I,
        stats: &mut Stats,
        (file, at): (FileId, u64),
        contents: &Contents,
        class: Class,
        waiter: Waiter,
    ) -> Option<(EntryId, u64)> {
        let entry = self.files.get(file).expect("invariant: looked up by the caller");
        let (length, index) = (entry.length_bytes, entry.index);
        // The least that a growing file allows: what lies beside it may not be written yet.
        let class = if entry.growing { Class::K16 } else { class };
        let (number, _) = contents.growth_at(0);
        let (lease, class) = self.lease_at(io.pool(), at, length, class)?;
        stats.cache_misses += 1;
        let offset = at / class.bytes() as u64 * class.bytes() as u64;
        let entry = self.cache.begin(file, offset, class, number);
        if waiter == Waiter::Scan {
            self.cache.is_scanned(entry);
        }
        self.want(io, Wanted { entry, file, offset, class, lease, tries: 0 }, contents, index);
        Some((entry, offset + class.bytes() as u64))
    }

    /// A chunk of the class asked for, or of a smaller one: where the file ends earlier, or where
    /// no larger chunk can be had.
    fn lease_at(
        &mut self,
        pool: &Pool,
        at: u64,
        file_bytes: u64,
        class: Class,
    ) -> Option<(Lease, Class)> {
        for candidate in [Class::K256, Class::K64, Class::K16] {
            let start = at / candidate.bytes() as u64 * candidate.bytes() as u64;
            let tail = (file_bytes - start) as usize;
            let smaller_is_enough = candidate != Class::K16
                && Class::for_bytes(tail.min(candidate.bytes())) != candidate;
            if candidate.bytes() > class.bytes() || smaller_is_enough {
                continue;
            }
            for _ in 0..EVICTIONS_MAX {
                if let Some(lease) = pool.lease(candidate) {
                    return Some((lease, candidate));
                }
                let Some(evicted) = self.cache.evict() else { break };
                if candidate == Class::K16 {
                    // Where the pool is split in larger chunks, one of those it is: going on would
                    // throw out many before all of one super-block come free.
                    let mut classes = [candidate, evicted].into_iter();
                    return classes.find_map(|class| Some((pool.lease(class)?, class)));
                }
            }
        }
        None
    }

    /// A chunk of this class, for bytes that come from elsewhere; unused cached ones make room.
    pub fn lease(&mut self, pool: &Pool, class: Class) -> Option<Lease> {
        for _ in 0..EVICTIONS_MAX {
            if let Some(lease) = pool.lease(class) {
                return Some(lease);
            }
            self.cache.evict()?;
        }
        None
    }

    /// Once in a while: closes files that nobody reads.
    pub fn close_unused(&mut self, now: Duration) {
        self.files.close_unused(now.saturating_sub(FILE_IDLE));
    }
}

#[cfg(test)]
pub(crate) mod tests;
