//! The block cache: which chunks of which files are in memory, and which go first.
//!
//! Owns: entries (loading or ready), their order of eviction, who waits for a loading one.
//! Never: I/O, torrents, peers; it holds shares and forgets them. Flow: read fills it, upload and
//! verify take shares out of it.
//!
//! Eviction is S3-FIFO (Yang et al., SOSP 2023): newcomers pass through a small queue and reach the
//! main one only when a second reader came, so a scan does not flush what many peers read. A pass
//! of one reader over a chunk counts once (its first 16 KiB), not once a block.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use seedring_platform::memory::{Class, Share};

use super::files::FileId;
use crate::mix::Hashed;

/// Cached ranges start at multiples of this in their file.
pub const PAGE_BYTES: u64 = 16_384;
/// Accesses that are remembered, as in the paper.
const FREQUENCY_MAX: u8 = 3;
/// The small queue's part of the cache.
const SMALL_PART: usize = 10;
/// Pinned entries that an eviction looks at in each queue before it gives that queue up.
const PINNED_MAX: usize = 256;
/// Entries that an eviction keeps for now (used since they came here, or not yet used); then the
/// next one goes, whatever it is.
const KEPT_MAX: usize = 4_096;
/// Unfinished entries that one eviction spares.
const SPARED_MAX: usize = 256;

/// Places that one `touch` looks at.
pub const TOUCH_MAX: usize = 32;

/// How far from the young end of the small queue a chunk is looked for that is let go: as many come
/// in while it is hashed, at the most.
const YOUNG_MAX: usize = 1_024;

/// Who was woken for a chunk comes for it in the same tick, or when its send is through. In a tight
/// pool the others would take its memory before, and nobody would ever get anything.
const OWED: Duration = Duration::from_millis(100);

/// Who wants to know when a chunk is there (or failed).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiter {
    /// A connection's key.
    Connection(u64),
    /// Verification as a whole looks again, for a piece that a peer waits for.
    Verify,
    /// The same, for what nobody but verification wants.
    Scan,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EntryId(u32);

/// What the cache knows of a position.
#[derive(Debug)]
pub enum Found {
    /// The chunk, the file offset at which it starts, and its name for `take`.
    Ready(Share, u64, EntryId),
    /// Its name, and the file offset at which it ends.
    Loading(EntryId, u64),
    Missing,
}

enum State {
    Loading(Vec<Waiter>),
    Ready(Share),
    Free,
}

/// A line of memory, so that a look-up waits for one and not for two.
#[repr(align(64))]
struct Entry {
    file: FileId,
    /// File offset of the first byte.
    start: u64,
    class: Class,
    state: State,
    frequency: u8,
    /// Nobody but the reader that caused the load has been here.
    fresh: bool,
    /// Nobody at all has been here: loaded (or loading) for what comes next.
    ahead: bool,
    /// Its end was taken: who read it in order has had it all.
    finished: bool,
    /// It was due before it was finished, and stayed.
    spared: bool,
    /// Somebody was woken to come for it: until then it is as good as in use. Nanoseconds.
    owed_until: u64,
    /// Read for verification, and nobody else came for it: how much was hashed of it.
    scanned: Option<u32>,
    /// Of a growing file: when its read began (`Growth`).
    number: u32,
}

impl Entry {
    fn end(&self) -> u64 {
        self.start + self.class.bytes() as u64
    }
}

const _: () = assert!(size_of::<Entry>() == 64);

const NONE: u32 = u32::MAX;
const REGION_BYTES: u64 = 262_144;

/// The entries of one aligned 256 KiB of a file, by class and place: one look-up finds whichever
/// chunk covers an offset (three by class cost 10 % of a shard's time with 100,000 small chunks).
struct Region {
    k256: u32,
    k64: [u32; 4],
    k16: [u32; 16],
}

impl Region {
    const EMPTY: Region = Region { k256: NONE, k64: [NONE; 4], k16: [NONE; 16] };

