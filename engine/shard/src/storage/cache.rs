//! The block cache: which chunks of which files are in memory, and which go first.
//!
//! Owns: entries (loading or ready), their order of eviction, who waits for a loading one.
//! Never: I/O, torrents, peers; it holds shares and forgets them. Flow: read fills it, upload and
//! verify take shares out of it.
//!
//! Eviction is S3-FIFO (Yang et al., SOSP 2023): newcomers pass through a small queue and reach the
//! main one only when a second reader came, so a scan does not flush what many peers read. A pass
//! of one reader over a chunk counts once (its first 16 KiB), not once a block.

use std::collections::{HashMap, HashSet, VecDeque};

use seedring_platform::memory::{Class, Share};

use super::files::FileId;
use crate::mix::Hashed;

/// Cached ranges start at multiples of this in their file.
pub const PAGE_BYTES: u64 = 16_384;
/// Accesses that are remembered, as in the paper.
const FREQUENCY_MAX: u8 = 3;
/// The small queue's part of the cache.
const SMALL_PART: usize = 10;
/// Entries looked at before an eviction gives up for this time (all pinned).
const EVICTION_SCAN_MAX: usize = 256;

/// Who wants to know when a chunk is there (or failed).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiter {
    /// A connection's key.
    Connection(u64),
    /// Verification as a whole looks again.
    Verify,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EntryId(u32);

/// What the cache knows of a position.
#[derive(Debug)]
pub enum Found {
    /// The chunk, and the file offset at which it starts.
    Ready(Share, u64),
    Loading(EntryId),
    Missing,
}

enum State {
    Loading(Vec<Waiter>),
    Ready(Share),
    Free,
}

