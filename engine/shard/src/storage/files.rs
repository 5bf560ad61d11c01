//! The open files of a shard.
//!
//! Owns: which file of which torrent is open or waits to be opened, its identity, since when it is
//! in trouble. Never: bytes, peers. Flow: `storage` asks for a file; completions of open and
//! identify come back here.
//!
//! A `FileId` stands for one identity of one file: when the file turns out to have changed, it gets
//! a new id, so that no chunk of the old one is ever found again.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::CString,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::Duration,
};

use seedring_platform::{descriptors::File, op::Identity};
use seedring_proto::units::FileIndex;

use super::reads::Wanted;
use crate::{
    contract::Trouble,
    mix::Hashed,
    torrent::{Contents, Stamp, TorrentId},
};

/// A file in trouble is left alone for this long before the next attempt.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How old a look at a file's identity may be while it is read.
pub const IDENTITY_AGE_MAX: Duration = Duration::from_secs(1);
/// Opens in the kernel at once. Each needs a worker thread of the ring where the path is not
/// cached, and a table entry; many small files would ask for thousands.
pub const OPENING_MAX: usize = 64;
/// After the machine had no descriptor or memory for an open, the next is tried after this time.
pub const TRANSIENT_REST: Duration = Duration::from_millis(100);
/// Attempts (30 s of them) after which what should pass by itself counts as trouble.
pub const TRANSIENT_TRIES_MAX: u16 = 300;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// No file has this number.
const NOWHERE: FileId = FileId(u32::MAX);

pub(super) enum State {
    /// Known, no descriptor (never opened, or closed to spare descriptors).
    Closed,
    /// Its turn to be opened will come.
    Queued,
    Opening,
    Open(File),
    /// Not before this time.
    Failed(Duration),
}

/// Where a file is to be opened.
#[derive(Clone)]
pub(super) struct Place {
    /// Relative to the root.
    pub path: CString,
    pub direct: bool,
}

pub(super) struct Entry {
    pub torrent: TorrentId,
    pub index: FileIndex,
    pub length_bytes: u64,
    pub state: State,
    /// What the file was when it was last opened or looked at.
    pub identity: Option<Identity>,
    /// What control knows of the file that was verified.
    pub stamp: Option<Stamp>,
    /// We write to it: its times and size are ours.
    pub growing: bool,
    pub used_at: Duration,
    pub looked_at: Duration,
    pub looking: bool,
    /// Reads that wait for it or are in the kernel: it stays open for them.
    pub reads: u32,
    /// Reads that wait until it is open.
    pub waiting: VecDeque<Wanted>,
    /// Verification waits until it is open, to look at it in place.
    pub is_awaited: bool,
    /// From the wish to open it until it is open.
    place: Option<Place>,
    tries: u16,
    /// How short the file was found at the last open, if it was.
    short_bytes: Option<u64>,
}

/// The files of a torrent by their index; `NOWHERE`: not asked for yet.
struct Known {
    /// The torrent's epoch that these ids belong to.
    epoch: u32,
    ids: Vec<FileId>,
}

/// The table. At most `open_max` descriptors, those being opened included.
pub(super) struct Files {
    torrents: HashMap<TorrentId, Known, Hashed>,
    entries: HashMap<FileId, Entry, Hashed>,
    next: u32,
    open: BTreeSet<FileId>,
    open_max: usize,
    to_open: VecDeque<FileId>,
    opening: usize,
    /// No open before this time.
    rest_until: Duration,
    /// All that is open is being read: nothing can be closed until a read ends.
    all_busy: bool,
}

/// What a look at a file's identity says.
#[derive(Debug)]
pub(super) enum Verdict {
    Same,
    Trouble(Trouble),
}

/// A file that is not known any more, and the reads that waited for it.
pub(super) type Gone = (FileId, VecDeque<Wanted>);