    fn place(&mut self, offset: u64, class: Class) -> &mut u32 {
        match class {
            Class::K256 => &mut self.k256,
            Class::K64 => &mut self.k64[(offset >> 16 & 3) as usize],
            Class::K16 => &mut self.k16[(offset >> 14 & 15) as usize],
        }
    }

    fn at(&self, offset: u64, class: Class) -> u32 {
        match class {
            Class::K256 => self.k256,
            Class::K64 => self.k64[(offset >> 16 & 3) as usize],
            Class::K16 => self.k16[(offset >> 14 & 15) as usize],
        }
    }

    /// Entries that may cover an offset, the largest first; the places of the smaller ones, which
    /// are other lines of memory, are read only if the larger ones were not enough.
    fn covering(&self, offset: u64) -> impl Iterator<Item = u32> {
        let classes = [Class::K256, Class::K64, Class::K16].into_iter();
        classes.map(move |class| self.at(offset, class)).filter(|id| *id != NONE)
    }

    fn is_empty(&self) -> bool {
        self.k256 == NONE && self.k64 == [NONE; 4] && self.k16 == [NONE; 16]
    }
}

/// Chunks by file and position.
pub struct Cache {
    regions: HashMap<u64, Region, Hashed>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    small: VecDeque<EntryId>,
    main: VecDeque<EntryId>,
    small_bytes: usize,
    main_bytes: usize,
    /// Bytes of chunks that nobody has taken anything of yet.
    ahead_bytes: usize,
    /// Of the last turn; kept up by `storage`.
    pub(super) now: Duration,
    /// Chunks that passed through the small queue and were dropped: seen again, they go to the
    /// main one. By region key and class.
    ghosts: VecDeque<(u64, Class)>,
    ghost_set: HashSet<(u64, Class), Hashed>,
}

fn region_of(file: FileId, offset: u64) -> u64 {
    debug_assert!(offset / REGION_BYTES < 1 << 32, "a file beyond 2^50 bytes");
    (u64::from(file.0) << 32) | (offset / REGION_BYTES)
}

/// A chunk's name after it is gone: its page and class.
fn ghost_of(file: FileId, start: u64, class: Class) -> (u64, Class) {
    ((u64::from(file.0) << 36) ^ (start / PAGE_BYTES), class)
}

/// Half of a `Duration`'s size, and enough for 584 years.
fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

impl Default for Cache {
    fn default() -> Self {
        Self::new()
    }
}

impl Cache {
    pub fn new() -> Self {
        Cache {
            regions: HashMap::default(),
            entries: Vec::new(),
            free: Vec::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            main_bytes: 0,
            ahead_bytes: 0,
            now: Duration::ZERO,
            ghosts: VecDeque::new(),
            ghost_set: HashSet::default(),
        }
    }

    pub fn bytes(&self) -> usize {
        self.small_bytes + self.main_bytes
    }

    /// Bytes that are loading or loaded, and of which nobody has taken anything yet.
    pub fn ahead_bytes(&self) -> usize {
        self.ahead_bytes
    }

    /// The chunk that covers `offset`, whichever class it has. Looking counts for nothing: what is
    /// really used is told to `take`.
    pub fn find(&self, file: FileId, offset: u64) -> Found {
        let mut loading = None;
        for (id, entry) in self.covering(file, offset) {
            match &entry.state {
                State::Ready(share) if ((offset - entry.start) as usize) < share.len() => {
                    return Found::Ready(share.clone(), entry.start, id);
                }
                State::Ready(_) => {}
                State::Loading(_) => loading = Some((id, entry.end())),
                State::Free => unreachable!("invariant: a free entry is in no region"),
            }
        }
        loading.map_or(Found::Missing, |(id, end)| Found::Loading(id, end))
    }

