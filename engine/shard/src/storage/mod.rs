//! Where bytes come from: files, reads and the block cache of one shard.
//!
//! Owns: the path from "these bytes of that torrent" to shares of cached chunks.
//! Never: peers, choking, hashing. Flow: upload and verify `gather`; a miss opens and reads; the
//! completion fills the cache and names who waited.

pub mod cache;
pub mod files;

use std::{collections::VecDeque, io, time::Duration};

use seedring_platform::{
    descriptors::File,
    memory::{Class, Lease, Pool, Share},
    op::{Identity, Io, Op, OpenRequest},
};
use seedring_proto::units::FileIndex;

use self::{
    cache::{Cache, EntryId, Found, PAGE_BYTES, Waiter},
    files::{FileId, Files, IDENTITY_AGE_MAX, State, Verdict, relative_to_root},
};
use crate::{
    contract::Trouble,
    stats::Stats,
    token::Target,
    torrent::{Contents, TorrentId},
};

/// Smaller files are read buffered: direct I/O would not pay.
const DIRECT_FILE_BYTES_MIN: u64 = 65_536;
/// Evictions tried for one chunk.
const EVICTIONS_MAX: usize = 64;
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
    /// A file can't be served; `range`: file offsets whose pieces are in doubt, if any.
    Trouble {
        torrent: TorrentId,
        file: FileIndex,
        trouble: Trouble,
        range: Option<std::ops::Range<u64>>,
    },
}

struct Reading {
    entry: EntryId,
    file: FileId,
    offset: u64,
    expected: u32,
}

struct Wanted {
    entry: EntryId,
    file: FileId,
    offset: u64,
    class: Class,
    lease: Lease,
}

/// Limits of a shard's storage.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub reads_max: usize,
    pub open_files_max: usize,
}