impl Files {
    pub fn new(open_max: usize) -> Self {
        Files {
            torrents: HashMap::default(),
            entries: HashMap::default(),
            next: 0,
            open: BTreeSet::new(),
            open_max: open_max.max(1),
            to_open: VecDeque::new(),
            opening: 0,
            rest_until: Duration::ZERO,
            all_busy: false,
        }
    }

    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// The id that a file of a torrent has now.
    pub fn id(&mut self, torrent: TorrentId, contents: &Contents, index: FileIndex) -> FileId {
        let known = self.torrents.get(&torrent);
        if let Some(id) = known.and_then(|known| known.ids.get(index.0 as usize))
            && *id != NOWHERE
        {
            return *id;
        }
        let entry = Entry {
            torrent,
            index,
            length_bytes: contents.layout.files[index.0 as usize].length,
            state: State::Closed,
            identity: None,
            stamp: contents.stamps.get(index.0 as usize).copied().flatten(),
            growing: contents.writing.is_some(),
            used_at: Duration::ZERO,
            looked_at: Duration::ZERO,
            looking: false,
            reads: 0,
            waiting: VecDeque::new(),
            is_awaited: false,
            place: None,
            tries: 0,
            short_bytes: None,
        };
        self.insert(entry, contents.layout.files.len())
    }

    fn insert(&mut self, entry: Entry, files: usize) -> FileId {
        let id = FileId(self.next);
        self.next = self.next.checked_add(1).expect("invariant: fewer than 2^32 file changes");
        let none = || Known { epoch: 0, ids: Vec::new() };
        let known = self.torrents.entry(entry.torrent).or_insert_with(none);
        let files = files.max(entry.index.0 as usize + 1);
        if known.ids.len() < files {
            known.ids.resize(files, NOWHERE);
        }
        known.ids[entry.index.0 as usize] = id;
        self.entries.insert(id, entry);
        id
    }