    /// Looks at what `find` will look at for each of these places. Alone a look-up waits for four
    /// lines of memory, each named by the one before, which sending has pushed out of the CPU's
    /// caches; those of a whole batch wait together, and so do the first bytes, which the kernel
    /// will copy. 12 % more bytes a second with 131,072 blocks read at random.
    pub fn touch(&self, places: &[(FileId, u64)]) {
        let mut near = [None; TOUCH_MAX];
        for (near, (file, offset)) in near.iter_mut().zip(places) {
            *near = self.covering(*file, *offset).next();
        }
        for (found, (_, offset)) in near.iter().zip(places) {
            if let Some((_, Entry { state: State::Ready(share), start, .. })) = found {
                std::hint::black_box(share.holders());
                std::hint::black_box(share.get((offset - start) as usize));
            }
        }
    }

    /// Where the chunk that covers `offset` ends, loading or ready.
    pub fn covered_to(&self, file: FileId, offset: u64) -> Option<u64> {
        let end = |entry: &Entry| match &entry.state {
            State::Ready(share) => entry.start + share.len() as u64,
            _ => entry.end(),
        };
        self.covering(file, offset).map(|(_, entry)| end(entry)).find(|end| *end > offset)
    }

    fn covering(&self, file: FileId, offset: u64) -> impl Iterator<Item = (EntryId, &Entry)> {
        let region = self.regions.get(&region_of(file, offset)).into_iter();
        let named = region.flat_map(move |region| region.covering(offset));
        named.map(|id| (EntryId(id), &self.entries[id as usize]))
    }

    /// When the chunk's read began, as a growing file counts.
    pub fn number(&self, id: EntryId) -> u32 {
        self.entries[id.0 as usize].number
    }

    /// The chunk just begun is read for verification alone.
    pub fn is_scanned(&mut self, id: EntryId) {
        self.entries[id.0 as usize].scanned = Some(0);
    }

    /// Bytes `from .. to` of a ready chunk are being used; `scans`: by verification alone.
    ///
    /// What verification read, hashed whole, and nobody else came for leaves at once, so that the
    /// next read finds memory that is in the CPU's caches, and no other chunk has to go.
    pub fn take(&mut self, id: EntryId, from: usize, to: usize, scans: bool) {
        let entry = &mut self.entries[id.0 as usize];
        let State::Ready(share) = &entry.state else { panic!("a chunk taken that is not ready") };
        entry.finished |= to >= share.len();
        entry.owed_until = 0;
        if std::mem::take(&mut entry.ahead) {
            self.ahead_bytes -= entry.class.bytes();
        }
        if (from as u64) < PAGE_BYTES {
            if !entry.fresh && entry.frequency < FREQUENCY_MAX {
                entry.frequency += 1;
            }
            entry.fresh = false;
        }
        match &mut entry.scanned {
            Some(bytes) if scans => {
                *bytes += (to - from) as u32;
                if *bytes as usize >= share.len() {
                    self.let_go(id);
                }
            }
            scanned => *scanned = None,
        }
    }

    /// Forgets a chunk that is not worth keeping, unless it stands far from the young end of the
    /// small queue, or in the main one.
    fn let_go(&mut self, id: EntryId) {
        let young = self.small.iter().rev().take(YOUNG_MAX);
        let Some(from_end) = young.into_iter().position(|e| *e == id) else { return };
        self.small.remove(self.small.len() - 1 - from_end);
        self.small_bytes -= self.entries[id.0 as usize].class.bytes();
        self.forget(id);
    }

    /// Somebody waits for other chunks to use this one with: it is owed to him until then.
    pub fn keep(&mut self, id: EntryId) {
        self.entries[id.0 as usize].owed_until = nanos(self.now + OWED);
    }