pub struct Storage {
    pub cache: Cache,
    files: Files,
    /// Reads in the kernel, by token.
    reads: Vec<Option<Reading>>,
    free_reads: Vec<u32>,
    /// Reads that wait for their file to open or for a slot.
    wanted: VecDeque<Wanted>,
    root: File,
    zeros: Option<Share>,
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
            reads: (0..options.reads_max).map(|_| None).collect(),
            free_reads: (0..options.reads_max as u32).rev().collect(),
            wanted: VecDeque::new(),
            root,
            zeros,
        }
    }

    pub fn open_files(&self) -> usize {
        self.files.open_count()
    }

    pub fn reads_in_flight(&self) -> usize {
        self.reads.len() - self.free_reads.len() + self.wanted.len()
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
            while at < end && state != Gather::NoMemory {
                match self.cache.find(file, at) {
                    Found::Ready(share, start) => {
                        let to = share.len().min((end - start) as usize);
                        parts.push(Part { from: (at - start) as usize, to, share });
                        at = start + to as u64;
                        stats.cache_hits += 1;
                    }
                    Found::Loading(entry) => {
                        self.cache.wait(entry, waiter);
                        state = Gather::Waiting;
                        at = (at / PAGE_BYTES + 1) * PAGE_BYTES;
                    }
                    Found::Missing => {
                        stats.cache_misses += 1;
                        match self.begin(io, file, contents, at, class()) {
                            Some(entry) => {
                                self.cache.wait(entry, waiter);
                                state = Gather::Waiting;
                                at = (at / PAGE_BYTES + 1) * PAGE_BYTES;
                            }
                            None => state = Gather::NoMemory,
                        }
                    }
                }
            }
        }
        if state != Gather::Ready {
            parts.truncate(before);
        }
        state
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

    /// Starts a read of the chunk that covers `at`. `None`: no memory.
    fn begin<I: Io>(
        &mut self,
        io: &mut I,
        file: FileId,
        contents: &Contents,
        at: u64,
        class: Class,
    ) -> Option<EntryId> {
        let entry = self.files.get(file).expect("invariant: looked up by the caller");
        let (length, index) = (entry.length_bytes, entry.index);
        let (lease, class) = self.lease_at(io.pool(), at, length, class)?;
        let offset = at / class.bytes() as u64 * class.bytes() as u64;
        let chunk = self.cache.begin(file, offset, class);
        self.count_read(file, 1);
        self.wanted.push_back(Wanted { entry: chunk, file, offset, class, lease });
        self.open(io, file, contents, index);
        self.submit_wanted(io);
        Some(chunk)
    }

    fn count_read(&mut self, file: FileId, change: i32) {
        if let Some(entry) = self.files.get(file) {
            entry.reads = entry.reads.saturating_add_signed(change);
        }
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
                if !self.cache.evict() {
                    break;
                }
            }
        }
        None
    }

    fn open<I: Io>(&mut self, io: &mut I, id: FileId, contents: &Contents, index: FileIndex) {
        if self.files.is_full() {
            let now = io.now();
            self.files.close_unused(now.saturating_sub(FILE_IDLE));
        }
        let Some(entry) = self.files.get(id) else { return };
        if !matches!(entry.state, State::Closed) {
            return;
        }
        let path = relative_to_root(&contents.path(index));
        let direct = contents.direct_io && entry.length_bytes >= DIRECT_FILE_BYTES_MIN;
        let path = path.expect("invariant: control canonicalised the path, layouts hold no NUL");
        let request = Box::new(OpenRequest { root: self.root.clone(), path, direct });
        let op = Op::Open { token: Target::Open(id).token(), request };
        if io.submit(op).is_ok() {
            entry.state = State::Opening;
        }
    }

    /// Hands waiting reads of open files to the kernel, as far as slots go.
    fn submit_wanted<I: Io>(&mut self, io: &mut I) {
        for _ in 0..self.wanted.len() {
            if self.free_reads.is_empty() {
                return;
            }
            let Some(wanted) = self.wanted.pop_front() else { return };
            let Some(entry) = self.files.get(wanted.file) else {
                // The file was replaced or dropped: fails below through its entry.
                self.wanted.push_back(wanted);
                continue;
            };
            let State::Open(file) = &entry.state else {
                self.wanted.push_back(wanted);
                continue;
            };
            let file = file.clone();
            let left = entry.length_bytes - wanted.offset;
            let expected = left.min(wanted.class.bytes() as u64) as u32;
            let align = entry.identity.and_then(|i| i.direct).map_or(1, |d| d.offset_bytes.max(1));
            let length = expected.next_multiple_of(align).min(wanted.class.bytes() as u32);
            let slot = self.free_reads.pop().expect("invariant: checked above");
            let (entry_id, file_id, offset) = (wanted.entry, wanted.file, wanted.offset);
            let op = Op::Read {
                token: Target::Read(slot).token(),
                file,
                offset,
                length,
                lease: wanted.lease,
            };
            self.reads[slot as usize] =
                Some(Reading { entry: entry_id, file: file_id, offset, expected });
            if let Err(Op::Read { lease, .. }) = io.submit(op) {
                self.reads[slot as usize] = None;
                self.free_reads.push(slot);
                let class = Class::for_bytes(lease.len());
                self.wanted.push_front(Wanted {
                    entry: entry_id,
                    file: file_id,
                    offset,
                    class,
                    lease,
                });
                return;
            }
            self.look_again(io, file_id);
        }
    }

    /// A file that is being read is looked at each second.
    fn look_again<I: Io>(&mut self, io: &mut I, id: FileId) {
        let now = io.now();
        let Some(entry) = self.files.get(id) else { return };
        let State::Open(file) = &entry.state else { return };
        if entry.looking || now.saturating_sub(entry.looked_at) < IDENTITY_AGE_MAX {
            return;
        }
        let op = Op::Identify { token: Target::Identify(id).token(), file: file.clone() };
        entry.looking = io.submit(op).is_ok();
    }

    /// Completion of `Op::Open`.
    pub fn opened<I: Io>(
        &mut self,
        io: &mut I,
        id: FileId,
        result: io::Result<(File, Identity)>,
        news: &mut Vec<News>,
    ) {
        let now = io.now();
        match result {
            Ok((file, identity)) => match self.files.opened(id, file, identity, now) {
                Verdict::Same => {}
                Verdict::Trouble(trouble) => self.trouble(id, trouble, None, now, news),
            },
            Err(error) => self.trouble(id, Trouble::Io(error), None, now, news),
        }
        self.submit_wanted(io);
    }

    /// Completion of `Op::Identify`.
    pub fn identified<I: Io>(
        &mut self,
        io: &mut I,
        id: FileId,
        result: io::Result<Identity>,
        news: &mut Vec<News>,
    ) {
        let now = io.now();
        match result.map(|found| self.files.identified(id, found, now)) {
            Ok(Verdict::Same) => {}
            Ok(Verdict::Trouble(trouble)) => self.trouble(id, trouble, None, now, news),
            Err(error) => self.trouble(id, Trouble::Io(error), None, now, news),
        }
    }

    /// Completion of `Op::Read`.
    pub fn read<I: Io>(
        &mut self,
        io: &mut I,
        stats: &mut Stats,
        slot: u32,
        result: io::Result<usize>,
        lease: Lease,
        news: &mut Vec<News>,
    ) {
        let now = io.now();
        let reading = self.reads[slot as usize].take().expect("invariant: one completion a read");
        self.free_reads.push(slot);
        let Reading { entry, file, offset, expected } = reading;
        self.count_read(file, -1);
        stats.reads += 1;
        let current = self.files.get(file).map(|entry| (entry.length_bytes, entry.identity));
        match (result, current) {
            (_, None) => self.fail_chunk(entry, news), // replaced or dropped meanwhile
            (Ok(n), Some((_, identity))) if n >= expected as usize => {
                stats.read_bytes += n as u64;
                stats.direct_reads += u64::from(identity.is_some_and(|i| i.direct.is_some()));
                let waiters = self.cache.loaded(entry, lease.freeze(expected as usize));
                news.extend(waiters.into_iter().map(News::Wake));
            }
            (result, Some((length, _))) => {
                let trouble = match result {
                    Ok(n) => {
                        Trouble::Short { expected_bytes: length, found_bytes: offset + n as u64 }
                    }
                    Err(error) => Trouble::Io(error),
                };
                drop(lease);
                self.fail_chunk(entry, news);
                let doubt = offset..offset + u64::from(expected);
                self.trouble(file, trouble, Some(doubt), now, news);
            }
        }
        self.submit_wanted(io);
    }

    fn fail_chunk(&mut self, entry: EntryId, news: &mut Vec<News>) {
        news.extend(self.cache.failed(entry).into_iter().map(News::Wake));
    }

    /// A file is in trouble: what waits for it fails, the shard hears why.
    fn trouble(
        &mut self,
        id: FileId,
        trouble: Trouble,
        doubt: Option<std::ops::Range<u64>>,
        now: Duration,
        news: &mut Vec<News>,
    ) {
        let Some(entry) = self.files.get(id) else { return };
        let (torrent, file, length) = (entry.torrent, entry.index, entry.length_bytes);
        let range = match trouble {
            // Bytes that were there are in doubt; a file that can't be opened says nothing of them.
            Trouble::Changed | Trouble::Short { .. } => Some(doubt.unwrap_or(0..length)),
            Trouble::Io(_) => doubt,
        };
        if matches!(trouble, Trouble::Changed) {
            self.files.replace(id, now);
        } else {
            self.files.fail(id, now);
        }
        self.cache.drop_files(&[id]);
        self.fail_wanted(id, news);
        news.push(News::Trouble { torrent, file, trouble, range });
    }

    fn fail_wanted(&mut self, id: FileId, news: &mut Vec<News>) {
        for _ in 0..self.wanted.len() {
            let Some(wanted) = self.wanted.pop_front() else { return };
            if wanted.file == id {
                self.count_read(id, -1);
                self.fail_chunk(wanted.entry, news);
            } else {
                self.wanted.push_back(wanted);
            }
        }
    }

    /// Forgets a torrent's files and chunks (it goes cold or leaves).
    pub fn drop_torrent(&mut self, torrent: TorrentId, news: &mut Vec<News>) {
        let files = self.files.drop_torrent(torrent);
        self.cache.drop_files(&files);
        if !self.wanted.is_empty() {
            files.into_iter().for_each(|id| self.fail_wanted(id, news));
        }
    }

    /// Once in a while: closes files that nobody reads.
    pub fn close_unused(&mut self, now: Duration) {
        self.files.close_unused(now.saturating_sub(FILE_IDLE));
    }

    /// Lets go of all memory that is not in the kernel's hands (shutdown).
    pub fn clear(&mut self, news: &mut Vec<News>) {
        while let Some(wanted) = self.wanted.pop_front() {
            self.fail_chunk(wanted.entry, news);
        }
        self.cache.clear();
        self.zeros = None;
    }
}