    pub fn get(&mut self, id: FileId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    pub fn count_read(&mut self, id: FileId, change: i32) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.reads = entry.reads.saturating_add_signed(change);
            self.all_busy &= entry.reads > 0;
        }
    }

    /// The torrent's epoch moved on, so one of its files is not what it was: all get new ids, and
    /// the next open compares each with the identity that is known. Returns the old ones.
    pub fn see_epoch(&mut self, torrent: TorrentId, epoch: u32) -> Vec<Gone> {
        let none = || Known { epoch, ids: Vec::new() };
        let known = self.torrents.entry(torrent).or_insert_with(none);
        if known.epoch == epoch {
            return Vec::new();
        }
        known.epoch = epoch;
        let ids: Vec<FileId> = known.ids.iter().copied().filter(|id| *id != NOWHERE).collect();
        ids.into_iter().filter_map(|id| self.renew(id, State::Closed, true)).collect()
    }

    /// This shard itself moved the epoch on from `before`, having replaced the file concerned.
    pub fn moved_epoch(&mut self, torrent: TorrentId, before: u32) {
        if let Some(known) = self.torrents.get_mut(&torrent)
            && known.epoch == before
        {
            known.epoch = before.wrapping_add(1);
        }
    }

    /// Asks for a descriptor; `next_to_open` says when it is the file's turn.
    pub fn want_open(&mut self, id: FileId, place: Place) {
        if let Some(entry) = self.entries.get_mut(&id)
            && matches!(entry.state, State::Closed)
        {
            entry.state = State::Queued;
            entry.place = Some(place);
            self.to_open.push_back(id);
        }
    }

    /// The file whose turn to be opened it is, as far as limits go.
    pub fn next_to_open(&mut self, now: Duration) -> Option<(FileId, Place)> {
        while self.opening < OPENING_MAX && now >= self.rest_until {
            let id = *self.to_open.front()?;
            let entry = self.entries.get(&id);
            let queued = entry.filter(|entry| matches!(entry.state, State::Queued));
            let Some(place) = queued.and_then(|entry| entry.place.clone()) else {
                self.to_open.pop_front(); // dropped, replaced, or opened meanwhile
                continue;
            };
            if self.is_full() {
                return None;
            }
            self.to_open.pop_front();
            self.opening += 1;
            self.get(id)?.state = State::Opening;
            return Some((id, place));
        }
        None
    }

    /// Whether no further descriptor may be had, after what nobody reads was closed.
    fn is_full(&mut self) -> bool {
        let room = |files: &Self| files.open.len() + files.opening < files.open_max;
        if !room(self) && !self.all_busy {
            self.close_down_to(self.open_max * 3 / 4, Duration::ZERO);
            self.all_busy = !room(self);
        }
        !room(self)
    }

    /// When the next open may be tried, if one waits for the machine to recover.
    pub fn rests_until(&self) -> Option<Duration> {
        (!self.to_open.is_empty()).then_some(self.rest_until)
    }

    /// An open came to its end, whatever that was. `false`: nobody waits for it any more.
    pub fn open_ended(&mut self, id: FileId) -> bool {
        self.opening = self.opening.checked_sub(1).expect("invariant: one end an open");
        let entry = self.entries.get(&id);
        entry.is_some_and(|entry| matches!(entry.state, State::Opening | State::Queued))
    }

    /// The open did not reach the kernel, or the machine had no means for it: it is tried again.
    /// `false`: it was tried often enough.
    pub fn open_later(&mut self, id: FileId, now: Duration) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return true };
        entry.tries += 1;
        if entry.tries > TRANSIENT_TRIES_MAX {
            return false;
        }
        entry.state = State::Queued;
        self.to_open.push_front(id);
        self.rest_until = now + TRANSIENT_REST;
        true
    }

    /// The open could not be submitted.
    pub fn open_refused(&mut self, id: FileId, now: Duration) {
        self.opening -= 1;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.state = State::Queued;
            self.to_open.push_front(id);
        }
        self.rest_until = now + TRANSIENT_REST;
    }

    /// The machine is out of descriptors: half of ours go back, as far as nobody reads them.
    pub fn give_back_half(&mut self) {
        self.close_down_to(self.open.len() / 2, Duration::ZERO);
    }

    /// The descriptor arrived. `Err`: the file is not what the torrent (or control) says.
    pub fn opened(&mut self, id: FileId, file: File, found: Identity, now: Duration) -> Verdict {
        let Some(entry) = self.entries.get_mut(&id) else { return Verdict::Same };
        let verdict = judge(entry, &found);
        entry.looked_at = now;
        entry.used_at = now;
        entry.place = None;
        entry.tries = 0;
        match verdict {
            Verdict::Same => {
                entry.identity = Some(found);
                entry.short_bytes = None;
                entry.state = State::Open(file);
                self.open.insert(id);
                self.all_busy &= entry.reads > 0;
            }
            Verdict::Trouble(_) => entry.state = State::Failed(now + RETRY_AFTER),
        }
        verdict
    }

    /// The identity of an open file, seen again.
    pub fn identified(&mut self, id: FileId, found: Identity, now: Duration) -> Verdict {
        let Some(entry) = self.entries.get_mut(&id) else { return Verdict::Same };
        entry.looked_at = now;
        entry.looking = false;
        judge(entry, &found)
    }

    /// Whether an open found something that the one before had not: a file that stays too short is
    /// tried again and again, and its bytes are in doubt only once.
    pub fn is_news(&mut self, id: FileId, trouble: &Trouble) -> bool {
        let Trouble::Short { found_bytes, .. } = trouble else { return true };
        let Some(entry) = self.entries.get_mut(&id) else { return true };
        entry.short_bytes.replace(*found_bytes) != Some(*found_bytes)
    }

    /// The file can't be used for a while. Returns the reads that waited for it.
    pub fn fail(&mut self, id: FileId, now: Duration) -> VecDeque<Wanted> {
        self.shut(id);
        let Some(entry) = self.entries.get_mut(&id) else { return VecDeque::new() };
        entry.looking = false;
        entry.state = State::Failed(now + RETRY_AFTER);
        entry.place = None;
        entry.tries = 0;
        std::mem::take(&mut entry.waiting)
    }

    /// The file is another one now: the old id is never used again; the new one carries no
    /// identity or stamp, so whatever is opened next is taken as it is (and hashed before use).
    pub fn replace(&mut self, id: FileId, now: Duration) -> VecDeque<Wanted> {
        self.renew(id, State::Failed(now), false).map(|(_, waiting)| waiting).unwrap_or_default()
    }

    /// A file replaced just now is this one.
    pub fn adopt(&mut self, torrent: TorrentId, index: FileIndex, found: Identity) {
        let id = self.torrents.get(&torrent).and_then(|known| known.ids.get(index.0 as usize));
        if let Some(entry) = id.and_then(|id| self.entries.get_mut(id)) {
            entry.identity = Some(found);
        }
    }

    fn renew(&mut self, id: FileId, state: State, same_identity: bool) -> Option<Gone> {
        self.shut(id);
        let old = self.entries.remove(&id)?;
        let entry = Entry {
            state,
            identity: old.identity.filter(|_| same_identity),
            stamp: old.stamp.filter(|_| same_identity),
            looking: false,
            reads: 0,
            waiting: VecDeque::new(),
            is_awaited: false,
            place: None,
            tries: 0,
            ..old
        };
        self.insert(entry, 0);
        Some((id, old.waiting))
    }

    /// Drops the files of a torrent; returns them so that the cache forgets them too.
    pub fn drop_torrent(&mut self, torrent: TorrentId) -> Vec<Gone> {
        let Some(known) = self.torrents.remove(&torrent) else { return Vec::new() };
        let mut gone = Vec::new();
        for id in known.ids.into_iter().filter(|id| *id != NOWHERE) {
            self.shut(id);
            if let Some(entry) = self.entries.remove(&id) {
                gone.push((id, entry.waiting));
            }
        }
        gone
    }

    /// Closes what was not used since `before`.
    pub fn close_unused(&mut self, before: Duration) {
        self.close_down_to(self.open_max, before);
    }

    /// Closes files that nobody reads: what was not used since `before`, and of the rest the
    /// longest unused until `keep` are open.
    fn close_down_to(&mut self, keep: usize, before: Duration) {
        let unread = |id: &FileId| {
            let entry = self.entries.get(id).filter(|entry| entry.reads == 0)?;
            Some((entry.used_at, *id))
        };
        let mut unread: Vec<(Duration, FileId)> = self.open.iter().filter_map(unread).collect();
        unread.sort_unstable();
        for (used_at, id) in unread {
            if used_at >= before && self.open.len() <= keep {
                break;
            }
            self.shut(id);
        }
    }

    /// Closes a file if it is open.
    fn shut(&mut self, id: FileId) {
        if self.open.remove(&id) {
            self.all_busy = false;
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.state = State::Closed;
            }
        }
    }

    /// No open is begun any more; returns all reads that waited for one (shutdown).
    pub fn clear(&mut self) -> Vec<Wanted> {
        let mut waiting = Vec::new();
        while let Some(id) = self.to_open.pop_front() {
            if let Some(entry) = self.entries.get_mut(&id) {
                if matches!(entry.state, State::Queued) {
                    entry.state = State::Closed;
                }
                waiting.extend(entry.waiting.drain(..));
            }
        }
        // Those whose open is in the kernel.
        self.entries.values_mut().for_each(|entry| waiting.extend(entry.waiting.drain(..)));
        waiting
    }
}

