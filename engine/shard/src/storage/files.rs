//! The open files of a shard.
//!
//! Owns: which file of which torrent is open, its identity, and since when it is in trouble.
//! Never: bytes, peers. Flow: `storage` asks for a file; completions of open and identify come back
//! here.
//!
//! A `FileId` stands for one identity of one file: when the file turns out to have changed, it gets
//! a new id, so that no chunk of the old one is ever found again.

use std::{
    collections::HashMap, ffi::CString, os::unix::ffi::OsStrExt, path::Path, time::Duration,
};

use seedring_platform::{descriptors::File, op::Identity};
use seedring_proto::units::FileIndex;

use crate::{
    contract::Trouble,
    mix::Hashed,
    torrent::{Contents, Stamp, TorrentId},
};

/// A file in trouble is left alone for this long before the next attempt.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How old a look at a file's identity may be while it is read.
pub const IDENTITY_AGE_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FileId(pub u32);

pub(super) enum State {
    /// Known, no descriptor (never opened, or closed to spare descriptors).
    Closed,
    Opening,
    Open(File),
    /// Not before this time.
    Failed(Duration),
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
    pub used_at: Duration,
    pub looked_at: Duration,
    pub looking: bool,
    /// Reads that wait for it or are in the kernel: it stays open for them.
    pub reads: u32,
}

/// The table. At most `open_max` descriptors.
pub(super) struct Files {
    by_key: HashMap<(TorrentId, FileIndex), FileId, Hashed>,
    entries: HashMap<FileId, Entry, Hashed>,
    next: u32,
    open: usize,
    open_max: usize,
}

/// What a look at a file's identity says.
#[derive(Debug)]
pub(super) enum Verdict {
    Same,
    Trouble(Trouble),
}

impl Files {
    pub fn new(open_max: usize) -> Self {
        Files {
            by_key: HashMap::default(),
            entries: HashMap::default(),
            next: 0,
            open: 0,
            open_max,
        }
    }

    pub fn open_count(&self) -> usize {
        self.open
    }

    /// The id that a file of a torrent has now.
    pub fn id(&mut self, torrent: TorrentId, contents: &Contents, index: FileIndex) -> FileId {
        if let Some(id) = self.by_key.get(&(torrent, index)) {
            return *id;
        }
        let entry = Entry {
            torrent,
            index,
            length_bytes: contents.layout.files[index.0 as usize].length,
            state: State::Closed,
            identity: None,
            stamp: contents.stamps.get(index.0 as usize).copied().flatten(),
            used_at: Duration::ZERO,
            looked_at: Duration::ZERO,
            looking: false,
            reads: 0,
        };
        self.insert(entry)
    }

    fn insert(&mut self, entry: Entry) -> FileId {
        let id = FileId(self.next);
        self.next = self.next.checked_add(1).expect("invariant: fewer than 2^32 file changes");
        self.by_key.insert((entry.torrent, entry.index), id);
        self.entries.insert(id, entry);
        id
    }

    pub fn get(&mut self, id: FileId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// The descriptor arrived. `Err`: the file is not what the torrent (or control) says.
    pub fn opened(&mut self, id: FileId, file: File, found: Identity, now: Duration) -> Verdict {
        let Some(entry) = self.entries.get_mut(&id) else { return Verdict::Same };
        let verdict = judge(entry, &found);
        entry.looked_at = now;
        match verdict {
            Verdict::Same => {
                entry.identity = Some(found);
                entry.state = State::Open(file);
                self.open += 1;
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

    /// The file can't be used for a while.
    pub fn fail(&mut self, id: FileId, now: Duration) {
        if let Some(entry) = self.entries.get_mut(&id) {
            if matches!(entry.state, State::Open(_)) {
                self.open -= 1;
            }
            entry.looking = false;
            entry.state = State::Failed(now + RETRY_AFTER);
        }
    }

    /// The file is another one now: the old id is never used again; the new one carries no
    /// identity or stamp, so whatever is opened next is taken as it is (and hashed before use).
    pub fn replace(&mut self, id: FileId, now: Duration) {
        let Some(old) = self.entries.remove(&id) else { return };
        if matches!(old.state, State::Open(_)) {
            self.open -= 1;
        }
        self.insert(Entry {
            state: State::Failed(now),
            identity: None,
            stamp: None,
            looking: false,
            reads: 0,
            ..old
        });
    }

    /// Drops the files of a torrent; returns their ids so that the cache forgets them too.
    pub fn drop_torrent(&mut self, torrent: TorrentId) -> Vec<FileId> {
        let ids: Vec<FileId> =
            self.by_key.iter().filter(|(key, _)| key.0 == torrent).map(|(_, id)| *id).collect();
        self.by_key.retain(|key, _| key.0 != torrent);
        for id in &ids {
            if let Some(entry) = self.entries.remove(id)
                && matches!(entry.state, State::Open(_))
            {
                self.open -= 1;
            }
        }
        ids
    }

    /// Closes what was not used since `before`, and more when too much is open.
    pub fn close_unused(&mut self, before: Duration) {
        let mut open: Vec<(Duration, FileId)> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.state, State::Open(_)) && entry.reads == 0)
            .map(|(id, entry)| (entry.used_at, *id))
            .collect();
        open.sort_unstable();
        let over = self.open.saturating_sub(self.open_max * 3 / 4);
        for (at, (used_at, id)) in open.into_iter().enumerate() {
            if used_at >= before && at >= over {
                break;
            }
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.state = State::Closed;
                self.open -= 1;
            }
        }
    }

    pub fn is_full(&self) -> bool {
        self.open >= self.open_max
    }
}

fn judge(entry: &Entry, found: &Identity) -> Verdict {
    if found.size_bytes < entry.length_bytes {
        return Verdict::Trouble(Trouble::Short {
            expected_bytes: entry.length_bytes,
            found_bytes: found.size_bytes,
        });
    }
    let same = match (&entry.identity, &entry.stamp) {
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