    /// Notes that a chunk is being read. The caller has looked: it is not here.
    /// `number`: of a growing file, `Growth::now` of this read.
    pub fn begin(&mut self, file: FileId, offset: u64, class: Class, number: u32) -> EntryId {
        let start = offset / class.bytes() as u64 * class.bytes() as u64;
        let state = State::Loading(Vec::new());
        let entry = Entry {
            file,
            start,
            class,
            state,
            frequency: 0,
            fresh: true,
            ahead: true,
            finished: false,
            spared: false,
            owed_until: 0,
            scanned: None,
            number,
        };
        self.ahead_bytes += class.bytes();
        let id = match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                EntryId(at)
            }
            None => {
                self.entries.push(entry);
                EntryId(self.entries.len() as u32 - 1)
            }
        };
        let region = self.regions.entry(region_of(file, start)).or_insert(Region::EMPTY);
        let before = std::mem::replace(region.place(start, class), id.0);
        assert!(before == NONE, "two loads of one chunk");
        if self.ghost_set.contains(&ghost_of(file, start, class)) {
            self.main.push_back(id);
            self.main_bytes += class.bytes();
        } else {
            self.small.push_back(id);
            self.small_bytes += class.bytes();
        }
        id
    }

    /// Adds a waiter to a loading chunk.
    pub fn wait(&mut self, id: EntryId, waiter: Waiter) {
        let entry = &mut self.entries[id.0 as usize];
        if waiter != Waiter::Scan {
            entry.scanned = None;
        }
        if let State::Loading(waiters) = &mut entry.state
            && !waiters.contains(&waiter)
        {
            waiters.push(waiter);
        }
    }

    /// The chunk arrived; the waiters go on.
    pub fn loaded(&mut self, id: EntryId, share: Share) -> Vec<Waiter> {
        let entry = &mut self.entries[id.0 as usize];
        match std::mem::replace(&mut entry.state, State::Ready(share)) {
            State::Loading(waiters) => {
                if !waiters.is_empty() {
                    entry.owed_until = nanos(self.now + OWED);
                }
                waiters
            }
            _ => panic!("a chunk was loaded that nobody was loading"),
        }
    }

    /// The read failed: the chunk is forgotten; the waiters will find the file in trouble.
    pub fn failed(&mut self, id: EntryId) -> Vec<Waiter> {
        let waiters = match &mut self.entries[id.0 as usize].state {
            State::Loading(waiters) => std::mem::take(waiters),
            _ => panic!("a load failed that was not under way"),
        };
        // A failed read is rare; the search is not.
        let bytes = self.entries[id.0 as usize].class.bytes();
        if let Some(at) = self.small.iter().position(|e| *e == id) {
            self.small.remove(at);
            self.small_bytes -= bytes;
        } else if let Some(at) = self.main.iter().position(|e| *e == id) {
            self.main.remove(at);
            self.main_bytes -= bytes;
        }
        self.forget(id);
        waiters
    }

    fn forget(&mut self, id: EntryId) {
        let entry = &mut self.entries[id.0 as usize];
        entry.state = State::Free;
        if std::mem::take(&mut entry.ahead) {
            self.ahead_bytes -= entry.class.bytes();
        }
        let (key, start, class) = (region_of(entry.file, entry.start), entry.start, entry.class);
        let region = self.regions.get_mut(&key).expect("invariant: an entry is in its region");
        *region.place(start, class) = NONE;
        if region.is_empty() {
            self.regions.remove(&key);
        }
        self.free.push(id.0);
    }

    /// Drops the chunk that should go first and says of which class it was; `None`: all that was
    /// looked at is loading, in use by a send, or owed to somebody for a moment.
    ///
    /// A chunk that nobody has read to its end is spared once, at the cost of one of the main
    /// queue: the small one grows until its chunks live long enough to be read (else each reader's
    /// look-ahead would push out what the next one was just woken for).
    pub fn evict(&mut self) -> Option<Class> {
        let (mut pinned_small, mut pinned_main, mut kept, mut spared) = (0, 0, 0, 0);
        let mut seen = None;
        loop {
            // What is pinned in one queue must not hide what could go from the other.
            let small_is_open = pinned_small < self.small.len().min(PINNED_MAX);
            let main_is_open = pinned_main < self.main.len().min(PINNED_MAX);
            let small_is_due = self.small_bytes * SMALL_PART >= self.bytes().max(1);
            let from_small = match (small_is_open, main_is_open) {
                (false, false) => break,
                (true, true) => small_is_due && spared == 0,
                (small_only, _) => small_only,
            };
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let id = queue.pop_front().expect("invariant: an open queue has entries");
            let entry = &mut self.entries[id.0 as usize];
            let pinned = match &entry.state {
                State::Ready(share) => share.holders() > 1 || entry.owed_until > nanos(self.now),
                State::Loading(_) => true,
                State::Free => unreachable!("invariant: a free entry is in no queue"),
            };
            if pinned {
                *(if from_small { &mut pinned_small } else { &mut pinned_main }) += 1;
                queue.push_back(id);
                continue;
            }
            seen = Some(id);
            if kept < KEPT_MAX && entry.frequency > 0 {
                kept += 1;
                entry.frequency = if from_small { 0 } else { entry.frequency - 1 };
                if from_small {
                    self.small_bytes -= entry.class.bytes();
                    self.main_bytes += entry.class.bytes();
                }
                self.main.push_back(id);
            } else if spared < SPARED_MAX && !entry.finished && !entry.spared {
                spared += 1;
                entry.spared = true;
                queue.push_back(id);
            } else {
                return Some(self.drop_entry(id, from_small));
            }
        }
        // One that was kept stands behind more pinned ones than were looked at.
        let id = seen?;
        let from_small = !self.main.contains(&id);
        let queue = if from_small { &mut self.small } else { &mut self.main };
        let at = queue.iter().rposition(|e| *e == id).expect("invariant: it was kept in a queue");
        queue.remove(at);
        Some(self.drop_entry(id, from_small))
    }

    /// Forgets an entry that was taken out of its queue.
    fn drop_entry(&mut self, id: EntryId, from_small: bool) -> Class {
        let entry = &self.entries[id.0 as usize];
        let class = entry.class;
        let ghost = ghost_of(entry.file, entry.start, class);
        if from_small {
            self.small_bytes -= class.bytes();
            self.remember_ghost(ghost);
        } else {
            self.main_bytes -= class.bytes();
        }
        self.forget(id);
        class
    }

    fn remember_ghost(&mut self, ghost: (u64, Class)) {
        if self.ghost_set.insert(ghost) {
            self.ghosts.push_back(ghost);
        }
        while self.ghosts.len() > (self.small.len() + self.main.len()).max(64) {
            if let Some(old) = self.ghosts.pop_front() {
                self.ghost_set.remove(&old);
            }
        }
    }

    /// Forgets every ready chunk of these files (they changed, or their torrent left), in one pass
    /// over the cache. Loading ones end by themselves: their file id is not used again.
    pub fn drop_files(&mut self, files: &[FileId]) {
        if files.is_empty() || self.regions.is_empty() {
            return;
        }
        let files: HashSet<FileId> = files.iter().copied().collect();
        for main in [false, true] {
            let queue = std::mem::take(if main { &mut self.main } else { &mut self.small });
            let mut kept = VecDeque::with_capacity(queue.len());
            for id in queue {
                let entry = &self.entries[id.0 as usize];
                if files.contains(&entry.file) && matches!(entry.state, State::Ready(_)) {
                    let bytes = entry.class.bytes();
                    *(if main { &mut self.main_bytes } else { &mut self.small_bytes }) -= bytes;
                    self.forget(id);
                } else {
                    kept.push_back(id);
                }
            }
            *(if main { &mut self.main } else { &mut self.small }) = kept;
        }
    }

    /// Forgets everything that is ready (shutdown).
    pub fn clear(&mut self) {
        for id in (0..self.entries.len() as u32).map(EntryId) {
            if matches!(self.entries[id.0 as usize].state, State::Ready(_)) {
                self.forget(id);
            }
        }
        let entries = &self.entries;
        let live = |id: &EntryId| !matches!(entries[id.0 as usize].state, State::Free);
        self.small.retain(live);
        self.main.retain(live);
        let sum = |q: &VecDeque<EntryId>| {
            q.iter().map(|id| entries[id.0 as usize].class.bytes()).sum::<usize>()
        };
        (self.small_bytes, self.main_bytes) = (sum(&self.small), sum(&self.main));
    }
}

#[cfg(test)]
mod tests;