/// A number for a change of a file to what it is now: the same on every shard, never 0.
pub fn change_of(index: FileIndex, found: &Identity) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Identity { size_bytes, modified_ns, inode, device, .. } = found;
    (index.0, size_bytes, modified_ns, inode, device).hash(&mut hasher);
    hasher.finish().max(1)
}

fn judge(entry: &Entry, found: &Identity) -> Verdict {
    if found.size_bytes < entry.length_bytes {
        return Verdict::Trouble(Trouble::Short {
            expected_bytes: entry.length_bytes,
            found_bytes: found.size_bytes,
        });
    }
    let same = match (&entry.identity, &entry.stamp) {
        (Some(known), _) if entry.growing => {
            (known.inode, known.device) == (found.inode, found.device)
        }
        (None, _) if entry.growing => true,
        // Change time stays out: a link or a chmod does not change bytes.
        (Some(known), _) => {
            (known.size_bytes, known.modified_ns, known.inode, known.device)
                == (found.size_bytes, found.modified_ns, found.inode, found.device)
        }
        (None, Some(stamp)) => {
            (stamp.size_bytes, stamp.modified_ns) == (found.size_bytes, found.modified_ns)
        }
        (None, None) => true,
    };
    if same { Verdict::Same } else { Verdict::Trouble(Trouble::Changed) }
}

/// The path of a file relative to `/`, which is what the shard opens below. `None`: a NUL in it.
pub(super) fn relative_to_root(path: &Path) -> Option<CString> {
    let bytes = path.as_os_str().as_bytes();
    let relative = bytes.strip_prefix(b"/").unwrap_or(bytes);
    CString::new(relative).ok()
}