struct Entry {
    file: FileId,
    /// File offset of the first byte.
    start: u64,
    class: Class,
    state: State,
    frequency: u8,
    /// Nobody but the reader that caused the load has been here.
    fresh: bool,
}

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

    /// Entries that may cover an offset, the largest first.
    fn covering(&self, offset: u64) -> [u32; 3] {
        let (k64, k16) = ((offset >> 16 & 3) as usize, (offset >> 14 & 15) as usize);
        [self.k256, self.k64[k64], self.k16[k16]]
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
            ghosts: VecDeque::new(),
            ghost_set: HashSet::default(),
        }
    }

    pub fn bytes(&self) -> usize {
        self.small_bytes + self.main_bytes
    }

    /// The chunk that covers `offset`, whichever class it has.
    pub fn find(&mut self, file: FileId, offset: u64) -> Found {
        let Some(region) = self.regions.get(&region_of(file, offset)) else {
            return Found::Missing;
        };
        let mut loading = None;
        for id in region.covering(offset).into_iter().filter(|id| *id != NONE) {
            let entry = &mut self.entries[id as usize];
            match &entry.state {
                State::Ready(share) => {
                    if (offset - entry.start) as usize >= share.len() {
                        continue;
                    }
                    if offset - entry.start < PAGE_BYTES {
                        if !entry.fresh && entry.frequency < FREQUENCY_MAX {
                            entry.frequency += 1;
                        }
                        entry.fresh = false;
                    }
                    return Found::Ready(share.clone(), entry.start);
                }
                State::Loading(_) => loading = Some(EntryId(id)),
                State::Free => unreachable!("invariant: a free entry is in no region"),
            }
        }
        loading.map_or(Found::Missing, Found::Loading)
    }

    /// Notes that a chunk is being read. The caller has looked: it is not here.
    pub fn begin(&mut self, file: FileId, offset: u64, class: Class) -> EntryId {
        let start = offset / class.bytes() as u64 * class.bytes() as u64;
        let state = State::Loading(Vec::new());
        let entry = Entry { file, start, class, state, frequency: 0, fresh: true };
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
        if let State::Loading(waiters) = &mut self.entries[id.0 as usize].state
            && !waiters.contains(&waiter)
        {
            waiters.push(waiter);
        }
    }

    /// The chunk arrived; the waiters go on.
    pub fn loaded(&mut self, id: EntryId, share: Share) -> Vec<Waiter> {
        let entry = &mut self.entries[id.0 as usize];
        match std::mem::replace(&mut entry.state, State::Ready(share)) {
            State::Loading(waiters) => waiters,
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
        let (key, start, class) = (region_of(entry.file, entry.start), entry.start, entry.class);
        let region = self.regions.get_mut(&key).expect("invariant: an entry is in its region");
        *region.place(start, class) = NONE;
        if region.is_empty() {
            self.regions.remove(&key);
        }
        self.free.push(id.0);
    }

    /// Drops the chunk that should go first; `false`: all that was looked at is loading or in
    /// use by a send.
    pub fn evict(&mut self) -> bool {
        // What is pinned in the small queue must not hide what could go from the main one.
        let mut small_is_pinned = false;
        for _ in 0..EVICTION_SCAN_MAX {
            let small_is_due = self.small_bytes * SMALL_PART >= self.bytes().max(1);
            let from_small = self.main.is_empty() || (small_is_due && !small_is_pinned);
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let Some(id) = queue.pop_front() else { return false };
            let entry = &mut self.entries[id.0 as usize];
            let pinned = match &entry.state {
                State::Ready(share) => share.holders() > 1,
                State::Loading(_) => true,
                State::Free => unreachable!("invariant: a free entry is in no queue"),
            };
            let bytes = entry.class.bytes();
            if pinned {
                small_is_pinned |= from_small;
                let queue = if from_small { &mut self.small } else { &mut self.main };
                queue.push_back(id);
            } else if entry.frequency > 0 {
                entry.frequency = if from_small { 0 } else { entry.frequency - 1 };
                self.main.push_back(id);
                if from_small {
                    self.small_bytes -= bytes;
                    self.main_bytes += bytes;
                }
            } else {
                let ghost = ghost_of(entry.file, entry.start, entry.class);
                if from_small {
                    self.small_bytes -= bytes;
                    self.remember_ghost(ghost);
                } else {
                    self.main_bytes -= bytes;
                }
                self.forget(id);
                return true;
            }
        }
        false
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
mod tests {
    use seedring_platform::memory::{Pool, PoolOptions};

    use super::*;

    const FILE: FileId = FileId(7);

    fn pool() -> Pool {
        Pool::new(PoolOptions { cap_bytes: 4 << 20, huge_pages: false }).unwrap()
    }

    fn load(cache: &mut Cache, pool: &Pool, offset: u64, class: Class) {
        let mut lease = loop {
            match pool.lease(class) {
                Some(lease) => break lease,
                None => assert!(cache.evict(), "nothing to evict"),
            }
        };
        lease[0] = (offset / PAGE_BYTES) as u8;
        let id = cache.begin(FILE, offset, class);
        let length = class.bytes();
        assert!(cache.loaded(id, lease.freeze(length)).is_empty());
    }

    #[test]
    fn a_chunk_is_found_by_any_offset_in_it() {
        let (mut cache, pool) = (Cache::new(), pool());
        load(&mut cache, &pool, 262_144, Class::K256);
        load(&mut cache, &pool, 65_536, Class::K16);
        assert!(matches!(cache.find(FILE, 524_287), Found::Ready(_, 262_144)));
        assert!(matches!(cache.find(FILE, 65_536 + 16_383), Found::Ready(_, 65_536)));
        assert!(matches!(cache.find(FILE, 65_536 + 16_384), Found::Missing));
        assert!(matches!(cache.find(FileId(8), 262_144), Found::Missing));
    }

    #[test]
    fn a_scan_does_not_evict_what_a_second_reader_came_for() {
        let (mut cache, pool) = (Cache::new(), pool());
        load(&mut cache, &pool, 0, Class::K256);
        for _ in 0..3 {
            cache.find(FILE, 0);
        }
        for chunk in 1..200 {
            load(&mut cache, &pool, chunk * 262_144, Class::K256);
            cache.find(FILE, chunk * 262_144);
        }
        assert!(matches!(cache.find(FILE, 0), Found::Ready(..)), "the hot chunk is gone");
        assert!(matches!(cache.find(FILE, 262_144), Found::Missing), "the scan stayed");
    }

    #[test]
    fn what_a_send_holds_is_not_evicted() {
        let (mut cache, pool) = (Cache::new(), pool());
        load(&mut cache, &pool, 0, Class::K16);
        let Found::Ready(held, _) = cache.find(FILE, 0) else { panic!("not cached") };
        assert!(!cache.evict());
        drop(held);
        assert!(cache.evict());
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_pinned_newcomer_does_not_hide_what_could_go() {
        let (mut cache, pool) = (Cache::new(), pool());
        for chunk in 0..8 {
            load(&mut cache, &pool, chunk * 262_144, Class::K256);
            (0..2).for_each(|_| drop(cache.find(FILE, chunk * 262_144)));
        }
        assert!(cache.evict(), "the eight move to the main queue, and one goes");
        load(&mut cache, &pool, 90 * 262_144, Class::K256);
        let Found::Ready(_held, _) = cache.find(FILE, 90 * 262_144) else { panic!("not cached") };
        for _ in 0..7 {
            assert!(cache.evict());
        }
        assert!(!cache.evict(), "only the held one is left");
    }

    #[test]
    fn waiters_of_one_load_share_its_read_and_all_hear_of_its_failure() {
        let mut cache = Cache::new();
        let id = cache.begin(FILE, 0, Class::K64);
        assert!(matches!(cache.find(FILE, 40_000), Found::Loading(found) if found == id));
        for waiter in [Waiter::Connection(1), Waiter::Connection(2), Waiter::Connection(1)] {
            cache.wait(id, waiter);
        }
        assert_eq!(cache.failed(id), [Waiter::Connection(1), Waiter::Connection(2)]);
        assert!(matches!(cache.find(FILE, 40_000), Found::Missing));
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_changed_file_leaves_nothing_behind() {
        let (mut cache, pool) = (Cache::new(), pool());
        for chunk in 0..8 {
            load(&mut cache, &pool, chunk * 65_536, Class::K64);
        }
        cache.drop_files(&[FILE]);
        assert_eq!((cache.bytes(), pool.leased_bytes()), (0, 0));
    }
}
